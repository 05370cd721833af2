// Barriers, spin locks, once and thread-local storage; barriers between processes, too.
#include "serve.h"
#include <sched.h>
#include <sys/mman.h>
#include <sys/wait.h>

enum { THREADS = 4, ROUNDS = 20, ONCES = 16 };

static pthread_barrier_t barrier, *shared;
static pthread_spinlock_t spin;
static uint64_t chain, firsts;
static unsigned serial[THREADS], busy[THREADS];
static pthread_once_t onces[ONCES];
static int first_of[ONCES], times[ONCES];
static _Thread_local long me, which;

static void begin(void) {
  expect("barrier_init", pthread_barrier_init(&barrier, NULL, THREADS), 0);
  expect("a barrier of nobody", pthread_barrier_init(&barrier, NULL, 0), EINVAL);
  expect("spin_init", pthread_spin_init(&spin, PTHREAD_PROCESS_PRIVATE), 0);
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pthread_barrierattr_t attributes;
  pthread_barrierattr_init(&attributes);
  pthread_barrierattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  expect("barrier_init", pthread_barrier_init(shared, &attributes, 2), 0);
}

static void be_first(void) {
  sched_yield();
  first_of[which] = me + 1;
  times[which]++;
}

static void *work(void *argument) {
  long self = (long)argument;
  me = self;
  for (int i = 0; i < ROUNDS; i++) {
    int got = pthread_barrier_wait(&barrier);
    if (got == PTHREAD_BARRIER_SERIAL_THREAD) serial[self]++;
    else expect("barrier", got, 0);
    if (i % 4 == 0) {
      got = pthread_spin_trylock(&spin);
      if (got == EBUSY) { busy[self]++; continue; }
    } else got = pthread_spin_lock(&spin);
    expect("spin lock", got, 0);
    chain = (chain ^ (self + 1)) * 0x100000001b3;
    expect("spin_unlock", pthread_spin_unlock(&spin), 0);
  }
  pthread_barrier_wait(&barrier);
  for (which = 0; which < ONCES; which++) {
    expect("once", pthread_once(&onces[which], be_first), 0);
    expect("done once", times[which], 1);
  }
  expect("thread-local", me, self);
  return NULL;
}

static void between_processes(void) {
  pid_t child = good("fork", fork());
  unsigned serials = 0;
  for (int i = 0; i < 6; i++) serials += pthread_barrier_wait(shared) == PTHREAD_BARRIER_SERIAL_THREAD;
  if (!child) _exit(serials);
  int status;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("serial threads", serials + WEXITSTATUS(status), 6);
}

static void turn(unsigned number) {
  for (int i = 0; i < ONCES; i++) onces[i] = PTHREAD_ONCE_INIT, first_of[i] = times[i] = 0;
  pthread_t threads[THREADS];
  for (long i = 0; i < THREADS; i++) threads[i] = spawn(work, i);
  for (int i = 0; i < THREADS; i++) join(threads[i]);
  for (int i = 0; i < ONCES; i++) firsts = (firsts ^ first_of[i]) * 0x100000001b3;
  for (int i = 0; i < THREADS; i++) note(serial[i]), note(busy[i]);
  note(chain);
  note(firsts);
  if (number % 8 == 0) between_processes();
}

static pthread_t waiters[THREADS - 1];
static int standing;

static void *waits(void *argument) {
  add(&standing, 1);
  return (void *)(long)(pthread_barrier_wait(&barrier) + (long)argument);
}

// All but one wait at a barrier.
static void stand(void) {
  standing = 0;
  for (int i = 0; i < THREADS - 1; i++) waiters[i] = spawn(waits, 0);
  await(&standing, THREADS - 1);
}

static void go_on(void) {
  long serials = pthread_barrier_wait(&barrier);
  for (int i = 0; i < THREADS - 1; i++) serials += (long)join(waiters[i]);
  expect("serial threads", serials, PTHREAD_BARRIER_SERIAL_THREAD);
}
