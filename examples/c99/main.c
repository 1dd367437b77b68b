/* Says which letter an image shows: ./glyphs sample.npy labels.txt */
#include <stdio.h>
#include <string.h>

#include "glyphs.h"

static uint64_t arena[GLYPHS_ARENA_BYTES / 8 + 1];

int main(int count, char **names) {
    float image[GLYPHS_IN_INPUT_COUNT], logits[GLYPHS_OUT_LOGITS_COUNT];
    glyphs_inputs inputs;
    glyphs_outputs outputs;
    char label[64] = "";
    int32_t status;
    int i, best = 0;

    /* The elements are at the end of an .npy file. */
    FILE *file = count == 3 ? fopen(names[1], "rb") : NULL;
    if (file == NULL || fseek(file, -(long)sizeof image, SEEK_END) != 0 || fread(image, sizeof image, 1, file) != 1) {
        fprintf(stderr, "usage: glyphs IMAGE.npy LABELS.txt\n");
        return 2;
    }
    fclose(file);

    inputs.input = image;
    outputs.logits = logits;
    status = glyphs_run(&inputs, &outputs, arena);
    if (status != 0) {
        fprintf(stderr, "%s\n", glyphs_message(status));
        return 1;
    }

    for (i = 1; i < GLYPHS_OUT_LOGITS_COUNT; i++) {
        if (logits[i] > logits[best]) best = i;
    }
    file = fopen(names[2], "r");
    for (i = 0; file != NULL && i <= best && fgets(label, sizeof label, file) != NULL; i++) {
    }
    fputs(label, stdout);
    return 0;
}
