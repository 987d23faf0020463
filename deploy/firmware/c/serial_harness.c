/* Runs a model for a host at the other end of a serial line.
 *
 * Compiled for one model, see buffers.h; MODEL_NAME and BUILD_ID are what it calls itself. With MODEL_LAYERS_RUN, a second
 * copy of the call sequence that calls harness_after, it can measure each of the MODEL_CALLS calls of a kernel.
 * COUNTS_INSTRUCTIONS: the stopwatch counts them, not cycles. OWN_START: it begins at reset, and the stack reaches down
 * to stack_limit.
 *
 * A request is: session (2 bytes), number, operation, and what the operation takes. The answer begins with the same
 * session and number, and the operation with the highest bit set. A request with the session and number of the last one
 * is not carried out again: its answer was lost, and is sent again. HELLO begins a session; a board that was reset knows
 * none and says so. Numbers have their lowest byte first.
 */
#include "serial_harness.h"

#include "board.h"
#include "buffers.h"
#include "frames.h"
#include "hook.h"

#if !defined(MODEL_CALLS)
#define MODEL_CALLS 0
#endif

enum { VERSION = 1, HEADER = 4, CHUNK = 240 };
enum operation { HELLO = 1, WRITE, RUN, READ, STACK, LAYERS, LAYER, SPIN };
enum { ANSWER = 0x80, NO_SESSION = 0xFE, FAULT = 0xFF };
enum outcome { GOOD, STATUS, PAST_OUTPUT, PAST_ARENA, SMALL_STACK, REFUSED };

struct part {
  void *data;
  uint32_t bytes;
};
#define IN_PART(type, name, count) {in_##name, sizeof in_##name},
#define OUT_PART(type, name, count) {out_##name, (uint32_t)((count) * sizeof(type))},
static const struct part inputs[] = {INPUTS(IN_PART)}, outputs[] = {OUTPUTS(OUT_PART)};
#define COUNT(parts) ((uint32_t)(sizeof parts / sizeof *parts))

static uint8_t request[FRAME_BYTES], answer[FRAME_BYTES];
static uint32_t answer_length, session;
static uint64_t overhead;

static uint32_t number_at(const uint8_t *data) {
  return data[0] | (uint32_t)data[1] << 8 | (uint32_t)data[2] << 16 | (uint32_t)data[3] << 24;
}

static void put(uint64_t number, uint32_t bytes) {
  for (uint32_t i = 0; i < bytes; ++i) answer[answer_length++] = (uint8_t)(number >> (8u * i));
}

static void put_text(const char *text) {
  while (*text != '\0' && answer_length < FRAME_BYTES - FRAME_CRC) answer[answer_length++] = (uint8_t)*text++;
}

static void begin_answer(uint8_t operation) {
  memcpy(answer, request, HEADER);
  answer[HEADER - 1] = operation;
  answer_length = HEADER;
}

static void put_outcome(enum outcome outcome, uint32_t detail, uint64_t count) {
  put(outcome, 1);
  put(detail, 4);
  put(count, 8);
}

void report_fault(const char *name, const uint32_t *words, uint32_t count) {
  for (;;) {
    begin_answer(FAULT);
    put(count, 1);
    for (uint32_t i = 0; i < count; ++i) put(words[i], 4);
    put_text(name);
    frame_send(answer, answer_length);
    (void)frame_receive(request);
    if (request[HEADER - 1] == HELLO) board_reset();
  }
}

static uint32_t bytes_of(const struct part *parts, uint32_t count) {
  uint32_t bytes = 0;
  for (uint32_t i = 0; i < count; ++i) bytes += parts[i].bytes;
  return bytes;
}

/* Copy between `data` and the bytes from `offset` of all parts one after the other; whether there are so many. */
static int copy(const struct part *parts, uint32_t count, uint32_t offset, uint8_t *data, uint32_t bytes, int to_parts) {
  const uint32_t all = bytes_of(parts, count);
  if (offset > all || bytes > all - offset) return 0;
  for (uint32_t i = 0; i < count && bytes > 0u; ++i) {
    if (offset >= parts[i].bytes) {
      offset -= parts[i].bytes;
      continue;
    }
    const uint32_t left = parts[i].bytes - offset, now = bytes < left ? bytes : left;
    uint8_t *place = (uint8_t *)parts[i].data + offset;
    memcpy(to_parts ? place : data, to_parts ? data : place, now);
    data += now;
    bytes -= now;
    offset = 0;
  }
  return 1;
}

