// Streams of the C library that threads share, and nothing else: written and read by every kind of function.
#include "serve.h"
#include <wchar.h>

enum { WRITERS = 3, READERS = 2, LINES = 40 };

static FILE *from, *to;
static uint64_t seen[READERS];
static unsigned lines[READERS], missed[WRITERS];

static void begin(void) {}

static void channel(void) {
  int ends[2];
  good("pipe", pipe(ends));
  to = fdopen(ends[1], "w");
  from = fdopen(ends[0], "r");
  if (!to || !from) fail("fdopen");
}

static void *writes(void *argument) {
  long self = (long)argument;
  char line[64];
  for (int i = 0; i < LINES; i++) {
    int n = snprintf(line, sizeof line, "%ld %d end\n", self, i);
    switch ((self + i) % 6) {
    case 0: fprintf(to, "%ld %d end\n", self, i); break;
    case 1: fputs(line, to); break;
    case 2: expect("fwrite", fwrite(line, 1, n, to), n); break;
    case 3:
      flockfile(to);
      for (int k = 0; k < n; k++) putc(line[k], to);
      funlockfile(to);
      break;
    case 4:
      while (ftrylockfile(to)) missed[self]++, rest(10000);
      fprintf(to, "%ld ", self);
      for (char *c = strchr(line, ' ') + 1; *c; c++) putc_unlocked(*c, to);
      funlockfile(to);
      break;
    default:
      fputs(line, to);
      fflush(to);
    }
  }
  return NULL;
}

static void *reads(void *argument) {
  long self = (long)argument;
  char *line = NULL, own[64];
  size_t room = 0;
  for (;;) {
    const char *got;
    if (lines[self] & 1) got = getline(&line, &room, from) < 0 ? NULL : line;
    else got = fgets(own, sizeof own, from);
    if (!got) break;
    long who;
    int number, len = 0;
    if (sscanf(got, "%ld %d end%n", &who, &number, &len) != 2 || got[len] != '\n') fail("a line \"%s\"", got);
    seen[self] = (seen[self] ^ (who * LINES + number + 1)) * 0x100000001b3;
    lines[self]++;
  }
  expect("feof", feof(from) != 0, 1);
  free(line);
  return NULL;
}

static void turn(unsigned number) {
  channel();
  pthread_t writers[WRITERS], readers[READERS];
  for (long i = 0; i < WRITERS; i++) writers[i] = spawn(writes, i);
  for (long i = 0; i < READERS; i++) seen[i] = lines[i] = 0, readers[i] = spawn(reads, i);
  for (int i = 0; i < WRITERS; i++) join(writers[i]);
  expect("fclose", fclose(to), 0);
  for (int i = 0; i < READERS; i++) join(readers[i]);
  expect("lines", lines[0] + lines[1], WRITERS * LINES);
  expect("fclose", fclose(from), 0);
  for (int i = 0; i < READERS; i++) note(seen[i]), note(lines[i]);
  for (int i = 0; i < WRITERS; i++) note(missed[i]);
  note(number);
}

static pthread_t writer, reader, cancelled;
static int standing;

static void *waits(void *argument) {
  add(&standing, 1);
  fprintf(to, "behind\n");
  return argument;
}

static void *gets_one(void *argument) {
  char line[16];
  add(&standing, 1);
  if (!fgets(line, sizeof line, argument)) fail("fgets");
  expect("what was written first", strcmp(line, "first\n"), 0);
  return argument;
}

static FILE *silent;
static int silent_end, is_cancelled;

// That it is cancelled it finds in the function, with the stream held.
static void *gets_none(void *argument) {
  int before;
  expect("setcancelstate", pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before), 0);
  add(&standing, 1);
  await(&is_cancelled, 1);
  expect("setcancelstate", pthread_setcancelstate(PTHREAD_CANCEL_ENABLE, &before), 0);
  fgetc(silent);
  fail("there is nothing to read");
  return argument;
}

// One stream is held, and one that writes waits for it; nothing comes yet to one that is read.
static void stand(void) {
  channel();
  int ends[2];
  good("pipe", pipe(ends));
  silent = fdopen(ends[0], "r");
  silent_end = ends[1];
  standing = is_cancelled = 0;
  flockfile(to);
  fputs("first\n", to);
  writer = spawn(waits, 0);
  reader = spawn(gets_one, (long)from);
  cancelled = spawn(gets_none, 0);
  await(&standing, 3);
}

static void go_on(void) {
  expect("pthread_cancel", pthread_cancel(cancelled), 0);
  add(&is_cancelled, 1);
  expect("its end", join(cancelled) == PTHREAD_CANCELED, 1);
  // Whose stream is free again.
  expect("write", write(silent_end, "x", 1), 1);
  expect("fgetc", fgetc(silent), 'x');
  fclose(silent);
  close(silent_end);
  fputs("second\n", to);
  fflush(to);
  join(reader);
  funlockfile(to);
  join(writer);
  fclose(to);
  char line[16];
  expect("fgets", fgets(line, sizeof line, from) && !strcmp(line, "second\n"), 1);
  expect("fgets", fgets(line, sizeof line, from) && !strcmp(line, "behind\n"), 1);
  fclose(from);
}
