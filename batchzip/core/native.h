/* The core's access to the machine: atomics, futex, clock, threads and CPUs.
 *
 * Every access to a word that another thread or process may change goes through the functions here.
 * In a build with -DBZ_EXPLORE each of them first asks a scheduler for its turn. A test can then
 * run the compiled code under every interleaving (tests/model/scheduler.c). Other builds pay
 * nothing.
 */
#ifndef BATCHZIP_NATIVE_H
#define BATCHZIP_NATIVE_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef BZ_EXPLORE
/* The scheduler is a library that is loaded before the core. Without it the hooks are NULL. */
#define BZ_HOOK extern __attribute__((weak, visibility("default")))
BZ_HOOK int bz_explore_is_scheduled(void); /* whether the scheduler runs this thread */
BZ_HOOK void bz_explore_point(void);       /* let another thread go first */
BZ_HOOK int bz_explore_store(void *word, uint64_t value, size_t bytes); /* 1: delayed */
BZ_HOOK int bz_explore_load(const void *word, uint64_t *value); /* 1: own delayed store */
BZ_HOOK void bz_explore_fence(void); /* perform the delayed stores */
BZ_HOOK int64_t bz_explore_now(void);
BZ_HOOK void bz_explore_wait(const uint32_t *word, uint32_t seen, int64_t timeout_ns);
BZ_HOOK void bz_explore_wake(const uint32_t *word);
BZ_HOOK int bz_explore_start(pthread_t *thread, void *(*run)(void *), void *argument);
BZ_HOOK void bz_explore_join(pthread_t thread);
#define BZ_IN_TURN (bz_explore_is_scheduled && bz_explore_is_scheduled())
#define BZ_POINT() (BZ_IN_TURN ? bz_explore_point() : (void)0)
#define BZ_FENCE() (BZ_IN_TURN ? bz_explore_fence() : (void)0)
#define BZ_STORE(word, value) \
    if (BZ_IN_TURN && bz_explore_store(word, value, sizeof *(word))) return
#define BZ_LOAD(word)                                                          \
    uint64_t bz_own;                                                           \
    if (BZ_IN_TURN && bz_explore_load(word, &bz_own)) return bz_own
#define BZ_LOOK_NS 0 /* a polling loop would have infinitely many interleavings */
#else
#define BZ_IN_TURN 0
#define BZ_POINT() ((void)0)
#define BZ_FENCE() ((void)0)
#define BZ_STORE(word, value) ((void)0)
#define BZ_LOAD(word) ((void)0)
#ifndef BZ_LOOK_NS
#define BZ_LOOK_NS 100000
#endif
#endif

#define bz_unlikely(condition) __builtin_expect(!!(condition), 0)

/* Atomics. Loads acquire and stores release. Read-modify-writes and the fence are sequentially
 * consistent. The relaxed functions are for statistics, on which no decision depends. */

