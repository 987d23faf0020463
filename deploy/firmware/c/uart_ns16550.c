/* A UART like National's 16550 with registers of a byte: compile with -DUART_AT=address and -DUART_CLOCK_HZ=hertz, its
 * clock. */
#include "board.h"

#if !defined(UART_AT) || !defined(UART_CLOCK_HZ)
#error "say where the UART is and what its clock is, such as -DUART_AT=0x10000000 -DUART_CLOCK_HZ=3686400"
#endif

#define REGISTER(number) (((volatile uint8_t *)UART_AT)[number])

enum { DATA = 0, INTERRUPTS = 1, FIFO = 2, FORMAT = 3, STATE = 5 };
enum { EIGHT_BITS = 0x03, DIVIDER = 0x80, FIFO_ON_AND_EMPTY = 0x07, RECEIVED = 0x01, SEND_EMPTY = 0x20 };

void board_init(void) {
  const uint32_t divider = UART_CLOCK_HZ / (16u * BOARD_BAUD);
  REGISTER(INTERRUPTS) = 0;
  REGISTER(FORMAT) = DIVIDER | EIGHT_BITS;
  REGISTER(DATA) = (uint8_t)(divider ? divider : 1u);
  REGISTER(INTERRUPTS) = (uint8_t)(divider >> 8);
  REGISTER(FORMAT) = EIGHT_BITS;
  REGISTER(FIFO) = FIFO_ON_AND_EMPTY;
}

void board_putc(uint8_t byte) {
  while (!(REGISTER(STATE) & SEND_EMPTY)) {
  }
  REGISTER(DATA) = byte;
}

int32_t board_getc(void) { return REGISTER(STATE) & RECEIVED ? (int32_t)REGISTER(DATA) : -1; }
