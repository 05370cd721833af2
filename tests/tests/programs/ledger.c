// Threads that share a ledger under two locks and read what they enter there. All that a call gives them, and the order
// in which they got the locks, goes into sums that they print, as they go and at the end: no entry of the program's own
// in a log of it can change without another line being printed.
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

enum { THREADS = 3, ROUNDS = 12 };

static pthread_mutex_t books = PTHREAD_MUTEX_INITIALIZER, till = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t closing = PTHREAD_COND_INITIALIZER;
static uint64_t entered, paid;
static int closed, channel[2];

static void check(int good, const char *what) {
  if (!good) { perror(what); exit(3); }
}

static uint64_t fold(uint64_t sum, uint64_t value) { return (sum ^ value) * 0x9e3779b97f4a7c15u + (sum >> 29); }

static uint64_t fold_bytes(uint64_t sum, const unsigned char *bytes, size_t n) {
  for (size_t i = 0; i < n; i++) sum = fold(sum, bytes[i]);
  return sum;
}

static void say(const char *what, long who, uint64_t sum) {
  char line[80];
  int n = snprintf(line, sizeof line, "%s %ld %016lx\n", what, who, sum);
  check(write(1, line, n) == n, "write");
}

static void *clerk(void *argument) {
  long self = (long)argument;
  uint64_t sum = self;
  unsigned char bytes[48];
  int file = open("entries", O_RDONLY), copy;
  check(file >= 0, "entries");
  char name[16];
  snprintf(name, sizeof name, "copy%ld", self);
  check((copy = open(name, O_CREAT | O_WRONLY | O_TRUNC, 0600)) >= 0, name);
  for (int round = 0; round < ROUNDS; round++) {
    check(read(file, bytes, sizeof bytes) == sizeof bytes, "read");
    sum = fold_bytes(sum, bytes, sizeof bytes);
    check(getrandom(bytes, 16, 0) == 16, "getrandom");
    sum = fold_bytes(sum, bytes, 16);
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    sum = fold(fold(sum, now.tv_sec), now.tv_nsec);
    pthread_mutex_lock(&books);
    sum = entered = fold(entered, sum);
    if (round % 4 == self) {
      pthread_mutex_lock(&till);
      paid = fold(paid, sum);
      pthread_mutex_unlock(&till);
    }
    pthread_mutex_unlock(&books);
    pthread_mutex_lock(&till);
    sum = paid = fold(paid, sum);
    check(write(channel[1], &sum, sizeof sum) == sizeof sum, "pipe");
    check(read(channel[0], bytes, sizeof sum) == sizeof sum, "pipe");
    pthread_mutex_unlock(&till);
    sum = fold_bytes(sum, bytes, sizeof sum);
    check(write(copy, &sum, sizeof sum) == sizeof sum, name);
    if (round % 3 == 2) say("clerk", self, sum);
    usleep(50);
  }
  check(!close(file) && !close(copy), "close");
  pthread_mutex_lock(&books);
  closed++;
  pthread_cond_signal(&closing);
  pthread_mutex_unlock(&books);
  return NULL;
}

int main(void) {
  pthread_t threads[THREADS];
  check(!pipe(channel), "pipe");
  pthread_mutex_lock(&books);
  for (long n = 0; n < THREADS; n++) check(!pthread_create(&threads[n], NULL, clerk, (void *)n), "pthread_create");
  while (closed < THREADS) {
    pthread_cond_wait(&closing, &books);
    say("closed", closed, entered);
  }
  pthread_mutex_unlock(&books);
  for (int n = 0; n < THREADS; n++) pthread_join(threads[n], NULL);
  say("entered", THREADS, entered);
  say("paid", THREADS, paid);
  return 0;
}
