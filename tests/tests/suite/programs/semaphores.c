// Semaphores: between threads and between processes; tried, and waited for with a limit.
#include "serve.h"
#include <sys/mman.h>
#include <sys/wait.h>

enum { THREADS = 4, ROUNDS = 50 };

static sem_t slots, mutex;
static uint64_t chain;
static unsigned missed[THREADS];
static volatile int inside;
static sem_t *shared;

static void begin(void) {
  good("sem_init", sem_init(&slots, 0, 2));
  good("sem_init", sem_init(&mutex, 0, 1));
  shared = mmap(NULL, 2 * sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  good("sem_init", sem_init(&shared[0], 1, 0));
  good("sem_init", sem_init(&shared[1], 1, 0));
}

static void *work(void *argument) {
  long self = (long)argument;
  unsigned dice = self * 4711 + 3;
  for (int i = 0; i < ROUNDS; i++) {
    dice = dice * 1103515245 + 12345;
    struct timespec soon = in(30000), soon_too = later(CLOCK_MONOTONIC, 30000);
    int got;
    switch (dice >> 16 & 3) {
    case 0: got = sem_trywait(&slots); break;
    case 1: got = sem_timedwait(&slots, &soon); break;
    case 2: got = sem_clockwait(&slots, CLOCK_MONOTONIC, &soon_too); break;
    default: got = sem_wait(&slots);
    }
    if (got) {
      if (errno != EAGAIN && errno != ETIMEDOUT) fail("wait: errno %d", errno);
      missed[self]++;
      continue;
    }
    take(&mutex);
    if (++inside > 2) fail("%d are inside", inside);
    chain = (chain ^ (self + 1)) * 0x100000001b3;
    post(&mutex);
    if (i % 16 == 0) rest(10000);
    take(&mutex);
    inside--;
    post(&mutex);
    post(&slots);
  }
  return NULL;
}

static void values(void) {
  sem_t some;
  int value;
  struct timespec past = { 1, 0 };
  expect_error("a value that is too large", sem_init(&some, 0, (unsigned)INT_MAX + 1), EINVAL);
  good("sem_init", sem_init(&some, 0, 3));
  good("sem_getvalue", sem_getvalue(&some, &value));
  expect("its value", value, 3);
  for (int i = 0; i < 3; i++) good("sem_trywait", sem_trywait(&some));
  expect_error("sem_trywait", sem_trywait(&some), EAGAIN);
  expect_error("sem_timedwait until long ago", sem_timedwait(&some, &past), ETIMEDOUT);
  post(&some);
  good("sem_timedwait of one that is there", sem_timedwait(&some, &past));
  good("sem_getvalue", sem_getvalue(&some, &value));
  expect("its value", value, 0);
  good("sem_destroy", sem_destroy(&some));
}

static void between_processes(sem_t *there, sem_t *back) {
  pid_t child = good("fork", fork());
  for (int i = 0; i < 10; i++) {
    if (child) post(there), take(back);
    else take(there), post(back);
  }
  if (!child) _exit(4);
  int status;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("its status", WIFEXITED(status) && WEXITSTATUS(status) == 4, 1);
}

static void turn(unsigned number) {
  pthread_t threads[THREADS];
  for (long i = 0; i < THREADS; i++) threads[i] = spawn(work, i);
  for (int i = 0; i < THREADS; i++) join(threads[i]);
  note(chain);
  for (int i = 0; i < THREADS; i++) note(missed[i]);
  if (number % 4 == 0) values();
  if (number % 8 == 2) between_processes(&shared[0], &shared[1]);
}

static pthread_t waiters[3];
static int standing;

static void *waits(void *argument) {
  long self = (long)argument;
  struct timespec ample = in(60000 * MS), soon = in(300 * MS);
  sem_t none;
  add(&standing, 1);
  if (self == 0) take(&slots);
  else if (self == 1) good("sem_timedwait", sem_timedwait(&slots, &ample));
  else {
    good("sem_init", sem_init(&none, 0, 0));
    expect_error("sem_timedwait", sem_timedwait(&none, &soon), ETIMEDOUT);
  }
  return NULL;
}

static void stand(void) {
  standing = 0;
  take(&slots);
  take(&slots);
  for (long i = 0; i < 3; i++) waiters[i] = spawn(waits, i);
  await(&standing, 3);
}

static void go_on(void) {
  int value;
  good("sem_getvalue", sem_getvalue(&slots, &value));
  expect("its value", value, 0);
  post(&slots);
  post(&slots);
  for (int i = 0; i < 3; i++) join(waiters[i]);
  post(&slots);
  post(&slots);
}
