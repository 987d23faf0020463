/* Times one kernel of a shared library in a process of its own.
 *
 *   time_kernel LIBRARY SYMBOL CORES CPU_LIMIT IDLE_LIMIT MEMORY REPEAT_SECONDS REPEATS BEST BYTES...
 *
 * BYTES are the sizes of the kernel's arguments in order, each with a letter in front: f for floats, which are filled
 * with numbers, z for anything else, which is filled with zeros (an index of 0 is in range of every table). Prints one
 * time in seconds a line: the mean over a batch of calls that takes about REPEAT_SECONDS, after calls to warm up. Buffers
 * stay in cache between calls as far as they fit, as they do between the layers of a small network.
 *
 * A batch in which this process lost its core to another one counts for nothing and is run again. REPEATS batches are
 * enough where the fastest three of them agree, or where the kernel is clearly slower than BEST, the seconds of the best
 * candidate so far (0: none); up to three times as many are run where they do not agree. One that takes twice as long as
 * BEST is left after two. Fewer are run where CPU_LIMIT seconds on the clock are over.
 *
 * After CPU_LIMIT seconds of processor time, IDLE_LIMIT seconds without any, or when the process that started it ends,
 * the program ends too, whatever the kernel is doing; it gets no more than MEMORY bytes, and runs on CORES (a,b,c).
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

enum { FIRST = 10, MAX_ARGUMENTS = 16, ALIGNMENT = 64, MAX_REPEATS = 100 };

typedef int32_t (*kernel_fn)(void *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *,
                             void *, void *, void *, void *, void *);

typedef struct {
  double repeat_seconds, best, deadline;
  int repeats;
} plan;

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Seconds of processor time that this process has had. */
static double worked(void) {
  struct timespec t;
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
  return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static int idle_limit;

/* Every second: ends the program where the kernel waits for something. One that only waits for a core gets a little. */
static void look(int signal_number) {
  static double before;
  static int idle;
  double sofar = worked();
  idle = sofar - before < 1e-3 ? idle + 1 : 0;
  before = sofar;
  if (idle >= idle_limit) {
    signal(signal_number, SIG_DFL);
    raise(signal_number);
  }
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

/* How often this process lost its core to another one. */
static long losses(void) {
  struct rusage usage;
  getrusage(RUSAGE_SELF, &usage);
  return usage.ru_nivcsw;
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

static void keep_to(const char *cores) {
  cpu_set_t set;
  CPU_ZERO(&set);
  for (char *end; *cores; cores = *end ? end + 1 : end) CPU_SET((int)strtol(cores, &end, 10), &set);
  sched_setaffinity(0, sizeof set, &set); /* where that fails the times are noisier, no more */
}

/* The signal comes at the soft limit: at the hard one it would be SIGKILL, which says nothing. */
static void limit(int kind, double value) {
  struct rlimit both = {(rlim_t)value, (rlim_t)value + 1};
  setrlimit(kind, &both);
}

/* The end of whatever goes wrong is the end of this process, and of no other. */
static void confine(char **argv) {
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  keep_to(argv[3]);
  limit(RLIMIT_CORE, 0);
  limit(RLIMIT_CPU, atof(argv[4]));
  idle_limit = atoi(argv[5]);
  struct sigaction action = {.sa_handler = look, .sa_flags = SA_RESTART | SA_NODEFER};
  sigaction(SIGALRM, &action, NULL);
  struct itimerval second = {{1, 0}, {1, 0}};
  setitimer(ITIMER_REAL, &second, NULL);
  limit(RLIMIT_AS, atof(argv[6]));
  int score = open("/proc/self/oom_score_adj", O_WRONLY);
  if (score >= 0) {
    if (write(score, "1000", 4) < 0) perror("oom_score_adj");
    close(score);
  }
}

/* Whether the fastest three of `count` times agree within a hundredth; sorts them. */
static int agree(double *times, int count) {
  for (int i = count - 1; i > 0 && times[i] < times[i - 1]; --i) {
    double swap = times[i];
    times[i] = times[i - 1], times[i - 1] = swap;
  }
  return count >= 3 && times[2] <= 1.01 * times[0];
}

/* Times batches as planned, undisturbed ones if there are any; returns how many. */
static int measure(kernel_fn kernel, void **arguments, plan p, double *clean) {
  double disturbed[MAX_REPEATS];
  int count = 0, lost = 0, most = 3 * p.repeats < MAX_REPEATS ? 3 * p.repeats : MAX_REPEATS;
  long batch = batch_for(kernel, arguments, p.repeat_seconds);
  while (count < most && lost < most && (count + lost == 0 || now() < p.deadline)) {
    long before = losses();
    double taken = duration(kernel, arguments, batch) / (double)batch;
    if (losses() != before) {
      disturbed[lost++] = taken;
      continue;
    }
    clean[count++] = taken;
    int agreed = agree(clean, count), poor = p.best > 0 && clean[0] > 1.2 * p.best;
    if (count >= p.repeats && (agreed || poor)) break;
    if (count >= 2 && p.best > 0 && clean[0] > 2 * p.best) break;
  }
  if (count) return count;
  memcpy(clean, disturbed, sizeof disturbed[0] * (size_t)lost);
  return lost;
}

/* The kernel's arguments, of the sizes in `argv`; NULL where there is no memory. */
static void *argument(const char *size) {
  size_t bytes = (strtoull(size + 1, NULL, 10) / ALIGNMENT + 1) * ALIGNMENT;
  void *data = aligned_alloc(ALIGNMENT, bytes);
  if (data == NULL) {
    fprintf(stderr, "no memory for an argument of %zu bytes\n", bytes);
    exit(4);
  }
  if (size[0] == 'f')
    fill(data, bytes / sizeof(float));
  else
    memset(data, 0, bytes);
  return data;
}

int main(int argc, char **argv) {
  if (argc <= FIRST || argc - FIRST > MAX_ARGUMENTS) {
    fprintf(stderr, "a kernel of %d arguments; at most %d can be timed\n", argc - FIRST, MAX_ARGUMENTS);
    return 2;
  }
  plan p = {atof(argv[7]), atof(argv[9]), now() + atof(argv[4]), atoi(argv[8])};
  confine(argv);
  void *library = dlopen(argv[1], RTLD_NOW);
  void *symbol = library ? dlsym(library, argv[2]) : NULL;
  if (symbol == NULL) {
    fprintf(stderr, "%s\n", dlerror());
    return 3;
  }
  kernel_fn kernel = (kernel_fn)(uintptr_t)symbol;
  void *arguments[MAX_ARGUMENTS] = {0};
  for (int i = FIRST; i < argc; ++i) arguments[i - FIRST] = argument(argv[i]);
  int32_t status = call(kernel, arguments);
  if (status != 0) {
    fprintf(stderr, "the kernel returned %d\n", (int)status);
    return 5;
  }
  double times[MAX_REPEATS];
  int count = measure(kernel, arguments, p, times);
  for (int i = 0; i < count; ++i) printf("%.9e\n", times[i]);
  return 0;
}
