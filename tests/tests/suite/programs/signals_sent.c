// Signals that are sent to oneself, to other threads, to the process and from other processes: none is lost, queued
// ones keep their order and their values, and handlers run under the masks that they asked for.
#include "serve.h"
#include <sys/wait.h>

enum { HITS = 50 };

static volatile sig_atomic_t usr1, usr2, depth, deepest, order;
static volatile sig_atomic_t values[64], count;
static pthread_t worker;
static int quit;
static sem_t hit;
static volatile unsigned long laps, at_lap[HITS + 1];

static void on_usr1(int signal) {
  usr1++;
  if (signal != SIGUSR1) fail("USR1 is %d", signal);
}

static void on_usr2(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)context;
  expect("si_code", info->si_code, SI_TKILL);
  expect("si_pid", info->si_pid, getpid());
  usr2++;
  if (usr2 <= HITS) at_lap[usr2] = laps;
  post(&hit);
}

static void on_queued(int signal, siginfo_t *info, void *context) {
  (void)context;
  expect("si_code of a queued one", info->si_code, SI_QUEUE);
  if (count < 64) values[count++] = (signal - SIGRTMIN) * 1000 + info->si_value.sival_int;
}

static void on_nested(int signal) {
  (void)signal;
  if (++depth > deepest) deepest = depth;
  if (depth < 3) raise(SIGHUP);
  depth--;
}

static void on_masked(int signal) {
  order = order * 10 + (signal == SIGWINCH ? 1 : 2);
  // Blocked by the mask of this handler: comes behind it.
  if (signal == SIGWINCH) raise(SIGURG), order = order * 10 + 3;
}

static void *work(void *argument) {
  unsigned char bytes[64] = { 0 };
  do {
    laps++;
    bytes[laps % 64]++;
    if (laps % 16 == 0) getppid();
  } while (laps % 4 || !get(&quit));
  return argument;
}

static void handle(int signal, void (*handler)(int), int flags) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  action.sa_flags = flags;
  good("sigaction", sigaction(signal, &action, NULL));
}

static void handle_info(int signal, void (*handler)(int, siginfo_t *, void *), int flags) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = handler;
  action.sa_flags = flags | SA_SIGINFO;
  sigfillset(&action.sa_mask);
  good("sigaction", sigaction(signal, &action, NULL));
}

static void begin(void) {
  good("sem_init", sem_init(&hit, 0, 0));
  handle(SIGUSR1, on_usr1, SA_RESTART);
  handle_info(SIGUSR2, on_usr2, SA_RESTART);
  for (int i = 0; i < 4; i++) handle_info(SIGRTMIN + i, on_queued, SA_RESTART);
  handle(SIGHUP, on_nested, SA_NODEFER);
  handle(SIGURG, on_masked, 0);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_masked;
  sigaddset(&action.sa_mask, SIGURG);
  good("sigaction", sigaction(SIGWINCH, &action, NULL));
}

static void queue(int signal, int value) {
  union sigval with = { .sival_int = value };
  good("sigqueue", sigqueue(getpid(), signal, with));
}

static void to_self(void) {
  int before = usr1;
  raise(SIGUSR1);
  expect("raise", usr1, before + 1);
  kill(getpid(), SIGUSR1);
  expect("kill", usr1, before + 2);
  depth = deepest = 0;
  raise(SIGHUP);
  expect("nested", deepest, 3);
  order = 0;
  raise(SIGWINCH);
  expect("masked by a handler", order, 132);
  handle(SIGUSR1, on_usr1, SA_RESETHAND);
  raise(SIGUSR1);
  struct sigaction now;
  sigaction(SIGUSR1, NULL, &now);
  expect("reset", now.sa_handler == SIG_DFL, 1);
  handle(SIGUSR1, on_usr1, SA_RESTART);
  expect("sent", usr1, before + 3);
  signal(SIGPIPE, SIG_IGN);
  raise(SIGPIPE);
  count = 0;
  for (int i = 0; i < 12; i++) queue(SIGRTMIN + i % 4, i);
  expect("queued", count, 12);
  for (int i = 0; i < 12; i++) expect("value", values[i], i % 4 * 1000 + i);
}

// The worker is hit wherever it happens to be.
static void to_another(void) {
  quit = 0, usr2 = 0, laps = 0;
  worker = spawn(work, 0);
  for (int i = 1; i <= HITS; i++) {
    expect("pthread_kill", pthread_kill(worker, SIGUSR2), 0);
    take(&hit);
  }
  add(&quit, 1);
  join(worker);
  expect("hits", usr2, HITS);
  for (int i = 1; i <= HITS; i++) note(at_lap[i]);
  note(laps);
}

static void from_a_child(void) {
  int before = usr1;
  pid_t child = good("fork", fork());
  if (!child) {
    kill(getppid(), SIGUSR1);
    _exit(7);
  }
  int status;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("its status", WIFEXITED(status) && WEXITSTATUS(status) == 7, 1);
  expect("from a child", usr1, before + 1);
}

static void turn(unsigned number) {
  to_self();
  if (number % 4 == 0) to_another();
  if (number % 8 == 0) from_a_child();
}

static sigset_t kept;

// Blocked ones are kept, queued in their order, and the others once.
static void stand(void) {
  sigset_t all;
  sigfillset(&all);
  good("sigprocmask", sigprocmask(SIG_SETMASK, &all, &kept));
  count = 0, usr1 = 0;
  for (int i = 0; i < 30; i++) queue(SIGRTMIN + 3 - i % 4, i);
  for (int i = 0; i < 3; i++) kill(getpid(), SIGUSR1);
  raise(SIGURG);
}

static void go_on(void) {
  expect("while blocked", count + usr1, 0);
  order = 0;
  good("sigprocmask", sigprocmask(SIG_SETMASK, &kept, NULL));
  expect("behind", count, 30);
  expect("once", usr1, 1);
  expect("urgent", order, 2);
  // The lowest number first, and of one number the oldest.
  for (int i = 1; i < 30; i++) {
    if (values[i] / 1000 < values[i - 1] / 1000) fail("signal %d behind %d", values[i], values[i - 1]);
    if (values[i] / 1000 == values[i - 1] / 1000 && values[i] < values[i - 1]) fail("value %d behind %d", values[i], values[i - 1]);
  }
  for (int i = 0; i < 30; i++) note(values[i]);
}
