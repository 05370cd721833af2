// Counts in memory of its own. Shows the count on a board, and beside it the first count since that was set to zero.
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

int main(int argc, char **argv) {
  int file = open(argv[argc - 1], O_RDWR | O_CREAT, 0600);
  if (ftruncate(file, 4096)) return 1;
  volatile uint64_t *board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  volatile uint64_t *count = calloc(1, 4096);
  if (board == MAP_FAILED || !count) return 1;
  for (;; usleep(500)) {
    ++*count;
    if (!board[1]) board[1] = *count;
    board[0] = *count;
  }
}
