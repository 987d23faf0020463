/* Frames on a serial line: whole, or not there at all.
 *
 * A frame's content and its CRC-32 (as in Ethernet, lowest byte first) are encoded by COBS, which leaves no byte zero,
 * and stand between zeros. Whatever was garbled, lost or said by somebody else ends at the next zero.
 */
#ifndef FRAMES_H
#define FRAMES_H

#include <stdint.h>

enum { FRAME_CRC = 4, FRAME_BYTES = 253 }; /* of the CRC, and of a content with it at most: one code for COBS */

/* Wait for the next frame that is whole, and put it into `content`, of FRAME_BYTES; its length without the CRC. */
uint32_t frame_receive(uint8_t *content);

/* Send `length` bytes of `content`, at most FRAME_BYTES - FRAME_CRC; the CRC is put behind them. */
void frame_send(uint8_t *content, uint32_t length);

/* CRC-32 of any data. */
uint32_t frame_crc(const uint8_t *data, uint32_t length);

#endif
