// What the programs of the suite share. A program defines
//   begin     makes what it tests
//   turn      uses all of it, once; the number counts from 0
//   stand     comes to a state in which nothing moves: what a checkpoint has to keep
//   go_on     leaves that state, and checks that it was kept
// checks all that is determined, and notes what is not. Without arguments it takes its turns, stands, goes on, and
// prints what it noted. With a port it does what the lines of one client after another ask for.
#ifndef SERVE_H
#define SERVE_H
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <limits.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <semaphore.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

// No program uses all of it.
#pragma GCC diagnostic ignored "-Wunused-function"

static void begin(void);
static void turn(unsigned number);
static void stand(void);
static void go_on(void);

#ifndef TURNS
#define TURNS 40
#endif

// A hash over all that was noted.
static uint64_t noted = 0xcbf29ce484222325;

static void note(uint64_t value) { noted = (noted ^ value) * 0x9e3779b97f4a7c15 + (noted >> 29); }

__attribute__((format(printf, 1, 2))) static void fail(const char *format, ...) {
  char line[256];
  int n = snprintf(line, sizeof line, "FAULT: ");
  va_list arguments;
  va_start(arguments, format);
  n += vsnprintf(line + n, sizeof line - n - 1, format, arguments);
  va_end(arguments);
  if (n > (int)sizeof line - 2) n = sizeof line - 2;
  line[n++] = '\n';
  // Both: one of them is seen wherever the program runs.
  if (write(1, line, n) != n || write(2, line, n) != n) _exit(4);
  _exit(3);
}

static void expect(const char *what, long got, long wanted) {
  if (got != wanted) fail("%s: %ld, not %ld (errno %d)", what, got, wanted, errno);
}

// For calls that fail with -1 and errno.
static void expect_error(const char *what, long got, int wanted) {
  int error = errno;
  if (got != -1 || error != wanted) fail("%s: %ld with errno %d, not %d", what, got, error, wanted);
}

static long good(const char *what, long got) {
  if (got < 0) fail("%s: errno %d", what, errno);
  return got;
}

#define MS 1000000L

static struct timespec later(clockid_t clock, long nanoseconds) {
  struct timespec t;
  clock_gettime(clock, &t);
  t.tv_sec += nanoseconds / 1000000000;
  t.tv_nsec += nanoseconds % 1000000000;
  if (t.tv_nsec >= 1000000000) t.tv_sec++, t.tv_nsec -= 1000000000;
  return t;
}

static struct timespec in(long nanoseconds) { return later(CLOCK_REALTIME, nanoseconds); }

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void rest(long nanoseconds) {
  struct timespec left = { nanoseconds / 1000000000, nanoseconds % 1000000000 };
  while (nanosleep(&left, &left)) expect("nanosleep", errno, EINTR);
}

static pthread_t spawn(void *(*run)(void *), long number) {
  pthread_t thread;
  expect("pthread_create", pthread_create(&thread, NULL, run, (void *)number), 0);
  return thread;
}

static void *join(pthread_t thread) {
  void *result;
  expect("pthread_join", pthread_join(thread, &result), 0);
  return result;
}

// Words by which threads tell each other how far they are; not for handlers of signals.
static pthread_mutex_t words_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t words_changed = PTHREAD_COND_INITIALIZER;

static int get(const int *word) {
  pthread_mutex_lock(&words_lock);
  int value = *word;
  pthread_mutex_unlock(&words_lock);
  return value;
}

static void reset(int *word) {
  pthread_mutex_lock(&words_lock);
  *word = 0;
  pthread_mutex_unlock(&words_lock);
}

static void add(int *word, int value) {
  pthread_mutex_lock(&words_lock);
  *word += value;
  pthread_cond_broadcast(&words_changed);
  pthread_mutex_unlock(&words_lock);
}

static void await(const int *word, int least) {
  pthread_mutex_lock(&words_lock);
  while (*word < least) pthread_cond_wait(&words_changed, &words_lock);
  pthread_mutex_unlock(&words_lock);
}

static void post(sem_t *semaphore) { good("sem_post", sem_post(semaphore)); }

static void take(sem_t *semaphore) {
  while (sem_wait(semaphore)) expect("sem_wait", errno, EINTR);
}

static int read_line(int from, char *line, size_t room) {
  size_t len = 0;
  do {
    ssize_t n = read(from, line + len, room - 1 - len);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return 0;
    len += n;
  } while (line[len - 1] != '\n');
  line[len - 1] = 0;
  return 1;
}

static void write_line(int to, const char *line, size_t len) {
  while (len) {
    ssize_t n = write(to, line, len);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    line += n, len -= n;
  }
}

static void answer(int client) {
  static unsigned turns;
  static int stands;
  char line[64];
  while (read_line(client, line, sizeof line)) {
    if (!strcmp(line, "turn")) turn(turns++);
    else if (!strcmp(line, "stand") && !stands) stand(), stands = 1;
    else if (!strcmp(line, "go on") && stands) go_on(), stands = 0;
    else fail("asked for \"%s\"", line);
    char said[96];
    int n = snprintf(said, sizeof said, "%s %u %016lx\n", line, turns, (unsigned long)noted);
    write_line(client, said, n);
  }
}

static void serve(int port) {
  int yes = 1, listener = good("socket", socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0));
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  struct sockaddr_in at;
  memset(&at, 0, sizeof at);
  at.sin_family = AF_INET;
  at.sin_port = htons(port);
  good("bind", bind(listener, (struct sockaddr *)&at, sizeof at));
  good("listen", listen(listener, 8));
  for (;;) {
    int client = accept(listener, NULL, NULL);
    if (client < 0 && errno == EINTR) continue;
    good("accept", client);
    setsockopt(client, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    answer(client);
    close(client);
  }
}

int main(int argc, char **argv) {
  begin();
  if (argc > 1) serve(atoi(argv[1]));
  for (unsigned i = 0; i < TURNS; i++) {
    turn(i);
    if (i % 8 == 7) printf("%u: %016lx\n", i + 1, (unsigned long)noted);
  }
  stand();
  go_on();
  printf("noted %016lx\ndone\n", (unsigned long)noted);
  return 0;
}
#endif