static void put_result(int32_t status, uint64_t count) {
  if (status != 0)
    put_outcome(STATUS, (uint32_t)status, 0);
  else if (!outputs_kept())
    put_outcome(PAST_OUTPUT, 0, 0);
  else if (!arena_kept())
    put_outcome(PAST_ARENA, 0, 0);
  else
    put_outcome(GOOD, 0, count);
  guard();
}

static void run(void) {
  struct mark from, to;
  stopwatch_start();
  stopwatch_mark(&from);
  const int32_t status = infer();
  stopwatch_mark(&to);
  stopwatch_stop();
  put_result(status, stopwatch_between(&from, &to) - overhead);
}

static void measure_stack(void) {
#if defined(OWN_START)
  int32_t status;
  const uint32_t used = stack_used(&status);
  if (used == NO_STACK)
    put_outcome(SMALL_STACK, 0, 0);
  else
    put_result(status, used);
#else
  put_outcome(REFUSED, 0, 0);
#endif
}

#if defined(MODEL_LAYERS_RUN)
extern __typeof__(MODEL_RUN) MODEL_LAYERS_RUN;
static struct mark last;
static uint64_t hook_overhead, layers[MODEL_CALLS];

void harness_after(uint32_t call) {
  struct mark now;
  stopwatch_mark(&now);
  const uint64_t cost = stopwatch_between(&last, &now);
  if (call < MODEL_CALLS)
    layers[call] = cost > hook_overhead ? cost - hook_overhead : 0u;
  else
    hook_overhead = cost;
  stopwatch_mark(&last);
}

static void measure_layers(void) {
  stopwatch_start();
  harness_after(UINT32_MAX);
  harness_after(UINT32_MAX);
  const int32_t status = MODEL_LAYERS_RUN(ARGUMENTS);
  stopwatch_stop();
  put_result(status, MODEL_CALLS);
}

static void put_layer(uint32_t number) { put(number < MODEL_CALLS ? layers[number] : 0u, 8); }
#else
static void measure_layers(void) { put_outcome(REFUSED, 0, 0); }

static void put_layer(uint32_t number) {
  (void)number;
  put(0, 8);
}
#endif

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

static void greet(void) {
  session = request[0] | (uint32_t)request[1] << 8;
#define CLEAR(type, name, count) memset(in_##name, 0, sizeof in_##name);
  INPUTS(CLEAR)
  guard();
  stopwatch_start();
  overhead = timed(nothing);
  const uint64_t known = timed(stopwatch_known) - overhead;
  stopwatch_stop();
  put(VERSION, 1);
#if defined(COUNTS_INSTRUCTIONS)
  put(1, 1);
#else
  put(0, 1);
#endif
  put(BUILD_ID, 8);
  put(bytes_of(inputs, COUNT(inputs)), 4);
  put(bytes_of(outputs, COUNT(outputs)), 4);
  put(ARENA_BYTES, 4);
  put(MODEL_CALLS, 4);
  put(known, 8);
  put_text(MODEL_NAME);
}

/* Carry out the request, whose `data` are `bytes` long; the answer has its header already. */
static void carry_out(uint8_t *data, uint32_t bytes) {
  const uint32_t first = bytes >= 4u ? number_at(data) : 0u;
  switch (request[HEADER - 1]) {
    case HELLO: greet(); break;
    case WRITE:
      put(bytes >= 4u && copy(inputs, COUNT(inputs), first, data + 4, bytes - 4u, 1) ? GOOD : REFUSED, 1);
      break;
    case RUN: run(); break;
    case READ:
      put(GOOD, 1);
      if (bytes < 5u || data[4] > CHUNK || !copy(outputs, COUNT(outputs), first, answer + answer_length, data[4], 0))
        answer[HEADER] = REFUSED;
      else
        answer_length += data[4];
      break;
    case STACK: measure_stack(); break;
    case LAYERS: measure_layers(); break;
    case LAYER: put_layer(first); break;
    case SPIN: spin(first); break;
    default: put(REFUSED, 1); break;
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
        carry_out(request + HEADER, length - HEADER);
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
