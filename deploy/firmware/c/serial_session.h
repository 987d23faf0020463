/* Requests of a host at the other end of a serial line, and the answers: what every measuring program shares.
 *
 * A request is: session (2 bytes), number, operation, and what the operation takes. The answer begins with the same
 * session and number, and the operation with the highest bit set. A request with the session and number of the last one
 * is not carried out again: its answer was lost, and is sent again. HELLO begins a session; a board that was reset knows
 * none and says so. Numbers have their lowest byte first.
 */
#ifndef SERIAL_SESSION_H
#define SERIAL_SESSION_H

#include <stdint.h>

#include "frames.h"

enum { VERSION = 1, CHUNK = 240 };
enum operation { HELLO = 1, WRITE, RUN, READ, STACK, LAYERS, LAYER, SPIN, SELECT, CHECK, RESET };
enum outcome { GOOD, STATUS, PAST_OUTPUT, PAST_ARENA, SMALL_STACK, REFUSED };

/* What a program says of itself in its answer to HELLO. */
struct greeting {
  uint64_t build_id, known; /* known: what its stopwatch counted for the loop whose instructions are known */
  uint32_t input_bytes, output_bytes, arena_bytes, calls;
  const char *name;
};

/* The program's own: what it says, and each operation but SPIN and RESET; 0 for one that it does not know. */
void greet(struct greeting *greeting);
int carry_out(enum operation operation, uint8_t *data, uint32_t bytes);

/* Put something behind the answer so far, which begins with its header. */
void put(uint64_t number, uint32_t bytes);
void put_outcome(enum outcome outcome, uint32_t detail, uint64_t count);

/* Room for so many bytes behind the answer so far, which then belong to it. */
uint8_t *put_room(uint32_t bytes);

static inline uint32_t number_at(const uint8_t *data) {
  return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}

#endif
