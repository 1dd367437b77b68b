/* What main.c needs of the computer that it runs on. */
#ifndef BOARD_H
#define BOARD_H

void board_write(const char *text);
void board_exit(int status);

#endif
