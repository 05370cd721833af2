// Condition variables: waited for with and without limits, by all clocks, signalled and broadcast; between processes, too.
#include "serve.h"
#include <sys/mman.h>
#include <sys/wait.h>

enum { THREADS = 3, ROUNDS = 30 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t full = PTHREAD_COND_INITIALIZER, empty = PTHREAD_COND_INITIALIZER, monotonic;
static long queue[4], produced, consumed, late;
static int len;

struct shared { pthread_mutex_t lock; pthread_cond_t changed; int turn; };
static struct shared *shared;

static void begin(void) {
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  expect("setclock", pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC), 0);
  expect("cond_init", pthread_cond_init(&monotonic, &attributes), 0);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pthread_condattr_init(&attributes);
  pthread_condattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  expect("cond_init", pthread_cond_init(&shared->changed, &attributes), 0);
  pthread_mutexattr_t of_lock;
  pthread_mutexattr_init(&of_lock);
  pthread_mutexattr_setpshared(&of_lock, PTHREAD_PROCESS_SHARED);
  expect("mutex_init", pthread_mutex_init(&shared->lock, &of_lock), 0);
}

static void *produces(void *argument) {
  long self = (long)argument;
  for (int i = 0; i < ROUNDS; i++) {
    pthread_mutex_lock(&lock);
    while (len == 4) pthread_cond_wait(&full, &lock);
    queue[len++] = self * 1000 + i;
    produced++;
    pthread_cond_signal(&empty);
    pthread_mutex_unlock(&lock);
  }
  return NULL;
}

static void *consumes(void *argument) {
  long self = (long)argument;
  for (int i = 0; i < ROUNDS; i++) {
    pthread_mutex_lock(&lock);
    while (!len) {
      struct timespec soon = in(50000);
      int got = self == 0 ? pthread_cond_wait(&empty, &lock)
              : self == 1 ? pthread_cond_timedwait(&empty, &lock, &soon)
                          : (soon = later(CLOCK_MONOTONIC, 50000), pthread_cond_clockwait(&empty, &lock, CLOCK_MONOTONIC, &soon));
      if (got == ETIMEDOUT) late++;
      else expect("wait", got, 0);
    }
    note(queue[--len] * 10 + self);
    consumed++;
    pthread_cond_broadcast(&full);
    pthread_mutex_unlock(&lock);
  }
  return NULL;
}

static void limits(void) {
  struct timespec soon = later(CLOCK_MONOTONIC, MS / 2), past = { 1, 0 }, nonsense = { 0, -1 };
  pthread_mutex_lock(&lock);
  int got;
  // It may be woken for nothing.
  do got = pthread_cond_timedwait(&monotonic, &lock, &soon);
  while (!got);
  expect("timedwait", got, ETIMEDOUT);
  expect("still locked", pthread_mutex_trylock(&lock), EBUSY);
  expect("timedwait until long ago", pthread_cond_timedwait(&full, &lock, &past), ETIMEDOUT);
  expect("timedwait until nonsense", pthread_cond_timedwait(&full, &lock, &nonsense), EINVAL);
  pthread_mutex_unlock(&lock);
}

static void between_processes(void) {
  shared->turn = 0;
  pid_t child = good("fork", fork());
  for (int i = child ? 0 : 1; i < 20; i += 2) {
    pthread_mutex_lock(&shared->lock);
    while (shared->turn != i) pthread_cond_wait(&shared->changed, &shared->lock);
    shared->turn++;
    pthread_cond_broadcast(&shared->changed);
    pthread_mutex_unlock(&shared->lock);
  }
  if (!child) _exit(5);
  int status;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("its status", WIFEXITED(status) && WEXITSTATUS(status) == 5, 1);
  expect("turns", shared->turn, 20);
}

static void turn(unsigned number) {
  produced = consumed = 0;
  pthread_t threads[2 * THREADS];
  for (long i = 0; i < THREADS; i++) threads[i] = spawn(produces, i), threads[THREADS + i] = spawn(consumes, i);
  for (int i = 0; i < 2 * THREADS; i++) join(threads[i]);
  expect("produced", produced, THREADS * ROUNDS);
  expect("consumed", consumed, THREADS * ROUNDS);
  note(late);
  if (number % 4 == 0) limits();
  if (number % 4 == 2) between_processes();
}

static pthread_t waiters[4];
static int waiting, told, was_late;

static void *waits(void *argument) {
  long self = (long)argument;
  struct timespec ample = in(60000 * MS), soon = later(CLOCK_MONOTONIC, 300 * MS);
  pthread_mutex_lock(&lock);
  waiting++;
  pthread_cond_broadcast(&full);
  if (self == 3) {
    int got;
    do got = pthread_cond_timedwait(&monotonic, &lock, &soon);
    while (!got);
    expect("timedwait", got, ETIMEDOUT);
    was_late++;
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec < soon.tv_sec || (now.tv_sec == soon.tv_sec && now.tv_nsec < soon.tv_nsec)) fail("too early");
  } else
    while (!told) expect("wait", self ? pthread_cond_timedwait(&empty, &lock, &ample) : pthread_cond_wait(&empty, &lock), 0);
  pthread_mutex_unlock(&lock);
  return NULL;
}

static void stand(void) {
  pthread_mutex_lock(&lock);
  waiting = told = was_late = 0;
  for (long i = 0; i < 4; i++) waiters[i] = spawn(waits, i);
  while (waiting < 4) pthread_cond_wait(&full, &lock);
  pthread_mutex_unlock(&lock);
}

static void go_on(void) {
  pthread_mutex_lock(&lock);
  told = 1;
  pthread_cond_broadcast(&empty);
  pthread_mutex_unlock(&lock);
  for (int i = 0; i < 4; i++) join(waiters[i]);
  expect("late", was_late, 1);
}
