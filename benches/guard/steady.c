/* Preloaded into whatever the guard counts: a clock that moves only when it is read, and randomness that is
 * the same in every run. Headrace decides by the clock when a burst of items ends and whether a link is quiet,
 * and under valgrind everything takes fifty times as long; with the real clock it would take other paths there
 * than in use, and others in each run.
 *
 * Only the main thread moves the time. Any other finds it standing where it first looked, so that no timer of
 * theirs ever comes and takes work from the main thread. Waiting (epoll, futexes) is left to the kernel and its
 * real time.
 */
#define _GNU_SOURCE
#include <string.h>
#include <sys/types.h>
#include <time.h>

#define NS_PER_S 1000000000LL
/* Between two looks at the clock. In use, a stream looks once for every eight items, which take about 5 us. */
#define STEP_NS 5000LL

/* Any moment long after boot will do. */
static _Atomic long long main_ns = 1000000 * NS_PER_S;
static __thread long long own_ns;
static __thread int is_main;

__attribute__((constructor)) static void begin(void)
{
    is_main = 1;
}

int clock_gettime(clockid_t clock, struct timespec *now)
{
    (void)clock;
    if (is_main)
        own_ns = main_ns += STEP_NS;
    else if (own_ns == 0)
        own_ns = main_ns;
    now->tv_sec = own_ns / NS_PER_S;
    now->tv_nsec = own_ns % NS_PER_S;
    return 0;
}

ssize_t getrandom(void *bytes, size_t count, unsigned int flags)
{
    (void)flags;
    memset(bytes, 0x5a, count);
    return (ssize_t)count;
}
