// Threads that meet at read-write locks, spin locks and barriers. What is printed depends on the order in which they
// got them; each checks meanwhile that the locks hold.
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <threads.h>
#include <time.h>

enum { THREADS = 4, ROUNDS = 1500, ONCES = 200 };

static pthread_rwlock_t plain = PTHREAD_RWLOCK_INITIALIZER;
static pthread_rwlock_t prefers_writers = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static pthread_spinlock_t spin;
static pthread_barrier_t barrier;
static uint64_t order[4], seen[THREADS][4];
static unsigned busy[THREADS], late[THREADS], serial[THREADS];
static volatile int inside;

static void fail(const char *what, long value) { printf("FAULT: %s %ld\n", what, value); fflush(stdout); abort(); }
static void expect(const char *what, int got, int wanted) { if (got != wanted) fail(what, got); }
static uint64_t fold(uint64_t hash, uint64_t value) { return (hash ^ value) * 0x9e3779b97f4a7c15; }

static struct timespec in(long nanoseconds) {
  struct timespec t;
  clock_gettime(CLOCK_REALTIME, &t);
  t.tv_nsec += nanoseconds;
  if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
  return t;
}

static void write_under(int which, long self) {
  if (inside++) fail("another writer", inside);
  order[which] = fold(order[which], self + 1);
  if (inside-- != 1) fail("another writer came", inside);
}

static void read_under(int which, long self) {
  if (inside) fail("a writer beside a reader", inside);
  seen[self][which] = fold(seen[self][which], order[which]);
  if (inside) fail("a writer came beside a reader", inside);
}

// `inside` is one for both locks: they are used one after the other, with a barrier between.
static void use(pthread_rwlock_t *lock, int which, long self) {
  unsigned dice = self * 7919 + which;
  for (int i = 0; i < ROUNDS; i++) {
    dice = dice * 1103515245 + 12345;
    struct timespec soon;
    int got;
    switch (dice >> 16 & 7) {
    case 0: pthread_rwlock_wrlock(lock); write_under(which, self); break;
    case 1:
      if (pthread_rwlock_trywrlock(lock)) { busy[self]++; continue; }
      write_under(which, self);
      break;
    case 2:
      if (pthread_rwlock_tryrdlock(lock)) { busy[self]++; continue; }
      read_under(which, self);
      break;
    case 3:
      soon = in(20000);
      got = pthread_rwlock_timedwrlock(lock, &soon);
      if (got == ETIMEDOUT) { late[self]++; continue; }
      expect("timedwrlock", got, 0);
      write_under(which, self);
      break;
    case 4:
      soon = in(20000);
      got = pthread_rwlock_clockrdlock(lock, CLOCK_REALTIME, &soon);
      if (got == ETIMEDOUT) { late[self]++; continue; }
      expect("clockrdlock", got, 0);
      read_under(which, self);
      break;
    default: pthread_rwlock_rdlock(lock); read_under(which, self);
    }
    if (i % 64 == 0) sched_yield();
    expect("unlock", pthread_rwlock_unlock(lock), 0);
  }
}

static pthread_once_t firsts[ONCES];
static long first_of[ONCES];
static _Thread_local long me, which;

static void be_first(void) {
  sched_yield();
  first_of[which] = me;
}

// Who comes first is up to the threads; all others find it done.
static void meet(long self) {
  me = self + 1;
  for (which = 0; which < ONCES; which++) {
    expect("pthread_once", pthread_once(&firsts[which], be_first), 0);
    if (!first_of[which]) fail("not done", which);
  }
}

// A thread that ends in the function leaves it to the next.
static pthread_once_t left = PTHREAD_ONCE_INIT;
static int tries;

static void leave_first(void) { if (!tries++) pthread_exit(NULL); }

static void *leaves(void *argument) {
  pthread_once(&left, leave_first);
  return argument;
}

static void left_once(void) {
  pthread_t thread;
  void *result;
  pthread_create(&thread, NULL, leaves, &thread);
  pthread_join(thread, &result);
  expect("a thread that left", result != NULL, 0);
  expect("pthread_once", pthread_once(&left, leave_first), 0);
  expect("tries", tries, 2);
}

static void *worker(void *argument) {
  long self = (long)argument;
  use(&plain, 0, self);
  pthread_barrier_wait(&barrier);
  meet(self);
  if (pthread_barrier_wait(&barrier) == PTHREAD_BARRIER_SERIAL_THREAD) serial[self]++;
  use(&prefers_writers, 1, self);
  for (int i = 0; i < ROUNDS; i++) {
    if (i % 8 == 0 && pthread_spin_trylock(&spin)) { busy[self]++; continue; }
    if (i % 8) pthread_spin_lock(&spin);
    order[2] = fold(order[2], self + 1);
    pthread_spin_unlock(&spin);
  }
  for (int i = 0; i < 200; i++) {
    int got = pthread_barrier_wait(&barrier);
    if (got == PTHREAD_BARRIER_SERIAL_THREAD) { serial[self]++; order[3] = fold(order[3], self + 1); }
    else expect("barrier", got, 0);
  }
  return NULL;
}

