/* without NUMBER[:INDEX=VALUE]... -- COMMAND...: system calls are answered with ENOSYS, all of that number or
   those with that value (its lower half) as that argument. */
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#define AT(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define UNLESS(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, 0, skip)

static struct sock_filter filter[256];
static unsigned short length;

static void add(struct sock_filter instruction) {
    filter[length++] = instruction;
}

static void add_rule(const char *rule) {
    unsigned number, index;
    unsigned long value;
    int fields = sscanf(rule, "%u:%u=%lu", &number, &index, &value);
    add((struct sock_filter)AT(nr));
    add((struct sock_filter)UNLESS(number, fields == 3 ? 3 : 1));
    if (fields == 3) {
        add((struct sock_filter)AT(args[index]));
        add((struct sock_filter)UNLESS((unsigned)value, 1));
    }
    add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | ENOSYS));
}

int main(int argc, char **argv) {
    int at = 1;
    for (; at < argc && strcmp(argv[at], "--"); at++)
        add_rule(argv[at]);
    add((struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW));
    struct sock_fprog program = {length, filter};
    if (at + 1 >= argc || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program)) {
        perror("without");
        return 125;
    }
    execvp(argv[at + 1], argv + at + 1);
    perror(argv[at + 1]);
    return 126;
}
