// Read-write locks of every kind, taken, tried and waited for with a limit, between threads and between processes.
#include "serve.h"
#include <sys/mman.h>
#include <sys/wait.h>

enum { THREADS = 4, ROUNDS = 60 };

static pthread_rwlock_t plain = PTHREAD_RWLOCK_INITIALIZER, writers = PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP;
static uint64_t chain[2], seen[THREADS];
static unsigned missed[THREADS];
struct shared { pthread_rwlock_t lock; uint64_t value, copy; };
static struct shared *shared;

static void begin(void) {
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pthread_rwlockattr_t attributes;
  pthread_rwlockattr_init(&attributes);
  pthread_rwlockattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  expect("rwlock_init", pthread_rwlock_init(&shared->lock, &attributes), 0);
}

static void *work(void *argument) {
  long self = (long)argument;
  unsigned dice = self * 31337 + 7;
  for (int i = 0; i < ROUNDS; i++) {
    dice = dice * 1103515245 + 12345;
    int which = dice >> 16 & 1, got;
    pthread_rwlock_t *lock = which ? &writers : &plain;
    struct timespec soon = in(40000);
    int writes = 0;
    switch (dice >> 18 & 7) {
    case 0: got = pthread_rwlock_wrlock(lock), writes = 1; break;
    case 1: got = pthread_rwlock_trywrlock(lock), writes = 1; break;
    case 2: got = pthread_rwlock_timedwrlock(lock, &soon), writes = 1; break;
    case 3: got = pthread_rwlock_tryrdlock(lock); break;
    case 4: got = pthread_rwlock_timedrdlock(lock, &soon); break;
    default: got = pthread_rwlock_rdlock(lock);
    }
    if (got == EBUSY || got == ETIMEDOUT) { missed[self]++; continue; }
    expect("lock", got, 0);
    if (writes) chain[which] = (chain[which] ^ (self + 1)) * 0x100000001b3;
    else seen[self] = (seen[self] ^ chain[which]) * 0x100000001b3;
    if (i % 16 == 0) rest(10000);
    expect("unlock", pthread_rwlock_unlock(lock), 0);
  }
  return NULL;
}

static void between_processes(void) {
  pid_t child = good("fork", fork());
  for (int i = 0; i < 20; i++) {
    if (child) {
      pthread_rwlock_wrlock(&shared->lock);
      shared->value++;
      shared->copy = shared->value;
    } else {
      pthread_rwlock_rdlock(&shared->lock);
      if (shared->value != shared->copy) _exit(1);
    }
    pthread_rwlock_unlock(&shared->lock);
  }
  if (!child) _exit(6);
  int status;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("its status", WIFEXITED(status) && WEXITSTATUS(status) == 6, 1);
}

static void turn(unsigned number) {
  pthread_t threads[THREADS];
  for (long i = 0; i < THREADS; i++) threads[i] = spawn(work, i);
  for (int i = 0; i < THREADS; i++) join(threads[i]);
  for (int i = 0; i < THREADS; i++) note(seen[i]), note(missed[i]);
  if (number % 8 == 0) between_processes();
}

static pthread_t readers[2], writer;
static int standing, wrote;

static void *reads(void *argument) {
  add(&standing, 1);
  struct timespec ample = in(60000 * MS);
  expect("rdlock", argument ? pthread_rwlock_timedrdlock(&writers, &ample) : pthread_rwlock_rdlock(&writers), 0);
  expect("unlock", pthread_rwlock_unlock(&writers), 0);
  return NULL;
}

static void *writes(void *argument) {
  add(&standing, 1);
  expect("wrlock", pthread_rwlock_wrlock(&plain), 0);
  wrote++;
  expect("unlock", pthread_rwlock_unlock(&plain), 0);
  return argument;
}

// One is held by a writer and readers wait, the other the other way round.
static void stand(void) {
  standing = wrote = 0;
  expect("wrlock", pthread_rwlock_wrlock(&writers), 0);
  expect("rdlock", pthread_rwlock_rdlock(&plain), 0);
  expect("rdlock", pthread_rwlock_rdlock(&plain), 0);
  for (long i = 0; i < 2; i++) readers[i] = spawn(reads, i);
  writer = spawn(writes, 0);
  await(&standing, 3);
}

static void go_on(void) {
  expect("its own", pthread_rwlock_rdlock(&writers), EDEADLK);
  expect("nobody wrote", wrote, 0);
  expect("unlock", pthread_rwlock_unlock(&writers), 0);
  expect("unlock", pthread_rwlock_unlock(&plain), 0);
  expect("nobody wrote", wrote, 0);
  expect("unlock", pthread_rwlock_unlock(&plain), 0);
  for (int i = 0; i < 2; i++) join(readers[i]);
  join(writer);
  expect("wrote", wrote, 1);
}
