/* Times one kernel of a shared library in a process of its own.
 *
 *   time_kernel LIBRARY SYMBOL MIN_SECONDS REPEATS BYTES...
 *
 * BYTES are the sizes of the kernel's arguments in order, each with a letter in front: f for floats, which are filled
 * with numbers, z for anything else, which is filled with zeros (an index of 0 is in range of every table). Prints one time in seconds a line: the mean over a batch of
 * calls that takes at least MIN_SECONDS / REPEATS, after one call to warm up. Buffers stay in cache between calls as
 * far as they fit, as they do between the layers of a small network.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

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

int main(int argc, char **argv) {
  if (argc < 6 || argc - 5 > MAX_ARGUMENTS) {
    fprintf(stderr, "usage: time_kernel LIBRARY SYMBOL MIN_SECONDS REPEATS BYTES... (at most %d)\n", MAX_ARGUMENTS);
    return 2;
  }
  void *library = dlopen(argv[1], RTLD_NOW);
  void *symbol = library ? dlsym(library, argv[2]) : NULL;
  if (symbol == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 3;
  }
  kernel_fn kernel = (kernel_fn)(uintptr_t)symbol;
  double min_seconds = atof(argv[3]);
  int repeats = atoi(argv[4]);
  void *arguments[MAX_ARGUMENTS] = {0};
  for (int i = 5; i < argc; ++i) {
    size_t bytes = (strtoull(argv[i] + 1, NULL, 10) / ALIGNMENT + 1) * ALIGNMENT;
    arguments[i - 5] = aligned_alloc(ALIGNMENT, bytes);
    if (arguments[i - 5] == NULL) return 4;
    if (argv[i][0] == 'f')
      fill(arguments[i - 5], bytes / sizeof(float));
    else
      memset(arguments[i - 5], 0, bytes);
  }
  if (call(kernel, arguments) != 0) return 5;
  long batch = 1;
  for (;;) {
    double start = now();
    for (long i = 0; i < batch; ++i) call(kernel, arguments);
    if (now() - start >= min_seconds / repeats || batch > 100000000L) break;
    batch *= 2;
  }
  for (int r = 0; r < repeats; ++r) {
    double start = now();
    for (long i = 0; i < batch; ++i) call(kernel, arguments);
    printf("%.9e\n", (now() - start) / (double)batch);
  }
  return 0;
}
