// Timers that send signals: setitimer, alarm, timer_create in its kinds. They keep coming after a stand.
#include "serve.h"
#include <sys/syscall.h>
#include <sys/time.h>

static volatile sig_atomic_t alarms, profs, virtuals, ticks, values;
static int thread_ticks;
static timer_t by_signal, by_thread, silent, to_thread;

static void on_alarm(int signal) { (void)signal, alarms++; }
static void on_prof(int signal) { (void)signal, profs++; }
static void on_virtual(int signal) { (void)signal, virtuals++; }

static void on_tick(int signal, siginfo_t *info, void *context) {
  (void)signal, (void)context;
  expect("si_code of a timer", info->si_code, SI_TIMER);
  ticks += 1 + info->si_overrun;
  values = info->si_value.sival_int;
}

static void in_thread(union sigval value) {
  expect("its value", value.sival_int, 77);
  add(&thread_ticks, 1);
}

static void handle(int signal, void (*handler)(int)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_handler = handler;
  good("sigaction", sigaction(signal, &action, NULL));
}

static void begin(void) {
  handle(SIGALRM, on_alarm);
  handle(SIGPROF, on_prof);
  handle(SIGVTALRM, on_virtual);
  struct sigaction action;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_tick;
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  good("sigaction", sigaction(SIGRTMIN, &action, NULL));
  struct sigevent event;
  memset(&event, 0, sizeof event);
  event.sigev_notify = SIGEV_SIGNAL;
  event.sigev_signo = SIGRTMIN;
  event.sigev_value.sival_int = 33;
  good("timer_create", timer_create(CLOCK_MONOTONIC, &event, &by_signal));
  event.sigev_notify = SIGEV_THREAD_ID;
  event._sigev_un._tid = gettid();
  event.sigev_value.sival_int = 44;
  good("timer_create", timer_create(CLOCK_REALTIME, &event, &to_thread));
  event.sigev_notify = SIGEV_NONE;
  good("timer_create", timer_create(CLOCK_MONOTONIC, &event, &silent));
  event.sigev_notify = SIGEV_THREAD;
  event.sigev_notify_function = in_thread;
  event.sigev_notify_attributes = NULL;
  event.sigev_value.sival_int = 77;
  good("timer_create", timer_create(CLOCK_MONOTONIC, &event, &by_thread));
}

static void await_more(volatile sig_atomic_t *word, int than) {
  while (*word <= than) pause();
}

static void one_shot(void) {
  int before = alarms;
  struct itimerval soon = { { 0, 0 }, { 0, 500 } }, old;
  good("setitimer", setitimer(ITIMER_REAL, &soon, &old));
  expect("none was set", old.it_value.tv_sec + old.it_value.tv_usec, 0);
  while (alarms == before) usleep(200);
  expect("alarms", alarms, before + 1);
  expect("alarm", alarm(50), 0);
  unsigned left = alarm(0);
  if (left < 49 || left > 50) fail("alarm: %u s left", left);
  good("getitimer", getitimer(ITIMER_REAL, &old));
  expect("none is set", old.it_value.tv_sec + old.it_value.tv_usec, 0);
}

static void repeated(timer_t timer, int value) {
  struct itimerspec often = { { 0, MS / 2 }, { 0, MS / 4 } }, off, old;
  memset(&off, 0, sizeof off);
  int before = ticks;
  good("timer_settime", timer_settime(timer, 0, &often, NULL));
  while (ticks < before + 5) {
    struct timespec brief = { 0, MS / 4 };
    nanosleep(&brief, NULL);
    note(ticks - before);
  }
  good("timer_settime", timer_settime(timer, 0, &off, &old));
  expect("its interval", old.it_interval.tv_nsec, MS / 2);
  expect("its value", values, value);
  note(ticks - before);
}

// Processor time: at work, with calls between.
static void at_work(void) {
  struct itimerval often = { { 0, 1000 }, { 0, 1000 } }, off;
  memset(&off, 0, sizeof off);
  int before = profs, virtual_before = virtuals;
  good("setitimer", setitimer(ITIMER_PROF, &often, NULL));
  good("setitimer", setitimer(ITIMER_VIRTUAL, &often, NULL));
  unsigned laps = 0;
  while (profs < before + 1 || virtuals < virtual_before + 1) {
    for (volatile int i = 0; i < 2000; i++) continue;
    getppid();
    laps++;
  }
  good("setitimer", setitimer(ITIMER_PROF, &off, NULL));
  good("setitimer", setitimer(ITIMER_VIRTUAL, &off, NULL));
  note(laps);
}

static void turn(unsigned number) {
  one_shot();
  if (number % 8 == 0) at_work();
  if (number % 4 == 1) repeated(by_signal, 33);
  if (number % 4 == 3) repeated(to_thread, 44);
  if (number % 4 == 2) {
    int before = get(&thread_ticks);
    struct itimerspec soon = { { 0, 0 }, { 0, MS / 2 } };
    good("timer_settime", timer_settime(by_thread, 0, &soon, NULL));
    await(&thread_ticks, before + 1);
  }
}

static int64_t since;

static void stand(void) {
  struct itimerspec far = { { 0, 0 }, { 100, 0 } }, often = { { 0, 20 * MS }, { 0, 20 * MS } };
  good("timer_settime", timer_settime(silent, 0, &far, NULL));
  good("timer_settime", timer_settime(by_signal, 0, &often, NULL));
  good("timer_settime", timer_settime(by_thread, 0, &often, NULL));
  struct itimerval usual = { { 0, 20000 }, { 0, 20000 } };
  good("setitimer", setitimer(ITIMER_REAL, &usual, NULL));
  since = now_ns();
  rest(50 * MS);
}

static void go_on(void) {
  struct itimerspec left, off;
  memset(&off, 0, sizeof off);
  good("timer_gettime", timer_gettime(silent, &left));
  int64_t passed = now_ns() - since;
  int64_t told = 100000000000 - (left.it_value.tv_sec * 1000000000 + left.it_value.tv_nsec);
  if (told > passed + 300 * MS || told < passed - 300 * MS) fail("timer_gettime: %ld ns have passed, not %ld", (long)told, (long)passed);
  int a = alarms, t = ticks, h = get(&thread_ticks);
  await_more(&alarms, a + 2);
  await_more(&ticks, t + 2);
  await(&thread_ticks, h + 2);
  good("timer_settime", timer_settime(silent, 0, &off, NULL));
  good("timer_settime", timer_settime(by_signal, 0, &off, NULL));
  good("timer_settime", timer_settime(by_thread, 0, &off, NULL));
  expect("alarm", alarm(0) <= 1, 1);
  note(alarms);
}
