// How threads begin and end: joined, tried, detached before and after their end, by exit and by return, with keys and
// their destructors.
#include "serve.h"
#include <sys/mman.h>

enum { MANY = 12 };

static pthread_key_t first, second, none;
static int destroyed[3], ended, again;
static _Thread_local int local;
static uint64_t order;

static void began_to_end(void *value) {
  // A value that is set again is destroyed again.
  if ((long)value == 1000) {
    add(&again, 1);
    expect("setspecific", pthread_setspecific(first, (void *)7L), 0);
    return;
  }
  pthread_mutex_lock(&words_lock);
  destroyed[0]++;
  order = (order ^ (uint64_t)value) * 0x100000001b3;
  pthread_mutex_unlock(&words_lock);
}

static void destroy(void *value) {
  free(value);
  add(&destroyed[1], 1);
}

static void begin(void) {
  expect("key_create", pthread_key_create(&first, began_to_end), 0);
  expect("key_create", pthread_key_create(&second, destroy), 0);
  expect("key_create", pthread_key_create(&none, NULL), 0);
  expect("key_delete", pthread_key_delete(none), 0);
}

static void *work(void *argument) {
  long self = (long)argument;
  expect("fresh", local, 0);
  expect("no value", pthread_getspecific(first) == NULL && pthread_getspecific(second) == NULL, 1);
  local = self + 1;
  expect("setspecific", pthread_setspecific(first, (void *)(self % 4 ? self + 1 : 1000)), 0);
  int *value = malloc(sizeof *value * (self + 1));
  *value = self;
  expect("setspecific", pthread_setspecific(second, value), 0);
  add(&ended, 1);
  expect("getspecific", *(int *)pthread_getspecific(second), self);
  if (self % 3 == 0) pthread_exit((void *)(self * 2));
  return (void *)(self * 2);
}

static void *at_once(void *argument) { return argument; }

static void *waits(void *argument) {
  await(&ended, (long)argument);
  return argument;
}

static void with_attributes(void) {
  pthread_attr_t attributes;
  pthread_t thread;
  size_t size;
  int state;
  void *stack = mmap(NULL, 256 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  expect("attr_init", pthread_attr_init(&attributes), 0);
  expect("setstack", pthread_attr_setstack(&attributes, stack, 256 << 10), 0);
  expect("pthread_create", pthread_create(&thread, &attributes, at_once, stack), 0);
  expect("its result", join(thread) == stack, 1);
  munmap(stack, 256 << 10);
  expect("attr_init", pthread_attr_init(&attributes), 0);
  expect("setstacksize", pthread_attr_setstacksize(&attributes, 1 << 20), 0);
  expect("setdetachstate", pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED), 0);
  reset(&ended);
  expect("pthread_create", pthread_create(&thread, &attributes, work, (void *)5L), 0);
  // Its destructors run behind its end.
  await(&destroyed[1], MANY + 1);
  expect("getattr", pthread_getattr_np(pthread_self(), &attributes), 0);
  expect("getdetachstate", pthread_attr_getdetachstate(&attributes, &state), 0);
  expect("joinable", state, PTHREAD_CREATE_JOINABLE);
  expect("getstacksize", pthread_attr_getstacksize(&attributes, &size), 0);
  if (size < 1 << 16) fail("a stack of %zu bytes", size);
}

static void turn(unsigned number) {
  pthread_t threads[MANY];
  pthread_mutex_lock(&words_lock);
  ended = again = destroyed[0] = destroyed[1] = 0;
  pthread_mutex_unlock(&words_lock);
  for (long i = 0; i < MANY; i++) threads[i] = spawn(work, i);
  for (long i = 0; i < MANY; i++) expect("result", (long)join(threads[i]), 2 * i);
  expect("ended", ended, MANY);
  expect("set again", again, MANY / 4);
  expect("destroyed", destroyed[0], MANY);
  expect("freed", destroyed[1], MANY);
  note(order);
  // Detached, before and after its end: then it may still wait for this in the next turn.
  reset(&ended);
  pthread_t thread = spawn(waits, 1);
  struct timespec brief = in(MS / 10), ample = in(20000 * MS);
  void *result;
  expect("tryjoin", pthread_tryjoin_np(thread, NULL), EBUSY);
  expect("timedjoin", pthread_timedjoin_np(thread, NULL, &brief), ETIMEDOUT);
  expect("pthread_detach", pthread_detach(thread), 0);
  thread = spawn(waits, 1);
  add(&ended, 1);
  expect("timedjoin", pthread_timedjoin_np(thread, &result, &ample), 0);
  expect("its result", (long)result, 1);
  thread = spawn(at_once, 0);
  rest(MS / 20);
  expect("pthread_detach", pthread_detach(thread), 0);
  thread = spawn(at_once, 4);
  int tries = 0, got;
  while ((got = pthread_tryjoin_np(thread, &result)) == EBUSY) tries++, rest(MS / 50);
  expect("tryjoin", got, 0);
  note(tries);
  if (number % 4 == 0) with_attributes();
}

static pthread_t sleeper, over;

static void stand(void) {
  reset(&ended);
  local = 77;
  expect("setspecific", pthread_setspecific(first, (void *)55L), 0);
  sleeper = spawn(waits, 1);
  over = spawn(at_once, 66);
}

static void go_on(void) {
  expect("thread-local", local, 77);
  expect("getspecific", (long)pthread_getspecific(first), 55);
  expect("setspecific", pthread_setspecific(first, NULL), 0);
  add(&ended, 1);
  expect("the sleeper", (long)join(sleeper), 1);
  expect("the one that had ended", (long)join(over), 66);
  local = 0;
}
