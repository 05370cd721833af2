// A thread that does nothing but look at the clock, inside whatever program this is preloaded into. What it
// did not see because it was stopped goes to the file that SPIN_FILE names: pairs of words, when (ticks) and how
// long (ticks). A thread that is stopped gives its processor up itself, one that others keep from running does not:
// the kernel counts the two apart (getrusage(2), ru_nvcsw and ru_nivcsw).
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>
#include <x86intrin.h>

enum { MOST = 1 << 16, LEAST = 60000 };
struct board { _Atomic uint64_t count, ticks; struct { uint64_t at, gap; } gaps[MOST]; };

static long given_up(void) {
  struct rusage usage;
  getrusage(RUSAGE_THREAD, &usage);
  return usage.ru_nvcsw;
}

static void *spin(void *argument) {
  struct board *board = argument;
  pthread_setname_np(pthread_self(), "spin");
  long before = given_up();
  uint64_t last = __rdtsc();
  for (;;) {
    uint64_t now = __rdtsc(), gap = now - last, count = board->count;
    if (gap > LEAST && count < MOST) {
      long switches = given_up();
      if (switches != before) {
        board->gaps[count].at = now;
        board->gaps[count].gap = gap;
        atomic_store(&board->count, count + 1);
      }
      // What the call itself gave up is not a stop.
      before = given_up();
      now = __rdtsc();
    }
    atomic_store_explicit(&board->ticks, now, memory_order_relaxed);
    last = now;
    _mm_pause();
  }
}

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("SPIN_FILE");
  int file = path ? open(path, O_RDWR) : -1;
  if (file < 0) return;
  void *board = mmap(NULL, sizeof(struct board), PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  close(file);
  pthread_t thread;
  if (board != MAP_FAILED) pthread_create(&thread, NULL, spin, board);
}
