/* The preload shim, by mode: shim safe|notify|off. */
#include "check.h"
#include <dlfcn.h>
#include <pthread.h>

static volatile sig_atomic_t counting, allocations, inside;

/* Seen in place of libc's. */
extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void __libc_free(void *);

void *malloc(size_t size)
{
    allocations += counting;
    if (inside == 1) {
        inside = 2;
        raise(SIGUSR1); /* a signal in the midst of an allocation */
    }
    return __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    allocations += counting;
    return __libc_calloc(count, size);
}

void *realloc(void *memory, size_t size)
{
    allocations += counting;
    return __libc_realloc(memory, size);
}

void free(void *memory)
{
    allocations += counting && memory;
    __libc_free(memory);
}

static char zeroes[4 << 20];

/* How many of the bytes are wrong that arrive after the file was overwritten at the return. */
static size_t wrong_after_overwriting(int pair[2], int file)
{
    static char got[4 << 20];
    off_t offset = 0;
    counting = 1;
    ssize_t sent = sendfile(pair[0], file, &offset, sizeof got);
    counting = 0;
    CHECK(sent > 500000 && offset == sent);
    CHECK(pwrite(file, zeroes, sizeof zeroes, 0) == sizeof zeroes);
    CHECK(recv(pair[1], got, (size_t)sent, MSG_WAITALL) == sent);
    size_t wrong = 0;
    for (ssize_t i = 0; i < sent; i++)
        wrong += (unsigned char)got[i] != pattern(i);
    return wrong;
}

static size_t overwritten(void)
{
    int pair[2];
    tcp_pair(pair);
    nonblocking(pair[0], true);
    return wrong_after_overwriting(pair, make_file(4 << 20));
}

static int signal_pair[2], signal_file;

static void handler(int number)
{
    off_t offset = 0;
    (void)number;
    counting = 1;
    CHECK(sendfile(signal_pair[0], signal_file, &offset, 100000) == 100000);
    counting = 0;
}

static void in_a_signal_handler(void)
{
    struct sigaction action = { .sa_handler = handler };
    tcp_pair(signal_pair);
    signal_file = make_file(100000);
    CHECK(!sigaction(SIGUSR1, &action, NULL));
    inside = 1;
    free(malloc(10));
    CHECK(inside == 2);
    expect(signal_pair[1], 0, 100000);
}

static void *a_thread(void *argument)
{
    while (!__atomic_load_n((int *)argument, __ATOMIC_RELAXED))
        free(malloc(1000));
    return NULL;
}

/* In the child of a process with threads, one of which may be in the allocator. */
static void after_a_fork(void)
{
    int pair[2], file = make_file(100000), stop = 0;
    pthread_t thread;
    tcp_pair(pair);
    CHECK(!pthread_create(&thread, NULL, a_thread, &stop));
    for (int i = 0; i < 50; i++) {
        fflush(NULL);
        pid_t child = fork();
        if (child == 0) {
            off_t offset = 0;
            _exit(sendfile(pair[0], file, &offset, 10000) == 10000 ? 0 : 1);
        }
        int status;
        CHECK(waitpid(child, &status, 0) == child && status == 0);
        expect(pair[1], 0, 10000);
    }
    __atomic_store_n(&stop, 1, __ATOMIC_RELAXED);
    CHECK(!pthread_join(thread, NULL));
}

/* Files that no mapping shows, and address space that has come to its end. */
static void without_a_mapping(void)
{
    int pair[2], file = make_file(300000);
    struct rlimit before, less;
    tcp_pair(pair);
    CHECK(!getrlimit(RLIMIT_AS, &before));
    less = before;
    less.rlim_cur = 1; /* nothing can be mapped at all */
    off_t offset = 0;
    CHECK(!setrlimit(RLIMIT_AS, &less));
    ssize_t sent = sendfile(pair[0], file, &offset, 300000);
    CHECK(!setrlimit(RLIMIT_AS, &before));
    CHECK(sent == 300000 && offset == 300000); /* by the stack */
    expect(pair[1], 0, 300000);
    offset = 0;
    /* As much as is needed to read, and not to map. */
    int big = make_file(0);
    CHECK(!ftruncate(big, 1LL << 40));
    less.rlim_cur = 1UL << 30;
    nonblocking(pair[0], true);
    CHECK(!setrlimit(RLIMIT_AS, &less));
    sent = sendfile(pair[0], big, &offset, 0x7ffff000);
    CHECK(!setrlimit(RLIMIT_AS, &before));
    CHECK(sent > 0 && offset == sent);
}

static uint32_t ids_after(bool set)
{
    int pair[2], file = make_file(300000), on = 1;
    tcp_pair(pair);
    if (set)
        CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    off_t offset = 0;
    for (int i = 0; i < 3; i++) {
        counting = 1;
        CHECK(sendfile(pair[0], file, &offset, 50000) == 50000);
        counting = 0;
    }
    CHECK(sendfile64(pair[0], file, &offset, 50000) == 50000);
    expect(pair[1], 0, 200000);
    struct ids ids = { .socket = pair[0] };
    struct pollfd ready = { .fd = pair[0] };
    if (poll(&ready, 1, 100) == 1)
        ids_read(&ids);
    while (ids.seen > 0 && ids.seen < 4)
        ids_read(&ids);
    return (uint32_t)ids.seen;
}

int main(int count, char **arguments)
{
    CHECK(count == 2);
    bool off = !strcmp(arguments[1], "off"), notify = !strcmp(arguments[1], "notify");
    alarm(120);
    size_t wrong = overwritten();
    printf("%zu wrong\n", wrong);
    CHECK(off ? wrong > 500000 : wrong == 0);
    in_a_signal_handler();
    after_a_fork();
    CHECK(ids_after(false) == 0);
    CHECK(ids_after(true) == (notify ? 4 : 0));
    if (!off) {
        without_a_mapping();
        CHECK(allocations == 0);
    }
    return 0;
}
