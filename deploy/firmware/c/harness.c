/* Runs a model on samples from a file and tells the host what came out and what it cost.
 *
 * Compiled for one model: MODEL_RUN is its `run`, MODEL_MACRO what its macros begin with. The file "inputs" holds the
 * inputs of one sample after the other, "outputs" gets their outputs, and "answer" gets lines of a word and numbers in
 * hexadecimal, the last of them "done"; one that begins with "error" is a sentence. Without a sample the model runs once,
 * on zeros. With MODEL_LAYERS defined it measures each call of a kernel instead of the whole.
 */
#include <string.h>

#include "hook.h"
#include "memory.h"
#include "model.h"
#include "semihosting.h"
#include "stopwatch.h"

#define PASTE(a, b) PASTE_(a, b)
#define PASTE_(a, b) a##b
#define INPUTS PASTE(MODEL_MACRO, _INPUTS)
#define OUTPUTS PASTE(MODEL_MACRO, _OUTPUTS)
#define ARENA_BYTES PASTE(MODEL_MACRO, _ARENA_BYTES)
#define ARENA_ALIGNMENT PASTE(MODEL_MACRO, _ARENA_ALIGNMENT)

#if defined(__riscv)
#define MOVE "mv"
#else
#define MOVE "mov"
#endif

enum { GUARD = 8, GUARD_BYTE = 0xA5, SPARE_WORDS = 32 };

/* The guards behind what the model writes must stay as they are. */
#define INPUT(type, name, count) static type in_##name[count];
#define OUTPUT(type, name, count) static type out_##name[(count) + GUARD];
INPUTS(INPUT)
OUTPUTS(OUTPUT)
static unsigned char arena[ARENA_BYTES + GUARD] __attribute__((aligned(ARENA_ALIGNMENT)));

static int32_t answer = -1;

static void say(const char *text) {
  uint32_t length = 0;
  while (text[length] != '\0') ++length;
  (void)host_write(answer, text, length);
}

static void say_number(uint64_t number) {
  char text[18], *at = text + sizeof text;
  *--at = '\0';
  do {
    *--at = "0123456789abcdef"[number & 15u];
    number >>= 4;
  } while (number != 0u);
  *--at = ' ';
  say(at);
}

static void say_fact(const char *name, uint64_t number) {
  say(name);
  say_number(number);
  say("\n");
}

__attribute__((noreturn)) static void fail(const char *sentence) {
  say("error ");
  say(sentence);
  say("\n");
  host_exit(1);
}

void report_fault(const char *name, const uint32_t *words, uint32_t count) {
  if (answer < 0) answer = host_open("answer", HOST_WRITE);
  say("fault");
  for (uint32_t i = 0; i < count; ++i) say_number(words[i]);
  say(" ");
  say(name);
  say("\n");
  host_exit(1);
}

__attribute__((noinline)) static int32_t infer(void) {
#define PASS_INPUT(type, name, count) in_##name,
#define PASS_OUTPUT(type, name, count) out_##name,
  return MODEL_RUN(INPUTS(PASS_INPUT) OUTPUTS(PASS_OUTPUT) arena, ARENA_BYTES);
}

static void fill(void *data, uint32_t bytes) { memset(data, GUARD_BYTE, bytes); }

static void check(const void *data, uint32_t bytes, const char *sentence) {
  for (uint32_t i = 0; i < bytes; ++i)
    if (((const unsigned char *)data)[i] != GUARD_BYTE) fail(sentence);
}

static void guard(void) {
#define FILL(type, name, count) fill(out_##name + (count), GUARD * sizeof(type));
  OUTPUTS(FILL)
  fill(arena + ARENA_BYTES, GUARD);
}

static void check_guards(void) {
#define CHECK(type, name, count) check(out_##name + (count), GUARD * sizeof(type), past_output);
  static const char past_output[] = "the model wrote past the end of an output";
  OUTPUTS(CHECK)
  check(arena + ARENA_BYTES, GUARD, "the model wrote past the end of its arena");
}

static void check_status(int32_t status) {
  if (status == 0) return;
  say_fact("status", (uint32_t)status);
  host_exit(1);
}

