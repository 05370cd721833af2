// For each byte of input: another alternate stack, another action for SIGUSR2, another umask and directory; answered.
#include <signal.h>
#include <sys/stat.h>
#include <unistd.h>

static void handler(int signal) { (void)signal; }

int main(void) {
  static char stacks[2][65536];
  char byte = 'r';
  for (int turn = 0;; turn = !turn) {
    stack_t stack = { .ss_sp = stacks[turn], .ss_size = 32768 << turn };
    if (sigaltstack(&stack, NULL)) return 1;
    struct sigaction action = { .sa_handler = handler, .sa_flags = turn ? SA_ONSTACK : 0 };
    if (sigaction(SIGUSR2, &action, NULL)) return 1;
    umask(turn ? 077 : 022);
    if (chdir(turn ? "/tmp" : "/")) return 1;
    write(1, &byte, 1);
    if (read(0, &byte, 1) != 1) return 0;
  }
}
