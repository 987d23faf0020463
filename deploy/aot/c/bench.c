/* Runs and times one compiled model on Linux; what is measured has no interpreter in it.
 *
 *   cc -O2 bench.c -o bench -ldl
 *   bench --library libmodel.so --prefix NAME [--cpu 1,2]
 *         [--inputs FILE --outputs FILE --count N]       run N samples: raw tensors, one sample after the other
 *         [--warmup-seconds S] [--batch auto|N]
 *         [--seconds S] [--min-samples N] [--max-samples N]          time single inferences, or
 *         [--measure-for S]                                          run without pause, for a power meter
 *
 * For boards without dlopen: cc -O2 -DBENCH_STATIC -DBENCH_PREFIX=NAME bench.c model objects; then without --library
 * and --prefix.
 *
 * Prints one JSON object: the results and "status": 0, or {"status": n, "error": "..."} and exit status 1. Status 1 to
 * 99 is what the model returned (enum tvm_deploy_status), 101 and above are those of this program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <sched.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#ifndef BENCH_STATIC
#include <dlfcn.h>
#endif

#include "tvm_deploy.h"

enum { BAD_ARGUMENT = 101, CANNOT_LOAD = 102, BAD_FILE = 103, NO_MEMORY = 104, WROTE_OUTSIDE = 105, NO_CPU = 106 };
enum {
  SAMPLE_FLOOR_NS = 20000, /* one sample takes at least this: reading the clock (about 25 ns) is then 0.1 % of it */
  MAX_BATCH = 1 << 24,
  MAX_SAMPLES = 10000000,
  MAX_TENSORS = 4096,
  GUARD_BYTES = 64,
  GUARD = 0xC3,
  GARBAGE = 0xFF /* NaN as a float: memory that is read before it is written shows in the output */
};

typedef const tvm_deploy_model_info *(*describe_fn)(void);
typedef int32_t (*call_fn)(const tvm_deploy_tensor *, int32_t, const tvm_deploy_tensor *, int32_t, void *, size_t);

typedef struct {
  const char *library, *prefix, *inputs, *outputs, *cpus;
  int64_t count, min_samples, max_samples, batch; /* batch 0: chosen here */
  double warmup_s, seconds, measure_for_s;        /* measure_for_s < 0: not asked for */
} options;

typedef struct {
  const tvm_deploy_model_info *info;
  call_fn call;
  tvm_deploy_tensor *inputs, *outputs;
  size_t input_bytes, output_bytes;
  void *arena;
  int64_t inferences;
} model;

static void print_string(const char *text) {
  putchar('"');
  for (const unsigned char *c = (const unsigned char *)text; *c; ++c) {
    if (*c == '"' || *c == '\\') {
      printf("\\%c", *c);
    } else if (*c < 0x20 || *c >= 0x7F) {
      printf("\\u%04x", (unsigned)*c);
    } else {
      putchar(*c);
    }
  }
  putchar('"');
}

static void finish(int code) {
  if (fflush(stdout) != 0 || ferror(stdout)) code = 2;
  _Exit(code); /* the library's threads and destructors must not change the outcome */
}

__attribute__((noreturn, format(printf, 2, 3))) static void fail(int status, const char *format, ...) {
  char text[2048];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  printf("{\"status\":%d,\"error\":", status);
  print_string(text);
  printf("}\n");
  finish(1);
  abort();
}

/* ---- arguments */

static double seconds_of(const char *option, const char *text) {
  char *end;
  errno = 0;
  double value = strtod(text, &end);
  if (end == text || *end || errno || !isfinite(value) || value < 0 || value > 1e6)
    fail(BAD_ARGUMENT, "%s is '%s': give seconds from 0 to 1000000", option, text);
  return value;
}

static int64_t integer_of(const char *option, const char *text, int64_t least, int64_t most) {
  char *end;
  errno = 0;
  long long value = strtoll(text, &end, 10);
  if (end == text || *end || errno || value < least || value > most)
    fail(BAD_ARGUMENT, "%s is '%s': give a whole number from %" PRId64 " to %" PRId64, option, text, least, most);
  return value;
}

