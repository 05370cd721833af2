// C++: mutexes of all kinds, conditions, shared locks, once, threads, futures.
#include "serve.h"
#include <chrono>
#include <condition_variable>
#include <future>
#include <mutex>
#include <shared_mutex>
#include <stdexcept>
#include <thread>
#include <vector>

using namespace std::chrono_literals;

namespace {
constexpr int THREADS = 3, ROUNDS = 25;
std::mutex plain;
std::recursive_mutex recursive;
std::timed_mutex timed;
std::shared_mutex readers;
std::shared_timed_mutex timed_readers;
std::condition_variable changed;
std::condition_variable_any any_changed;
uint64_t chain, written, seen[THREADS];
int at, missed, onces;
thread_local int local;

void work(int self) {
  local = self;
  for (int i = 0; i < ROUNDS; i++) {
    {
      std::lock_guard<std::recursive_mutex> outer(recursive), inner(recursive);
      chain = (chain ^ (self + 1)) * 0x100000001b3;
    }
    bool got = timed.try_lock_for(30us);
    if (got) timed.unlock();
    if (i % 5 == 0) {
      std::unique_lock<std::shared_mutex> lock(readers);
      written = (written ^ (self + 1)) * 0x100000001b3;
    } else {
      std::shared_lock<std::shared_mutex> lock(readers);
      seen[self] = (seen[self] ^ written) * 0x100000001b3;
    }
    bool shared = timed_readers.try_lock_shared_for(30us);
    if (shared) timed_readers.unlock_shared();
    std::unique_lock<std::mutex> lock(plain);
    missed += !got + !shared;
    changed.wait(lock, [&] { return at % THREADS == self; });
    at++;
    changed.notify_all();
    if (i % 8 == 0) any_changed.wait_for(lock, 10us);
  }
  expect("thread_local", local, self);
}

int throws(int value) {
  if (value % 2) throw std::runtime_error("odd");
  return value;
}
} // namespace

static void begin(void) {}

static void turn(unsigned number) {
  at = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < THREADS; i++) threads.emplace_back(work, i);
  for (auto &thread : threads) thread.join();
  expect("at", at, THREADS * ROUNDS);
  note(chain);
  note(missed);
  for (auto value : seen) note(value);
  std::once_flag once;
  bool left = false;
  try {
    std::call_once(once, [] { throw std::runtime_error("leaves"); });
  } catch (const std::runtime_error &) {
    left = true;
  }
  expect("left by an exception", left, 1);
  std::call_once(once, [] { onces++; });
  std::call_once(once, [] { onces++; });
  expect("onces", onces, number + 1);
  auto result = std::async(std::launch::async, throws, int(number));
  bool threw = false;
  try {
    expect("async", result.get(), number);
  } catch (const std::runtime_error &) {
    threw = true;
  }
  expect("threw", threw, number % 2);
  std::promise<int> promise;
  std::thread keeps([&promise] { promise.set_value(42); });
  expect("a promise", promise.get_future().get(), 42);
  keeps.join();
  std::packaged_task<int(int)> task([](int value) { return value * 2; });
  auto doubled = task.get_future();
  std::thread(std::move(task), 21).join();
  expect("a task", doubled.get(), 42);
}

namespace {
std::thread waiter;
std::promise<int> awaited;
int waiting;
} // namespace

static void stand(void) {
  awaited = std::promise<int>();
  waiting = 0;
  waiter = std::thread([future = awaited.get_future()]() mutable {
    {
      std::unique_lock<std::mutex> lock(plain);
      waiting = 1;
      changed.notify_all();
      changed.wait(lock, [] { return waiting == 2; });
    }
    expect("what was promised", future.get(), 7);
  });
  std::unique_lock<std::mutex> lock(plain);
  changed.wait(lock, [] { return waiting == 1; });
}

static void go_on(void) {
  {
    std::lock_guard<std::mutex> lock(plain);
    waiting = 2;
    changed.notify_all();
  }
  awaited.set_value(7);
  waiter.join();
}
