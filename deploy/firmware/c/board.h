/* What the measuring program needs of a board: a serial line, and that is all.
 *
 * The functions in board.c are weak: define yours in files of your own and name those files in the target's device,
 * `board: [my_board.c]`. They are compiled with BOARD_CLOCK_HZ and BOARD_BAUD, the target's clock and line speed.
 */
#ifndef BOARD_H
#define BOARD_H

#include <stdint.h>

/* Called once, first: set the clock that the target names, the pins and the line (8 bits, no parity, 1 stop bit). */
void board_init(void);

/* Send a byte; wait while there is no room for it. */
void board_putc(uint8_t byte);

/* The next byte that came, or -1 at once where none did. */
int32_t board_getc(void);

/* Called with 1 right before an inference and with 0 right after it: set a pin that a power meter watches, if there is one. */
void board_mark(int on);

/* Start again from reset. */
__attribute__((noreturn)) void board_reset(void);

#endif