/* Whether another sample came from the file. */
static int next_sample(int32_t file) {
  uint32_t missing = 0, bytes = 0;
#define READ(type, name, count)                                                    \
  missing += sizeof in_##name - host_read(file, in_##name, sizeof in_##name); \
  bytes += sizeof in_##name;
  INPUTS(READ)
  if (missing == 0u) return 1;
  if (missing != bytes) fail("the samples are not of the size of the model's inputs");
  return 0;
}

static uint64_t overhead;

static uint64_t timed(void (*work)(void)) {
  struct mark from, to;
  stopwatch_mark(&from);
  work();
  stopwatch_mark(&to);
  return stopwatch_between(&from, &to);
}

static void nothing(void) { __asm__ volatile(""); }

#if defined(MODEL_LAYERS)
static struct mark last;
static uint64_t hook_overhead;

void harness_after(uint32_t call) {
  struct mark now;
  stopwatch_mark(&now);
  const uint64_t cost = stopwatch_between(&last, &now);
  if (call == UINT32_MAX)
    hook_overhead = cost;
  else
    say_fact("layer", cost - hook_overhead);
  stopwatch_mark(&last);
}

/* The cost of each call of a kernel, for the first sample. */
static void measure(int32_t inputs, int32_t outputs, int more) {
  (void)inputs;
  (void)outputs;
  (void)more;
  harness_after(UINT32_MAX);
  harness_after(UINT32_MAX);
  check_status(infer());
  check_guards();
}
#else
/* Bytes of stack that an inference takes, found by painting what is free of it. */
static void measure_stack(void) {
  const uint32_t paint = 0xA5A5A5A5u;
  uint32_t *here;
  __asm__ volatile(MOVE " %0, sp" : "=r"(here));
  for (uint32_t *word = stack_limit; word < here; ++word) *(volatile uint32_t *)word = paint;
  check_status(infer());
  uint32_t *word = stack_limit;
  while (word < here && *(volatile uint32_t *)word == paint) ++word;
  if (word < stack_limit + SPARE_WORDS) fail("the stack is too small: almost no RAM is left for it");
  say_fact("stack", (uint32_t)((unsigned char *)here - (unsigned char *)word));
}

static void give_outputs(int32_t file) {
#define WRITE(type, name, count)                                                              \
  if (host_write(file, out_##name, (count) * sizeof(type)) != (count) * sizeof(type)) \
    fail("the outputs cannot be written: is the disk full?");
  OUTPUTS(WRITE)
}

static uint64_t measure_inference(void) {
  struct mark from, to;
  stopwatch_mark(&from);
  const int32_t status = infer();
  stopwatch_mark(&to);
  check_status(status);
  return stopwatch_between(&from, &to) - overhead;
}

/* The cost of a whole inference, and its outputs, for each sample. */
static void measure(int32_t inputs, int32_t outputs, int more) {
  stopwatch_stop(); /* its exception would need stack too */
  measure_stack();
  check_guards();
  stopwatch_start();
  do {
    say_fact("instructions", measure_inference());
    check_guards();
    if (!more) return;
    give_outputs(outputs);
    more = next_sample(inputs);
  } while (more);
}
#endif

static void harness(void) {
  answer = host_open("answer", HOST_WRITE);
  const int32_t inputs = host_open("inputs", HOST_READ), outputs = host_open("outputs", HOST_WRITE);
  if (answer < 0 || inputs < 0 || outputs < 0) fail("the host's files cannot be opened");
  const int more = next_sample(inputs);
  guard();
  stopwatch_start();
  overhead = timed(nothing);
  say_fact("known", timed(stopwatch_known) - overhead);
  measure(inputs, outputs, more);
  stopwatch_stop();
  host_close(outputs);
  say_fact("done", 1u);
  host_close(answer);
  host_exit(0);
}

void start(void) {
  const uint32_t *image = data_image;
  for (uint32_t *word = data_start; word < data_end;) *word++ = *image++;
  for (uint32_t *word = bss_start; word < bss_end;) *word++ = 0u;
  harness();
  host_exit(0);
}
