// A program that checks itself: four workers own a region each and rewrite it by a pattern that depends on
// a counter; registers, vector registers, thread-local storage, robust mutexes, timers and signals are
// checked as well. Prints nothing while all is well; exits with 3 and a line when something is not.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <immintrin.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { WORKERS = 3, WORDS = 1 << 18 };
// Behind SIGSTOP, by which a test compares: the kernel would write this one's frame first.
#define OWN_SIGNAL SIGRTMIN
static _Thread_local uint64_t local;
struct shared { _Atomic uint64_t rounds[WORKERS + 1]; _Atomic uint64_t signals; _Atomic int failed; };
static struct shared *board;
static pid_t tids[WORKERS];

static void fail(const char *what, uint64_t a, uint64_t b) {
  dprintf(2, "target: %s: %lx %lx\n", what, a, b);
  atomic_store(&board->failed, 1);
  _exit(3);
}

static uint64_t mix(uint64_t x) { x ^= x >> 31; x *= 0x9e3779b97f4a7c15; return x ^ x >> 29; }

static void handler(int sig, siginfo_t *info, void *context) {
  char here;
  stack_t now;
  (void)sig; (void)info; (void)context;
  sigaltstack(NULL, &now);
  if (&here < (char *)now.ss_sp || &here > (char *)now.ss_sp + now.ss_size) fail("handler is not on its stack", (uint64_t)&here, (uint64_t)now.ss_sp);
  atomic_fetch_add(&board->signals, 1);
}

static void own_stack(void) {
  stack_t s = { .ss_sp = malloc(64 << 10), .ss_size = 64 << 10 };
  if (sigaltstack(&s, NULL)) fail("sigaltstack", errno, 0);
}

static void churn(uint64_t round) {
  // Mappings come, go, are given back, moved and grown.
  size_t len = (4 + round % 700) * 4096;
  uint64_t *a = mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  for (size_t i = 0; i < len / 8; i += 512) if (a[i]) fail("new memory is not zero", i, a[i]); else a[i] = round + i;
  uint64_t *b = mremap(a, len, len + 64 * 4096, MREMAP_MAYMOVE);
  for (size_t i = 0; i < len / 8; i += 512) if (b[i] != round + i) fail("moved memory differs", i, b[i]);
  for (size_t i = len / 8; i < len / 8 + 64 * 512; i += 512) if (b[i]) fail("grown memory is not zero", i, b[i]);
  munmap(b, len + 64 * 4096);
}

enum { PLACE = 4 };
static uint64_t *place, own_words[PLACE];
static int place_is;

static void check_place(void) {
  for (int i = 0; i < PLACE * 512; i += 512) {
    uint64_t expected = place_is == 3 || i % 1024 ? 0 : mix(i + place_is);
    if (place_is == 1 && i % 1024) expected = own_words[i / 512];
    if (place[i] != expected) fail("replaced memory", i, place[i]);
  }
}

// One place in memory whose mapping is replaced again and again: by zeroes, a file, shared memory.
static void replace(uint64_t round) {
  size_t len = PLACE * 4096;
  if (place) check_place();
  place_is = round % 4;
  int rights = PROT_READ | PROT_WRITE, fixed = place ? MAP_FIXED : 0, fd = -1;
  if (place_is == 1) fd = open("/proc/self/exe", O_RDONLY);
  if (place_is == 2) ftruncate(fd = memfd_create("place", 0), len);
  int kind = place_is == 2 ? MAP_SHARED : fd < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_PRIVATE;
  uint64_t *now = mmap(place, len, rights, kind | fixed, fd, 0);
  if (now == MAP_FAILED || place && now != place) fail("mmap", errno, (uint64_t)now);
  place = now;
  if (fd >= 0) close(fd);
  for (int i = 0; i < PLACE * 512; i += 512) {
    if (i % 1024 == 0) place[i] = mix(i + place_is);
    // Written, then given back: the file's bytes again.
    else if (place_is == 1) { place[i] = round; madvise((char *)place + i * 8, 4096, MADV_DONTNEED); }
  }
  if (place_is == 3) madvise(place, len, MADV_DONTNEED);
  if (round % 3 == 0) mprotect(place, 2 * 4096, PROT_READ);
  check_place();
}

static uint64_t dig(int depth) {
  volatile uint64_t room[2048];
  room[depth] = depth;
  return depth ? dig(depth - 1) + room[depth] : 0;
}

// The heap's end and the first thread's stack move.
static void stretch(uint64_t round) {
  dig(round / 256 % 100);
  size_t len = 4096 * (1 + round / 256 % 50);
  char *heap = sbrk(len);
  for (size_t i = 0; i < len; i++) if (heap[i]) fail("the heap's new end is not zero", (uint64_t)heap, heap[i]);
  memset(heap, 'e', len);
  nanosleep(&(struct timespec){ 0, 1000000 }, NULL);
  if (sbrk(-(intptr_t)len) != heap + len) fail("sbrk", errno, 0);
}

