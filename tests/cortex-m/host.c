/* The same functions as startup.c on a computer with an operating system. */
#include <stdio.h>
#include <stdlib.h>

#include "board.h"

void board_write(const char *text) {
    fputs(text, stdout);
}

void board_exit(int status) {
    exit(status);
}
