// A stand-in for the guest. Every thread has a block that gs points to and goes through a hook: the effect
// (a counter), then, later, its record (another counter). A cut must never fall between the two. One thread
// blocks inside its hook; one has user dispatch on and gets a SIGSYS for each call. The board shows the
// counters, the address to redo from, and how often each thread was held.
#define _GNU_SOURCE
#include <asm/prctl.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <ucontext.h>
#include <unistd.h>

enum { RUNNERS = 2 };
// The words of a block, by the offsets that the test passes in.
struct block { uint64_t words[512]; };
#define WORD(block, offset) (((volatile struct block *)(block))->words[(offset) / 8])
struct board { _Atomic uint64_t effects[RUNNERS], records[RUNNERS], held[RUNNERS], redo, dispatched, blocked_tid, blocking_done; };
static struct board *board;

static struct block *enter_thread(void) {
  struct block *block = aligned_alloc(64, 4096);
  *block = (struct block){ 0 };
  WORD(block, THIS) = (uint64_t)block;
  WORD(block, HOOK_SP) = WORD(block, HOOK_TOP) = 4096;
  syscall(SYS_arch_prctl, ARCH_SET_GS, block);
  return block;
}

static void *runner(void *argument) {
  long self = (long)argument;
  struct block *block = enter_thread();
  for (uint64_t round = 1;; round++) {
    WORD(block, HOOK_SP) = 1024;
    atomic_store(&board->effects[self], round);
    for (volatile int i = 0; i < 300; i++) {}
    if (round % 16 == 0) syscall(SYS_getppid);
    atomic_store(&board->records[self], round);
    if (WORD(block, STOP)) {
      WORD(block, WHY) = 1;
      while (WORD(block, STOP)) __builtin_ia32_pause();
      WORD(block, WHY) = 0;
      atomic_fetch_add(&board->held[self], 1);
    }
    WORD(block, HOOK_SP) = 4096;
    for (volatile int i = 0; i < 30; i++) {}
  }
}

static void redo(void) { for (;;) pause(); }

// The instruction pointer of a thread that is in this call.
extern char blocking_done[];
static long blocking_read(int from, void *to) {
  long result;
  __asm__ volatile("syscall\nblocking_done:" : "=a"(result) : "a"(SYS_read), "D"(from), "S"(to), "d"(1) : "rcx", "r11", "memory");
  return result;
}

static void *blocked(void *argument) {
  struct block *block = enter_thread();
  int ends[2];
  char byte;
  pipe(ends);
  atomic_store(&board->redo, (uint64_t)redo);
  atomic_store(&board->blocking_done, (uint64_t)blocking_done);
  WORD(block, HOOK_SP) = 1024;
  atomic_store(&board->blocked_tid, gettid());
  blocking_read(ends[0], &byte);
  _exit(4);
}

static volatile char selector;
static void caught(int signal, siginfo_t *info, void *context) {
  selector = SYSCALL_DISPATCH_FILTER_ALLOW;
  ((ucontext_t *)context)->uc_mcontext.gregs[REG_RAX] = 7;
}

static void *dispatched(void *argument) {
  struct sigaction action = { .sa_sigaction = caught, .sa_flags = SA_SIGINFO };
  sigaction(SIGSYS, &action, NULL);
  prctl(PR_SET_SYSCALL_USER_DISPATCH, PR_SYS_DISPATCH_ON, 0, 0, &selector);
  for (;;) {
    selector = SYSCALL_DISPATCH_FILTER_BLOCK;
    if (syscall(SYS_getppid) != 7) _exit(5);
    atomic_fetch_add(&board->dispatched, 1);
  }
}

int main(int argc, char **argv) {
  int file = open(argv[1], O_RDWR | O_CREAT, 0600);
  ftruncate(file, 4096);
  board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  pthread_t thread;
  for (long i = 0; i < RUNNERS; i++) pthread_create(&thread, NULL, runner, (void *)i);
  pthread_create(&thread, NULL, blocked, NULL);
  pthread_create(&thread, NULL, dispatched, NULL);
  for (;;) pause();
}
