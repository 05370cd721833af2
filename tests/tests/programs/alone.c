#define _GNU_SOURCE
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t signals;

static void handler(int number) {
    signals += number;
}

static long nanos(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void *work(void *slot) {
    *(long *)slot = nanos(CLOCK_MONOTONIC);
    return slot;
}

int main(int argc, char **argv) {
    unsigned long random = 0;
    if (syscall(SYS_getrandom, &random, sizeof random, 0) != sizeof random)
        return 1;
    printf("%d %s pid %d random %016lx stack %p heap %p\n", argc, argv[0], getpid(), random, (void *)&random, malloc(32));
    for (int i = 0; i < 3; i++) {
        long seen = 0;
        pthread_t thread;
        int error = pthread_create(&thread, NULL, work, &seen);
        if (error || pthread_join(thread, NULL)) {
            printf("no thread: %s\n", strerror(error));
            return 2;
        }
        printf("a thread saw %ld\n", seen);
    }
    fflush(stdout);
    int ends[2];
    if (pipe(ends))
        return 3;
    pid_t child = fork();
    if (child == 0) {
        char text[64];
        int length = snprintf(text, sizeof text, "child %d at %ld", getpid(), nanos(CLOCK_REALTIME));
        _exit(write(ends[1], text, length) == length ? 7 : 8);
    }
    char text[64] = "";
    int status = 0;
    if (read(ends[0], text, sizeof text - 1) <= 0 || waitpid(child, &status, 0) != child)
        return 4;
    printf("%s, status %d\n", text, WEXITSTATUS(status));
    signal(SIGUSR1, handler);
    raise(SIGUSR1);
    struct stat found;
    printf("signals %d, missing file %d\n", (int)signals, stat("/nowhere", &found));
    for (int i = 0; i < 10; i++)
        printf("%ld %ld\n", nanos(CLOCK_REALTIME), nanos(CLOCK_MONOTONIC));
    puts("done");
    return 0;
}
