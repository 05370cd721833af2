/* Checks the heap from inside and prints a digest of every address it was given.
 *
 * Threads allocate, free, resize and hand blocks to each other; each block is filled with bytes that follow
 * from its address and is verified before it changes hands or is freed. Recorded and replayed, both runs have
 * to print the same. Build: cc -O1 -pthread heap.c -o heap. Arguments: threads, rounds.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(c) do { if (!(c)) { fprintf(stderr, "line %d: %s\n", __LINE__, #c); _exit(1); } } while (0)
#define HELD 256

struct block { unsigned char *at; size_t size; };

static struct block shared[HELD];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static uint64_t digests[64];
static int rounds;

static uint64_t mix(uint64_t h, uint64_t v) { h = (h ^ v) * 0x9e3779b97f4a7c15u; return h ^ h >> 29; }
static uint64_t next(uint64_t *s) { *s ^= *s << 13; *s ^= *s >> 7; *s ^= *s << 17; return *s; }

static size_t some_size(uint64_t *s) {
    uint64_t r = next(s);
    if (r % 1000 == 0) return r / 1000 % (3 << 20);
    if (r % 40 == 0) return r / 1000 % (100 << 10);
    if (r % 4 == 0) return r / 1000 % 5000;
    return r / 1000 % 300;
}

static void fill(struct block b) {
    for (size_t i = 0; i < b.size; i += b.size > 4096 ? 511 : 1) b.at[i] = (unsigned char)((uintptr_t)b.at / 16 + i);
    if (b.size) b.at[b.size - 1] = 77;
}

static void verify(struct block b) {
    for (size_t i = 0; i + 1 < b.size; i += b.size > 4096 ? 511 : 1)
        CHECK(b.at[i] == (unsigned char)((uintptr_t)b.at / 16 + i));
    if (b.size) CHECK(b.at[b.size - 1] == 77);
}

static struct block make(uint64_t *s) {
    struct block b = { NULL, some_size(s) };
    switch (next(s) % 8) {
    case 0:
        b.at = calloc(1, b.size);
        CHECK(b.at);
        for (size_t i = 0; i < b.size; i++) CHECK(b.at[i] == 0);
        break;
    case 1: {
        size_t align = (size_t)16 << next(s) % 10;
        void *p;
        CHECK(posix_memalign(&p, align, b.size) == 0 && (uintptr_t)p % align == 0);
        b.at = p;
        break;
    }
    default:
        b.at = malloc(b.size);
    }
    CHECK(b.at && (uintptr_t)b.at % 16 == 0 && malloc_usable_size(b.at) >= b.size);
    fill(b);
    return b;
}

static void *work(void *arg) {
    uintptr_t me = (uintptr_t)arg;
    uint64_t s = 0x1234567 + me * 7919, digest = 0;
    struct block own[HELD];
    memset(own, 0, sizeof own);
    for (int i = 0; i < rounds; i++) {
        struct block *b = &own[next(&s) % HELD];
        switch (next(&s) % 8) {
        case 0:
        case 1: {
            struct block *other = &shared[next(&s) % HELD], old;
            pthread_mutex_lock(&lock);
            old = *other;
            *other = *b;
            pthread_mutex_unlock(&lock);
            *b = old;
            break;
        }
        case 2:
            if (b->at) {
                struct block was = *b;
                verify(was);
                b->size = some_size(&s) + 1;
                b->at = realloc(was.at, b->size);
                CHECK(b->at);
                size_t kept = was.size < b->size ? was.size : b->size;
                for (size_t k = 0; k + 1 < kept; k += was.size > 4096 ? 511 : 1)
                    CHECK(b->at[k] == (unsigned char)((uintptr_t)was.at / 16 + k));
                fill(*b);
                digest = mix(digest, (uintptr_t)b->at);
            }
            break;
        default:
            verify(*b);
            free(b->at);
            *b = make(&s);
            digest = mix(digest, (uintptr_t)b->at);
        }
    }
    for (int i = 0; i < HELD; i++) { verify(own[i]); free(own[i].at); }
    digests[me] = digest;
    return NULL;
}

static void edges(void) {
    volatile size_t huge = SIZE_MAX / 2;
    void *p = NULL;
    errno = 0;
    CHECK(malloc(huge + 2) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(malloc(huge) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(calloc(huge, 4) == NULL && errno == ENOMEM);
    errno = 0;
    CHECK(reallocarray(NULL, huge, 4) == NULL && errno == ENOMEM);
    CHECK(posix_memalign(&p, 24, 8) == EINVAL && posix_memalign(&p, 4, 8) == EINVAL && posix_memalign(&p, 0, 8) == EINVAL);
    CHECK(posix_memalign(&p, 64, huge) == ENOMEM && p == NULL);
    void *a = malloc(0), *b = malloc(0);
    CHECK(a && b && a != b && realloc(a, 0) == NULL);
    free(b);
    free(NULL);
    CHECK(malloc_usable_size(NULL) == 0);
    for (size_t align = 8; align <= 4 << 20; align *= 2) {
        for (size_t size = 1; size < 200000; size = size * 5 + 3) {
            CHECK(posix_memalign(&p, align, size) == 0 && (uintptr_t)p % align == 0 && malloc_usable_size(p) >= size);
            memset(p, 1, size);
            p = realloc(p, size * 2);
            CHECK(p);
            free(p);
            p = memalign(align, size);
            CHECK((uintptr_t)p % align == 0);
            free(p);
        }
    }
    p = valloc(10);
    CHECK((uintptr_t)p % 4096 == 0);
    free(p);
    p = pvalloc(10);
    CHECK((uintptr_t)p % 4096 == 0 && malloc_usable_size(p) >= 4096);
    free(p);
    p = aligned_alloc(128, 256);
    CHECK((uintptr_t)p % 128 == 0);
    free(p);
    unsigned char *v = NULL;
    for (size_t n = 1; n < 40 << 20; n += n / 3 + 1) {
        v = realloc(v, n);
        CHECK(v);
        v[n - 1] = 9;
        v[0] = 5;
    }
    v = realloc(v, 100);
    CHECK(v && v[0] == 5);
    free(v);
    unsigned char *z = calloc(1, 20 << 20);
    for (size_t i = 0; i < 20 << 20; i += 1000) CHECK(z[i] == 0);
    memset(z, 1, 20 << 20);
    free(z);
    z = calloc(1, 18 << 20);
    for (size_t i = 0; i < 18 << 20; i++) CHECK(z[i] == 0);
    free(z);
}

static uint64_t run(int threads) {
    pthread_t t[64];
    uint64_t digest = 0;
    for (int i = 0; i < threads; i++) CHECK(pthread_create(&t[i], NULL, work, (void *)(uintptr_t)i) == 0);
    for (int i = 0; i < threads; i++) pthread_join(t[i], NULL);
    for (int i = 0; i < threads; i++) {
        printf("thread %d: %016llx\n", i, (unsigned long long)digests[i]);
        digest = mix(digest, digests[i]);
    }
    return digest;
}

int main(int argc, char **argv) {
    int threads = argc > 1 ? atoi(argv[1]) : 8;
    rounds = argc > 2 ? atoi(argv[2]) : 20000;
    CHECK(threads <= 64);
    edges();
    uint64_t digest = run(threads);
    void *probe = malloc(100);
    printf("after: %p\n", probe);
    fflush(stdout);
    pid_t child = fork();
    if (child == 0) {
        void *p = malloc(100), *q = malloc(60000);
        printf("child: %p %p %016llx\n", p, q, (unsigned long long)run(2));
        free(probe);
        free(p);
        free(q);
        fflush(stdout);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    digest = mix(digest, run(threads));
    for (int i = 0; i < HELD; i++) { verify(shared[i]); free(shared[i].at); digest = mix(digest, (uintptr_t)shared[i].at); }
    printf("all: %016llx\n", (unsigned long long)digest);
    return 0;
}
