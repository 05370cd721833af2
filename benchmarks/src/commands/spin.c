// A thread that does nothing but look at the clock, inside whatever program this is preloaded into. What it
// did not see goes to the file that SPIN_FILE names: pairs of words, when (ticks) and how long (ticks).
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include <x86intrin.h>

enum { MOST = 1 << 16, LEAST = 60000 };
struct board { _Atomic uint64_t count, ticks; struct { uint64_t at, gap; } gaps[MOST]; };

static void *spin(void *argument) {
  struct board *board = argument;
  pthread_setname_np(pthread_self(), "spin");
  uint64_t last = __rdtsc();
  for (;;) {
    uint64_t now = __rdtsc(), gap = now - last, count = board->count;
    if (gap > LEAST && count < MOST) {
      board->gaps[count].at = now;
      board->gaps[count].gap = gap;
      atomic_store(&board->count, count + 1);
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
