// Loops without a call in them that only the handler of a signal ends: short and long ones, in a handler's end, behind a
// lock.
#include "serve.h"
#include <sys/time.h>

static volatile sig_atomic_t rung;
static volatile unsigned cell;

static void on_alarm(int signal) { (void)signal, rung++; }

static void begin(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_alarm;
  good("sigaction", sigaction(SIGALRM, &action, NULL));
}

static void ring(int times) {
  struct itimerval soon = { { 0, times > 1 ? 1000 : 0 }, { 0, 1000 } }, off;
  memset(&off, 0, sizeof off);
  rung = 0;
  good("setitimer", setitimer(ITIMER_REAL, &soon, NULL));
  if (times == 1) while (!rung) continue;
  else while (rung < times) for (int i = 0; i < 200; i++) cell = i;
  good("setitimer", setitimer(ITIMER_REAL, &off, NULL));
}

static void behind_a_lock(void) {
  struct itimerval soon = { { 0, 0 }, { 0, 500 } };
  rung = 0;
  good("setitimer", setitimer(ITIMER_REAL, &soon, NULL));
  pthread_mutex_lock(&words_lock);
  pthread_mutex_unlock(&words_lock);
  while (!rung) continue;
}

static void turn(unsigned number) {
  // Each takes long: a handler waits for a call first.
  if (number % 16 == 0) ring(1);
  if (number % 16 == 5) ring(2);
  if (number % 16 == 10) behind_a_lock();
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  note(now.tv_nsec);
}

static pthread_t spinner;
static int spins, was_sent;
static volatile int over;

static void on_usr1(int signal) { (void)signal, over = 1; }

static void *spin(void *argument) {
  over = 0;
  add(&spins, 1);
  while (!over) continue;
  // Whether a thread has ended is up to the kernel's timing, and whoever sends to one looks.
  await(&was_sent, 1);
  return argument;
}

static void stand(void) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = on_usr1;
  good("sigaction", sigaction(SIGUSR1, &action, NULL));
  spins = was_sent = 0;
  spinner = spawn(spin, 3);
  await(&spins, 1);
}

static void go_on(void) {
  expect("pthread_kill", pthread_kill(spinner, SIGUSR1), 0);
  add(&was_sent, 1);
  expect("the spinner", (long)join(spinner), 3);
}
