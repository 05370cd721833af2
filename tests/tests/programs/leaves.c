// A thread prints until the other executes another program, or ends.
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

int main(int argc, char **argv) {
    pthread_t thread;
    if (pthread_create(&thread, NULL, print, "line\n"))
        return 2;
    usleep(2000);
    if (argc > 1)
        return write(1, "done\n", 5) != 5;
    execl("/bin/echo", "echo", "done", (char *)NULL);
    return 1;
}
