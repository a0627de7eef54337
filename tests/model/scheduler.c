/* Scheduler: runs threads of the core one at a time, in every order up to a bound.
 *
 *     begin(prefix) ─▶ the threads run; at each point a choice is made ─▶ end(): the choices made
 *
 * A core of the profile `explore` calls a hook before each access to a shared word (core/native.h). The
 * thread there goes on, or another one gets its turn: that is a choice. A run is told by its choices: those
 * of a prefix are repeated, the rest are 0, which means to go on without a switch. Whoever drives it
 * (explore.py) does a depth-first search: the next run's prefix ends with the last choice that can be
 * raised by one.
 *
 * What is bounded, so that the search ends, is how often in a run
 *     preemptions  a thread that could go on has to wait for its next turn
 *     delays       a store is seen by others only after later loads of its thread, as processors do it
 *     kills        a thread that may be killed ends at a point, for good
 *
 * Time is the scheduler's own: it goes on by a step at each look, and to the end of a sleep where every
 * thread sleeps and one has a timeout. That is counted, as a wake-up that came by itself was lost before.
 *
 * A thread that waits for its turn holds no GIL. Nothing here is undone: what fails ends the process, after it
 * has told the choices that led there.
 */
#include <Python.h>

#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define API __attribute__((visibility("default")))
#define MOST_THREADS 8
#define MOST_CHOICES 4096
#define MOST_STEPS 20000 /* of a run: more is a livelock */
#define STEP_NS 10       /* between two looks at the clock */
#define NOBODY (-1)

enum state { UNUSED, READY, SLEEPING, JOINING, AWAITING_KILL, KILLED, ENDED };

struct thread {
    enum state state;
    uint32_t turn; /* a futex: 1 while it is this thread's turn */
    const uint32_t *word;
    int64_t wakes_at; /* -1: sleeps without a limit */
    int joined;       /* the thread that is waited for */
    int may_be_killed;
    int is_python;
    pthread_t pthread;
    int is_joined;
    void *(*run)(void *);
    void *argument;
    void *late; /* a store that is to come */
    uint64_t value;
    size_t bytes;
};

static struct thread threads[MOST_THREADS];
static int count;
static int active;
static int released; /* nobody is killed any more */
static int killed = NOBODY;
static int lender = NOBODY; /* who let another thread make one step */
static int64_t clock_ns;
static __thread int self = NOBODY;

static int most_preemptions, most_delays, most_kills;
static int preemptions, delays, kills, timeouts, steps;
static int choices[MOST_CHOICES], options[MOST_CHOICES], depth, prefix_length;

/* Choices. */

static void tell(const char *reason) {
    char line[16 * MOST_CHOICES];
    int at = snprintf(line, sizeof line, "\n%s; choices ", reason);
    int last = depth;
    while (last > 0 && !choices[last - 1]) last--; /* the rest are 0 anyway */
    for (int i = 0; i < last; i++)
        at += snprintf(line + at, sizeof line - at, "%s%d", i ? "," : "", choices[i]);
    at += snprintf(line + at, sizeof line - at, "%s\n", last ? "" : "none");
    if (write(2, line, at) < 0) _exit(4);
}

static void fail(const char *reason) {
    static const char *const names[] = {"unused", "ready", "sleeping", "joining",
                                        "awaiting a kill", "killed", "ended"};
    for (int i = 0; i < count; i++)
        fprintf(stderr, "thread %d: %s\n", i, names[threads[i].state]);
    tell(reason);
    _exit(3);
}

static void crashed(int number) {
    (void)number;
    tell("crash");
    _exit(3);
}

static int choose(int alternatives) {
    if (alternatives < 2) return 0;
    if (depth == MOST_CHOICES) fail("too many choices");
    int chosen = depth < prefix_length ? choices[depth] : 0;
    if (chosen >= alternatives) fail("the run differs from the one that is repeated");
    choices[depth] = chosen;
    options[depth++] = alternatives;
    return chosen;
}

/* Turns. */

