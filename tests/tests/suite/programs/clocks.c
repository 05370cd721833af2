// Clocks: none goes back or leaps, whichever host shows them; what was to happen at a moment happens then.
#include "serve.h"
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timerfd.h>

enum { CLOCKS = 7, TICK_MS = 20 };
// Turns and stands take less.
#define LEAP 60000000000L
// How much later or earlier a timer may be than it should.
#define OFF (300 * MS)

static const clockid_t clocks[CLOCKS] = { CLOCK_MONOTONIC,        CLOCK_BOOTTIME,       CLOCK_REALTIME, CLOCK_MONOTONIC_RAW,
                                          CLOCK_MONOTONIC_COARSE, CLOCK_REALTIME_COARSE, CLOCK_TAI };
static int64_t last[CLOCKS];

static int64_t ns_of(struct timespec t) { return t.tv_sec * 1000000000L + t.tv_nsec; }

static void check(int clock, int64_t now) {
  if (last[clock]) {
    if (now < last[clock]) fail("clock %d went back from %ld to %ld", clocks[clock], (long)last[clock], (long)now);
    if (now > last[clock] + LEAP) fail("clock %d leapt from %ld to %ld", clocks[clock], (long)last[clock], (long)now);
  }
  last[clock] = now;
}

// Called by way of the C library and by way of the kernel, in turn.
static void read_clocks(void) {
  for (int i = 0; i < CLOCKS; i++) {
    struct timespec t;
    good("clock_gettime", clock_gettime(clocks[i], &t));
    check(i, ns_of(t));
    good("clock_gettime", syscall(SYS_clock_gettime, clocks[i], &t));
    check(i, ns_of(t));
  }
  struct timeval of_day;
  good("gettimeofday", gettimeofday(&of_day, NULL));
  int64_t micros = last[2] / 1000, got = of_day.tv_sec * 1000000L + of_day.tv_usec;
  if (got < micros || got > micros + LEAP / 1000) fail("gettimeofday: %ld after %ld", (long)got, (long)micros);
  good("gettimeofday", syscall(SYS_gettimeofday, &of_day, NULL));
  if (of_day.tv_sec * 1000000L + of_day.tv_usec < got) fail("gettimeofday went back");
  // The kernel's is as coarse as a tick.
  long seconds = syscall(SYS_time, NULL), wanted = last[5] / 1000000000;
  if (seconds < wanted || seconds > wanted + 60) fail("time: %ld after %ld", seconds, wanted);
  double uptime;
  FILE *file = fopen("/proc/uptime", "r");
  if (!file || fscanf(file, "%lf", &uptime) != 1) fail("/proc/uptime: errno %d", errno);
  fclose(file);
  double boot = last[1] / 1e9;
  if (uptime < boot - 1 || uptime > boot + 60) fail("up for %.2f s, by the clock for %.2f", uptime, boot);
}

static int timer_of(clockid_t clock) { return good("timerfd_create", timerfd_create(clock, TFD_NONBLOCK)); }

static void begin(void) { read_clocks(); }

static void turn(unsigned number) {
  read_clocks();
  clockid_t clock = clocks[number % 2];
  struct timespec until = later(clock, 2 * MS), now;
  expect("clock_nanosleep", clock_nanosleep(clock, TIMER_ABSTIME, &until, NULL), 0);
  good("clock_gettime", clock_gettime(clock, &now));
  if (ns_of(now) < ns_of(until)) fail("clock_nanosleep ended %ld ns early", (long)(ns_of(until) - ns_of(now)));
  note(ns_of(now));
}

static int ticks, once, at_a_moment, over, far;
static int64_t since, ticked;
static struct timespec moment;

static void expires(int timer, long after, const char *what) {
  uint64_t count;
  struct timespec brief = { 0, MS };
  while (read(timer, &count, sizeof count) < 0) {
    expect("read", errno, EAGAIN);
    if (now_ns() - since > after + 20000 * MS) fail("%s has not expired", what);
    nanosleep(&brief, NULL);
  }
  expect(what, count, 1);
  if (now_ns() - since < after) fail("%s expired %ld ns early", what, (long)(after - (now_ns() - since)));
}

static void stand(void) {
  struct itimerspec often = { { 0, TICK_MS * MS }, { 0, TICK_MS * MS } }, half = { { 0, 0 }, { 0, 500 * MS } };
  struct itimerspec absolute = { { 0, 0 }, { 0, 0 } }, soon = { { 0, 0 }, { 0, 1 } }, later_on = { { 0, 0 }, { 1000, 0 } };
  ticks = timer_of(CLOCK_MONOTONIC), once = timer_of(CLOCK_REALTIME), at_a_moment = timer_of(CLOCK_BOOTTIME);
  over = timer_of(CLOCK_MONOTONIC), far = timer_of(CLOCK_BOOTTIME);
  moment = absolute.it_value = later(CLOCK_BOOTTIME, 600 * MS);
  since = now_ns();
  good("timerfd_settime", timerfd_settime(ticks, 0, &often, NULL));
  good("timerfd_settime", timerfd_settime(once, 0, &half, NULL));
  good("timerfd_settime", timerfd_settime(at_a_moment, TFD_TIMER_ABSTIME, &absolute, NULL));
  good("timerfd_settime", timerfd_settime(over, 0, &soon, NULL));
  good("timerfd_settime", timerfd_settime(far, 0, &later_on, NULL));
  expires(over, 0, "one that is over");
  uint64_t count;
  rest(3 * TICK_MS * MS);
  expect("read", read(ticks, &count, sizeof count), sizeof count);
  ticked = count;
  read_clocks();
}

static void go_on(void) {
  read_clocks();
  struct itimerspec left;
  good("timerfd_gettime", timerfd_gettime(far, &left));
  int64_t told = 1000000000000L - ns_of(left.it_value), passed = now_ns() - since;
  if (told < passed - OFF || told > passed + OFF) fail("a timer says that %ld ns have passed, not %ld", (long)told, (long)passed);
  // What it was armed for is over, and was read.
  uint64_t count;
  expect_error("read", read(over, &count, sizeof count), EAGAIN);
  expires(once, 500 * MS, "one of half a second");
  expires(at_a_moment, 0, "one at a moment");
  struct timespec now;
  good("clock_gettime", clock_gettime(CLOCK_BOOTTIME, &now));
  if (ns_of(now) < ns_of(moment)) fail("it expired %ld ns early", (long)(ns_of(moment) - ns_of(now)));
  rest(2 * TICK_MS * MS);
  expect("read", read(ticks, &count, sizeof count), sizeof count);
  ticked += count;
  int64_t due = (now_ns() - since) / (TICK_MS * MS), most = OFF / (TICK_MS * MS);
  if (ticked < due - most || ticked > due + most) fail("%ld ticks came of %ld", (long)ticked, (long)due);
  note(ticked);
  int all[] = { ticks, once, at_a_moment, over, far };
  for (unsigned i = 0; i < sizeof all / sizeof *all; i++) close(all[i]);
}
