/* The UART of Nordic's nRF51 and nRF52: compile with -DTX_PIN=number and -DRX_PIN=number, such as 6 and 8 on the
 * nRF52840 DK, 24 and 25 on the first BBC micro:bit. */
#include "board.h"

#if !defined(TX_PIN) || !defined(RX_PIN)
#error "say which pins the line is on, such as -DTX_PIN=6 -DRX_PIN=8"
#endif

#define CLOCK(offset) (*(volatile uint32_t *)(0x40000000u + (offset)))
#define UART(offset) (*(volatile uint32_t *)(0x40002000u + (offset)))

enum { START_CRYSTAL = 0x000, START_RECEIVING = 0x000, START_SENDING = 0x008, RECEIVED = 0x108, SENT = 0x11C };
enum { ENABLE = 0x500, PIN_TX = 0x50C, PIN_RX = 0x514, RECEIVE = 0x518, SEND = 0x51C, BAUD = 0x524, ENABLED = 4 };

static int sending;

void board_init(void) {
  CLOCK(START_CRYSTAL) = 1; /* the processor runs without it, but too inexactly for a line */
  UART(PIN_TX) = TX_PIN;
  UART(PIN_RX) = RX_PIN;
  /* Of 16 MHz, in steps of 2^-32, which Nordic rounds to multiples of 4096. */
  UART(BAUD) = (uint32_t)((((uint64_t)BOARD_BAUD << 32) / 16000000u + 2048u) & ~(uint64_t)4095u);
  UART(ENABLE) = ENABLED;
  UART(START_SENDING) = 1;
  UART(START_RECEIVING) = 1;
}

void board_putc(uint8_t byte) {
  while (sending && !UART(SENT)) {
  }
  UART(SENT) = 0;
  UART(SEND) = byte;
  sending = 1;
}

int32_t board_getc(void) {
  if (!UART(RECEIVED)) return -1;
  UART(RECEIVED) = 0;
  return (int32_t)(UART(RECEIVE) & 0xFFu);
}
