// Memory and semaphores with names: made, found by other processes, written to, linked, and removed.
#include "serve.h"
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { LENGTH = 3 * 4096 };

// What all processes find under a name.
struct table {
  uint64_t chain;
  unsigned count;
};

static struct table *table, *nameless;
static sem_t *there, *back;
// A descriptor of memory that nobody maps.
static int kept;

static int memory(const char *name, int flags, mode_t mode) { return good("shm_open", shm_open(name, flags, mode)); }

static void *mapped(int descriptor) {
  void *at = mmap(NULL, LENGTH, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
  if (at == MAP_FAILED) fail("mmap: errno %d", errno);
  return at;
}

static sem_t *semaphore(const char *name, int flags, unsigned value) {
  sem_t *found = sem_open(name, flags, 0600, value);
  if (found == SEM_FAILED) fail("sem_open of %s: errno %d", name, errno);
  return found;
}

static void *made(const char *name) {
  int descriptor = memory(name, O_RDWR | O_CREAT | O_EXCL, 0600);
  good("ftruncate", ftruncate(descriptor, LENGTH));
  void *at = mapped(descriptor);
  good("close", close(descriptor));
  return at;
}

static void begin(void) {
  table = made("/table");
  nameless = made("/nameless");
  good("shm_unlink", shm_unlink("/nameless"));
  there = semaphore("/there", O_CREAT | O_EXCL, 0);
  back = semaphore("/back", O_CREAT | O_EXCL, 0);
  kept = memory("/kept", O_RDWR | O_CREAT | O_EXCL, 0600);
  good("fchmod", fchmod(kept, 0640));
  good("ftruncate", ftruncate(kept, LENGTH));
}

static void link_in(struct table *to, uint64_t value) {
  to->chain = (to->chain ^ value) * 0x100000001b3;
  to->count++;
}

// A child that knows no more than names takes turns with its parent.
static void found_by_a_child(unsigned number) {
  unsigned before = table->count;
  pid_t child = good("fork", fork());
  if (!child) {
    good("munmap", munmap(table, LENGTH));
    int descriptor = memory("/table", O_RDWR, 0);
    struct table *own = mapped(descriptor);
    sem_t *go = semaphore("/there", 0, 0), *come = semaphore("/back", 0, 0);
    for (int i = 0; i < 5; i++) take(go), link_in(own, number + i), link_in(nameless, i), post(come);
    _exit(4);
  }
  for (int i = 0; i < 5; i++) link_in(table, i), post(there), take(back);
  int status;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("its status", WIFEXITED(status) && WEXITSTATUS(status) == 4, 1);
  expect("turns", table->count, before + 10);
  note(table->chain);
  note(nameless->chain);
}

static void written(unsigned number) {
  char text[32], seen[32] = { 0 };
  int length = snprintf(text, sizeof text, "turn %u", number) + 1;
  expect("pwrite", pwrite(kept, text, length, 5000), length);
  expect("pread", pread(kept, seen, length, 5000), length);
  expect("what was written", strcmp(seen, text), 0);
  expect("lseek", lseek(kept, 0, SEEK_SET), 0);
  expect("write", write(kept, text, length), length);
  expect("lseek", lseek(kept, 0, SEEK_SET), 0);
  expect("read", read(kept, seen, 4), 4);
  expect("write", write(kept, "!", 1), 1);
  char *at = mapped(kept);
  expect("what is mapped", memcmp(at, "turn!", 5) || strcmp(at + 5000, text), 0);
  at[6000]++;
  note((unsigned char)at[6000]);
  good("munmap", munmap(at, LENGTH));
}

static void removed(void) {
  int descriptor = memory("/short", O_RDWR | O_CREAT | O_EXCL, 0600);
  good("ftruncate", ftruncate(descriptor, 10));
  expect_error("one that is there", shm_open("/short", O_RDWR | O_CREAT | O_EXCL, 0600), EEXIST);
  good("link", link("/dev/shm/short", "/dev/shm/second"));
  good("rename", rename("/dev/shm/second", "/dev/shm/third"));
  good("shm_unlink", shm_unlink("/short"));
  expect_error("one that is gone", shm_open("/short", O_RDWR, 0), ENOENT);
  int same = memory("/third", O_RDWR, 0);
  expect("pwrite", pwrite(same, "x", 1, 9), 1);
  char last;
  expect("pread", pread(descriptor, &last, 1, 9), 1);
  expect("what was written", last, 'x');
  good("shm_unlink", shm_unlink("/third"));
  good("close", close(same));
  good("close", close(descriptor));
  sem_t *one = semaphore("/one", O_CREAT, 1);
  take(one);
  good("sem_unlink", sem_unlink("/one"));
  expect_error("sem_trywait", sem_trywait(one), EAGAIN);
  good("sem_close", sem_close(one));
}

static void turn(unsigned number) {
  written(number);
  if (number % 4 == 1) found_by_a_child(number);
  if (number % 4 == 2) removed();
}

static pid_t child;
static uint64_t chain;

static void stand(void) {
  // Nobody maps it any more.
  sem_t *idle = semaphore("/idle", O_CREAT | O_EXCL, 2);
  post(idle);
  good("sem_close", sem_close(idle));
  link_in(nameless, 77);
  chain = nameless->chain;
  child = good("fork", fork());
  if (child) return;
  take(there);
  link_in(table, 1);
  link_in(nameless, 2);
  post(back);
  _exit(5);
}

static void go_on(void) {
  unsigned count = table->count;
  expect("what has no name", nameless->chain == chain, 1);
  post(there);
  take(back);
  expect("what the child counted", table->count, count + 1);
  expect("what the child wrote", nameless->chain != chain, 1);
  int status, value;
  expect("waitpid", waitpid(child, &status, 0), child);
  expect("its status", WIFEXITED(status) && WEXITSTATUS(status) == 5, 1);
  sem_t *idle = semaphore("/idle", 0, 0);
  good("sem_getvalue", sem_getvalue(idle, &value));
  expect("its value", value, 3);
  good("sem_close", sem_close(idle));
  good("sem_unlink", sem_unlink("/idle"));
  struct stat stat;
  good("fstat", fstat(kept, &stat));
  expect("its permissions", stat.st_mode & 07777, 0640);
  int again = memory("/kept", O_RDONLY, 0);
  char seen[5];
  expect("read", read(again, seen, 5), 5);
  expect("what was written", memcmp(seen, "turn!", 5), 0);
  good("close", close(again));
}
