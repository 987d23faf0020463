/* Times one kernel of a shared library in a process of its own.
 *
 *   time_kernel LIBRARY SYMBOL LIMIT MIN_SECONDS REPEATS BYTES...
 *
 * BYTES are the sizes of the kernel's arguments in order, each with a letter in front: f for floats, which are filled
 * with numbers, z for anything else, which is filled with zeros (an index of 0 is in range of every table). Prints one
 * time in seconds a line: the mean over a batch of calls that takes about MIN_SECONDS / REPEATS, after one call to warm
 * up; fewer than REPEATS lines where a third of LIMIT is over. Buffers stay in cache between calls as far as they fit,
 * as they do between the layers of a small network. After LIMIT seconds, or when the process that started it ends, the
 * program ends too, whatever the kernel is doing.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <time.h>
#include <unistd.h>

enum { MAX_ARGUMENTS = 16, ALIGNMENT = 64 };

typedef int32_t (*kernel_fn)(void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                             void *, void *, void *, void *, void *);

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Small positive floats, no denormals. */
static void fill(float *data, size_t count) {
  uint32_t state = 1u;
  for (size_t i = 0; i < count; ++i) {
    state = state * 1664525u + 1013904223u;
    data[i] = 0.1f + (float)(state >> 8) * (1.0f / 16777216.0f);
  }
}

static int32_t call(kernel_fn kernel, void **a) {
  /* Surplus arguments are the caller's to clean up in every C calling convention this runs on. */
  return kernel(a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9], a[10], a[11], a[12], a[13], a[14], a[15]);
}

/* Seconds that `batch` calls take. */
static double duration(kernel_fn kernel, void **arguments, long batch) {
  double start = now();
  for (long i = 0; i < batch; ++i) call(kernel, arguments);
  return now() - start;
}

/* How many calls take about `seconds`. */
static long batch_for(kernel_fn kernel, void **arguments, double seconds) {
  long batch = 1;
  for (;;) {
    double taken = duration(kernel, arguments, batch);
    if (taken >= seconds / 2 || batch > 100000000L) return (long)((double)batch * seconds / taken) + 1;
    batch *= taken > seconds / 16 ? 2 : 8;
  }
}

int main(int argc, char **argv) {
  if (argc < 7 || argc - 6 > MAX_ARGUMENTS) {
    fprintf(stderr, "a kernel of %d arguments; at most %d can be timed\n", argc - 6, MAX_ARGUMENTS);
    return 2;
  }
  double begun = now(), limit = atof(argv[3]), min_seconds = atof(argv[4]);
  int repeats = atoi(argv[5]);
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  alarm((unsigned)limit);
  void *library = dlopen(argv[1], RTLD_NOW);
  void *symbol = library ? dlsym(library, argv[2]) : NULL;
  if (symbol == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 3;
  }
  kernel_fn kernel = (kernel_fn)(uintptr_t)symbol;
  void *arguments[MAX_ARGUMENTS] = {0};
  for (int i = 6; i < argc; ++i) {
    size_t bytes = (strtoull(argv[i] + 1, NULL, 10) / ALIGNMENT + 1) * ALIGNMENT;
    void *data = aligned_alloc(ALIGNMENT, bytes);
    if (data == NULL) {
      fprintf(stderr, "no memory for an argument of %zu bytes\n", bytes);
      return 4;
    }
    if (argv[i][0] == 'f')
      fill(data, bytes / sizeof(float));
    else
      memset(data, 0, bytes);
    arguments[i - 6] = data;
  }
  int32_t status = call(kernel, arguments);
  if (status != 0) {
    fprintf(stderr, "the kernel returned %d\n", (int)status);
    return 5;
  }
  long batch = batch_for(kernel, arguments, min_seconds / repeats);
  for (int r = 0; r < repeats && (r == 0 || now() - begun < limit / 3); ++r)
    printf("%.9e\n", duration(kernel, arguments, batch) / (double)batch);
  return 0;
}
