/* Runs the model on the inputs in cases.h (made by check.py) and writes the bytes of the outputs in hexadecimal, a line each. */
#include "board.h"
#include "model.h"

#include "cases.h"

#ifdef __arm__
__attribute__((section(".arena")))
#endif
static uint64_t arena[MODEL_ARENA_BYTES / 8 + 1];

static void write_bytes(const unsigned char *bytes, int64_t count) {
    static const char digits[] = "0123456789abcdef";
    char text[65];
    int64_t i;
    int n = 0;
    for (i = 0; i < count; i++) {
        text[n++] = digits[bytes[i] >> 4];
        text[n++] = digits[bytes[i] & 15];
        if (n == 64 || i + 1 == count) {
            text[n] = 0;
            board_write(text);
            n = 0;
        }
    }
    board_write("\n");
}

int main(void) {
    int i;
    for (i = 0; i < CASES; i++) {
        int32_t status = run_case(i, arena);
        if (status != 0) {
            board_write(model_message(status));
            board_write("\n");
            return 1;
        }
        write_case(i, write_bytes);
    }
    return 0;
}
