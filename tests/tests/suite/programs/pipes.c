// Pipes: writes that block half-way, whole and in parts, by several at once; their ends told.
#include "serve.h"
#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/uio.h>

enum { LARGE = 300000 };

static int ends[2], kept[2];
static unsigned char pattern[LARGE], got[LARGE];

static void begin(void) {
  for (int i = 0; i < LARGE; i++) pattern[i] = i * 31 + i / 251;
  good("pipe", pipe(ends));
  good("pipe", pipe(kept));
}

static void *writes_all(void *argument) {
  long len = (long)argument;
  expect("a large write", write(ends[1], pattern, len), len);
  return NULL;
}

static void read_all(long len) {
  for (long n = 0, at = 0; at < len; at += n) {
    n = good("read", read(ends[0], got + at, len - at < 5000 ? len - at : 5000));
    if (!n) fail("the end after %ld bytes", at);
  }
  expect("what was written", memcmp(got, pattern, len), 0);
}

static void *writes_lines(void *argument) {
  char line[64];
  for (int i = 0; i < 40; i++) {
    int n = snprintf(line, sizeof line, "%ld:%d\n", (long)argument, i);
    expect("write", write(ends[1], line, n), n);
  }
  return NULL;
}

static void lines(void) {
  pthread_t writers[3];
  int next[3] = { 0, 0, 0 };
  FILE *stream = fdopen(dup(ends[0]), "r");
  for (long i = 0; i < 3; i++) writers[i] = spawn(writes_lines, i);
  for (int i = 0; i < 120; i++) {
    int who, what;
    expect("a line", fscanf(stream, "%d:%d", &who, &what), 2);
    expect("its end", fgetc(stream), '\n');
    expect("its turn", what, next[who]++);
    note(who);
  }
  for (int i = 0; i < 3; i++) join(writers[i]);
  fclose(stream);
}

static void limits(void) {
  int other[2], n;
  char byte = 'x';
  good("pipe2", pipe2(other, O_NONBLOCK | O_CLOEXEC));
  expect_error("read of nothing", read(other[0], &byte, 1), EAGAIN);
  long room = 0;
  for (ssize_t w; (w = write(other[1], pattern, 4096)) > 0;) room += w;
  expect("full", errno, EAGAIN);
  good("FIONREAD", ioctl(other[0], FIONREAD, &n));
  expect("unread", n, room);
  expect("F_GETPIPE_SZ", fcntl(other[0], F_GETPIPE_SZ), room);
  struct iovec parts[2] = { { got, 1000 }, { got + 1000, 3096 } };
  expect("readv", readv(other[0], parts, 2), 4096);
  expect("what was written", memcmp(got, pattern, 4096), 0);
  close(other[0]);
  signal(SIGPIPE, SIG_IGN);
  expect_error("write to nobody", write(other[1], "x", 1), EPIPE);
  struct pollfd watched = { .fd = other[1], .events = POLLOUT };
  expect("poll", poll(&watched, 1, 0), 1);
  expect("POLLERR", watched.revents & POLLERR, POLLERR);
  close(other[1]);
  int last[2];
  good("pipe", pipe(last));
  close(last[1]);
  expect("its end", read(last[0], got, 1), 0);
  close(last[0]);
}

static void turn(unsigned number) {
  pthread_t writer = spawn(writes_all, LARGE / 3);
  read_all(LARGE / 3);
  join(writer);
  if (number % 2) lines();
  else limits();
}

static pthread_t writer;

static void *writes_kept(void *argument) {
  expect("a large write", write(kept[1], pattern, LARGE), LARGE);
  return argument;
}

// Somebody has written as much as fits, of more.
static void stand(void) {
  writer = spawn(writes_kept, 0);
  int n = 0;
  while (n < 65536) {
    good("FIONREAD", ioctl(kept[0], FIONREAD, &n));
    rest(MS);
  }
  n = good("read", read(kept[0], got, 10000));
  expect("read", n, 10000);
  expect("what was written", memcmp(got, pattern, n), 0);
}

static void go_on(void) {
  for (long n = 0, at = 10000; at < LARGE; at += n) n = good("read", read(kept[0], got + at, LARGE - at));
  expect("what was written", memcmp(got, pattern, LARGE), 0);
  join(writer);
}
