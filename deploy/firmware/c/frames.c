#include "frames.h"

#include "board.h"

uint32_t frame_crc(const uint8_t *data, uint32_t length) {
  uint32_t crc = 0xFFFFFFFFu;
  for (uint32_t i = 0; i < length; ++i) {
    crc ^= data[i];
    for (uint32_t bit = 0; bit < 8u; ++bit) crc = (crc >> 1) ^ (crc & 1u ? 0xEDB88320u : 0u);
  }
  return ~crc;
}

/* Decode in place; the length, or 0 where the codes lead past the end. */
static uint32_t decoded(uint8_t *data, uint32_t length) {
  uint32_t from = 0, to = 0;
  while (from < length) {
    const uint32_t code = data[from++];
    if (from + code - 1u > length) return 0;
    for (uint32_t i = 1; i < code; ++i) data[to++] = data[from++];
    if (from < length) data[to++] = 0;
  }
  return to;
}

static uint8_t next_byte(void) {
  for (;;) {
    const int32_t byte = board_getc();
    if (byte >= 0) return (uint8_t)byte;
  }
}

uint32_t frame_receive(uint8_t *content) {
  static uint8_t encoded[FRAME_BYTES + 1];
  for (;;) {
    uint32_t length = 0;
    for (uint8_t byte = next_byte(); byte != 0u; byte = next_byte()) {
      if (length < sizeof encoded) encoded[length] = byte;
      if (length <= sizeof encoded) ++length; /* one more means that it is too long */
    }
    if (length == 0u || length > sizeof encoded) continue;
    length = decoded(encoded, length);
    if (length <= FRAME_CRC) continue;
    length -= FRAME_CRC;
    const uint32_t crc = frame_crc(encoded, length);
    uint32_t differing = 0;
    for (uint32_t i = 0; i < FRAME_CRC; ++i) differing |= encoded[length + i] ^ ((crc >> (8u * i)) & 0xFFu);
    if (differing) continue;
    for (uint32_t i = 0; i < length; ++i) content[i] = encoded[i];
    return length;
  }
}

void frame_send(uint8_t *content, uint32_t length) {
  const uint32_t crc = frame_crc(content, length);
  for (uint32_t i = 0; i < FRAME_CRC; ++i) content[length + i] = (uint8_t)(crc >> (8u * i));
  length += FRAME_CRC;
  board_putc(0); /* ends what may be on the line */
  for (uint32_t from = 0; from <= length;) {
    uint32_t to = from;
    while (to < length && content[to] != 0u) ++to;
    board_putc((uint8_t)(to - from + 1u));
    for (; from < to; ++from) board_putc(content[from]);
    ++from;
  }
  board_putc(0);
}