static void set_option(options *to, const char *name, const char *value) {
  if (!strcmp(name, "--inputs")) to->inputs = value;
  else if (!strcmp(name, "--outputs")) to->outputs = value;
  else if (!strcmp(name, "--count")) to->count = integer_of(name, value, 1, INT32_MAX);
  else if (!strcmp(name, "--cpu")) to->cpus = value;
  else if (!strcmp(name, "--warmup-seconds")) to->warmup_s = seconds_of(name, value);
  else if (!strcmp(name, "--seconds")) to->seconds = seconds_of(name, value);
  else if (!strcmp(name, "--measure-for")) to->measure_for_s = seconds_of(name, value);
  else if (!strcmp(name, "--min-samples")) to->min_samples = integer_of(name, value, 1, MAX_SAMPLES);
  else if (!strcmp(name, "--max-samples")) to->max_samples = integer_of(name, value, 1, MAX_SAMPLES);
  else if (!strcmp(name, "--batch")) to->batch = strcmp(value, "auto") ? integer_of(name, value, 1, MAX_BATCH) : 0;
#ifndef BENCH_STATIC
  else if (!strcmp(name, "--library")) to->library = value;
  else if (!strcmp(name, "--prefix")) to->prefix = value;
#endif
  else fail(BAD_ARGUMENT, "unknown argument '%s'", name);
}

static options parse(int argc, char **argv) {
  options to = {NULL, NULL, NULL, NULL, NULL, 0, 10, 10000, 0, 0.2, 1.0, -1.0};
  for (int i = 1; i < argc; i += 2) {
    if (i + 1 == argc) fail(BAD_ARGUMENT, "'%s' is unknown or has no value", argv[i]);
    set_option(&to, argv[i], argv[i + 1]);
  }
#ifndef BENCH_STATIC
  if (!to.library || !to.prefix) fail(BAD_ARGUMENT, "--library and --prefix are needed");
  if (strlen(to.prefix) > 512) fail(BAD_ARGUMENT, "--prefix is longer than 512 characters");
#endif
  if (!to.inputs != !to.outputs || !to.inputs != !to.count)
    fail(BAD_ARGUMENT, "--inputs, --outputs and --count are given together or not at all");
  if (to.min_samples > to.max_samples)
    fail(BAD_ARGUMENT, "--min-samples %" PRId64 " is more than --max-samples %" PRId64, to.min_samples, to.max_samples);
  return to;
}

/* ---- this process */

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static int64_t ns_of(double seconds) { return (int64_t)(seconds * 1e9); }

/* Cost of reading the clock in ns: the best of a few averages. */
static double clock_cost_ns(void) {
  double best = 1e9;
  for (int round = 0; round < 5; ++round) {
    int64_t start = now_ns(), last = start;
    for (int i = 0; i < 1000; ++i) last = now_ns();
    double cost = (double)(last - start) / 1000.0;
    if (cost < best) best = cost;
  }
  return best;
}

/* A memory figure of /proc/self/status in bytes, -1 if there is none. Not getrusage: its maximum is inherited
 * over exec from the program that started this one. */
static int64_t memory_bytes(const char *key) {
  char text[8192];
  int file = open("/proc/self/status", O_RDONLY);
  if (file < 0) return -1;
  ssize_t length = read(file, text, sizeof text - 1);
  close(file);
  if (length <= 0) return -1;
  text[length] = 0;
  const char *found = strstr(text, key);
  return found ? strtoll(found + strlen(key), NULL, 10) * 1024 : -1;
}

/* Before the library is loaded, so that its threads inherit it. */
static void pin(const char *list) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (const char *at = list;; ++at) {
    char *end;
    long cpu = strtol(at, &end, 10);
    if (end == at || cpu < 0 || cpu >= CPU_SETSIZE || (*end && *end != ','))
      fail(BAD_ARGUMENT, "--cpu is '%s': give numbers with commas between them, such as 2,3", list);
    CPU_SET((size_t)cpu, &set);
    if (!*end) break;
    at = end;
  }
  if (sched_setaffinity(0, sizeof set, &set) != 0) fail(NO_CPU, "cannot run on CPU %s: %s", list, strerror(errno));
}

/* ---- the model */

