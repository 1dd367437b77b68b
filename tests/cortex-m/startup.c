/* Start of a program on the Cortex-M7 of QEMU's machine mps2-an500, and its way to the world: semihosting.
 * The loader puts code, constants and data in their places; what is left is the FPU, memory of zeros, and main. */
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "board.h"

extern unsigned char zeros_begin[], zeros_end[], stack_top[];
int main(void);
void reset(void);
static void fault(void);

__attribute__((section(".vectors"), used)) static const struct {
    unsigned char *stack;
    void (*handlers[15])(void);
} vectors = {stack_top, {reset, fault, fault, fault, fault, fault}};

static uintptr_t semihost(uintptr_t operation, const void *argument) {
    register uintptr_t r0 __asm__("r0") = operation;
    register const void *r1 __asm__("r1") = argument;
    __asm__ volatile("bkpt 0xab" : "+r"(r0) : "r"(r1) : "memory");
    return r0;
}

void board_write(const char *text) {
    semihost(0x04, text);
}

void board_exit(int status) {
    uintptr_t block[2];
    block[0] = 0x20026; /* the application ends */
    block[1] = (uintptr_t)status;
    semihost(0x20, block);
    for (;;) {
    }
}

static void fault(void) {
    board_write("fault\n");
    board_exit(99);
}

void reset(void) {
    *(volatile uint32_t *)0xe000ed88u |= 0xfu << 20; /* the FPU may be used */
    __asm__ volatile("dsb\n isb");
    memset(zeros_begin, 0, (size_t)(zeros_end - zeros_begin));
    board_exit(main());
}
