// A thread prints until the other executes another program, or ends.
#include <pthread.h>
#include <semaphore.h>
#include <stdio.h>
#include <unistd.h>

enum { LINES = 5 };

static sem_t printed;

static void *print(void *line) {
    for (;;) {
        write(1, line, 5);
        sem_post(&printed);
        usleep(100);
    }
    return NULL;
}

int main(int argc, char **argv) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, print, "line\n"))
        return 2;
    for (int i = 0; i < LINES; i++)
        sem_wait(&printed);
    if (argc > 1)
        return write(1, "done\n", 5) != 5;
    execl("/bin/echo", "echo", "done", (char *)NULL);
    return 1;
}
