// Files: offsets that duplicates share, appending by several, locks, truncation, mapping, names.
#include "serve.h"
#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>

static char name[64], other[64];

static void begin(void) {
  snprintf(name, sizeof name, "suite-file-%d", (int)getpid());
  snprintf(other, sizeof other, "suite-other-%d", (int)getpid());
}

static void *appends(void *argument) {
  int fd = good("open", open(name, O_WRONLY | O_APPEND));
  char line[16];
  for (int i = 0; i < 20; i++) {
    memset(line, 'a' + (long)argument, sizeof line);
    line[15] = '\n';
    expect("write", write(fd, line, sizeof line), sizeof line);
  }
  close(fd);
  return NULL;
}

static void shares_offsets(int fd) {
  char bytes[32];
  int copy = good("dup", dup(fd));
  expect("write", write(fd, "0123456789abcdef", 16), 16);
  expect("lseek", lseek(copy, 0, SEEK_CUR), 16);
  expect("lseek", lseek(copy, 4, SEEK_SET), 4);
  expect("read", read(fd, bytes, 4), 4);
  expect("what was read", memcmp(bytes, "4567", 4), 0);
  expect("pread", pread(fd, bytes, 3, 10), 3);
  expect("what was read", memcmp(bytes, "abc", 3), 0);
  expect("lseek", lseek(copy, 0, SEEK_CUR), 8);
  expect("pwrite", pwrite(fd, "XY", 2, 1), 2);
  struct iovec parts[2] = { { bytes, 2 }, { bytes + 2, 2 } };
  expect("preadv", preadv(fd, parts, 2, 0), 4);
  expect("what was read", memcmp(bytes, "0XY3", 4), 0);
  good("ftruncate", ftruncate(fd, 10));
  expect("its length", lseek(fd, 0, SEEK_END), 10);
  close(copy);
}

enum { PIECE = 300 << 10, PIECES = 3 };

// More than goes at once, perhaps; a piece may be written in part.
static void is_large(int fd, char *bytes, const size_t lengths[PIECES], off_t at) {
  size_t sum = 0, done = 0;
  for (int i = 0; i < PIECES; i++) sum += lengths[i];
  for (size_t i = 0; i < sum; i++) bytes[i] = i * 31 >> 8 ^ lengths[0];
  while (done < sum) {
    struct iovec parts[PIECES];
    size_t begin = 0;
    for (int i = 0; i < PIECES; i++) {
      size_t skip = done <= begin ? 0 : done - begin < lengths[i] ? done - begin : lengths[i];
      parts[i] = (struct iovec){ bytes + begin + skip, lengths[i] - skip };
      begin += lengths[i];
    }
    ssize_t n = good("pwritev", pwritev(fd, parts, PIECES, at + done));
    expect("something is written", n > 0, 1);
    done += n;
  }
  char *back = bytes + sum;
  for (size_t got = 0; got < sum;) {
    ssize_t n = good("pread", pread(fd, back + got, sum - got, at + got));
    expect("something is there", n > 0, 1);
    got += n;
  }
  expect("what was written", memcmp(bytes, back, sum), 0);
}

static void large(int fd) {
  static char bytes[2 * PIECES * PIECE];
  is_large(fd, bytes, (size_t[]){ PIECE, PIECE, PIECE }, 5);
  is_large(fd, bytes, (size_t[]){ 0, PIECES * PIECE - 1, 1 }, 0);
}

static void locks(int fd) {
  struct flock whole = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
  good("F_SETLK", fcntl(fd, F_SETLK, &whole));
  good("flock", flock(fd, LOCK_EX));
  int again = good("open", open(name, O_RDWR));
  expect_error("flock", flock(again, LOCK_EX | LOCK_NB), EWOULDBLOCK);
  good("flock", flock(fd, LOCK_UN));
  good("flock", flock(again, LOCK_SH | LOCK_NB));
  close(again);
  whole.l_type = F_UNLCK;
  good("F_SETLK", fcntl(fd, F_SETLK, &whole));
}

static void names(void) {
  struct stat about;
  good("rename", rename(name, other));
  expect_error("stat", stat(name, &about), ENOENT);
  good("link", link(other, name));
  good("stat", stat(name, &about));
  expect("links", about.st_nlink, 2);
  good("unlink", unlink(other));
  DIR *here = opendir(".");
  int seen = 0;
  for (struct dirent *entry; (entry = readdir(here));) seen += !strcmp(entry->d_name, name);
  closedir(here);
  expect("in its directory", seen, 1);
}

static void turn(unsigned number) {
  int fd = good("open", open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
  shares_offsets(fd);
  if (number % 8 == 3) large(fd);
  locks(fd);
  good("ftruncate", ftruncate(fd, 0));
  pthread_t threads[3];
  for (long i = 0; i < 3; i++) threads[i] = spawn(appends, i);
  for (int i = 0; i < 3; i++) join(threads[i]);
  expect("its length", lseek(fd, 0, SEEK_END), 3 * 20 * 16);
  lseek(fd, 0, SEEK_SET);
  int lines[3] = { 0, 0, 0 };
  char line[16];
  while (read(fd, line, sizeof line) == sizeof line) {
    for (int i = 1; i < 15; i++) expect("a torn line", line[i], line[0]);
    lines[line[0] - 'a']++;
    note(line[0]);
  }
  for (int i = 0; i < 3; i++) expect("lines", lines[i], 20);
  names();
  note(number);
  close(fd);
}

static int kept, copy, appending, nameless;

static void stand(void) {
  kept = good("open", open(name, O_RDWR | O_CREAT | O_TRUNC, 0600));
  expect("write", write(kept, "the first half, ", 16), 16);
  copy = good("dup", dup(kept));
  appending = good("open", open(name, O_WRONLY | O_APPEND));
  nameless = good("open", open(".", O_RDONLY | O_DIRECTORY));
}

static void go_on(void) {
  char bytes[64];
  expect("lseek", lseek(copy, 0, SEEK_CUR), 16);
  expect("append", write(appending, "appended", 8), 8);
  expect("write", write(copy, "the other", 9), 9);
  expect("lseek", lseek(kept, 0, SEEK_CUR), 25);
  expect("pread", pread(kept, bytes, sizeof bytes, 0), 25);
  expect("what was written", memcmp(bytes, "the first half, the other", 25), 0);
  close(kept);
  close(copy);
  close(appending);
  close(nameless);
  good("unlink", unlink(name));
}
