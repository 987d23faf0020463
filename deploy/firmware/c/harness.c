/* Runs a model on samples from a file and tells the host what came out and what it cost.
 *
 * Compiled for one model, see buffers.h. The file "inputs" holds the inputs of one sample after the other, "outputs" gets
 * their outputs, and "answer" gets lines of a word and numbers in hexadecimal, the last of them "done"; one that begins
 * with "error" is a sentence. Without a sample the model runs once, on zeros. With MODEL_LAYERS defined it measures each
 * call of a kernel instead of the whole.
 */
#include "buffers.h"
#include "hook.h"
#include "semihosting.h"

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

static void check_guards(void) {
  if (!outputs_kept()) fail("the model wrote past the end of an output");
  if (!arena_kept()) fail("the model wrote past the end of its arena");
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
static void measure_stack(void) {
  int32_t status;
  const uint32_t used = stack_used(&status);
  check_status(status);
  if (used == NO_STACK) fail("the stack is too small: almost no RAM is left for it");
  say_fact("stack", used);
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
