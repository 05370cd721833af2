// Calls that a signal interrupts: with SA_RESTART they go on, without it they say so.
#include "serve.h"
#include <poll.h>
#include <sys/epoll.h>

enum { PLAIN = SIGUSR1, RESTARTS = SIGUSR2 };

static pthread_t main_thread;
static volatile sig_atomic_t plain, restarts;
static int ends[2], set;
static int in_call;
static sem_t struck;

static void on_plain(int signal) { (void)signal, plain++, post(&struck); }
static void on_restarts(int signal) { (void)signal, restarts++, post(&struck); }

static void none_struck(void) {
  while (!sem_trywait(&struck)) continue;
}

static void begin(void) {
  good("sem_init", sem_init(&struck, 0, 0));
  main_thread = pthread_self();
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_plain;
  good("sigaction", sigaction(PLAIN, &action, NULL));
  action.sa_handler = on_restarts;
  action.sa_flags = SA_RESTART;
  good("sigaction", sigaction(RESTARTS, &action, NULL));
  good("pipe", pipe(ends));
  set = good("epoll_create1", epoll_create1(0));
}

// Signals again and again until told to stop, since the first may come before the call; then writes, if asked to.
struct strikes { int signal, writes; };

static volatile sig_atomic_t *counter(int signal) { return signal == PLAIN ? &plain : &restarts; }

static void *strike(void *argument) {
  struct strikes *s = argument;
  if (s->writes) {
    for (int i = 0; i < 3; i++) {
      rest(MS / 5);
      expect("pthread_kill", pthread_kill(main_thread, s->signal), 0);
    }
    take(&struck);
    expect("write", write(ends[1], "x", 1), 1);
    return NULL;
  }
  while (get(&in_call)) {
    rest(MS / 5);
    pthread_kill(main_thread, s->signal);
  }
  return NULL;
}

// Makes a call while another thread strikes.
#define STRUCK(name, by, wanted, call)                                        \
  do {                                                                        \
    struct strikes s = { by, 0 };                                             \
    int before = *counter(by);                                                \
    add(&in_call, 1);                                                         \
    pthread_t t;                                                              \
    expect("pthread_create", pthread_create(&t, NULL, strike, &s), 0);        \
    long got = (call);                                                        \
    int error = errno;                                                        \
    add(&in_call, -1);                                                        \
    join(t);                                                                  \
    errno = error;                                                            \
    expect_error(name, got, wanted);                                          \
    if (*counter(by) == before) fail("%s: no signal came", name);             \
  } while (0)

static void turn(unsigned number) {
  char byte;
  struct timespec ample = { 20, 0 }, left, until;
  struct pollfd watched = { .fd = ends[0], .events = POLLIN };
  struct epoll_event event;
  sem_t none;
  sem_init(&none, 0, 0);
  switch (number % 8) {
  case 0: STRUCK("read", PLAIN, EINTR, read(ends[0], &byte, 1)); break;
  case 1: STRUCK("poll", RESTARTS, EINTR, poll(&watched, 1, 20000)); break;
  case 2: STRUCK("epoll_wait", RESTARTS, EINTR, epoll_wait(set, &event, 1, 20000)); break;
  case 3:
    STRUCK("nanosleep", PLAIN, EINTR, nanosleep(&ample, &left));
    // Up to the slack of timers (50 us) more than was asked for, if it came at once.
    if (left.tv_sec < 1 || left.tv_sec > 20) fail("nanosleep: %ld s left", left.tv_sec);
    break;
  case 4: STRUCK("pause", PLAIN, EINTR, pause()); break;
  case 5:
    until = in(20000 * MS);
    STRUCK("sem_timedwait", PLAIN, EINTR, sem_timedwait(&none, &until));
    break;
  case 6: STRUCK("sem_wait", PLAIN, EINTR, sem_wait(&none)); break;
  default: {
    struct strikes s = { RESTARTS, 1 };
    none_struck();
    pthread_t t;
    expect("pthread_create", pthread_create(&t, NULL, strike, &s), 0);
    expect("read that goes on", read(ends[0], &byte, 1), 1);
    join(t);
  }
  }
  note(plain);
  note(restarts);
}

static pthread_t readers[2];
static int reading, returned, was_sent;

static void *reads(void *argument) {
  char byte;
  add(&reading, 1);
  ssize_t n = read(ends[0], &byte, 1);
  int error = errno;
  add(&returned, 1);
  // Whether a thread has ended is up to the kernel's timing, and whoever sends to one looks.
  await(&was_sent, 1);
  return (void *)(n == 1 ? byte : (long)-error + (long)argument);
}

static void stand(void) {
  reading = returned = was_sent = 0;
  for (int i = 0; i < 2; i++) readers[i] = spawn(reads, 0);
  await(&reading, 2);
}

// None of them has seen anything of what happened meanwhile; one is interrupted now, the other reads.
// The first signal may come before the call.
static void go_on(void) {
  do {
    expect("pthread_kill", pthread_kill(readers[0], PLAIN), 0);
    rest(MS);
  } while (!get(&returned));
  add(&was_sent, 1);
  expect("the one that was interrupted", (long)join(readers[0]), -EINTR);
  expect("write", write(ends[1], "q", 1), 1);
  expect("the one that reads", (long)join(readers[1]), 'q');
}
