// Handlers on stacks of their own, and jumps out of handlers: faults that are recovered from, contexts that are changed.
#include "serve.h"
#include <setjmp.h>
#include <sys/mman.h>
#include <ucontext.h>

static char *own, *guarded;
static sem_t holds, let_go;
static sigjmp_buf back;
static volatile sig_atomic_t on_own, hits;
static ucontext_t first, second;
static volatile int zero;
static char second_stack[64 << 10];

static int is_on(const void *at, const char *stack, size_t len) { return (char *)at >= stack && (char *)at < stack + len; }

static void on_usr1(int signal) {
  char here;
  (void)signal, hits++;
  on_own = is_on(&here, own, 256 << 10);
}

static void on_fault(int signal, siginfo_t *info, void *context) {
  char here;
  (void)context;
  on_own = is_on(&here, own, 256 << 10);
  if (signal == SIGSEGV) expect("where", info->si_addr == guarded, 1);
  siglongjmp(back, signal);
}

static void on_overflow(int signal) { (void)signal, siglongjmp(back, 99); }

static void handle(int signal, void (*handler)(int), void (*with_info)(int, siginfo_t *, void *)) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  if (handler) action.sa_handler = handler, action.sa_flags = SA_ONSTACK;
  else action.sa_sigaction = with_info, action.sa_flags = SA_ONSTACK | SA_SIGINFO;
  good("sigaction", sigaction(signal, &action, NULL));
}

// Signals of this thread are handled there.
static stack_t on_stack(char *at, size_t len) {
  stack_t stack;
  memset(&stack, 0, sizeof stack);
  stack.ss_sp = at;
  stack.ss_size = len;
  good("sigaltstack", sigaltstack(&stack, NULL));
  return stack;
}

static void begin(void) {
  good("sem_init", sem_init(&holds, 0, 0));
  good("sem_init", sem_init(&let_go, 0, 0));
  own = mmap(NULL, 256 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  guarded = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  on_stack(own, 256 << 10);
  handle(SIGUSR1, on_usr1, NULL);
  handle(SIGSEGV, NULL, on_fault);
  handle(SIGFPE, NULL, on_fault);
  handle(SIGILL, NULL, on_fault);
}

__attribute__((noinline)) static int deep(volatile char *above) {
  volatile char here[512];
  here[0] = above[0];
  // Never, but only we know that.
  return zero || deep(here) + here[1];
}

static void *overflows(void *argument) {
  static char others[64 << 10];
  stack_t stack = on_stack(others, sizeof others);
  handle(SIGSEGV, on_overflow, NULL);
  volatile char start = 0;
  if (!sigsetjmp(back, 1)) deep(&start);
  handle(SIGSEGV, NULL, on_fault);
  stack.ss_flags = SS_DISABLE;
  good("sigaltstack", sigaltstack(&stack, NULL));
  return argument;
}

static volatile int swapped;

static void in_second(void) {
  for (;;) {
    swapped++;
    raise(SIGUSR1);
    good("swapcontext", swapcontext(&second, &first));
  }
}

static void faults(void) {
  sigset_t mask;
  int got = sigsetjmp(back, 1);
  if (!got) *(volatile char *)guarded = 1;
  expect("SIGSEGV", got, SIGSEGV);
  expect("its stack", on_own, 1);
  sigprocmask(SIG_BLOCK, NULL, &mask);
  expect("the mask behind it", sigismember(&mask, SIGSEGV), 0);
  got = sigsetjmp(back, 1);
  if (!got) note(77 / zero);
  expect("SIGFPE", got, SIGFPE);
  got = sigsetjmp(back, 1);
  if (!got) __asm__ volatile("ud2");
  expect("SIGILL", got, SIGILL);
}

static void jumps(void) {
  struct sigaction action, before;
  memset(&action, 0, sizeof action);
  action.sa_sigaction = on_fault;
  action.sa_flags = SA_SIGINFO;
  good("sigaction", sigaction(SIGUSR2, &action, &before));
  int got = sigsetjmp(back, 1);
  if (!got) {
    raise(SIGUSR2);
    fail("a handler that jumps came back");
  }
  expect("SIGUSR2", got, SIGUSR2);
  expect("not on a stack of its own", on_own, 0);
  good("sigaction", sigaction(SIGUSR2, &before, NULL));
}

static void turn(unsigned number) {
  hits = 0;
  raise(SIGUSR1);
  expect("hits", hits, 1);
  expect("its stack", on_own, 1);
  faults();
  jumps();
  if (number % 8 == 0) {
    good("getcontext", getcontext(&second));
    second.uc_stack.ss_sp = second_stack;
    second.uc_stack.ss_size = sizeof second_stack;
    second.uc_link = NULL;
    makecontext(&second, in_second, 0);
  }
  int before = swapped;
  good("swapcontext", swapcontext(&first, &second));
  expect("swapped", swapped, before + 1);
  if (number % 4 == 0) expect("a thread that overflows", (long)join(spawn(overflows, 3)), 3);
}

static pthread_t holder;

static void on_hold(int signal) {
  (void)signal;
  post(&holds);
  take(&let_go);
  siglongjmp(back, 55);
}

// A thread in a handler, on a stack of its own.
static void *stays(void *argument) {
  static char others[64 << 10];
  stack_t stack = on_stack(others, sizeof others);
  handle(SIGHUP, on_hold, NULL);
  if (!sigsetjmp(back, 1)) raise(SIGHUP);
  stack.ss_flags = SS_DISABLE;
  good("sigaltstack", sigaltstack(&stack, NULL));
  return argument;
}

static void stand(void) {
  holder = spawn(stays, 8);
  take(&holds);
}

static void go_on(void) {
  stack_t stack;
  good("sigaltstack", sigaltstack(NULL, &stack));
  expect("the stack", stack.ss_sp == own && stack.ss_size == 256 << 10 && !stack.ss_flags, 1);
  post(&let_go);
  expect("the holder", (long)join(holder), 8);
}
