#include "threads.h"

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

namespace crossdock {
namespace {

constexpr int MAX_THREADS = 256;
constexpr int64_t SPIN_NANOSECONDS = 50000;

// The number of the present job in the upper half, whether helpers may join it, and how many have.
constexpr uint64_t OPEN = 1ull << 31;
constexpr uint64_t HELPERS = OPEN - 1;

std::atomic<uint64_t> state{0};
std::atomic<int64_t> next_index{0};
std::atomic<uint32_t> wakes{0};
std::atomic<int> sleepers{0};
std::atomic<bool> stopping{false};
// Held by whoever uses the helpers; who finds it held does without them.
std::atomic_flag in_use = ATOMIC_FLAG_INIT;
int64_t job_count;
Body job_body;
void* job_context;
pthread_t helpers[MAX_THREADS];
int wanted = 1;
int started = 0;

void pause() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ __volatile__("yield");
#endif
}

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000000ll + t.tv_nsec;
}

void futex_wait(uint32_t seen) {
  syscall(SYS_futex, &wakes, FUTEX_WAIT_PRIVATE, seen, nullptr, nullptr, 0);
}

void futex_wake() { syscall(SYS_futex, &wakes, FUTEX_WAKE_PRIVATE, MAX_THREADS, nullptr, nullptr, 0); }

void take_indexes() {
  for (int64_t i; (i = next_index.fetch_add(1, std::memory_order_relaxed)) < job_count;)
    job_body(i, job_context);
}

// Joins the job of `seen` unless it is over.
void help(uint64_t seen) {
  while (seen & OPEN) {
    if (state.compare_exchange_weak(seen, seen + 1, std::memory_order_acquire)) {
      take_indexes();
      state.fetch_sub(1, std::memory_order_release);
      return;
    }
  }
}

// Until there is a job other than number `last`, or all is over.
uint64_t await_job(uint64_t last) {
  int64_t until = now() + SPIN_NANOSECONDS;
  for (int i = 0;; i++) {
    uint32_t wake = wakes.load(std::memory_order_seq_cst);
    uint64_t seen = state.load(std::memory_order_acquire);
    if (stopping.load(std::memory_order_relaxed) || ((seen & OPEN) && seen >> 32 != last))
      return seen;
    if (i % 16 < 15 || now() < until) {
      pause();
      continue;
    }
    sleepers.fetch_add(1, std::memory_order_seq_cst);
    seen = state.load(std::memory_order_seq_cst);
    if (!stopping && !((seen & OPEN) && seen >> 32 != last)) futex_wait(wake);
    sleepers.fetch_sub(1, std::memory_order_seq_cst);
    until = now() + SPIN_NANOSECONDS;
  }
}

void* helper(void*) {
  uint64_t last = 0;
  while (true) {
    uint64_t seen = await_job(last);
    if (stopping.load(std::memory_order_relaxed)) return nullptr;
    last = seen >> 32;
    help(seen);
  }
}

void wake_sleepers() {
  if (sleepers.load(std::memory_order_seq_cst) == 0) return;
  wakes.fetch_add(1, std::memory_order_seq_cst);
  futex_wake();
}

void stop_helpers() {
  stopping = true;
  wakes.fetch_add(1, std::memory_order_seq_cst);
  futex_wake();
  for (int i = 0; i < started; i++) pthread_join(helpers[i], nullptr);
  started = 0;
  stopping = false;
}

void start_helpers() {
  while (started < wanted - 1 && pthread_create(&helpers[started], nullptr, helper, nullptr) == 0)
    started++;
}

// A forked child has none of its parent's threads.
void forget_helpers() {
  started = 0;
  state.store(0);
  sleepers.store(0);
  in_use.clear();
}

__attribute__((constructor)) void watch_forks() { pthread_atfork(nullptr, nullptr, forget_helpers); }

}  // namespace

int threads() { return wanted; }

void set_threads(int count) {
  count = count < 1 ? 1 : count > MAX_THREADS ? MAX_THREADS : count;
  while (in_use.test_and_set(std::memory_order_acquire)) pause();
  if (count != wanted) {
    stop_helpers();
    wanted = count;
  }
  in_use.clear(std::memory_order_release);
}

void run_parallel(int64_t count, Body body, void* context) {
  if (in_use.test_and_set(std::memory_order_acquire)) {
    for (int64_t i = 0; i < count; i++) body(i, context);
    return;
  }
  start_helpers();
  job_count = count;
  job_body = body;
  job_context = context;
  next_index.store(0, std::memory_order_relaxed);
  uint64_t job = (state.load(std::memory_order_relaxed) >> 32) + 1;
  state.store(job << 32 | OPEN, std::memory_order_seq_cst);
  wake_sleepers();
  take_indexes();
  state.fetch_and(~OPEN, std::memory_order_acq_rel);
  // A helper that was held up may need this very core.
  for (int i = 0; state.load(std::memory_order_acquire) & HELPERS; i++)
    i % 1024 < 1023 ? pause() : (void)sched_yield();
  in_use.clear(std::memory_order_release);
}

}  // namespace crossdock

extern "C" {
void crossdock_set_threads(int count) { crossdock::set_threads(count); }
}
