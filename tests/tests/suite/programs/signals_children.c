// SIGCHLD: children that end, are killed, stop and go on; one signal at least for all that ended.
#include "serve.h"
#include <sys/wait.h>

enum { CHILDREN = 6 };

static volatile sig_atomic_t told, reaped, statuses, pids_of[CHILDREN], stopped;

static void on_child(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)context;
  int error = errno, status;
  told++;
  if (info->si_code == CLD_STOPPED) stopped++;
  for (pid_t child; (child = waitpid(-1, &status, WNOHANG)) > 0;) {
    if (reaped < CHILDREN) pids_of[reaped] = child;
    reaped++;
    statuses += WIFEXITED(status) ? WEXITSTATUS(status) : 100 * WTERMSIG(status);
  }
  errno = error;
}

static void handle(int flags) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_child;
  action.sa_flags = SA_SIGINFO | flags;
  good("sigaction", sigaction(SIGCHLD, &action, NULL));
}

static void begin(void) { handle(SA_RESTART | SA_NOCLDSTOP); }

static void many(void) {
  pid_t children[CHILDREN];
  told = reaped = statuses = 0;
  for (int i = 0; i < CHILDREN; i++) {
    children[i] = good("fork", fork());
    if (!children[i]) {
      if (i % 3 == 2) {
        signal(SIGTERM, SIG_DFL);
        raise(SIGTERM);
      }
      for (int k = 0; k < i; k++) getppid();
      _exit(i + 1);
    }
  }
  while (reaped < CHILDREN) {
    sigset_t chld, before;
    sigemptyset(&chld);
    sigaddset(&chld, SIGCHLD);
    sigprocmask(SIG_BLOCK, &chld, &before);
    if (reaped < CHILDREN) sigsuspend(&before);
    sigprocmask(SIG_SETMASK, &before, NULL);
  }
  expect("statuses", statuses, 1 + 2 + 4 + 5 + 2 * 100 * SIGTERM);
  if (told < 1 || told > CHILDREN) fail("told %d times", told);
  // Who ended first is up to them.
  for (int i = 0; i < CHILDREN; i++)
    for (int k = 0; k < CHILDREN; k++)
      if (pids_of[i] == children[k]) note(k);
  expect_error("waitpid", waitpid(-1, NULL, 0), ECHILD);
}

static void stops(void) {
  signal(SIGCHLD, SIG_DFL);
  pid_t child = good("fork", fork());
  int status;
  if (!child) {
    raise(SIGSTOP);
    _exit(9);
  }
  expect("waitpid", waitpid(child, &status, WUNTRACED), child);
  expect("stopped", WIFSTOPPED(status) && WSTOPSIG(status) == SIGSTOP, 1);
  good("kill", kill(child, SIGCONT));
  siginfo_t info;
  memset(&info, 0, sizeof info);
  good("waitid", waitid(P_PID, child, &info, WEXITED));
  expect("how it ended", info.si_code == CLD_EXITED && info.si_status == 9, 1);
  handle(SA_RESTART | SA_NOCLDSTOP);
}

// Nobody waits for children whose end is ignored.
static void ignored(void) {
  signal(SIGCHLD, SIG_IGN);
  pid_t child = good("fork", fork());
  if (!child) _exit(1);
  expect_error("waitpid", waitpid(child, NULL, 0), ECHILD);
  handle(SA_RESTART | SA_NOCLDSTOP);
}

static void turn(unsigned number) {
  many();
  if (number % 4 == 1) stops();
  if (number % 4 == 3) ignored();
}

static pid_t kept;
static int ends[2];

static void stand(void) {
  told = reaped = statuses = 0;
  good("pipe", pipe(ends));
  kept = good("fork", fork());
  if (!kept) {
    char byte;
    close(ends[1]);
    _exit(read(ends[0], &byte, 1) == 1 ? byte : 1);
  }
  close(ends[0]);
}

static void go_on(void) {
  expect("nobody ended", told + reaped, 0);
  expect("write", write(ends[1], "\x2a", 1), 1);
  while (!reaped) rest(MS);
  expect("its status", statuses, 42);
  expect("its number", pids_of[0], kept);
  expect("told", told, 1);
  close(ends[1]);
}
