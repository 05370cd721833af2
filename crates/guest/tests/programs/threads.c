/* Makes many threads that end in different ways and prints where their stacks were.
 *
 * Recorded and replayed, both runs have to print the same. Build: cc -O1 -pthread threads.c -o threads.
 * Arguments: makers, threads that each of them makes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <threads.h>
#include <unistd.h>

#define MOST_DETACHED 40
#define CHECK(c) do { if (!(c)) { fprintf(stderr, "line %d: %s\n", __LINE__, #c); _exit(1); } } while (0)

static __thread int counter = 7;
static __thread char space[3000];
static uint64_t digests[64];
static int threads;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t fewer = PTHREAD_COND_INITIALIZER;
static int detached;

static uint64_t mix(uint64_t h, uint64_t v) { h = (h ^ v) * 0x9e3779b97f4a7c15u; return h ^ h >> 29; }

struct task { uint64_t seed, stack, self; size_t size; int how; };

static void use_stack(struct task *task, size_t bytes) {
    volatile char *room = alloca(bytes);
    for (size_t i = 0; i < bytes; i += 512) room[i] = (char)i;
    task->stack = (uint64_t)room;
}

static void *run(void *argument) {
    struct task *task = argument;
    CHECK(counter == 7 && space[2999] == 0);
    counter++;
    space[2999] = 1;
    task->self = pthread_self();
    use_stack(task, 1000 + task->seed % 7000);
    void *block[20];
    for (int i = 0; i < 20; i++) block[i] = malloc(task->seed % 3000 + i);
    for (int i = 0; i < 20; i++) { task->stack = mix(task->stack, (uint64_t)block[i]); free(block[i]); }
    if (task->how == 1 || task->how == 2) {
        pthread_mutex_lock(&lock);
        digests[63] = mix(digests[63], task->stack ^ task->self);
        detached--;
        pthread_cond_broadcast(&fewer);
        pthread_mutex_unlock(&lock);
        free(task);
        return NULL;
    }
    if (task->how == 3) pthread_exit(task);
    return task;
}

static int run_c11(void *argument) { run(argument); return -5; }

static void begin(struct task *task, pthread_t *thread) {
    static const size_t sizes[] = { 0, 16 << 10, 64 << 10, 300 << 10, 1 << 20, 20 << 20 };
    pthread_attr_t attr;
    pthread_attr_init(&attr);
    size_t size = sizes[task->seed % 6];
    if (size) CHECK(!pthread_attr_setstacksize(&attr, size < 16384 + 8192 ? 16384 + 8192 : size));
    if (task->how == 1) pthread_attr_setdetachstate(&attr, PTHREAD_CREATE_DETACHED);
    CHECK(!pthread_create(thread, size || task->how == 1 ? &attr : NULL, run, task));
    pthread_attr_destroy(&attr);
}

static struct task *make(uint64_t *seed, int how) {
    struct task *task = malloc(sizeof *task);
    *seed = *seed * 6364136223846793005u + 1442695040888963407u;
    *task = (struct task){ .seed = *seed >> 33, .how = how };
    return task;
}

static void *maker(void *argument) {
    uint64_t *digest = argument, seed = digest - digests + 1;
    for (int i = 0; i < threads; i++) {
        struct task *task = make(&seed, i % 5);
        pthread_t thread;
        if (task->how == 1 || task->how == 2) {
            pthread_mutex_lock(&lock);
            while (detached >= MOST_DETACHED) pthread_cond_wait(&fewer, &lock);
            detached++;
            pthread_mutex_unlock(&lock);
            int later = task->how == 2;
            begin(task, &thread);
            if (later) CHECK(!pthread_detach(thread));
            *digest = mix(*digest, thread);
            continue;
        }
        if (task->how == 4) {
            thrd_t c11;
            int result = 0;
            CHECK(thrd_create(&c11, run_c11, task) == thrd_success && thrd_join(c11, &result) == thrd_success && result == -5);
        } else {
            void *result = NULL;
            begin(task, &thread);
            CHECK(!pthread_join(thread, &result) && result == task);
        }
        *digest = mix(*digest, task->stack ^ task->self);
        free(task);
    }
    return NULL;
}

static void *look(void *argument) {
    (void)argument;
    pthread_attr_t attr;
    void *at;
    size_t size, guard;
    char here;
    CHECK(!pthread_getattr_np(pthread_self(), &attr));
    CHECK(!pthread_attr_getstack(&attr, &at, &size) && !pthread_attr_getguardsize(&attr, &guard));
    CHECK((char *)at < &here && &here < (char *)at + size);
    /* Every byte of it can be used, and what is below cannot. */
    CHECK(((volatile char *)at)[0] == 0);
    unsigned char present;
    CHECK(guard > 0 && !mincore((char *)at - 4096, 4096, &present));
    int ends[2];
    CHECK(!pipe(ends) && write(ends[1], (char *)at - 1, 1) == -1 && errno == EFAULT && write(ends[1], at, 1) == 1);
    close(ends[0]);
    close(ends[1]);
    printf("stack of %zu below %p, guard %zu\n", size, (void *)((char *)at + size), guard);
    pthread_attr_destroy(&attr);
    return NULL;
}

static void *own_stack(void *argument) { return (char *)&argument - (char *)argument > 0 ? &counter - counter + 7 : NULL; }

static void *forks(void *argument) {
    (void)argument;
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        pthread_t thread;
        for (int i = 0; i < 3; i++) CHECK(!pthread_create(&thread, NULL, look, NULL) && !pthread_join(thread, NULL));
        printf("child's thread %p\n", (void *)thread);
        fflush(stdout);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    return NULL;
}

int main(int argc, char **argv) {
    int makers = argc > 1 ? atoi(argv[1]) : 4;
    threads = argc > 2 ? atoi(argv[2]) : 200;
    pthread_t thread[62];
    CHECK(makers > 0 && makers <= 62);
    CHECK(!pthread_create(&thread[0], NULL, look, NULL) && !pthread_join(thread[0], NULL));

    pthread_attr_t attr;
    pthread_attr_init(&attr);
    char *room = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(!pthread_attr_setstack(&attr, room, 1 << 20));
    CHECK(!pthread_create(&thread[0], &attr, own_stack, room));
    CHECK((char *)thread[0] > room && (char *)thread[0] < room + (1 << 20) && !pthread_join(thread[0], NULL));

    for (int i = 0; i < makers; i++) CHECK(!pthread_create(&thread[i], NULL, maker, &digests[i]));
    pthread_t forker;
    CHECK(!pthread_create(&forker, NULL, forks, NULL) && !pthread_join(forker, NULL));
    for (int i = 0; i < makers; i++) CHECK(!pthread_join(thread[i], NULL));
    pthread_mutex_lock(&lock);
    while (detached) pthread_cond_wait(&fewer, &lock);
    pthread_mutex_unlock(&lock);
    for (int i = 0; i < makers; i++) printf("%d: %016llx\n", i, (unsigned long long)digests[i]);
    printf("detached: %016llx\n", (unsigned long long)digests[63]);
    return 0;
}
