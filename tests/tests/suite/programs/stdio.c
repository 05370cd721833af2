// Streams of the C library that threads share: whole lines, in an order that replay has to repeat.
#include "serve.h"
#include <sys/mman.h>

enum { THREADS = 4, LINES = 25 };

static FILE *shared;
static uint64_t read_by[THREADS];
static unsigned missed[THREADS];

static void begin(void) {}

static void *writes(void *argument) {
  long self = (long)argument;
  for (int i = 0; i < LINES; i++) {
    switch (i % 5) {
    case 0: fprintf(shared, "%ld says %d\n", self, i); break;
    case 1: {
      char line[32];
      snprintf(line, sizeof line, "%ld says %d\n", self, i);
      fputs(line, shared);
      break;
    }
    case 2: {
      char line[32];
      fwrite(line, 1, snprintf(line, sizeof line, "%ld says %d\n", self, i), shared);
      break;
    }
    case 3:
      flockfile(shared);
      fprintf(shared, "%ld ", self);
      fputs("says ", shared);
      putc_unlocked('0' + i / 10, shared);
      putc_unlocked('0' + i % 10, shared);
      putc('\n', shared);
      funlockfile(shared);
      break;
    default:
      if (ftrylockfile(shared)) {
        missed[self]++;
        flockfile(shared);
      }
      fprintf(shared, "%ld says %d\n", self, i);
      funlockfile(shared);
    }
  }
  return NULL;
}

static void *reads(void *argument) {
  long self = (long)argument;
  char *line = NULL;
  size_t room = 0;
  while (getline(&line, &room, shared) > 0) {
    int who, what;
    expect("a line", sscanf(line, "%d says %d\n", &who, &what), 2);
    read_by[self] = (read_by[self] ^ (who * 100 + what + 1)) * 0x100000001b3;
  }
  free(line);
  return NULL;
}

static void turn(unsigned number) {
  pthread_t threads[THREADS];
  static char buffer[8192];
  shared = tmpfile();
  if (!shared) fail("tmpfile: errno %d", errno);
  if (number % 3 == 1) setvbuf(shared, buffer, _IOFBF, sizeof buffer);
  if (number % 3 == 2) setvbuf(shared, NULL, _IOLBF, 0);
  for (long i = 0; i < THREADS; i++) threads[i] = spawn(writes, i);
  for (int i = 0; i < THREADS; i++) join(threads[i]);
  good("fflush", fflush(shared));
  rewind(shared);
  for (long i = 0; i < THREADS; i++) threads[i] = spawn(reads, i);
  for (int i = 0; i < THREADS; i++) join(threads[i]);
  for (int i = 0; i < THREADS; i++) note(read_by[i]), note(missed[i]);
  fclose(shared);
}

static pthread_t waiter;
static int standing;

static void *waits(void *argument) {
  add(&standing, 1);
  fprintf(shared, "the waiter\n");
  return argument;
}

static void stand(void) {
  standing = 0;
  shared = tmpfile();
  if (!shared) fail("tmpfile: errno %d", errno);
  flockfile(shared);
  waiter = spawn(waits, 0);
  await(&standing, 1);
}

static void go_on(void) {
  char line[32];
  fprintf(shared, "the holder\n");
  funlockfile(shared);
  join(waiter);
  rewind(shared);
  expect("the first", fgets(line, sizeof line, shared) && !strcmp(line, "the holder\n"), 1);
  expect("the second", fgets(line, sizeof line, shared) && !strcmp(line, "the waiter\n"), 1);
  fclose(shared);
}
