// UNIX sockets: streams, datagrams and packets; whole answers waited for; descriptors passed.
#include "serve.h"
#include <sys/epoll.h>

enum { LARGE = 400000 };

static int stream[2], packets[2], datagrams[2];
static unsigned char pattern[LARGE], got[LARGE];

static void begin(void) {
  for (int i = 0; i < LARGE; i++) pattern[i] = i * 37 + i / 241;
  good("socketpair", socketpair(AF_UNIX, SOCK_STREAM, 0, stream));
  good("socketpair", socketpair(AF_UNIX, SOCK_SEQPACKET, 0, packets));
  good("socketpair", socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams));
}

static void *writes(void *argument) {
  long len = (long)argument;
  expect("a large write", write(stream[1], pattern, len), len);
  return NULL;
}

static void messages(int *pair) {
  for (int i = 1; i < 6; i++) expect("send", send(pair[0], pattern, i * 100, 0), i * 100);
  expect("peek", recv(pair[1], got, sizeof got, MSG_PEEK), 100);
  expect("cut", recv(pair[1], got, 30, MSG_TRUNC), 100);
  for (int i = 2; i < 6; i++) {
    expect("recv", recv(pair[1], got, sizeof got, 0), i * 100);
    expect("what was sent", memcmp(got, pattern, i * 100), 0);
  }
  expect_error("nothing more", recv(pair[1], got, 1, MSG_DONTWAIT), EAGAIN);
}

static void passes(void) {
  int ends[2];
  good("pipe", pipe(ends));
  char byte = 'p', control[CMSG_SPACE(sizeof(int))] = { 0 };
  struct iovec part = { &byte, 1 };
  struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
  struct cmsghdr *head = CMSG_FIRSTHDR(&message);
  head->cmsg_level = SOL_SOCKET;
  head->cmsg_type = SCM_RIGHTS;
  head->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(head), &ends[1], sizeof(int));
  expect("sendmsg", sendmsg(stream[0], &message, 0), 1);
  close(ends[1]);
  memset(control, 0, sizeof control);
  message.msg_controllen = sizeof control;
  expect("recvmsg", recvmsg(stream[1], &message, MSG_CMSG_CLOEXEC), 1);
  int passed;
  memcpy(&passed, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof passed);
  expect("write", write(passed, "through", 7), 7);
  close(passed);
  expect("read", read(ends[0], got, 100), 7);
  expect("its end", read(ends[0], got, 100), 0);
  close(ends[0]);
}

static void turn(unsigned number) {
  pthread_t writer = spawn(writes, LARGE / 4);
  expect("MSG_WAITALL", recv(stream[0], got, LARGE / 4, MSG_WAITALL), LARGE / 4);
  expect("what was written", memcmp(got, pattern, LARGE / 4), 0);
  join(writer);
  messages(packets);
  messages(datagrams);
  if (number % 2) passes();
  note(number);
}

static pthread_t writer, reader;
static int standing;

static void *reads(void *argument) {
  add(&standing, 1);
  expect("MSG_WAITALL", recv(stream[1], got, 1000, MSG_WAITALL), 1000);
  expect("what was written", memcmp(got, pattern, 1000), 0);
  return argument;
}

// One waits for all of what half has come of, another has written as much as fits; messages wait to be read.
static void stand(void) {
  standing = 0;
  expect("write", write(stream[0], pattern, 500), 500);
  reader = spawn(reads, 0);
  await(&standing, 1);
  writer = spawn(writes, LARGE);
  for (int i = 1; i < 4; i++) expect("send", send(packets[0], pattern, i * 100, 0), i * 100);
  // Some of it was written: the rest follows as this is read.
  expect("MSG_WAITALL", recv(stream[0], got + 2000, 5000, MSG_WAITALL), 5000);
}

static void go_on(void) {
  expect("write", write(stream[0], pattern + 500, 500), 500);
  join(reader);
  expect("the rest", recv(stream[0], got + 5000, LARGE - 5000, MSG_WAITALL), LARGE - 5000);
  expect("what was written", memcmp(got + 5000, pattern + 5000, LARGE - 5000), 0);
  join(writer);
  for (int i = 1; i < 4; i++) expect("recv", recv(packets[1], got, 1000, 0), i * 100);
}
