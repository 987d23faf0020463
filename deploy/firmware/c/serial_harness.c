/* Runs a model for a host at the other end of a serial line, which asks as serial_session.h says.
 *
 * Compiled for one model, see buffers.h; MODEL_NAME and BUILD_ID are what it calls itself. With MODEL_LAYERS_RUN, a second
 * copy of the call sequence that calls harness_after, it can measure each of the MODEL_CALLS calls of a kernel.
 * OWN_START: the stack reaches down to stack_limit.
 */
#include "serial_harness.h"

#include "board.h"
#include "buffers.h"
#include "hook.h"
#include "serial_session.h"

#if !defined(MODEL_CALLS)
#define MODEL_CALLS 0
#endif

struct part {
  void *data;
  uint32_t bytes;
};
#define IN_PART(type, name, count) {in_##name, sizeof in_##name},
#define OUT_PART(type, name, count) {out_##name, (uint32_t)((count) * sizeof(type))},
static const struct part inputs[] = {INPUTS(IN_PART)}, outputs[] = {OUTPUTS(OUT_PART)};
#define COUNT(parts) ((uint32_t)(sizeof parts / sizeof *parts))

static uint64_t overhead;

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
  board_mark(1);
  stopwatch_mark(&from);
  const int32_t status = infer();
  stopwatch_mark(&to);
  board_mark(0);
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

void greet(struct greeting *greeting) {
#define CLEAR(type, name, count) memset(in_##name, 0, sizeof in_##name);
  INPUTS(CLEAR)
  guard();
  stopwatch_start();
  overhead = timed(nothing);
  greeting->known = timed(stopwatch_known) - overhead;
  stopwatch_stop();
  greeting->build_id = BUILD_ID;
  greeting->input_bytes = bytes_of(inputs, COUNT(inputs));
  greeting->output_bytes = bytes_of(outputs, COUNT(outputs));
  greeting->arena_bytes = ARENA_BYTES;
  greeting->calls = MODEL_CALLS;
  greeting->name = MODEL_NAME;
}

int carry_out(enum operation operation, uint8_t *data, uint32_t bytes) {
  const uint32_t first = bytes >= 4u ? number_at(data) : 0u;
  switch (operation) {
    case WRITE:
      put(bytes >= 4u && copy(inputs, COUNT(inputs), first, data + 4, bytes - 4u, 1) ? GOOD : REFUSED, 1);
      return 1;
    case READ:
      if (bytes < 5u || data[4] > CHUNK || first > bytes_of(outputs, COUNT(outputs))) return 0;
      if (data[4] > bytes_of(outputs, COUNT(outputs)) - first) return 0;
      put(GOOD, 1);
      return copy(outputs, COUNT(outputs), first, put_room(data[4]), data[4], 0);
    case RUN: run(); return 1;
    case STACK: measure_stack(); return 1;
    case LAYERS: measure_layers(); return 1;
    case LAYER: put_layer(first); return 1;
    default: return 0;
  }
}
