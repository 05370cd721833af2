// A server whose threads race on purpose: racy KIND ONE_IN PORT.
//
// A thread for each connection. Each request is a line, each answer a line: a value, and a hash over all values that
// this connection was answered. One request in ONE_IN, at random, gets its value from what the threads share without
// a lock, by a race of the KIND; the others get theirs under one.
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <linux/futex.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OBJECTS = 4096 };
struct object { uint64_t parts[8]; };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static unsigned long one_in;
static volatile uint64_t counter;
static struct object objects[OBJECTS];
static struct object *volatile latest;
static uint64_t made;

static struct object *make(uint64_t value) {
  struct object *object = &objects[made++ % OBJECTS];
  for (int i = 0; i < 8; i++) object->parts[i] = value + i;
  return object;
}

static uint64_t sum(struct object *object) {
  uint64_t sum = 0;
  for (int i = 0; object && i < 8; i++) sum += object->parts[i];
  return sum;
}

// Two threads that come together count once.
static uint64_t unlocked_counter(uint64_t self) {
  (void)self;
  uint64_t now = counter;
  counter = now + 1;
  return now + 1;
}

// Who comes first makes the object; others may or may not see it yet.
static uint64_t double_checked(uint64_t self) {
  if (!latest) {
    pthread_mutex_lock(&lock);
    if (!latest) latest = make(self << 32 | counter);
    pthread_mutex_unlock(&lock);
  }
  return sum(latest);
}

// One thread leaves its number in a flag, another takes it away.
static uint64_t handed_over(uint64_t self) {
  uint64_t found = counter;
  counter = found ? 0 : self + 1;
  return found;
}

// Statistics by atomic operations, which no record tells of.
static uint64_t lock_free(uint64_t self) {
  (void)self;
  return atomic_fetch_add_explicit((_Atomic uint64_t *)&counter, 1, memory_order_relaxed);
}

// An object is filled and made known without a barrier.
static uint64_t published(uint64_t self) {
  uint64_t seen = sum(latest);
  latest = make(self << 32 | seen);
  return seen;
}

// Each sets a flag of its own and then looks at the other's: two that come together may both see both.
static uint64_t two_flags(uint64_t self) {
  static _Atomic uint64_t flags[2];
  flags[self & 1] = 1;
  // So that they do.
  for (int i = 0; i < 100; i++) __builtin_ia32_pause();
  uint64_t seen = flags[~self & 1];
  flags[self & 1] = 0;
  return seen;
}

// A lock of the program's own, as languages bring them: nothing of it can be replaced.
static uint64_t own_lock(uint64_t self) {
  static _Atomic int word;
  static uint64_t chain;
  int free = 0;
  if (!atomic_compare_exchange_strong(&word, &free, 1))
    while (atomic_exchange(&word, 2)) syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 2, NULL, NULL, 0);
  chain = (chain ^ self) * 0x100000001b3;
  uint64_t value = chain;
  if (atomic_exchange(&word, 0) == 2) syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
  return value;
}

static const struct { const char *name; uint64_t (*race)(uint64_t self); } kinds[] = {
  { "unlocked-counter", unlocked_counter },
  { "double-checked", double_checked },
  { "flag", handed_over },
  { "statistics", lock_free },
  { "publication", published },
  { "two-flags", two_flags },
  { "own-lock", own_lock },
};
static uint64_t (*race)(uint64_t self);

static uint64_t in_order(uint64_t self) {
  (void)self;
  pthread_mutex_lock(&lock);
  uint64_t value = ++counter;
  // So that there is something to make again.
  if (race == double_checked) latest = NULL;
  pthread_mutex_unlock(&lock);
  return value;
}

static void *serve(void *argument) {
  uint64_t self = (uint64_t)argument >> 32, chain = 0xcbf29ce484222325, chance = self * 0x9e3779b97f4a7c15 + 1;
  int connection = (int)(uint64_t)argument;
  char line[64];
  for (;;) {
    size_t len = 0;
    do {
      ssize_t n = read(connection, line + len, sizeof line - len);
      if (n <= 0) goto end;
      len += n;
    } while (line[len - 1] != '\n');
    chance = chance * 6364136223846793005 + 1442695040888963407;
    uint64_t value = ((chance >> 33) % one_in ? in_order : race)(self);
    chain = (chain ^ value) * 0x100000001b3;
    int n = snprintf(line, sizeof line, "%lx %lx\n", value, chain);
    if (write(connection, line, n) != n) break;
  }
end:
  close(connection);
  return NULL;
}

int main(int argc, char **argv) {
  if (argc != 4) return 2;
  for (size_t i = 0; i < sizeof kinds / sizeof *kinds; i++) if (!strcmp(kinds[i].name, argv[1])) race = kinds[i].race;
  one_in = strtoul(argv[2], NULL, 10);
  if (!race || !one_in) return 2;
  int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[3])) };
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return 1;
  for (uint64_t number = 0;; number++) {
    int connection = accept(listener, NULL, NULL);
    if (connection < 0) return 1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    pthread_t thread;
    if (pthread_create(&thread, NULL, serve, (void *)(number << 32 | (uint64_t)connection))) return 1;
    pthread_detach(thread);
  }
}
