/* A small thread pool for one model: workers spin for a moment, then sleep; one caller uses it at a time.
 *
 * A loop has as many tasks as there are threads, and whoever comes first takes the next one: a worker that has no core
 * to itself is not waited for, the caller computes its share.
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
  _Atomic uint64_t ticket; /* upper half: one up for every loop; lower half: its next task */
  atomic_int pending;      /* tasks that are not done */
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

static uint32_t loop_number(void) {
  return (uint32_t)(atomic_load_explicit(&pool.ticket, memory_order_acquire) >> 32);
}

static uint32_t wait_for_loop(uint32_t seen) {
  for (int i = 0; i < SPINS; ++i) {
    uint32_t now = loop_number();
    if (now != seen) return now;
    relax();
  }
  pthread_mutex_lock(&pool.sleep);
  pool.sleeping++;
  while (loop_number() == seen) pthread_cond_wait(&pool.wake, &pool.sleep);
  pool.sleeping--;
  pthread_mutex_unlock(&pool.sleep);
  return loop_number();
}

/* Take tasks of one loop until there are none left. Task and data hold still as long as a task is pending. */
static void work(uint32_t loop) {
  group_env env = {0, POOL_THREADS};
  uint64_t ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
  while ((uint32_t)(ticket >> 32) == loop && (uint32_t)ticket < POOL_THREADS) {
    if (!atomic_compare_exchange_weak_explicit(&pool.ticket, &ticket, ticket + 1, memory_order_acq_rel,
                                               memory_order_acquire))
      continue;
    if (pool.task((int)(uint32_t)ticket, &env, pool.data) != 0) atomic_store(&pool.failed, 1);
    atomic_fetch_sub_explicit(&pool.pending, 1, memory_order_release);
    ticket = atomic_load_explicit(&pool.ticket, memory_order_acquire);
  }
}

static void *worker(void *argument) {
  uint32_t seen = 0;
  (void)argument;
  for (;;) {
    seen = wait_for_loop(seen);
    if (atomic_load(&pool.stop)) return NULL;
    work(seen);
  }
}

/* Wait for tasks that a worker has taken. */
static void wait_for_workers(void) {
  for (int i = 0; atomic_load_explicit(&pool.pending, memory_order_acquire) != 0; ++i) {
    if (i < SPINS) {
      relax();
    } else {
      sched_yield();
    }
  }
}

/* Open the next loop; its number. */
static uint32_t announce(void) {
  uint32_t loop = loop_number() + 1u;
  pthread_mutex_lock(&pool.sleep);
  atomic_store_explicit(&pool.ticket, (uint64_t)loop << 32, memory_order_release);
  if (pool.sleeping) pthread_cond_broadcast(&pool.wake);
  pthread_mutex_unlock(&pool.sleep);
  return loop;
}

static void stop_workers(void) {
  atomic_store(&pool.stop, 1);
  announce();
  for (int i = 0; i < pool.started; ++i) pthread_join(pool.threads[i], NULL);
  pool.started = 0;
  atomic_store(&pool.stop, 0);
}

/* The program's signals are not the workers' business: their handlers run in its own threads. */
static int start_worker(pthread_t *thread) {
  sigset_t all, before;
  pthread_attr_t attributes;
  if (pthread_attr_init(&attributes) != 0) return -1;
  pthread_attr_setstacksize(&attributes, STACK_BYTES);
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  int error = pthread_create(thread, &attributes, worker, NULL);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  pthread_attr_destroy(&attributes);
  return error;
}

/* Called with `caller` held. Returns 0 when all workers run. */
static int start_workers(void) {
  if (pool.started == WORKERS && pool.owner == getpid()) return 0;
  pthread_mutex_init(&pool.sleep, NULL);
  pthread_cond_init(&pool.wake, NULL);
  atomic_store(&pool.ticket, 0);
  pool.owner = getpid();
  pool.sleeping = 0;
  for (pool.started = 0; pool.started < WORKERS; ++pool.started) {
    if (start_worker(&pool.threads[pool.started]) != 0) {
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
  atomic_store(&pool.pending, POOL_THREADS);
  work(announce());
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
