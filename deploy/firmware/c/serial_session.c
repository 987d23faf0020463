/* With COUNTS_INSTRUCTIONS the stopwatch counts them, not cycles; with OWN_START the program begins at reset. */
#include "serial_session.h"

#include <string.h>

#include "board.h"
#include "memory.h"
#include "serial_harness.h"
#include "stopwatch.h"

enum { HEADER = 4 };
enum { ANSWER = 0x80, NO_SESSION = 0xFE, FAULT = 0xFF };

static uint8_t request[FRAME_BYTES], answer[FRAME_BYTES];
static uint32_t answer_length, session;

void put(uint64_t number, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; ++i) answer[answer_length++] = (uint8_t)(number >> (8u * i));
}

static void put_text(const char *text) {
  while (*text != '\0' && answer_length < FRAME_BYTES - FRAME_CRC) answer[answer_length++] = (uint8_t)*text++;
}

void put_outcome(enum outcome outcome, uint32_t detail, uint64_t count) {
  put(outcome, 1);
  put(detail, 4);
  put(count, 8);
}

uint8_t *put_room(uint32_t bytes) {
  answer_length += bytes;
  return answer + answer_length - bytes;
}

static void begin_answer(uint8_t operation) {
  memcpy(answer, request, HEADER);
  answer[HEADER - 1] = operation;
  answer_length = HEADER;
}

void report_fault(const char *name, const uint32_t *words, uint32_t count) {
  for (;;) {
    begin_answer(FAULT);
    put(count, 1);
    for (uint32_t i = 0; i < count; ++i) put(words[i], 4);
    put_text(name);
    frame_send(answer, answer_length);
    (void)frame_receive(request);
    if (request[HEADER - 1] == HELLO || request[HEADER - 1] == RESET) board_reset();
  }
}

/* Take so many counts of the stopwatch, for a host with a clock. */
static void spin(uint32_t count) {
  struct mark from, now;
  stopwatch_start();
  stopwatch_mark(&from);
  do stopwatch_mark(&now);
  while (stopwatch_between(&from, &now) < count);
  stopwatch_stop();
  put_outcome(GOOD, 0, stopwatch_between(&from, &now));
}

static void say_hello(void) {
  struct greeting greeting;
  session = request[0] | (uint32_t)request[1] << 8;
  greet(&greeting);
  put(VERSION, 1);
#if defined(COUNTS_INSTRUCTIONS)
  put(1, 1);
#else
  put(0, 1);
#endif
  put(greeting.build_id, 8);
  put(greeting.input_bytes, 4);
  put(greeting.output_bytes, 4);
  put(greeting.arena_bytes, 4);
  put(greeting.calls, 4);
  put(greeting.known, 8);
  put_text(greeting.name);
}

/* Carry out the request, whose `data` are `bytes` long; the answer has its header already. */
static void obey(uint8_t *data, uint32_t bytes) {
  switch (request[HEADER - 1]) {
    case HELLO: say_hello(); break;
    case SPIN: spin(bytes >= 4u ? number_at(data) : 0u); break;
    case RESET: board_reset();
    default:
      if (!carry_out((enum operation)request[HEADER - 1], data, bytes)) put(REFUSED, 1);
      break;
  }
}

void harness_serve(void) {
  memset(answer, 0, HEADER);
  for (;;) {
    const uint32_t length = frame_receive(request);
    if (length < HEADER) continue;
    const uint32_t asked = request[0] | (uint32_t)request[1] << 8;
    const uint8_t operation = request[HEADER - 1];
    const int again = session != 0u && memcmp(request, answer, HEADER - 1) == 0 && answer[HEADER - 1] == (operation | ANSWER);
    if (!again) {
      begin_answer(operation | ANSWER);
      if (operation == HELLO || asked == session)
        obey(request + HEADER, length - HEADER);
      else
        answer[HEADER - 1] = NO_SESSION;
    }
    frame_send(answer, answer_length);
  }
}

#if defined(OWN_START)
void start(void) {
  const uint32_t *image = data_image;
  for (uint32_t *word = data_start; word < data_end;) *word++ = *image++;
  for (uint32_t *word = bss_start; word < bss_end;) *word++ = 0u;
  board_init();
  harness_serve();
}
#endif