/* `bytes` of memory followed by a guard that `check_guards` looks at. */
static void *guarded(size_t bytes, size_t alignment, const char *what) {
  void *memory = NULL;
  if (alignment < 64) alignment = 64;
  if (bytes > SIZE_MAX - GUARD_BYTES || posix_memalign(&memory, alignment, bytes + GUARD_BYTES) != 0)
    fail(NO_MEMORY, "cannot allocate %zu bytes, aligned to %zu, for %s", bytes, alignment, what);
  memset(memory, GARBAGE, bytes);
  memset((char *)memory + bytes, GUARD, GUARD_BYTES);
  return memory;
}

static int guard_broken(const void *memory, size_t bytes) {
  const unsigned char *guard = (const unsigned char *)memory + bytes;
  for (int i = 0; i < GUARD_BYTES; ++i)
    if (guard[i] != GUARD) return 1;
  return 0;
}

static void check_guards(const model *m) {
  if (guard_broken(m->arena, m->info->arena_bytes)) fail(WROTE_OUTSIDE, "the model wrote past the end of its arena");
  for (int32_t i = 0; i < m->info->output_count; ++i)
    if (guard_broken(m->outputs[i].data, m->info->outputs[i].bytes))
      fail(WROTE_OUTSIDE, "the model wrote past the end of output %d", (int)i);
  for (int32_t i = 0; i < m->info->input_count; ++i)
    if (guard_broken(m->inputs[i].data, m->info->inputs[i].bytes))
      fail(WROTE_OUTSIDE, "the model wrote past the end of input %d", (int)i);
}

#ifdef BENCH_STATIC
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
const tvm_deploy_model_info *JOIN(BENCH_PREFIX, _describe)(void);
int32_t JOIN(BENCH_PREFIX, _call)(const tvm_deploy_tensor *, int32_t, const tvm_deploy_tensor *, int32_t, void *, size_t);

static void load(const options *given, describe_fn *describe, call_fn *call) {
  (void)given;
  *describe = JOIN(BENCH_PREFIX, _describe);
  *call = JOIN(BENCH_PREFIX, _call);
}
#else
/* The address of a function; C has no cast from the object pointer that dlsym gives to a function pointer. */
static void find(void *library, const options *given, const char *suffix, void *function, size_t size) {
  char name[600];
  snprintf(name, sizeof name, "%s_%s", given->prefix, suffix);
  void *address = dlsym(library, name);
  if (!address)
    fail(CANNOT_LOAD, "%s has no symbol %s: it is not a compiled model, or the model has another name", given->library, name);
  memcpy(function, &address, size);
}

static void load(const options *given, describe_fn *describe, call_fn *call) {
  void *library = dlopen(given->library, RTLD_NOW | RTLD_LOCAL);
  if (!library) {
    const char *reason = dlerror();
    fail(CANNOT_LOAD, "cannot load the library: %s", reason ? reason : "unknown reason");
  }
  find(library, given, "describe", describe, sizeof *describe);
  find(library, given, "call", call, sizeof *call);
}
#endif

static tvm_deploy_tensor *tensors(const tvm_deploy_tensor_info *infos, int32_t count, int fill, size_t *total) {
  tvm_deploy_tensor *made = calloc((size_t)count + 1, sizeof *made);
  if (!made) fail(NO_MEMORY, "cannot allocate %d tensors", (int)count);
  for (int32_t i = 0; i < count; ++i) {
    made[i].data = guarded(infos[i].bytes, 64, infos[i].name ? infos[i].name : "a tensor");
    made[i].shape = infos[i].shape;
    made[i].ndim = infos[i].ndim;
    made[i].dtype = infos[i].dtype;
    memset(made[i].data, fill, infos[i].bytes);
    *total += infos[i].bytes; /* cannot overflow: all of it is allocated */
  }
  return made;
}

static model open_model(const options *given) {
  describe_fn describe = NULL;
  model m = {NULL, NULL, NULL, NULL, 0, 0, NULL, 0};
  load(given, &describe, &m.call);
  m.info = describe();
  if (!m.info || m.info->input_count < 0 || m.info->input_count > MAX_TENSORS || m.info->output_count < 0 ||
      m.info->output_count > MAX_TENSORS || (m.info->input_count && !m.info->inputs) ||
      (m.info->output_count && !m.info->outputs))
    fail(CANNOT_LOAD, "the library's description of its model makes no sense: it is not a compiled model");
  m.inputs = tensors(m.info->inputs, m.info->input_count, 0, &m.input_bytes);
  m.outputs = tensors(m.info->outputs, m.info->output_count, GARBAGE, &m.output_bytes);
  m.arena = guarded(m.info->arena_bytes, m.info->arena_alignment, "the arena");
  return m;
}

