// A thread that goes on when the first one has ended. The board counts its rounds.
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/mman.h>
#include <unistd.h>

static _Atomic uint64_t *board;

static void *goes_on(void *first) {
  pthread_join(*(pthread_t *)first, NULL);
  for (;;) {
    atomic_fetch_add(board, 1);
    usleep(100);
  }
}

int main(int argc, char **argv) {
  (void)argc;
  int file = open(argv[1], O_RDWR | O_CREAT, 0600);
  ftruncate(file, 4096);
  board = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
  static pthread_t first;
  first = pthread_self();
  pthread_t thread;
  pthread_create(&thread, NULL, goes_on, &first);
  pthread_exit(NULL);
}
