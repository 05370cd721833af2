// eventfd, timerfd and epoll sets: counters, semaphores, intervals, edges, one shot; sets within sets.
#include "serve.h"
#include <poll.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/timerfd.h>

static int counter, semaphore, timer, outer, inner;

static void watch(int set, int fd, unsigned events, uint64_t data) {
  struct epoll_event event = { .events = events, .data = { .u64 = data } };
  good("epoll_ctl", epoll_ctl(set, EPOLL_CTL_ADD, fd, &event));
}

static void begin(void) {
  counter = good("eventfd", eventfd(0, EFD_NONBLOCK));
  semaphore = good("eventfd", eventfd(3, EFD_NONBLOCK | EFD_SEMAPHORE));
  timer = good("timerfd_create", timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
  inner = good("epoll_create1", epoll_create1(0));
  outer = good("epoll_create1", epoll_create1(0));
  watch(inner, counter, EPOLLIN | EPOLLET, 11);
  watch(outer, inner, EPOLLIN, 22);
  watch(outer, timer, EPOLLIN | EPOLLONESHOT, 33);
}

static uint64_t value_of(int fd) {
  uint64_t value = 0;
  expect("read", read(fd, &value, sizeof value), sizeof value);
  return value;
}

static void put(int fd, uint64_t value) { expect("write", write(fd, &value, sizeof value), sizeof value); }

static void nothing(int fd) {
  uint64_t value;
  expect_error("read of nothing", read(fd, &value, sizeof value), EAGAIN);
}

static void comes(int set, uint64_t data) {
  struct epoll_event event;
  expect("epoll_wait", epoll_wait(set, &event, 1, 20000), 1);
  expect("its data", event.data.u64, data);
}

static void quiet(int set) {
  struct epoll_event event;
  expect("epoll_wait for nothing", epoll_wait(set, &event, 1, 0), 0);
}

static void *adds(void *argument) {
  for (int i = 0; i < 20; i++) put(counter, 1);
  return argument;
}

static void turn(unsigned number) {
  put(counter, 5);
  comes(outer, 22);
  comes(inner, 11);
  quiet(inner);
  put(counter, 6);
  comes(inner, 11);
  expect("the counter", value_of(counter), 11);
  nothing(counter);
  pthread_t other = spawn(adds, 0);
  for (uint64_t sum = 0; sum < 20;) {
    struct pollfd watched = { .fd = counter, .events = POLLIN };
    expect("poll", poll(&watched, 1, 20000), 1);
    uint64_t some = value_of(counter);
    note(some);
    sum += some;
  }
  join(other);
  while (epoll_wait(inner, &(struct epoll_event){ 0 }, 1, 0) == 1) continue;
  for (int i = 0; i < 3; i++) expect("the semaphore", value_of(semaphore), 1);
  nothing(semaphore);
  put(semaphore, 3);
  struct itimerspec soon = { { 0, number % 2 ? MS / 2 : 0 }, { 0, MS } }, now, off;
  memset(&off, 0, sizeof off);
  good("timerfd_settime", timerfd_settime(timer, 0, &soon, NULL));
  good("timerfd_gettime", timerfd_gettime(timer, &now));
  expect("its interval", now.it_interval.tv_nsec, soon.it_interval.tv_nsec);
  comes(outer, 33);
  quiet(outer);
  note(value_of(timer));
  good("timerfd_settime", timerfd_settime(timer, 0, &off, NULL));
  nothing(timer);
  struct epoll_event again = { .events = EPOLLIN | EPOLLONESHOT, .data = { .u64 = 33 } };
  good("epoll_ctl", epoll_ctl(outer, EPOLL_CTL_MOD, timer, &again));
  quiet(outer);
}

static int far, blocking;
static pthread_t reader, ticker;

static void *reads(void *argument) { return (void *)(long)(value_of(blocking) + (long)argument); }

static void *ticks(void *argument) {
  struct itimerspec soon = { { 0, 0 }, { 0, 400 * MS } };
  int fd = good("timerfd_create", timerfd_create(CLOCK_MONOTONIC, 0));
  int64_t began = now_ns();
  good("timerfd_settime", timerfd_settime(fd, 0, &soon, NULL));
  expect("ticks", value_of(fd), 1);
  if (now_ns() - began < 400 * MS) fail("a timer of 400 ms took %ld ns", (long)(now_ns() - began));
  close(fd);
  return argument;
}

static void stand(void) {
  struct itimerspec long_after = { { 0, 0 }, { 500, 0 } };
  far = good("timerfd_create", timerfd_create(CLOCK_MONOTONIC, 0));
  good("timerfd_settime", timerfd_settime(far, 0, &long_after, NULL));
  blocking = good("eventfd", eventfd(0, 0));
  reader = spawn(reads, 0);
  ticker = spawn(ticks, 0);
  put(counter, 77);
}

static void go_on(void) {
  struct itimerspec left;
  good("timerfd_gettime", timerfd_gettime(far, &left));
  if (left.it_value.tv_sec < 400 || left.it_value.tv_sec > 500) fail("%ld s of 500 are left", left.it_value.tv_sec);
  comes(outer, 22);
  comes(inner, 11);
  expect("the counter", value_of(counter), 77);
  put(blocking, 9);
  expect("the reader", (long)join(reader), 9);
  join(ticker);
  close(far);
  close(blocking);
}
