// A thread prints until the other executes another program.
#include <pthread.h>
#include <stdio.h>
#include <unistd.h>

static void *print(void *line) {
    for (;;) {
        write(1, line, 5);
        usleep(100);
    }
    return NULL;
}

int main(void) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, print, "line\n"))
        return 2;
    usleep(2000);
    execl("/bin/echo", "echo", "done", (char *)NULL);
    return 1;
}
