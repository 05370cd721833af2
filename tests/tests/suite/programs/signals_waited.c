// Signals that are waited for: sigwait, sigwaitinfo, sigtimedwait, sigsuspend, pause, ppoll, sigpending, signalfd.
#include "serve.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/signalfd.h>

static sigset_t usr, queued, none;
static int fd, set;
static volatile sig_atomic_t handled;
static pthread_t main_thread;

static void on_usr2(int signal) { (void)signal, handled++; }

static void begin(void) {
  main_thread = pthread_self();
  sigemptyset(&none);
  sigemptyset(&usr);
  sigaddset(&usr, SIGUSR1);
  sigaddset(&usr, SIGUSR2);
  sigemptyset(&queued);
  for (int i = 0; i < 5; i++) sigaddset(&queued, SIGRTMIN + i);
  sigset_t both;
  sigorset(&both, &usr, &queued);
  good("sigprocmask", sigprocmask(SIG_BLOCK, &both, NULL));
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_usr2;
  good("sigaction", sigaction(SIGUSR2, &action, NULL));
  fd = good("signalfd", signalfd(-1, &queued, SFD_CLOEXEC | SFD_NONBLOCK));
  set = good("epoll_create1", epoll_create1(EPOLL_CLOEXEC));
  struct epoll_event event = { .events = EPOLLIN, .data = { .u64 = 7 } };
  good("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

static void queue(int signal, int value) {
  union sigval with = { .sival_int = value };
  good("sigqueue", sigqueue(getpid(), signal, with));
}

static void *sends(void *argument) {
  int signal = (long)argument % 1000, times = (long)argument / 1000;
  for (int i = 0; i < times; i++) {
    rest(MS / 5);
    expect("pthread_kill", pthread_kill(main_thread, signal), 0);
  }
  return NULL;
}

static void waits(void) {
  int got;
  siginfo_t info;
  struct timespec no = { 0, 0 }, brief = { 0, MS / 2 }, ample = { 20, 0 };
  sigset_t pending;
  expect_error("sigtimedwait for nothing", sigtimedwait(&usr, &info, &no), EAGAIN);
  expect_error("sigtimedwait for a moment", sigtimedwait(&usr, &info, &brief), EAGAIN);
  raise(SIGUSR1);
  sigpending(&pending);
  expect("sigpending", sigismember(&pending, SIGUSR1), 1);
  expect("sigwait", sigwait(&usr, &got), 0);
  expect("what it got", got, SIGUSR1);
  sigpending(&pending);
  expect("sigpending behind it", sigismember(&pending, SIGUSR1), 0);
  queue(SIGRTMIN + 4, 44);
  queue(SIGRTMIN + 2, 22);
  expect("sigwaitinfo", sigwaitinfo(&queued, &info), SIGRTMIN + 2);
  expect("its value", info.si_value.sival_int, 22);
  expect("sigwaitinfo", sigwaitinfo(&queued, &info), SIGRTMIN + 4);
  pthread_t sender = spawn(sends, 1000 + SIGUSR1);
  expect("sigtimedwait", sigtimedwait(&usr, &info, &ample), SIGUSR1);
  // The C library says so of pthread_kill.
  expect("si_code", info.si_code, SI_USER);
  join(sender);
}

static void suspends(void) {
  sigset_t open;
  sigfillset(&open);
  sigdelset(&open, SIGUSR2);
  handled = 0;
  raise(SIGUSR2);
  expect("blocked", handled, 0);
  expect_error("sigsuspend", sigsuspend(&open), EINTR);
  expect("handled in sigsuspend", handled, 1);
  pthread_t sender = spawn(sends, 1000 + SIGUSR2);
  expect_error("sigsuspend", sigsuspend(&open), EINTR);
  expect("handled in sigsuspend", handled, 2);
  join(sender);
  sender = spawn(sends, 1000 + SIGUSR2);
  struct timespec ample = { 20, 0 };
  expect_error("ppoll", ppoll(NULL, 0, &ample, &open), EINTR);
  expect("handled in ppoll", handled, 3);
  join(sender);
  sender = spawn(sends, 1000 + SIGUSR2);
  expect_error("pselect", pselect(0, NULL, NULL, NULL, &ample, &open), EINTR);
  expect("handled in pselect", handled, 4);
  join(sender);
  struct epoll_event event;
  sender = spawn(sends, 1000 + SIGUSR2);
  expect_error("epoll_pwait", epoll_pwait(set, &event, 1, 20000, &open), EINTR);
  expect("handled in epoll_pwait", handled, 5);
  join(sender);
}

static int took(int wanted_signal, int wanted_value) {
  struct signalfd_siginfo info;
  ssize_t n = read(fd, &info, sizeof info);
  if (n < 0) {
    expect("signalfd", errno, EAGAIN);
    return 0;
  }
  expect("signalfd", n, sizeof info);
  expect("ssi_signo", info.ssi_signo, wanted_signal);
  expect("ssi_int", info.ssi_int, wanted_value);
  return 1;
}

static void *queues(void *argument) {
  for (int i = 0; i < 10; i++) {
    queue(SIGRTMIN + 1, i);
    if (i % 3 == 0) rest(MS / 10);
  }
  return argument;
}

static void reads(void) {
  expect("nothing", took(0, 0), 0);
  pthread_t sender = spawn(queues, 0);
  for (int i = 0; i < 10;) {
    struct epoll_event event;
    int n = epoll_wait(set, &event, 1, 20000);
    expect("epoll_wait", n, 1);
    expect("its data", event.data.u64, 7);
    int before = i;
    while (took(SIGRTMIN + 1, i)) i++;
    note(i - before);
  }
  join(sender);
}

static void turn(unsigned number) {
  waits();
  if (number % 2) suspends();
  else reads();
}

static pthread_t waiter;
static int waiting, was_sent;

static void *awaits(void *argument) {
  sigset_t one;
  siginfo_t info;
  sigemptyset(&one);
  sigaddset(&one, SIGUSR1);
  add(&waiting, 1);
  int got = sigwaitinfo(&one, &info);
  expect("sigwaitinfo", got, SIGUSR1);
  // Whether a thread has ended is up to the kernel's timing, and whoever sends to one looks.
  await(&was_sent, 1);
  return argument;
}

static void stand(void) {
  waiting = was_sent = 0;
  waiter = spawn(awaits, 5);
  await(&waiting, 1);
  for (int i = 0; i < 5; i++) queue(SIGRTMIN + i, 100 + i);
  queue(SIGRTMIN + 4, 200);
  pthread_kill(main_thread, SIGUSR2);
}

static void go_on(void) {
  sigset_t pending;
  sigpending(&pending);
  expect("SIGUSR2 is pending", sigismember(&pending, SIGUSR2), 1);
  for (int i = 0; i < 5; i++) expect("kept", took(SIGRTMIN + i, 100 + i), 1);
  expect("the last", took(SIGRTMIN + 4, 200), 1);
  expect("nothing more", took(0, 0), 0);
  int got;
  expect("sigwait", sigwait(&usr, &got), 0);
  expect("it", got, SIGUSR2);
  expect("pthread_kill", pthread_kill(waiter, SIGUSR1), 0);
  add(&was_sent, 1);
  expect("the waiter", (long)join(waiter), 5);
}