static const char *status_words(int32_t status) {
  static const char *const words[] = {
      "a null pointer",     "an arena too small",      "a misaligned arena", "a misaligned tensor",
      "a wrong count",      "a wrong element type",    "a wrong shape",      "a thread pool that could not be started"};
  return status >= 1 && status <= 8 ? words[status - 1] : "an unknown reason";
}

static void call_times(model *m, int64_t times) {
  int32_t status = 0;
  for (int64_t i = 0; i < times && !status; ++i)
    status = m->call(m->inputs, m->info->input_count, m->outputs, m->info->output_count, m->arena, m->info->arena_bytes);
  m->inferences += times;
  if (status) fail(status > 0 && status < 100 ? status : 99, "the model returned %d: %s", (int)status, status_words(status));
}

/* ---- running samples */

static void read_sample(model *m, FILE *file, const char *path, int64_t sample) {
  for (int32_t i = 0; i < m->info->input_count; ++i)
    if (fread(m->inputs[i].data, 1, m->info->inputs[i].bytes, file) != m->info->inputs[i].bytes)
      fail(BAD_FILE, "%s ends within input %d of sample %" PRId64, path, (int)i, sample);
}

static FILE *open_inputs(const model *m, const options *given) {
  struct stat facts;
  FILE *file = fopen(given->inputs, "rb");
  if (!file) fail(BAD_FILE, "cannot read %s: %s", given->inputs, strerror(errno));
  if (fstat(fileno(file), &facts) != 0 || !S_ISREG(facts.st_mode)) fail(BAD_FILE, "%s is not a file", given->inputs);
  uint64_t size = (uint64_t)facts.st_size, count = (uint64_t)given->count;
  if (size % count || size / count != m->input_bytes)
    fail(BAD_FILE, "%s has %" PRIu64 " bytes; %" PRIu64 " samples of this model's inputs are %" PRIu64 " times %zu bytes",
         given->inputs, size, count, count, m->input_bytes);
  return file;
}

/* Run every sample once, write the outputs, and leave sample 0 in the inputs for the timing. */
static void run_samples(model *m, const options *given) {
  char partial[4096];
  if (snprintf(partial, sizeof partial, "%s.partial", given->outputs) >= (int)sizeof partial)
    fail(BAD_ARGUMENT, "--outputs is longer than 4000 characters");
  FILE *in = open_inputs(m, given);
  FILE *out = fopen(partial, "wb");
  if (!out) fail(BAD_FILE, "cannot write %s: %s", partial, strerror(errno));
  int written = 1;
  for (int64_t sample = 0; sample < given->count && written; ++sample) {
    read_sample(m, in, given->inputs, sample);
    for (int32_t i = 0; i < m->info->output_count; ++i) memset(m->outputs[i].data, GARBAGE, m->info->outputs[i].bytes);
    call_times(m, 1);
    check_guards(m);
    for (int32_t i = 0; i < m->info->output_count; ++i)
      written &= fwrite(m->outputs[i].data, 1, m->info->outputs[i].bytes, out) == m->info->outputs[i].bytes;
  }
  written &= fclose(out) == 0;
  if (!written || rename(partial, given->outputs) != 0) {
    int reason = errno;
    unlink(partial);
    fail(BAD_FILE, "cannot write %s: %s", given->outputs, strerror(reason));
  }
  rewind(in);
  read_sample(m, in, given->inputs, 0);
  fclose(in);
}

/* ---- timing */

static int64_t time_of(model *m, int64_t times) {
  int64_t start = now_ns();
  call_times(m, times);
  return now_ns() - start;
}

static void warm_up(model *m, double seconds) {
  int64_t end = now_ns() + ns_of(seconds);
  do call_times(m, 1);
  while (now_ns() < end);
}

/* The number of calls that together take SAMPLE_FLOOR_NS; the best of a few tries, so that an interruption of one
 * does not make it too small. */
