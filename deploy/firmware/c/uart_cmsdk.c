/* The UART of Arm's CMSDK, as in the MPS2 and MPS3 boards: compile with -DUART_AT=address, and with -DUART_CLOCK_HZ=hertz
 * where its clock is not the processor's. */
#include "board.h"

#if !defined(UART_AT)
#error "say where the UART is, such as -DUART_AT=0x40004000"
#endif
#if !defined(UART_CLOCK_HZ)
#define UART_CLOCK_HZ BOARD_CLOCK_HZ
#endif

struct uart {
  volatile uint32_t data, state, control, interrupts, divider;
};

#define UART ((struct uart *)UART_AT)

enum { SEND_FULL = 1, RECEIVED = 2, SEND_AND_RECEIVE = 3, LEAST_DIVIDER = 16 };

void board_init(void) {
  const uint32_t divider = UART_CLOCK_HZ / BOARD_BAUD;
  UART->divider = divider < LEAST_DIVIDER ? LEAST_DIVIDER : divider;
  UART->control = SEND_AND_RECEIVE;
}

void board_putc(uint8_t byte) {
  while (UART->state & SEND_FULL) {
  }
  UART->data = byte;
}

int32_t board_getc(void) { return UART->state & RECEIVED ? (int32_t)(UART->data & 0xFFu) : -1; }