static void give_turn(int to) {
    __atomic_store_n(&threads[to].turn, 1, __ATOMIC_RELEASE);
    syscall(SYS_futex, &threads[to].turn, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void await_turn(void) {
    while (!__atomic_exchange_n(&threads[self].turn, 0, __ATOMIC_ACQUIRE))
        syscall(SYS_futex, &threads[self].turn, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static int can_go_on(const struct thread *thread) {
    if (thread->state == READY) return 1;
    if (thread->state == JOINING) return threads[thread->joined].state >= KILLED;
    return thread->state == AWAITING_KILL && (killed != NOBODY || released);
}

static void catch_up(void) {
    struct thread *mine = &threads[self];
    if (!mine->late) return;
    if (mine->bytes == 4)
        __atomic_store_n((uint32_t *)mine->late, (uint32_t)mine->value, __ATOMIC_SEQ_CST);
    else
        __atomic_store_n((uint64_t *)mine->late, mine->value, __ATOMIC_SEQ_CST);
    mine->late = NULL;
}

/* Choose who is next. NOBODY: the calling thread is killed. */
static int choose_next(void) {
    int able[MOST_THREADS], n = 0, was_able = can_go_on(&threads[self]);
    if (++steps > MOST_STEPS) fail("livelock");
    if (lender != NOBODY) {
        int next = lender;
        lender = NOBODY;
        return next;
    }
    if (was_able) able[n++] = self;
    for (int i = 1; i <= count; i++) {
        int other = (self + i) % count;
        if (other != self && can_go_on(&threads[other])) able[n++] = other;
    }
    if (!n) { /* time passes */
        int first = NOBODY;
        for (int i = 0; i < count; i++)
            if (threads[i].state == SLEEPING && threads[i].wakes_at >= 0 &&
                (first == NOBODY || threads[i].wakes_at < threads[first].wakes_at))
                first = i;
        if (first == NOBODY) fail("deadlock: every thread sleeps");
        clock_ns = threads[first].wakes_at;
        timeouts += threads[first].word != NULL;
        threads[first].state = READY;
        able[n++] = first;
    }
    int may_die = was_able && threads[self].may_be_killed && kills < most_kills && !released;
    if (was_able && preemptions >= most_preemptions) n = 1;
    int chosen = choose(n + may_die);
    if (chosen == n) return NOBODY;
    if (was_able && chosen) preemptions++;
    return able[chosen];
}

/* Let another thread go first, if it is chosen. */
static void switch_turn(void) {
    int next = choose_next();
    if (next == NOBODY) {
        kills++;
        killed = self;
        catch_up();
        threads[self].state = KILLED;
        next = choose_next();
        give_turn(next);
        await_turn(); /* until it is joined */
        pthread_exit(NULL);
    }
    if (next == self) return;
    PyThreadState *state = NULL;
    if (threads[self].is_python && PyGILState_Check()) state = PyEval_SaveThread();
    give_turn(next);
    await_turn();
    if (state) PyEval_RestoreThread(state);
}

/* The hooks. */

API int bz_explore_is_scheduled(void) { return active && self != NOBODY; }

API void bz_explore_point(void) { switch_turn(); }

API void bz_explore_fence(void) { catch_up(); }

API int bz_explore_store(void *word, uint64_t value, size_t bytes) {
    struct thread *mine = &threads[self];
    switch_turn();
    catch_up();
    if (delays == most_delays || !choose(2)) return 0;
    delays++;
    mine->late = word;
    mine->value = value;
    mine->bytes = bytes;
    return 1;
}

API int bz_explore_load(const void *word, uint64_t *value) {
    switch_turn();
    *value = threads[self].value;
    return threads[self].late == word;
}

API int64_t bz_explore_now(void) { return clock_ns += STEP_NS; }

API void bz_explore_wait(const uint32_t *word, uint32_t seen, int64_t timeout_ns) {
    struct thread *mine = &threads[self];
    switch_turn();
    catch_up();
    if (word && __atomic_load_n(word, __ATOMIC_SEQ_CST) != seen) return;
    mine->word = word;
    mine->wakes_at = timeout_ns < 0 ? -1 : clock_ns + timeout_ns;
    mine->state = SLEEPING;
    switch_turn();
}

API void bz_explore_wake(const uint32_t *word) {
    switch_turn();
    catch_up();
    for (int i = 0; i < count; i++)
        if (threads[i].state == SLEEPING && threads[i].word == word) threads[i].state = READY;
}

static int add(void) {
    if (count == MOST_THREADS) fail("too many threads");
    memset(&threads[count], 0, sizeof threads[count]);
    threads[count].state = READY;
    return count++;
}

/* End the calling thread's part: it gives its turn away for good. */
static void leave(void) {
    catch_up();
    threads[self].state = ENDED;
    give_turn(choose_next());
}

static void *run_thread(void *number) {
    self = (int)(intptr_t)number;
    await_turn();
    threads[self].run(threads[self].argument);
    leave();
    return NULL;
}

API int bz_explore_start(pthread_t *thread, void *(*run)(void *), void *argument) {
    int number = add();
    threads[number].run = run;
    threads[number].argument = argument;
    threads[number].may_be_killed = 1;
    int failed = pthread_create(thread, NULL, run_thread, (void *)(intptr_t)number);
    threads[number].pthread = *thread;
    return failed;
}

API void bz_explore_join(pthread_t thread) {
    struct thread *mine = &threads[self];
    catch_up();
    for (int i = 0; i < count; i++) {
        if (!threads[i].run || threads[i].is_joined || !pthread_equal(threads[i].pthread, thread))
            continue;
        mine->joined = i;
        mine->state = JOINING;
        switch_turn();
        mine->state = READY;
        if (threads[i].state == KILLED) give_turn(i); /* it exits */
        pthread_join(thread, NULL);
        threads[i].is_joined = 1;
        return;
    }
    fail("a thread that the scheduler does not know is joined");
}

/* For explore.py. Threads of Python take part between `enter` and `leave_turns`. */

API void begin(const int *prefix, int length, int preemption_bound, int delay_bound, int kill_bound) {
    memcpy(choices, prefix, length * sizeof(int));
    prefix_length = length;
    most_preemptions = preemption_bound;
    most_delays = delay_bound;
    most_kills = kill_bound;
    preemptions = delays = kills = timeouts = steps = depth = count = released = 0;
    killed = lender = NOBODY;
    clock_ns = 1000000000;
    self = add();
    threads[self].is_python = 1;
    struct sigaction action = {.sa_handler = crashed};
    sigaction(SIGSEGV, &action, NULL);
    sigaction(SIGBUS, &action, NULL);
    active = 1;
}

/* Make room for a thread of Python, which then calls `enter` with the number returned. */
API int reserve(void) {
    int number = add();
    threads[number].is_python = 1;
    return number;
}

API void enter(int number) {
    self = number;
    await_turn();
}

API void leave_turns(void) {
    leave();
    self = NOBODY;
}

/* Wait for a thread of Python to call `leave_turns`. */
API void await_leaving(int number) {
    threads[self].joined = number;
    threads[self].state = JOINING;
    switch_turn();
    threads[self].state = READY;
}

/* Wait until a thread is killed, and return its number; -1 once none is killed any more. */
API int await_kill(void) {
    threads[self].state = AWAITING_KILL;
    switch_turn();
    threads[self].state = READY;
    return killed;
}

/* Let another thread make one step, without a choice. Return 0 if none can go on. */
API int lend_turn(void) {
    int mine = self;
    for (int i = 1; i < count; i++) {
        int other = (mine + i) % count;
        if (!can_go_on(&threads[other])) continue;
        lender = mine;
        give_turn(other);
        await_turn();
        return 1;
    }
    return 0;
}

API void release(void) { released = 1; }

/* End a run, in the thread that began it. Return the choices, and how many each could have been. */
API int end(const int **made, const int **could) {
    catch_up();
    active = 0;
    self = NOBODY;
    *made = choices;
    *could = options;
    return depth;
}

API int timeouts_passed(void) { return timeouts; }

API int steps_made(void) { return steps; }

API void tell_choices(const char *reason) { tell(reason); }
