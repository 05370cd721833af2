// A server with a process for each connection: forking PORT [killed].
//
// Each request is a line, each answer a line: how many requests this connection has made, a hash over all of them, and
// how many requests all connections have made, which is counted in memory that all processes share, under a lock that
// they share. Another process, whose parent has ended, is told of each request by a pipe and answers with how many it
// was told of.
#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

struct shared { pthread_mutex_t lock; uint64_t total; };
static struct shared *shared;
static volatile sig_atomic_t ended;
// Whether every other process ends by a signal that nobody can handle.
static int are_killed;

static void reap(int signal) {
  (void)signal;
  while (waitpid(-1, NULL, WNOHANG) > 0) ended++;
}

static void count(int from) {
  char bytes[256];
  uint64_t told = 0;
  for (ssize_t n; (n = read(from, bytes, sizeof bytes)) > 0;) told += n;
  exit(told == 0);
}

static void serve(int connection, int tell) {
  char line[64];
  uint64_t requests = 0, chain = 0xcbf29ce484222325;
  for (;;) {
    size_t len = 0;
    do {
      ssize_t n = read(connection, line + len, sizeof line - 1 - len);
      if (n <= 0 && are_killed && getpid() % 2) kill(getpid(), SIGKILL);
      if (n <= 0) exit(3);
      len += n;
    } while (line[len - 1] != '\n');
    // Then nobody closes the connection but the kernel.
    if (!strncmp(line, "die\n", len)) kill(getpid(), SIGKILL);
    for (size_t i = 0; i < len; i++) chain = (chain ^ (unsigned char)line[i]) * 0x100000001b3;
    pthread_mutex_lock(&shared->lock);
    uint64_t total = ++shared->total;
    pthread_mutex_unlock(&shared->lock);
    if (write(tell, "x", 1) != 1) exit(4);
    int n = snprintf(line, sizeof line, "%lu %lx %lu\n", ++requests, chain, total);
    if (write(connection, line, n) != n) exit(5);
  }
}

int main(int argc, char **argv) {
  if (argc < 2) return 2;
  are_killed = argc > 2;
  shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  pthread_mutexattr_t attributes;
  pthread_mutexattr_init(&attributes);
  pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
  pthread_mutex_init(&shared->lock, &attributes);
  int ends[2];
  if (pipe(ends)) return 1;
  if (!fork()) {
    if (!fork()) {
      close(ends[1]);
      setsid();
      count(ends[0]);
    }
    _exit(0);
  }
  close(ends[0]);
  wait(NULL);
  signal(SIGPIPE, SIG_IGN);
  struct sigaction action = { .sa_handler = reap, .sa_flags = SA_RESTART };
  sigaction(SIGCHLD, &action, NULL);
  int yes = 1, listener = socket(AF_INET, SOCK_STREAM, 0);
  setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
  struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
  if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return 1;
  for (;;) {
    int connection = accept(listener, NULL, NULL);
    if (connection < 0) continue;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    pid_t child = fork();
    if (child < 0) return 1;
    if (!child) {
      close(listener);
      serve(connection, ends[1]);
    }
    close(connection);
  }
}
