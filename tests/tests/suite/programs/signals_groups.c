// Signals that are sent to whole process groups, to everybody, and between processes: each member gets each once.
#include "serve.h"
#include <sys/wait.h>

enum { MEMBERS = 3 };

static volatile sig_atomic_t told, own;
static pid_t members[MEMBERS];
static sigset_t answers, before;

static void on_usr1(int signal) { (void)signal, told++; }
static void on_winch(int signal) { (void)signal, own++; }

static void handle(int signal, void (*handler)(int)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  good("sigaction", sigaction(signal, &action, NULL));
}

static void begin(void) {
  if (getpgrp() != getpid()) good("setpgid", setpgid(0, 0));
  sigemptyset(&answers);
  sigaddset(&answers, SIGRTMIN);
  sigaddset(&answers, SIGUSR1);
  good("sigprocmask", sigprocmask(SIG_BLOCK, &answers, &before));
  handle(SIGUSR1, on_usr1);
  handle(SIGWINCH, on_winch);
}

static void report(int value) {
  union sigval with = { .sival_int = value };
  good("sigqueue", sigqueue(getppid(), SIGRTMIN, with));
}

// Says that it is there, and answers each time that it is told, until it is ended.
static void be_member(void) {
  sigset_t wait = before;
  sigdelset(&wait, SIGUSR1);
  told = 0;
  report(-1);
  for (int times = 1;; times++) {
    while (told < times) sigsuspend(&wait);
    report(told);
  }
}

// Each of the members answers once, with this value.
static void hear(int value) {
  int heard[MEMBERS] = { 0 };
  for (int i = 0; i < MEMBERS; i++) {
    siginfo_t info;
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, SIGRTMIN);
    expect("sigwaitinfo", sigwaitinfo(&only, &info), SIGRTMIN);
    expect("its value", info.si_value.sival_int, value);
    for (int m = 0; m < MEMBERS; m++) heard[m] += info.si_pid == members[m];
  }
  for (int m = 0; m < MEMBERS; m++) expect("answers of a member", heard[m], 1);
}

static void gather(void) {
  for (int m = 0; m < MEMBERS; m++) {
    members[m] = good("fork", fork());
    if (!members[m]) {
      // As shells do it: whoever comes first.
      setpgid(0, m ? members[0] : 0);
      be_member();
    }
    good("setpgid", setpgid(members[m], members[0]));
    expect("getpgid", getpgid(members[m]), members[0]);
  }
  hear(-1);
}

static void dismiss(void) {
  good("kill", kill(-members[0], SIGTERM));
  for (int m = 0; m < MEMBERS; m++) {
    int status;
    expect("waitpid", waitpid(members[m], &status, 0), members[m]);
    expect("ended by", WIFSIGNALED(status) ? WTERMSIG(status) : 0, SIGTERM);
  }
  expect_error("a group that is gone", kill(-members[0], 0), ESRCH);
}

static void tell(int times) {
  good("kill", kill(-members[0], SIGUSR1));
  hear(times);
}

static void turn(unsigned number) {
  if (number % 8 == 0) {
    gather();
    for (int times = 1; times <= 5; times++) tell(times);
    dismiss();
  }
  own = 0;
  good("kill", kill(0, SIGWINCH));
  expect("of the own group", own, 1);
  // One alone, and by its session.
  pid_t child = good("fork", fork());
  if (!child) {
    if (setsid() != getpid() || getpgrp() != getpid()) _exit(9);
    report(7);
    _exit(8);
  }
  siginfo_t info;
  sigset_t only;
  sigemptyset(&only);
  sigaddset(&only, SIGRTMIN);
  expect("sigwaitinfo", sigwaitinfo(&only, &info), SIGRTMIN);
  expect("its sender", info.si_pid, child);
  int status;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("its status", WIFEXITED(status) ? WEXITSTATUS(status) : -1, 8);
}

static void stand(void) {
  gather();
  tell(1);
}

static void go_on(void) {
  tell(2);
  for (int m = 0; m < MEMBERS; m++) expect("getpgid", getpgid(members[m]), members[0]);
  tell(3);
  dismiss();
}
