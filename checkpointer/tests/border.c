// Two pages that are written once and read ever after; the two behind them are unmapped and mapped again,
// as fast as this can be done.
#include <stdatomic.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
  (void)argc;
  int fd = open(argv[1], O_RDWR | O_CREAT, 0600);
  ftruncate(fd, 4096);
  _Atomic unsigned long *board = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  char *lower = mmap(0, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  char *upper = lower + 2 * 4096;
  memset(lower, 'l', 2 * 4096);
  for (;;) {
    memset(upper, 'u', 2 * 4096);
    munmap(upper, 2 * 4096);
    if (mmap(upper, 2 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != upper) return 1;
    atomic_fetch_add(&board[0], 1);
  }
}
