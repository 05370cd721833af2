// Robust mutexes: whoever comes next learns that the owner ended, be it a thread or a process that was killed.
#include "serve.h"
#include <sys/mman.h>
#include <sys/wait.h>

struct shared { pthread_mutex_t lock, other; pthread_cond_t changed; uint64_t value; int stage; };
static struct shared *shared;

static void make(pthread_mutex_t *mutex, int type) {
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  expect("setrobust", pthread_mutexattr_setrobust(&attributes, PTHREAD_MUTEX_ROBUST), 0);
  expect("setpshared", pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED), 0);
  expect("settype", pthread_mutexattr_settype(&attributes, type), 0);
  expect("mutex_init", pthread_mutex_init(mutex, &attributes), 0);
}

static void begin(void) {
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  make(&shared->lock, PTHREAD_MUTEX_NORMAL);
  make(&shared->other, PTHREAD_MUTEX_RECURSIVE);
  pthread_condattr_t attributes;
  pthread_condattr_init(&attributes);
  pthread_condattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_cond_init(&shared->changed, &attributes);
}

static void *leaves_it(void *argument) {
  expect("lock", pthread_mutex_lock(argument), 0);
  shared->value++;
  return NULL;
}

static void *waits_for_it(void *argument) {
  long got = pthread_mutex_lock(argument);
  if (got == EOWNERDEAD) {
    expect("consistent", pthread_mutex_consistent(argument), 0);
    shared->value += 100;
  } else expect("lock", got, 0);
  expect("unlock", pthread_mutex_unlock(argument), 0);
  return (void *)got;
}

static void threads_leave(pthread_mutex_t *mutex) {
  join(spawn(leaves_it, (long)mutex));
  struct timespec ample = in(20000 * MS);
  expect("lock of a dead one's", pthread_mutex_timedlock(mutex, &ample), EOWNERDEAD);
  expect("consistent", pthread_mutex_consistent(mutex), 0);
  expect("unlock", pthread_mutex_unlock(mutex), 0);
  join(spawn(leaves_it, (long)mutex));
  expect("trylock of a dead one's", pthread_mutex_trylock(mutex), EOWNERDEAD);
  expect("consistent", pthread_mutex_consistent(mutex), 0);
  expect("unlock", pthread_mutex_unlock(mutex), 0);
  expect("lock", pthread_mutex_lock(mutex), 0);
  pthread_t waiters[3];
  for (int i = 0; i < 3; i++) waiters[i] = spawn(waits_for_it, (long)mutex);
  expect("unlock", pthread_mutex_unlock(mutex), 0);
  pthread_t owner = spawn(leaves_it, (long)mutex);
  join(owner);
  long dead = 0;
  for (int i = 0; i < 3; i++) {
    long got = (long)join(waiters[i]);
    note(got);
    dead += got == EOWNERDEAD;
  }
  if (!dead) {
    expect("lock of a dead one's", pthread_mutex_lock(mutex), EOWNERDEAD);
    expect("consistent", pthread_mutex_consistent(mutex), 0);
    expect("unlock", pthread_mutex_unlock(mutex), 0);
  } else expect("told", dead, 1);
}

static void not_recovered(void) {
  pthread_mutex_t lost;
  make(&lost, PTHREAD_MUTEX_ERRORCHECK);
  join(spawn(leaves_it, (long)&lost));
  expect("lock of a dead one's", pthread_mutex_lock(&lost), EOWNERDEAD);
  expect("lock of one's own", pthread_mutex_lock(&lost), EDEADLK);
  expect("unlock without repair", pthread_mutex_unlock(&lost), 0);
  expect("lock", pthread_mutex_lock(&lost), ENOTRECOVERABLE);
  expect("trylock", pthread_mutex_trylock(&lost), ENOTRECOVERABLE);
  expect("destroy", pthread_mutex_destroy(&lost), 0);
}

static void a_process_leaves(int by_signal) {
  shared->stage = 0;
  pid_t child = good("fork", fork());
  if (!child) {
    pthread_mutex_lock(&shared->lock);
    shared->value += 7;
    shared->stage = 1;
    if (by_signal) kill(getpid(), SIGKILL);
    _exit(0);
  }
  int status;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("its status", WIFSIGNALED(status), by_signal);
  expect("its stage", shared->stage, 1);
  expect("lock of a dead process'", pthread_mutex_lock(&shared->lock), EOWNERDEAD);
  expect("consistent", pthread_mutex_consistent(&shared->lock), 0);
  expect("unlock", pthread_mutex_unlock(&shared->lock), 0);
}

static void turn(unsigned number) {
  threads_leave(number % 2 ? &shared->lock : &shared->other);
  if (number % 4 == 1) not_recovered();
  if (number % 4 == 3) a_process_leaves(number % 8 == 7);
  expect("lock", pthread_mutex_lock(&shared->lock), 0);
  note(shared->value);
  expect("unlock", pthread_mutex_unlock(&shared->lock), 0);
}

static pthread_t keeper, waiter;
static int keeps, may_end;

static void *keeps_it(void *argument) {
  expect("lock", pthread_mutex_lock(&shared->lock), 0);
  add(&keeps, 1);
  await(&may_end, 1);
  return argument;
}

// One keeps it, another waits for it: then the first ends.
static void stand(void) {
  keeps = may_end = 0;
  keeper = spawn(keeps_it, 0);
  await(&keeps, 1);
  waiter = spawn(waits_for_it, (long)&shared->lock);
}

static void go_on(void) {
  add(&may_end, 1);
  join(keeper);
  expect("the waiter is told", (long)join(waiter), EOWNERDEAD);
}