static mtx_t mutex;
static cnd_t condition;
static once_flag once = ONCE_FLAG_INIT;
static int turn, onces;

static void count_once(void) { onces++; }

static int c11(void *argument) {
  int self = (int)(long)argument;
  call_once(&once, count_once);
  for (int i = 0; i < 100; i++) {
    mtx_lock(&mutex);
    while (turn % THREADS != self) cnd_wait(&condition, &mutex);
    turn++;
    cnd_broadcast(&condition);
    mtx_unlock(&mutex);
  }
  return self;
}

static void errors(void) {
  pthread_rwlock_t lock = PTHREAD_RWLOCK_INITIALIZER;
  struct timespec wrong = { 0, 1000000000 }, past = { -1, 0 }, soon;
  pthread_rwlock_wrlock(&lock);
  expect("wrlock of one's own", pthread_rwlock_wrlock(&lock), EDEADLK);
  expect("rdlock of one's own", pthread_rwlock_rdlock(&lock), EDEADLK);
  expect("trywrlock of one's own", pthread_rwlock_trywrlock(&lock), EBUSY);
  pthread_rwlock_unlock(&lock);
  pthread_rwlock_rdlock(&lock);
  pthread_rwlock_rdlock(&lock);
  expect("trywrlock beside readers", pthread_rwlock_trywrlock(&lock), EBUSY);
  soon = in(1000000);
  expect("timedwrlock beside readers", pthread_rwlock_timedwrlock(&lock, &soon), ETIMEDOUT);
  expect("timedwrlock until nonsense", pthread_rwlock_timedwrlock(&lock, &wrong), EINVAL);
  expect("timedwrlock until long ago", pthread_rwlock_timedwrlock(&lock, &past), ETIMEDOUT);
  pthread_rwlock_unlock(&lock);
  pthread_rwlock_unlock(&lock);
  expect("trywrlock of a free lock", pthread_rwlock_trywrlock(&lock), 0);
  pthread_rwlock_unlock(&lock);
  pthread_mutex_t held = PTHREAD_MUTEX_INITIALIZER;
  pthread_mutex_lock(&held);
  expect("timedlock until nonsense", pthread_mutex_timedlock(&held, &wrong), EINVAL);
  expect("timedlock until long ago", pthread_mutex_timedlock(&held, &past), ETIMEDOUT);
  sem_t none;
  sem_init(&none, 0, 0);
  expect("sem_timedwait until nonsense", sem_timedwait(&none, &wrong) ? errno : 0, EINVAL);
  expect("sem_timedwait until long ago", sem_timedwait(&none, &past) ? errno : 0, ETIMEDOUT);
  pthread_barrier_t nobody;
  expect("a barrier of nobody", pthread_barrier_init(&nobody, NULL, 0), EINVAL);
}

int main(void) {
  errors();
  left_once();
  expect("spin_init", pthread_spin_init(&spin, PTHREAD_PROCESS_PRIVATE), 0);
  expect("barrier_init", pthread_barrier_init(&barrier, NULL, THREADS), 0);
  pthread_t threads[THREADS];
  for (long i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, worker, (void *)i);
  for (int i = 0; i < THREADS; i++) pthread_join(threads[i], NULL);
  pthread_barrier_destroy(&barrier);
  for (int i = 0; i < 4; i++) printf("order %d: %016lx\n", i, order[i]);
  uint64_t firsts_by = 0;
  for (int i = 0; i < ONCES; i++) firsts_by = fold(firsts_by, first_of[i]);
  printf("onces: %016lx\n", firsts_by);
  unsigned rounds = 0;
  for (int i = 0; i < THREADS; i++) {
    printf("thread %d: %016lx %016lx busy %u late %u serial %u\n", i, seen[i][0], seen[i][1], busy[i], late[i], serial[i]);
    rounds += serial[i];
  }
  expect("rounds of the barrier", rounds, 201);
  mtx_init(&mutex, mtx_plain);
  cnd_init(&condition);
  thrd_t c[THREADS];
  for (long i = 0; i < THREADS; i++) thrd_create(&c[i], c11, (void *)i);
  int sum = 0, result;
  for (int i = 0; i < THREADS; i++) { thrd_join(c[i], &result); sum += result; }
  printf("C11: turn %d, once %d, sum %d\n", turn, onces, sum);
  printf("done\n");
  return 0;
}
