// Mutexes of every kind, locked, tried and waited for with a limit; made at run time and statically.
#include "serve.h"

enum { THREADS = 4, ROUNDS = 40 };

static pthread_mutex_t plain = PTHREAD_MUTEX_INITIALIZER, adaptive = PTHREAD_ADAPTIVE_MUTEX_INITIALIZER_NP,
                       recursive = PTHREAD_RECURSIVE_MUTEX_INITIALIZER_NP, checking, inheriting;
static uint64_t chain[5];
static unsigned busy, late;
static volatile int inside[5];

static void make(pthread_mutex_t *mutex, int type, int protocol) {
  pthread_mutexattr_t attributes;
  expect("mutexattr_init", pthread_mutexattr_init(&attributes), 0);
  expect("settype", pthread_mutexattr_settype(&attributes, type), 0);
  expect("setprotocol", pthread_mutexattr_setprotocol(&attributes, protocol), 0);
  expect("mutex_init", pthread_mutex_init(mutex, &attributes), 0);
  expect("mutexattr_destroy", pthread_mutexattr_destroy(&attributes), 0);
}

static void begin(void) {
  make(&checking, PTHREAD_MUTEX_ERRORCHECK, PTHREAD_PRIO_NONE);
  make(&inheriting, PTHREAD_MUTEX_NORMAL, PTHREAD_PRIO_INHERIT);
}

static pthread_mutex_t *const all[5] = { &plain, &adaptive, &recursive, &checking, &inheriting };

static void use(int which, long self) {
  if (inside[which]++) fail("two are inside %d", which);
  chain[which] = (chain[which] ^ (self + 1)) * 0x100000001b3;
  if (inside[which]-- != 1) fail("another came into %d", which);
}

static void *work(void *argument) {
  long self = (long)argument;
  unsigned dice = self * 7919 + 1, own_busy = 0, own_late = 0;
  for (int i = 0; i < ROUNDS; i++) {
    dice = dice * 1103515245 + 12345;
    int which = (dice >> 16) % 5, got;
    pthread_mutex_t *mutex = all[which];
    struct timespec soon;
    switch (dice >> 20 & 3) {
    case 0:
      got = pthread_mutex_trylock(mutex);
      if (got == EBUSY) { own_busy++; continue; }
      break;
    case 1:
      soon = in(30000);
      got = pthread_mutex_timedlock(mutex, &soon);
      if (got == ETIMEDOUT) { own_late++; continue; }
      break;
    case 2:
      soon = later(CLOCK_MONOTONIC, 30000);
      got = which == 4 ? pthread_mutex_lock(mutex) : pthread_mutex_clocklock(mutex, CLOCK_MONOTONIC, &soon);
      if (got == ETIMEDOUT) { own_late++; continue; }
      break;
    default: got = pthread_mutex_lock(mutex);
    }
    expect("lock", got, 0);
    use(which, self);
    if (which == 2) {
      expect("again", pthread_mutex_lock(mutex), 0);
      expect("tried again", pthread_mutex_trylock(mutex), 0);
      expect("unlock", pthread_mutex_unlock(mutex), 0);
      expect("unlock", pthread_mutex_unlock(mutex), 0);
    }
    if (i % 8 == 0) rest(20000);
    expect("unlock", pthread_mutex_unlock(mutex), 0);
  }
  pthread_mutex_lock(&plain);
  busy += own_busy, late += own_late;
  pthread_mutex_unlock(&plain);
  return NULL;
}

static void *tries(void *argument) {
  pthread_mutex_t *mutex = argument;
  struct timespec soon = in(MS), past = { 1, 0 }, nonsense = { 0, 2000000000 };
  expect("trylock of another's", pthread_mutex_trylock(mutex), EBUSY);
  expect("timedlock of another's", pthread_mutex_timedlock(mutex, &soon), ETIMEDOUT);
  expect("timedlock until long ago", pthread_mutex_timedlock(mutex, &past), ETIMEDOUT);
  expect("timedlock until nonsense", pthread_mutex_timedlock(mutex, &nonsense), EINVAL);
  return NULL;
}

static void errors(void) {
  expect("lock", pthread_mutex_lock(&checking), 0);
  expect("lock of one's own", pthread_mutex_lock(&checking), EDEADLK);
  expect("trylock of one's own", pthread_mutex_trylock(&checking), EBUSY);
  join(spawn(tries, (long)&checking));
  expect("unlock", pthread_mutex_unlock(&checking), 0);
  expect("unlock of nobody's", pthread_mutex_unlock(&checking), EPERM);
  expect("unlock of nobody's", pthread_mutex_unlock(&recursive), EPERM);
  pthread_mutex_t brief;
  make(&brief, PTHREAD_MUTEX_NORMAL, PTHREAD_PRIO_NONE);
  expect("lock", pthread_mutex_lock(&brief), 0);
  join(spawn(tries, (long)&brief));
  expect("unlock", pthread_mutex_unlock(&brief), 0);
  expect("destroy", pthread_mutex_destroy(&brief), 0);
}

static void turn(unsigned number) {
  if (number % 8 == 0) errors();
  pthread_t threads[THREADS];
  for (long i = 0; i < THREADS; i++) threads[i] = spawn(work, i);
  for (int i = 0; i < THREADS; i++) join(threads[i]);
  for (int i = 0; i < 5; i++) note(chain[i]);
  note(busy);
  note(late);
}

static pthread_t waiters[5];
static int standing;

static void *waits(void *argument) {
  int which = (long)argument;
  struct timespec ample = in(60000 * MS);
  add(&standing, 1);
  expect("lock", which % 2 ? pthread_mutex_timedlock(all[which], &ample) : pthread_mutex_lock(all[which]), 0);
  use(which, 9);
  expect("unlock", pthread_mutex_unlock(all[which]), 0);
  return NULL;
}

static void stand(void) {
  standing = 0;
  for (int i = 0; i < 5; i++) expect("lock", pthread_mutex_lock(all[i]), 0);
  expect("lock again", pthread_mutex_lock(&recursive), 0);
  for (long i = 0; i < 5; i++) waiters[i] = spawn(waits, i);
  await(&standing, 5);
}

static void go_on(void) {
  expect("lock of one's own", pthread_mutex_lock(&checking), EDEADLK);
  for (int i = 0; i < 5; i++) {
    use(i, 8);
    expect("unlock", pthread_mutex_unlock(all[i]), 0);
  }
  expect("unlock", pthread_mutex_unlock(&recursive), 0);
  for (int i = 0; i < 5; i++) join(waiters[i]);
}
