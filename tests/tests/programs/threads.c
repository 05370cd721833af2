#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static long order[64], used;

static long nanos(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void *work(void *number) {
    for (int i = 0; i < 8; i++) {
        void *some = malloc(100 + i);
        pthread_mutex_lock(&lock);
        order[used++] = (long)number;
        pthread_mutex_unlock(&lock);
        free(some);
        usleep(100);
    }
    return NULL;
}

int main(void) {
    unsigned long random = 0;
    if (syscall(SYS_getrandom, &random, sizeof random, 0) != sizeof random)
        return 1;
    printf("pid %d random %016lx stack %p heap %p\n", getpid(), random, (void *)&random, malloc(32));
    pthread_t threads[4];
    for (long n = 0; n < 4; n++)
        if (pthread_create(&threads[n], NULL, work, (void *)n))
            return 2;
    for (int n = 0; n < 4; n++)
        pthread_join(threads[n], NULL);
    for (long i = 0; i < used; i++)
        printf("%ld", order[i]);
    putchar('\n');
    for (int i = 0; i < 10; i++)
        printf("%ld %ld\n", nanos(CLOCK_REALTIME), nanos(CLOCK_MONOTONIC));
    puts("done");
    return 0;
}
