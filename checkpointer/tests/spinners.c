// Threads that are in a hook for ever, more than there are processors, and one that makes threads as fast as it can.
// The board counts those.
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

struct block { uint64_t words[512]; };
#define WORD(block, offset) (((volatile struct block *)(block))->words[(offset) / 8])

static void enter_hook(void) {
  struct block *block = aligned_alloc(64, 4096);
  *block = (struct block){ 0 };
  WORD(block, THIS) = (uint64_t)block;
  WORD(block, HOOK_SP) = 1024;
  WORD(block, HOOK_TOP) = 4096;
  syscall(SYS_arch_prctl, ARCH_SET_GS, block);
}

static void *spinner(void *argument) {
  (void)argument;
  enter_hook();
  for (;;) __builtin_ia32_pause();
}

static void *short_lived(void *argument) { return argument; }

int main(int argc, char **argv) {
  (void)argc;
  int file = open(argv[1], O_RDWR | O_CREAT, 0600);
  ftruncate(file, 4096);
  _Atomic uint64_t *board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  pthread_t thread;
  for (long i = 0; i < 2 * sysconf(_SC_NPROCESSORS_ONLN); i++) pthread_create(&thread, NULL, spinner, NULL);
  enter_hook();
  for (;;) {
    pthread_create(&thread, NULL, short_lived, NULL);
    pthread_join(thread, NULL);
    atomic_fetch_add(board, 1);
  }
}
