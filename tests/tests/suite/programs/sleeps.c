// Sleeps of every kind, shorter and longer than the time between two checkpoints: none ends before its time, and none
// begins anew.
#include "serve.h"
#include <linux/futex.h>
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/syscall.h>

enum { KINDS = 11 };
// Long enough for several checkpoints; and how much later than that a sleep may end.
#define LONG (900 * MS)
#define LATE (5000 * MS)

static long lengths[KINDS];
static int word;

static void begin(void) {}

static void sleep_as(int kind, long ns) {
  struct timespec span = { ns / 1000000000, ns % 1000000000 }, until;
  int64_t began = now_ns();
  switch (kind) {
  case 0: good("nanosleep", nanosleep(&span, NULL)); break;
  case 1: expect("clock_nanosleep", clock_nanosleep(CLOCK_REALTIME, 0, &span, NULL), 0); break;
  case 2:
    until = later(CLOCK_MONOTONIC, ns);
    expect("clock_nanosleep", clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL), 0);
    break;
  case 3: expect("poll", poll(NULL, 0, (ns + MS - 1) / MS), 0); break;
  case 4: expect("ppoll", ppoll(NULL, 0, &span, NULL), 0); break;
  case 5: {
    struct timeval brief = { ns / 1000000000, ns % 1000000000 / 1000 };
    expect("select", select(0, NULL, NULL, NULL, &brief), 0);
    break;
  }
  case 6: {
    struct epoll_event event;
    int set = good("epoll_create1", epoll_create1(0));
    expect("epoll_wait", epoll_wait(set, &event, 1, (ns + MS - 1) / MS), 0);
    close(set);
    break;
  }
  case 7: {
    sem_t none;
    until = in(ns);
    good("sem_init", sem_init(&none, 0, 0));
    expect_error("sem_timedwait", sem_timedwait(&none, &until), ETIMEDOUT);
    break;
  }
  case 8: {
    pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    pthread_cond_t never = PTHREAD_COND_INITIALIZER;
    until = later(CLOCK_MONOTONIC, ns);
    pthread_mutex_lock(&lock);
    int got;
    do got = pthread_cond_clockwait(&never, &lock, CLOCK_MONOTONIC, &until);
    while (!got);
    expect("cond_clockwait", got, ETIMEDOUT);
    break;
  }
  case 9: {
    sigset_t none;
    sigemptyset(&none);
    expect_error("sigtimedwait", sigtimedwait(&none, NULL, &span), EAGAIN);
    break;
  }
  default: expect_error("futex", syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &span, NULL, 0), ETIMEDOUT);
  }
  lengths[kind] = now_ns() - began;
  if (lengths[kind] < ns - MS) fail("sleep %d took %ld ns of %ld", kind, lengths[kind], ns);
  if (lengths[kind] > ns + LATE) fail("sleep %d took %ld ns instead of %ld", kind, lengths[kind], ns);
}

static void *sleeps(void *argument) {
  sleep_as((long)argument, LONG);
  return NULL;
}

static void turn(unsigned number) {
  int kind = number % KINDS;
  sleep_as(kind, (1 + number % 3) * 3 * MS);
  note(lengths[kind]);
}

static pthread_t sleepers[KINDS];

static void stand(void) {
  for (long i = 0; i < KINDS; i++) sleepers[i] = spawn(sleeps, i);
}

static void go_on(void) {
  for (int i = 0; i < KINDS; i++) {
    join(sleepers[i]);
    note(lengths[i]);
  }
}