static void *worker(void *argument) {
  int self = (int)(long)argument;
  uint64_t *region = mmap(NULL, WORDS * 8, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  uint64_t *fixed = mmap(NULL, 3 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  local = mix(self);
  own_stack();
  tids[self] = gettid();
  __m256i lanes = _mm256_set1_epi64x(self + 77);
  for (uint64_t round = 1;; round++) {
    if (gettid() != tids[self]) fail("thread number", gettid(), tids[self]);
    if (local != mix(self)) fail("thread-local storage", local, self);
    size_t from = mix(round * WORKERS + self) % (WORDS - 4096);
    for (size_t i = from; i < from + 4096; i++) {
      if (region[i] && region[i] != mix(i ^ (uint64_t)self << 40)) fail("region", i, region[i]);
      region[i] = mix(i ^ (uint64_t)self << 40);
    }
    if (round % 16 == 0) {
      // Given back: it must read as zeroes for ever after, until written again.
      if (madvise(fixed, 3 << 20, MADV_DONTNEED)) fail("madvise", errno, 0);
      for (size_t i = 0; i < (3 << 20) / 8; i += 512) if (fixed[i]) fail("given-back memory is not zero", i, fixed[i]);
    }
    for (size_t i = round % 16; i < (3 << 20) / 8; i += 8192) fixed[i] = round;
    if (self == 0) churn(round);
    if (self == 0 && round % 8 == 0) replace(round / 8);
    uint64_t out[4];
    _mm256_storeu_si256((__m256i *)out, lanes);
    for (int i = 0; i < 4; i++) if (out[i] != (uint64_t)self + 77) fail("vector register", out[i], self);
    if (self == 1 && round % 64 == 0) {
      // A relative wait, which the stop must not shorten or break with EINTR.
      int set = epoll_create1(0);
      struct epoll_event event;
      int got = set < 0 ? -1 : epoll_wait(set, &event, 1, 5);
      // (A restored process has no descriptors but those it was given.)
      if (set >= 0 && got != 0 && errno != EBADF) fail("epoll_wait", got, errno);
      if (set >= 0) close(set);
    }
    if (self == 2 && round % 64 == 0) {
      struct timespec t = { 0, 2000000 };
      if (nanosleep(&t, NULL)) fail("nanosleep", errno, 0);
    }
    atomic_store(&board->rounds[self], round);
  }
  return NULL;
}

int main(int argc, char **argv) {
  int memory = memfd_create("board", 0);
  if (argc > 1) { /* a board that an outsider can read */ close(memory); memory = open(argv[1], O_RDWR | O_CREAT, 0600); }
  ftruncate(memory, 4096);
  board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, memory, 0);
  close(memory);
  int hidden = memfd_create("hidden", 0);
  ftruncate(hidden, 8 * 4096);
  uint64_t *one = mmap(NULL, 8 * 4096, PROT_READ | PROT_WRITE, MAP_SHARED, hidden, 0);
  const uint64_t *two = mmap(NULL, 8 * 4096, PROT_READ, MAP_SHARED, hidden, 0);
  close(hidden);
  uint64_t *locked = mmap(NULL, 4096 * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  locked[100] = 4711;
  mprotect(locked, 4096 * 4, PROT_NONE);
  struct sigaction action = { .sa_sigaction = handler, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART };
  sigaction(OWN_SIGNAL, &action, NULL);
  own_stack();
  umask(027);
  char *heap = malloc(100000);
  memset(heap, 'h', 100000);
  // A signal that waits all the time, with its value, beside the moments when it is taken and sent again.
  sigset_t waiting;
  sigemptyset(&waiting);
  sigaddset(&waiting, SIGRTMIN + 3);
  sigprocmask(SIG_BLOCK, &waiting, NULL);
  pthread_sigqueue(pthread_self(), SIGRTMIN + 3, (union sigval){ .sival_int = 4242 });
  char *pinned = mmap(NULL, 4096 * 4, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (mlock(pinned, 4096 * 4)) fail("mlock", errno, 0);
  char filled = 0;
  int own = open("/proc/self/exe", O_RDONLY);
  for (int i = 0; i < PLACE; i++) if (pread(own, &own_words[i], 8, i * 4096) != 8) fail("pread", errno, i);
  close(own);
  pthread_t threads[WORKERS];
  for (long i = 0; i < WORKERS; i++) pthread_create(&threads[i], NULL, worker, (void *)i);
  pid_t pid = getpid();
  for (uint64_t round = 1;; round++) {
    if (getpid() != pid) fail("process number", getpid(), pid);
    if (umask(027) != 027) fail("umask", 0, 0);
    if (round % 4096 == 0) memset(one, 0, 8 * 4096);
    one[round % 4096] = round;
    if (two[round % 4096] != round) fail("shared memory", two[round % 4096], round);
    if (heap[round % 100000] != 'h') fail("heap", round, heap[round % 100000]);
    if (round % 64 == 0) {
      mprotect(locked, 4096 * 4, PROT_READ | PROT_WRITE);
      if (locked[100] != 4711) fail("hidden memory", locked[100], round);
    }
    if (round % 512 == 0) {
      for (int i = 0; i < 4 * 4096; i++) if (pinned[i] != filled) fail("pinned memory", i, pinned[i]);
      memset(pinned, filled = filled ? 0 : 'p', 4096 * 4);
    }
    if (round % 64 == 32) mprotect(locked, 4096 * 4, PROT_NONE);
    if (round % 256 == 128) stretch(round);
    if (round % 256 == 0) {
      uint64_t before = atomic_load(&board->signals);
      if (syscall(SYS_tgkill, pid, pid, OWN_SIGNAL)) fail("tgkill", errno, 0);
      if (atomic_load(&board->signals) == before) fail("signal", before, round);
      siginfo_t info;
      struct timespec t = { 0, 0 };
      if (sigtimedwait(&waiting, &info, &t) != SIGRTMIN + 3 || info.si_value.sival_int != 4242) fail("waiting signal", errno, info.si_value.sival_int);
      pthread_sigqueue(pthread_self(), SIGRTMIN + 3, (union sigval){ .sival_int = 4242 });
      t.tv_nsec = 1000000;
      nanosleep(&t, NULL);
    }
    atomic_store(&board->rounds[WORKERS], round);
  }
}