static inline uint32_t bz_load32(const uint32_t *word) {
    BZ_LOAD(word);
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void bz_store32(uint32_t *word, uint32_t value) {
    BZ_STORE(word, value);
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

static inline uint32_t bz_add32(uint32_t *word, uint32_t value) {
    BZ_POINT();
    BZ_FENCE();
    return __atomic_add_fetch(word, value, __ATOMIC_SEQ_CST);
}

static inline uint32_t bz_exchange32(uint32_t *word, uint32_t value) {
    BZ_POINT();
    BZ_FENCE();
    return __atomic_exchange_n(word, value, __ATOMIC_SEQ_CST);
}

static inline uint64_t bz_load64(const uint64_t *word) {
    BZ_LOAD(word);
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline void bz_store64(uint64_t *word, uint64_t value) {
    BZ_STORE(word, value);
    __atomic_store_n(word, value, __ATOMIC_RELEASE);
}

/* Store `wanted` if the word equals *seen. Otherwise copy the word's value to *seen. Return whether
 * the value was stored. */
static inline int bz_cas64(uint64_t *word, uint64_t *seen, uint64_t wanted) {
    BZ_POINT();
    BZ_FENCE();
    return __atomic_compare_exchange_n(word, seen, wanted, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
}

/* Order the caller's earlier stores before its later loads. Sleeper and waker both need it. */
static inline void bz_fence(void) {
    BZ_FENCE();
    __atomic_thread_fence(__ATOMIC_SEQ_CST);
}

/* Order the caller's earlier stores before its later stores, for readers that take no lock. */
static inline void bz_order_stores(void) { __atomic_thread_fence(__ATOMIC_RELEASE); }

/* Let the scheduler run another thread here, although no shared word is touched. Used where coding
 * a page takes time. */
static inline void bz_point(void) { BZ_POINT(); }

/* Read a word that only tests change. The scheduler does not interleave other threads here. */
static inline uint32_t bz_peek32(const uint32_t *word) {
    return __atomic_load_n(word, __ATOMIC_ACQUIRE);
}

static inline uint64_t bz_read_figure(const uint64_t *word) {
    return __atomic_load_n(word, __ATOMIC_RELAXED);
}

/* Add to a statistic that has one writer. */
static inline void bz_count(uint64_t *word, uint64_t more) {
    __atomic_store_n(word, __atomic_load_n(word, __ATOMIC_RELAXED) + more, __ATOMIC_RELAXED);
}

static inline void bz_set_figure(uint64_t *word, uint64_t value) {
    __atomic_store_n(word, value, __ATOMIC_RELAXED);
}

/* Return the checksum `sum` extended by a word. The other side of a ring computes the same sum. */
static inline uint64_t bz_fold(uint64_t sum, uint64_t word) {
    sum = (sum ^ word) * 0xff51afd7ed558ccdu;
    return sum ^ sum >> 32;
}

/* Clock and waiting. */

static inline int64_t bz_now_ns(void) {
#ifdef BZ_EXPLORE
    if (BZ_IN_TURN) return bz_explore_now();
#endif
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

/* Return the same clock as of the last tick, which is some milliseconds old. It costs a quarter. */
static inline int64_t bz_coarse_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
}

static inline void bz_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

/* Sleep while *word equals `seen`, for at most `timeout_ns` nanoseconds (negative: no limit).
 * Return early on a signal. Works between processes. */
static inline void bz_futex_wait(uint32_t *word, uint32_t seen, int64_t timeout_ns) {
#ifdef BZ_EXPLORE
    if (BZ_IN_TURN) {
        bz_explore_wait(word, seen, timeout_ns);
        return;
    }
#endif
    struct timespec timeout = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    syscall(SYS_futex, word, FUTEX_WAIT, seen, timeout_ns < 0 ? NULL : &timeout, NULL, 0);
}

static inline void bz_futex_wake(uint32_t *word) {
#ifdef BZ_EXPLORE
    if (BZ_IN_TURN) {
        bz_explore_wake(word);
        return;
    }
#endif
    syscall(SYS_futex, word, FUTEX_WAKE, INT32_MAX, NULL, NULL, 0);
}

static inline void bz_sleep_ns(int64_t ns) {
#ifdef BZ_EXPLORE
    if (BZ_IN_TURN) {
        bz_explore_wait(NULL, 0, ns);
        return;
    }
#endif
    struct timespec time = {ns / 1000000000, ns % 1000000000};
    nanosleep(&time, NULL);
}

/* Threads. They block all signals, because handlers belong to the interpreter's threads. Their
 * stack size ignores RLIMIT_STACK, which may be too small for a codec or exceed RLIMIT_AS. */
#define BZ_STACK ((size_t)1 << 20)

static inline int bz_start_thread(pthread_t *thread, void *(*run)(void *), void *argument) {
#ifdef BZ_EXPLORE
    if (BZ_IN_TURN) return bz_explore_start(thread, run, argument);
#endif
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pthread_attr_t attributes;
    int failed = pthread_attr_init(&attributes);
    if (!failed) {
        failed = pthread_attr_setstacksize(&attributes, BZ_STACK);
        if (!failed) failed = pthread_create(thread, &attributes, run, argument);
        pthread_attr_destroy(&attributes);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}

static inline void bz_join_thread(pthread_t thread) {
#ifdef BZ_EXPLORE
    if (BZ_IN_TURN) {
        bz_explore_join(thread);
        return;
    }
#endif
    pthread_join(thread, NULL);
}

/* Move the calling thread off `cpu` if it runs there. Threads with different numbers go to
 * different CPUs. The affinity is restored at once, so the kernel may move the thread again.
 * Reason: the kernel regards an idle virtual CPU as preempted, so it wakes a sleeper on its waker's
 * CPU, where the two would take turns. */
static inline void bz_step_aside(int cpu, int number) {
    cpu_set_t allowed, one;
    if (BZ_IN_TURN || sched_getcpu() != cpu) return;
    if (sched_getaffinity(0, sizeof allowed, &allowed)) return;
    int others = CPU_COUNT(&allowed) - CPU_ISSET(cpu, &allowed);
    if (others < 1) return;
    int skip = number % others;
    for (int at = 0; at < CPU_SETSIZE; at++) {
        if (!CPU_ISSET(at, &allowed) || at == cpu || skip-- > 0) continue;
        CPU_ZERO(&one);
        CPU_SET(at, &one);
        if (!sched_setaffinity(0, sizeof one, &one)) sched_setaffinity(0, sizeof allowed, &allowed);
        return;
    }
}

#endif
