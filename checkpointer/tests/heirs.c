// Memory that a process shares with children, each of which writes into it once and is gone: one for each byte of
// input, which is answered.
#include <stdint.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

int main(void) {
  volatile uint64_t *shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  shared[0] = 1000;
  char byte = 'r';
  do {
    write(1, &byte, 1);
    if (read(0, &byte, 1) != 1) return 0;
    pid_t child = fork();
    if (child == 0) {
      shared[0]++;
      _exit(0);
    }
    if (waitpid(child, NULL, 0) != child) return 1;
  } while (1);
}
