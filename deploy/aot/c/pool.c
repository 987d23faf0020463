/* A small thread pool for one model: workers spin for a moment, then sleep; one caller uses it at a time.
 *
 * Kernels call it through the hook that LLVM code generation leaves for parallel loops. A second caller that comes
 * while the pool is busy computes its loop alone: the result is the same.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <unistd.h>

#ifndef POOL_THREADS
#error "compile with -DPOOL_THREADS=n, the caller's thread included"
#endif

enum { SPINS = 4000, WORKERS = POOL_THREADS - 1, STACK_BYTES = 1 << 20 }; /* kernels use up to half of the stack */

typedef struct {
  void *sync_handle;
  int32_t num_task;
} group_env;
typedef int (*task_fn)(int task_id, group_env *env, void *data);

static struct {
  pthread_mutex_t caller; /* held by who uses the pool */
  pthread_mutex_t sleep;
  pthread_cond_t wake;
  pthread_t threads[POOL_THREADS];
  pid_t owner; /* a forked child has no workers and starts its own */
  int started;
  int sleeping;
  task_fn task;
  void *data;
  atomic_uint generation; /* one up for every loop */
  atomic_int pending;
  atomic_int failed;
  atomic_int stop;
} pool = {.caller = PTHREAD_MUTEX_INITIALIZER, .sleep = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__) || defined(__arm__)
  __asm__ volatile("yield");
#endif
}

static unsigned wait_for_loop(unsigned seen) {
  for (int i = 0; i < SPINS; ++i) {
    unsigned now = atomic_load_explicit(&pool.generation, memory_order_acquire);
    if (now != seen) return now;
    relax();
  }
  pthread_mutex_lock(&pool.sleep);
  pool.sleeping++;
  while (atomic_load(&pool.generation) == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
  pool.sleeping--;
  pthread_mutex_unlock(&pool.sleep);
  return atomic_load(&pool.generation);
}

static void run_task(int id) {
  group_env env = {0, POOL_THREADS};
  if (pool.task(id, &env, pool.data) != 0) atomic_store(&pool.failed, 1);
}

static void *worker(void *argument) {
  int id = (int)(intptr_t)argument;
  unsigned seen = 0;
  for (;;) {
    seen = wait_for_loop(seen);
    if (atomic_load(&pool.stop)) return NULL;
    run_task(id);
    atomic_fetch_sub_explicit(&pool.pending, 1, memory_order_release);
  }
}

/* Let a worker that has no core to itself finish. */
static void wait_for_workers(void) {
  for (int i = 0; atomic_load_explicit(&pool.pending, memory_order_acquire) != 0; ++i) {
    if (i < SPINS) {
      relax();
    } else {
      sched_yield();
    }
  }
}

static void announce(void) {
  pthread_mutex_lock(&pool.sleep);
  atomic_fetch_add(&pool.generation, 1);
  if (pool.sleeping) pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.sleep);
}

static void stop_workers(void) {
  atomic_store(&pool.stop, 1);
  announce();
  for (int i = 0; i < pool.started; ++i) pthread_join(pool.threads[i], NULL);
  pool.started = 0;
  atomic_store(&pool.stop, 0);
}

/* The program's signals are not the workers' business: their handlers run in its own threads. */
static int start_worker(pthread_t *thread, int id) {
  sigset_t all, before;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return -1;
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(thread, &attributes, worker, (void *)(intptr_t)id);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return error;
}

/* Called with `caller` held. Returns 0 when all workers run. */
static int start_workers(void) {
  if (pool.started == WORKERS && pool.owner == getpid()) return 0;
  pthread_mutex_init(&pool.sleep, NULL);
  pthread_cond_init(&pool.wake, NULL);
  atomic_store(&pool.generation, 0);
  pool.owner = getpid();
  pool.sleeping = 0;
  for (pool.started = 0; pool.started < WORKERS; ++pool.started) {
    if (start_worker(&pool.threads[pool.started], pool.started + 1) != 0) {
      stop_workers();
      return -1;
    }
  }
  return 0;
}

static int run_alone(task_fn task, void *data) {
  group_env env = {0, 1};
  return task(0, &env, data);
}

static int parallel_launch(task_fn task, void *data, int task_count) {
  (void)task_count; /* 0: as many as there are threads */
  if (pthread_mutex_trylock(&pool.caller) != 0) return run_alone(task, data);
  if (start_workers() != 0) {
    pthread_mutex_unlock(&pool.caller);
    return run_alone(task, data);
  }
  pool.task = task;
  pool.data = data;
  atomic_store(&pool.failed, 0);
  atomic_store(&pool.pending, WORKERS);
  announce();
  run_task(0);
  wait_for_workers();
  int failed = atomic_load(&pool.failed);
  pthread_mutex_unlock(&pool.caller);
  return failed ? -1 : 0;
}

/* The hook: LLVM code generation declares this pointer and calls through it. */
int (*__TVMBackendParallelLaunch)(task_fn, void *, int) = parallel_launch;

__attribute__((destructor)) static void pool_shutdown(void) {
  if (pool.started && pool.owner == getpid()) stop_workers();
}