static int64_t choose_batch(model *m) {
  for (int64_t batch = 1;; batch *= 2) {
    int64_t best = INT64_MAX;
    for (int tries = 0; tries < 5 && best >= SAMPLE_FLOOR_NS; ++tries) {
      int64_t took = time_of(m, batch);
      if (took < best) best = took;
      if (tries && best > 1000 * (int64_t)SAMPLE_FLOOR_NS) break; /* clear, and slow models are not run five times */
    }
    if (best >= SAMPLE_FLOOR_NS || batch >= MAX_BATCH) return batch;
  }
}

/* Samples spread evenly over the time asked for: between them the model runs unwatched, so that the processor stays
 * as warm as it is in the samples and a disturbance shorter than the run cannot fall on all of them. */
static int64_t take_samples(model *m, const options *given, int64_t batch, double *samples) {
  int64_t start = now_ns(), end = start + ns_of(given->seconds), taken = 0;
  double slot = given->seconds * 1e9 / (double)given->max_samples;
  while (taken < given->max_samples && (taken < given->min_samples || now_ns() < end)) {
    int64_t due = start + (int64_t)((double)taken * slot);
    while (now_ns() < due) call_times(m, 1);
    samples[taken++] = (double)time_of(m, batch) / (double)batch;
  }
  return taken;
}

static void print_sizes(const char *name, const tvm_deploy_tensor_info *infos, int32_t count) {
  printf(",\"%s\":[", name);
  for (int32_t i = 0; i < count; ++i) printf("%s%zu", i ? "," : "", infos[i].bytes);
  printf("]");
}

static void print_memory(const char *name, int64_t bytes) {
  if (bytes < 0) printf(",\"%s\":null", name);
  else printf(",\"%s\":%" PRId64, name, bytes);
}

int main(int argc, char **argv) {
  options given = parse(argc, argv);
  if (given.cpus) pin(given.cpus);
  int64_t before = memory_bytes("VmRSS:");
  model m = open_model(&given);
  if (given.inputs) run_samples(&m, &given);
  else call_times(&m, 1);
  int64_t peak = memory_bytes("VmHWM:"); /* now: the samples below are not the model's */

  warm_up(&m, given.warmup_s);
  int64_t batch = given.batch ? given.batch : choose_batch(&m);
  int64_t taken = 0, loop_start = 0, loop_stop = 0, looped = 0;
  double *samples = NULL;
  if (given.measure_for_s >= 0) {
    looped = -m.inferences;
    loop_start = now_ns();
    do call_times(&m, batch);
    while ((loop_stop = now_ns()) - loop_start < ns_of(given.measure_for_s));
    looped += m.inferences;
  } else {
    size_t bytes = (size_t)given.max_samples * sizeof *samples;
    samples = malloc(bytes);
    if (!samples) fail(NO_MEMORY, "cannot allocate %zu bytes for the samples", bytes);
    memset(samples, 0, bytes); /* no page faults while timing */
    taken = take_samples(&m, &given, batch, samples);
  }
  check_guards(&m);

  printf("{\"status\":0,\"model\":");
  print_string(m.info->name ? m.info->name : "");
  printf(",\"inferences\":%" PRId64 ",\"batch\":%" PRId64 ",\"clock_ns\":%.1f,\"threads\":%d", m.inferences, batch,
         clock_cost_ns(), (int)m.info->threads);
  printf(",\"arena_bytes\":%zu,\"weight_bytes\":%zu", m.info->arena_bytes, m.info->weight_bytes);
  print_memory("peak_rss_bytes", peak);
  print_memory("rss_before_load_bytes", before);
  print_sizes("input_bytes", m.info->inputs, m.info->input_count);
  print_sizes("output_bytes", m.info->outputs, m.info->output_count);
  if (given.measure_for_s >= 0)
    printf(",\"loop\":{\"inferences\":%" PRId64 ",\"start_ns\":%" PRId64 ",\"stop_ns\":%" PRId64 "}", looped, loop_start,
           loop_stop);
  printf(",\"samples_ns\":[");
  for (int64_t i = 0; i < taken; ++i) printf("%s%.2f", i ? "," : "", samples[i]);
  printf("]}\n");
  finish(0);
}
