// C11's threads: mutexes of their kinds, conditions, once, thread storage.
#include "serve.h"
#include <threads.h>

enum { THREADS = 3, ROUNDS = 30 };

static mtx_t plain, recursive, timed;
static cnd_t condition;
static tss_t storage;
static int at, destroyed, late, busy;
static uint64_t chain;
static once_flag once = ONCE_FLAG_INIT;
static int onces;

static void destroy(void *value) {
  free(value);
  add(&destroyed, 1);
}

static void count(void) { onces++; }

static void begin(void) {
  expect("mtx_init", mtx_init(&plain, mtx_plain), thrd_success);
  expect("mtx_init", mtx_init(&recursive, mtx_recursive), thrd_success);
  expect("mtx_init", mtx_init(&timed, mtx_timed), thrd_success);
  expect("cnd_init", cnd_init(&condition), thrd_success);
  expect("tss_create", tss_create(&storage, destroy), thrd_success);
}

static int work(void *argument) {
  int self = (int)(long)argument;
  call_once(&once, count);
  expect("tss_set", tss_set(storage, malloc(16)), thrd_success);
  for (int i = 0; i < ROUNDS; i++) {
    struct timespec soon;
    timespec_get(&soon, TIME_UTC);
    soon.tv_nsec += 30000;
    if (soon.tv_nsec > 999999999) soon.tv_sec++, soon.tv_nsec -= 1000000000;
    int got = mtx_timedlock(&timed, &soon);
    if (got == thrd_success) {
      chain = (chain ^ (self + 1)) * 0x100000001b3;
      if (i % 8 == 0) thrd_sleep(&(struct timespec){ 0, 10000 }, NULL);
      expect("mtx_unlock", mtx_unlock(&timed), thrd_success);
    } else expect("mtx_timedlock", got, thrd_timedout);
    int was_late = got == thrd_timedout;
    got = mtx_trylock(&recursive);
    if (got == thrd_success) {
      expect("mtx_lock again", mtx_lock(&recursive), thrd_success);
      mtx_unlock(&recursive);
      mtx_unlock(&recursive);
    } else expect("mtx_trylock", got, thrd_busy);
    mtx_lock(&plain);
    late += was_late, busy += got == thrd_busy;
    while (at % THREADS != self) expect("cnd_wait", cnd_wait(&condition, &plain), thrd_success);
    at++;
    cnd_broadcast(&condition);
    mtx_unlock(&plain);
    if (i % 16 == 0) thrd_yield();
  }
  if (self == 1) thrd_exit(self * 3);
  return self * 3;
}

static void turn(unsigned number) {
  (void)number;
  thrd_t threads[THREADS];
  at = destroyed = 0;
  for (long i = 0; i < THREADS; i++) expect("thrd_create", thrd_create(&threads[i], work, (void *)i), thrd_success);
  for (int i = 0; i < THREADS; i++) {
    int result;
    expect("thrd_join", thrd_join(threads[i], &result), thrd_success);
    expect("its result", result, 3 * i);
  }
  expect("at", at, THREADS * ROUNDS);
  expect("destroyed", destroyed, THREADS);
  expect("onces", onces, 1);
  struct timespec past = { 1, 0 };
  mtx_lock(&plain);
  int got;
  do got = cnd_timedwait(&condition, &plain, &past);
  while (got == thrd_success);
  expect("cnd_timedwait", got, thrd_timedout);
  mtx_unlock(&plain);
  note(chain);
  note(late);
  note(busy);
}

static thrd_t waiter;
static int standing;

static int waits(void *argument) {
  mtx_lock(&plain);
  standing = 1;
  cnd_broadcast(&condition);
  while (standing < 2) cnd_wait(&condition, &plain);
  mtx_unlock(&plain);
  return (int)(long)argument;
}

static void stand(void) {
  standing = 0;
  expect("thrd_create", thrd_create(&waiter, waits, (void *)9L), thrd_success);
  mtx_lock(&plain);
  while (!standing) cnd_wait(&condition, &plain);
  mtx_unlock(&plain);
}

static void go_on(void) {
  int result;
  mtx_lock(&plain);
  standing = 2;
  cnd_broadcast(&condition);
  mtx_unlock(&plain);
  expect("thrd_join", thrd_join(waiter, &result), thrd_success);
  expect("its result", result, 9);
}
