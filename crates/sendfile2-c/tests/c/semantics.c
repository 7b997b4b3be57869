/* Every rule of sendfile(2), one case each: by the system call, by sendfile(), which may be the
 * preload shim's, by sendfile2() without flags, and with SENDFILE_ZC. What happened is written down
 * and compared. Where SENDFILE_ZC must do otherwise, the case says so. */
#include "check.h"
#include <sys/syscall.h>

static enum { KERNEL, LIBC, NONE, DEFAULT, ZEROCOPY, WAY_COUNT } way;
static const char *const WAYS[] = { "the kernel", "sendfile", "0", "SENDFILE_DEFAULT", "SENDFILE_ZC" };
static const int FLAGS[] = { -1, -1, 0, SENDFILE_DEFAULT, SENDFILE_ZC };
#define ZC (way == ZEROCOPY)

static char transcript[4096];
static volatile sig_atomic_t signals;

static void note(const char *format, ...)
{
    size_t used = strlen(transcript);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(transcript + used, sizeof transcript - used, format, arguments);
    va_end(arguments);
}

static uint32_t successes; /* calls that returned more than 0 */

/* One call in the way that is being tried; errno must be left alone where it succeeds. */
static ssize_t call(int out, int in, off_t *offset, size_t count)
{
    errno = E2BIG;
    ssize_t sent = way == KERNEL ? syscall(SYS_sendfile, out, in, offset, count)
                   : way == LIBC ? sendfile(out, in, offset, count)
                                 : sendfile2(out, in, offset, count, FLAGS[way]);
    if (sent >= 0)
        CHECK(errno == E2BIG);
    successes += sent > 0;
    return sent;
}

/* The same, written down. */
static ssize_t noted(int out, int in, off_t *offset, size_t count)
{
    ssize_t sent = call(out, in, offset, count);
    int error = errno;
    if (sent < 0)
        note("%s ", strerrorname_np(error));
    else
        note("%zd ", sent);
    errno = error;
    return sent;
}

/* Every id once, none but those of the calls that sent something, and none without the flag. */
static void check_ids(int socket)
{
    struct ids ids = { .socket = socket, .next = ZC ? successes : 0 };
    ids_check(&ids);
    free(ids.each);
}

static const size_t LENGTH = 300000;

static void position_null_offset(void)
{
    int pair[2], file = make_file(LENGTH);
    tcp_pair(pair);
    CHECK(lseek(file, 1000, SEEK_SET) == 1000);
    noted(pair[0], file, NULL, 70001);
    expect(pair[1], 1000, 70001);
    note("position %lld ", (long long)lseek(file, 0, SEEK_CUR));
    noted(pair[0], file, NULL, 1);
    expect(pair[1], 71001, 1);
    check_ids(pair[0]);
}

static void position_with_offset(void)
{
    int pair[2], file = make_file(LENGTH);
    off_t offset = 4097;
    tcp_pair(pair);
    CHECK(lseek(file, 7, SEEK_SET) == 7);
    noted(pair[0], file, &offset, 100000);
    expect(pair[1], 4097, 100000);
    note("offset %lld position %lld ", (long long)offset, (long long)lseek(file, 0, SEEK_CUR));
    check_ids(pair[0]);
}

static void offset_kept_on_failure(void)
{
    int pair[2], file = make_file(LENGTH);
    off_t offset = 5;
    tcp_pair(pair);
    CHECK(!shutdown(pair[0], SHUT_WR));
    noted(pair[0], file, &offset, 100);
    note("offset %lld signals %d ", (long long)offset, (int)signals);
    noted(pair[0], file, NULL, 100);
    note("position %lld ", (long long)lseek(file, 0, SEEK_CUR));
    check_ids(pair[0]);
}

static void offset_unreadable(void)
{
    int pair[2], file = make_file(LENGTH);
    tcp_pair(pair);
    noted(pair[0], file, (off_t *)8, 100);
    noted(-1, -1, (off_t *)8, 100);
    check_ids(pair[0]);
}

/* sendfile(2) may have sent something; SENDFILE_ZC has not. */
static void offset_unwritable(void)
{
    int pair[2], file = make_file(LENGTH);
    off_t *offset = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char byte;
    tcp_pair(pair);
    noted(pair[0], file, offset, 100);
    if (ZC)
        CHECK(recv(pair[1], &byte, 1, MSG_DONTWAIT) == -1 && errno == EAGAIN);
    noted(-1, file, offset, 100);
    check_ids(pair[0]);
}

static void to_a_file(void)
{
    int file = make_file(LENGTH), out = make_file(0);
    noted(out, file, NULL, 100);
    note("position %lld ", (long long)lseek(out, 0, SEEK_CUR));
}

static void to_itself(void)
{
    int file = make_file(LENGTH);
    off_t offset = 0;
    CHECK(lseek(file, 0, SEEK_END) == (off_t)LENGTH);
    noted(file, file, &offset, 100);
}

static void to_a_pipe(void)
{
    int file = make_file(LENGTH), ends[2];
    CHECK(!pipe2(ends, O_CLOEXEC | O_NONBLOCK));
    noted(ends[1], file, NULL, 5000);
    noted(ends[1], file, NULL, LENGTH);
    noted(ends[1], file, NULL, 1);
}

static void count_zero(void)
{
    int pair[2], file = make_file(LENGTH);
    off_t negative = -1, offset = 3;
    tcp_pair(pair);
    noted(pair[0], file, NULL, 0);
    noted(pair[0], file, &offset, 0);
    noted(pair[0], -1, NULL, 0);
    noted(-1, file, NULL, 0);
    noted(pair[0], file, &negative, 0);
    check_ids(pair[0]);
}

static void count_limits(void)
{
    int pair[2], file = make_file(5000);
    off_t offset = 0;
    tcp_pair(pair);
    noted(pair[0], file, NULL, (size_t)SSIZE_MAX + 1);
    noted(pair[0], file, NULL, SIZE_MAX);
    noted(pair[0], file, &offset, SSIZE_MAX);
    expect(pair[1], 0, 5000);
    note("offset %lld ", (long long)offset);
    CHECK(lseek(file, 4000, SEEK_SET) == 4000);
    noted(pair[0], file, NULL, SSIZE_MAX);
    noted(pair[0], file, NULL, SSIZE_MAX - 5000);
    expect(pair[1], 4000, 1000);
    check_ids(pair[0]);
}

static void offset_limits(void)
{
    int pair[2], file = make_file(5000);
    off_t at[] = { -1, INT64_MIN, INT64_MAX, INT64_MAX - 1, 17LL << 40, 5000, 5001, 4999 };
    tcp_pair(pair);
    for (size_t i = 0; i < sizeof at / sizeof *at; i++) {
        off_t offset = at[i];
        noted(pair[0], file, &offset, 1);
        note("offset %lld ", (long long)offset);
        offset = at[i];
        noted(pair[0], file, &offset, SSIZE_MAX);
        offset = at[i];
        noted(pair[0], file, &offset, 0);
    }
    check_ids(pair[0]);
}

static void end_of_file(void)
{
    int pair[2], file = make_file(5000), empty = make_file(0);
    off_t offset = 4990;
    tcp_pair(pair);
    noted(pair[0], file, &offset, 100);
    noted(pair[0], file, &offset, 100);
    note("offset %lld ", (long long)offset);
    noted(pair[0], empty, NULL, 100);
    expect(pair[1], 4990, 10);
    check_ids(pair[0]);
    /* The socket is not looked at where there is nothing to send. */
    int unconnected = socket(AF_INET, SOCK_STREAM, 0);
    noted(unconnected, empty, NULL, 100);
}

static void order_of_checks(void)
{
    int pair[2], ends[2], file = make_file(LENGTH);
    int blind = reopen(file, O_WRONLY), path = reopen(file, O_PATH);
    off_t negative = -1, far = 17LL << 40, wrap = INT64_MAX, fine = 0, last = INT64_MAX - 1;
    tcp_pair(pair);
    CHECK(!pipe2(ends, O_CLOEXEC));
    int readonly = reopen(file, O_RDONLY);
    int append = dup(pair[0]);
    /* in: EBADF, before all else */
    noted(-1, -1, &negative, 1);
    noted(pair[0], blind, &negative, 1);
    noted(pair[0], path, &negative, 1);
    noted(pair[0], 9999, &negative, SIZE_MAX);
    /* ESPIPE before the range */
    noted(-1, ends[0], &negative, 1);
    noted(-1, pair[1], &negative, 1);
    noted(pair[0], ends[0], &fine, 1);
    noted(pair[0], pair[1], &fine, 1);
    /* the range before out */
    noted(-1, file, &negative, 1);
    noted(-1, file, &wrap, 1);
    noted(-1, file, &fine, SIZE_MAX);
    noted(9999, file, NULL, SIZE_MAX);
    CHECK(lseek(file, 4000, SEEK_SET) == 4000);
    noted(-1, file, NULL, SSIZE_MAX);
    /* out: EBADF before EOVERFLOW */
    noted(-1, file, &far, 1);
    noted(readonly, file, &far, 1);
    noted(readonly, file, &last, 1);
    /* EOVERFLOW before O_APPEND, and that on a socket, too */
    CHECK(!fcntl(append, F_SETFL, fcntl(append, F_GETFL) | O_APPEND));
    noted(append, file, &far, 1);
    noted(append, file, &fine, 1);
    noted(append, file, &fine, 0);
    CHECK(!fcntl(append, F_SETFL, fcntl(append, F_GETFL) & ~O_APPEND));
    /* EOVERFLOW before what in is */
    int directory = open("/", O_RDONLY), maps = open("/proc/self/maps", O_RDONLY);
    noted(pair[0], directory, NULL, 1);
    noted(pair[0], maps, NULL, 1);
    noted(pair[0], ends[0], NULL, 1);
    noted(pair[0], pair[1], NULL, 1);
    note("offsets %lld %lld %lld ", (long long)negative, (long long)far, (long long)fine);
    check_ids(pair[0]);
}

/* The largest offset that the filesystem has, exactly. */
static void the_last_offset(void)
{
    int pair[2], file = make_file(10);
    tcp_pair(pair);
    off_t low = 10, high = INT64_MAX - 2;
    while (high - low > 1) { /* found with no bytes, by the real one */
        off_t middle = low + (high - low) / 2, probe = middle;
        if (sendfile(pair[0], file, &probe, 0) == 0)
            low = middle;
        else
            high = middle;
    }
    CHECK(!fcntl(pair[0], F_SETFL, fcntl(pair[0], F_GETFL) | O_APPEND));
    for (off_t at = low - 1; at <= low + 1; at++)
        for (size_t count = 0; count < 3; count++) {
            off_t offset = at;
            noted(pair[0], file, &offset, count);
        }
    CHECK(!fcntl(pair[0], F_SETFL, fcntl(pair[0], F_GETFL) & ~O_APPEND));
    for (off_t at = low - 1; at <= low + 1; at++)
        for (size_t count = 0; count < 3; count++) {
            off_t offset = at;
            noted(pair[0], file, &offset, count);
        }
    check_ids(pair[0]);
}

static void from_dev_zero(void)
{
    int pair[2], zero = open("/dev/zero", O_RDONLY);
    tcp_pair(pair);
    noted(pair[0], zero, NULL, 100000);
    check_ids(pair[0]);
}

/* It is made when it is read: its size is 0. */
static void from_proc(void)
{
    int pair[2], version = open("/proc/version", O_RDONLY);
    struct stat stat;
    CHECK(!fstat(version, &stat) && stat.st_size == 0);
    tcp_pair(pair);
    noted(pair[0], version, NULL, 100000);
    note("at %lld ", (long long)lseek(version, 0, SEEK_CUR));
    if (!ZC || in_kernel()) {
        noted(pair[0], version, NULL, 100000);
        noted(pair[0], version, &(off_t){ 3 }, 5);
    }
    check_ids(pair[0]);
}

static void from_a_memfd(void)
{
    int pair[2], memory = memfd_create("it", MFD_CLOEXEC);
    char bytes[9000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)pattern((off_t)i);
    CHECK(write(memory, bytes, sizeof bytes) == sizeof bytes);
    off_t offset = 0;
    tcp_pair(pair);
    noted(pair[0], memory, &offset, sizeof bytes);
    expect(pair[1], 0, sizeof bytes);
    check_ids(pair[0]);
}

/* A mapped send would allocate its holes; so it is refused. */
static void from_a_sparse_memfd(void)
{
    int pair[2], memory = memfd_create("it", MFD_CLOEXEC);
    struct stat after;
    CHECK(!ftruncate(memory, 1 << 20));
    tcp_pair(pair);
    noted(pair[0], memory, NULL, 100000);
    CHECK(!fstat(memory, &after));
    note("blocks %lld ", (long long)after.st_blocks);
    check_ids(pair[0]);
}

static void from_o_direct(void)
{
    int pair[2], file = reopen(make_file(LENGTH), O_RDONLY | O_DIRECT);
    tcp_pair(pair);
    noted(pair[0], file, NULL, 4096);
}

static void unix_stream(void)
{
    int pair[2], file = make_file(LENGTH);
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    noted(pair[0], file, NULL, 70000);
    noted(pair[0], file, NULL, 0);
}

static void unix_records(void)
{
    int pair[2], file = make_file(LENGTH);
    char buffer[70000];
    ssize_t got;
    CHECK(!socketpair(AF_UNIX, SOCK_SEQPACKET, 0, pair));
    off_t offset = 100;
    noted(pair[0], file, &offset, 150000);
    while ((got = recv(pair[1], buffer, sizeof buffer, MSG_DONTWAIT)) > 0)
        note("record %zd ", got);
}

static void udp_unconnected(void)
{
    int file = make_file(LENGTH), out = socket(AF_INET, SOCK_DGRAM, 0);
    noted(out, file, NULL, 100);
    note("position %lld ", (long long)lseek(file, 0, SEEK_CUR));
    check_ids(out);
}

static void udp_connected(void)
{
    int pair[2], file = make_file(LENGTH);
    char buffer[70000];
    struct pollfd ready;
    udp_pair(pair);
    size_t lengths[] = { 100, 3000, 40000, 65507, 65508, 65536, 100000 };
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        off_t offset = i == 0 ? 100 : 0;
        if (noted(pair[0], file, &offset, lengths[i]) > 0) {
            ready = (struct pollfd){ .fd = pair[1], .events = POLLIN };
            CHECK(poll(&ready, 1, TIMEOUT) == 1);
            note("datagram %zd ", recv(pair[1], buffer, sizeof buffer, 0));
            CHECK((unsigned char)buffer[0] == pattern(i == 0 ? 100 : 0));
        }
    }
    check_ids(pair[0]);
}

static void tcp_unconnected(void)
{
    int file = make_file(LENGTH), out = socket(AF_INET, SOCK_STREAM, 0);
    noted(out, file, NULL, 100);
    note("signals %d ", (int)signals);
}

static void tcp_listening(void)
{
    int file = make_file(LENGTH), out = socket(AF_INET, SOCK_STREAM, 0);
    CHECK(!listen(out, 1));
    noted(out, file, NULL, 100);
    note("signals %d ", (int)signals);
}

static void would_block(void)
{
    int pair[2], file = make_file(64 << 20);
    off_t offset = 0;
    tcp_pair_with(pair, 128 << 10);
    nonblocking(pair[0], true);
    ssize_t sent = call(pair[0], file, &offset, 64 << 20);
    CHECK(sent > 0 && sent < 64 << 20 && offset == sent);
    size_t total = (size_t)sent;
    while ((sent = call(pair[0], file, &offset, 64 << 20)) > 0)
        total += (size_t)sent;
    note("%s offset %s ", strerrorname_np(errno), offset == (off_t)total ? "kept" : "moved");
    expect(pair[1], 0, total);
    check_ids(pair[0]);
}

static void nonblocking_input(void)
{
    int pair[2], file = reopen(make_file(LENGTH), O_RDONLY | O_NONBLOCK);
    tcp_pair(pair);
    noted(pair[0], file, NULL, LENGTH);
    expect(pair[1], 0, LENGTH);
    check_ids(pair[0]);
}

static void reader(void *argument)
{
    int *pair = argument;
    static char buffer[1 << 20];
    close(pair[0]);
    while (recv(pair[1], buffer, sizeof buffer, MSG_TRUNC) > 0)
        ;
}

/* A child that receives; this process only sends. */
static pid_t start(void (*receiver)(void *), int pair[2])
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        receiver(pair);
        _exit(0);
    }
    close(pair[1]);
    return child;
}

/* Blocking: all of it in one call, whatever the socket holds at a time. */
static void waits_for_all(void)
{
    int pair[2], file = make_file(20 << 20);
    tcp_pair_with(pair, 128 << 10);
    pid_t child = start(reader, pair);
    noted(pair[0], file, NULL, 20 << 20);
    check_ids(pair[0]);
    close(pair[0]);
    CHECK(waitpid(child, NULL, 0) == child);
}

static void send_timeout(void)
{
    int pair[2], file = make_file(64 << 20);
    struct timeval soon = { .tv_usec = 50000 };
    tcp_pair_with(pair, 128 << 10);
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon));
    ssize_t sent = call(pair[0], file, NULL, 64 << 20);
    CHECK(sent > 0 && sent < 64 << 20);
    CHECK(lseek(file, 0, SEEK_CUR) == sent);
    size_t total = (size_t)sent;
    while ((sent = call(pair[0], file, NULL, 64 << 20)) > 0)
        total += (size_t)sent;
    note("%s ", strerrorname_np(errno));
    expect(pair[1], 0, total);
    check_ids(pair[0]);
}

static void reset(void)
{
    int pair[2], file = make_file(LENGTH);
    struct linger now = { .l_onoff = 1 };
    struct pollfd dead;
    tcp_pair(pair);
    CHECK(!setsockopt(pair[1], SOL_SOCKET, SO_LINGER, &now, sizeof now));
    close(pair[1]);
    dead = (struct pollfd){ .fd = pair[0] };
    CHECK(poll(&dead, 1, TIMEOUT) == 1);
    noted(pair[0], file, NULL, 100);
    note("signals %d ", (int)signals);
    noted(pair[0], file, NULL, 100);
    note("signals %d ", (int)signals);
    check_ids(pair[0]);
}

static void resetting_reader(void *argument)
{
    int *pair = argument;
    struct linger now = { .l_onoff = 1 };
    close(pair[0]);
    expect(pair[1], 0, 1 << 20);
    CHECK(!setsockopt(pair[1], SOL_SOCKET, SO_LINGER, &now, sizeof now));
    close(pair[1]);
}

/* What was sent is told; the error comes with the next call. */
static void progress_before_errors(void)
{
    int pair[2], file = make_file(64 << 20);
    tcp_pair_with(pair, 128 << 10);
    pid_t child = start(resetting_reader, pair);
    ssize_t sent = call(pair[0], file, NULL, 64 << 20);
    CHECK(sent >= 1 << 20 && sent < 64 << 20);
    CHECK(lseek(file, 0, SEEK_CUR) == sent);
    sent = call(pair[0], file, NULL, 100);
    CHECK(sent == -1 && (errno == ECONNRESET || errno == EPIPE));
    note("progress, then an error ");
    CHECK(waitpid(child, NULL, 0) == child);
    check_ids(pair[0]);
}

static pid_t signal_me(int socket, int peer)
{
    fflush(NULL);
    pid_t parent = getpid(), child = fork();
    if (child == 0) {
        /* When the socket is full for a while, its owner sleeps in it. */
        char name[64], state;
        (void)socket, (void)peer;
        snprintf(name, sizeof name, "/proc/%d/stat", parent);
        do {
            char line[512] = { 0 };
            int stat = open(name, O_RDONLY);
            CHECK(stat >= 0 && read(stat, line, sizeof line - 1) > 0);
            close(stat);
            state = strrchr(line, ')')[2];
            sched_yield();
        } while (state != 'S');
        kill(parent, SIGUSR1);
        _exit(0);
    }
    return child;
}

/* A signal interrupts, with EINTR only if nothing was sent. */
static void interrupted(void)
{
    int pair[2], file = make_file(64 << 20);
    tcp_pair_with(pair, 128 << 10);
    pid_t child = signal_me(pair[0], pair[1]);
    ssize_t sent = call(pair[0], file, NULL, 64 << 20);
    CHECK(sent > 0 && sent < 64 << 20);
    CHECK(waitpid(child, NULL, 0) == child);
    off_t total = sent;
    nonblocking(pair[0], true);
    while ((sent = call(pair[0], file, NULL, 64 << 20)) > 0)
        total += sent;
    nonblocking(pair[0], false);
    child = signal_me(pair[0], pair[1]);
    noted(pair[0], file, NULL, 64 << 20);
    CHECK(waitpid(child, NULL, 0) == child);
    note("signals %d ", (int)signals);
    expect(pair[1], 0, (size_t)total);
    check_ids(pair[0]);
}

static void corked_header(void)
{
    int pair[2], file = make_file(LENGTH), on = 1, off = 0;
    char header[7];
    tcp_pair(pair);
    CHECK(!setsockopt(pair[0], IPPROTO_TCP, TCP_CORK, &on, sizeof on));
    CHECK(write(pair[0], "header:", 7) == 7);
    noted(pair[0], file, NULL, LENGTH);
    CHECK(!setsockopt(pair[0], IPPROTO_TCP, TCP_CORK, &off, sizeof off));
    CHECK(recv(pair[1], header, 7, MSG_WAITALL) == 7 && !memcmp(header, "header:", 7));
    expect(pair[1], 0, LENGTH);
    check_ids(pair[0]);
}

static void hole_at_4_gib(void)
{
    int pair[2], file = make_file(0);
    off_t size = (4LL << 30) + 5000, offset = (4LL << 30) - 70000;
    static char got[80000];
    struct stat after;
    CHECK(!ftruncate(file, size));
    CHECK(pwrite(file, "the end", 7, size - 7) == 7);
    tcp_pair(pair);
    noted(pair[0], file, &offset, 1 << 20);
    CHECK(recv(pair[1], got, 75000, MSG_WAITALL) == 75000);
    CHECK(!memcmp(got + 75000 - 7, "the end", 7) && got[0] == 0 && got[74992] == 0);
    CHECK(!fstat(file, &after) && after.st_blocks < 1000);
    note("offset %lld ", (long long)offset);
    check_ids(pair[0]);
}

static void the_cap(void)
{
    int pair[2], file = make_file(0);
    off_t offset = 5;
    CHECK(!ftruncate(file, 4LL << 30));
    tcp_pair(pair);
    pid_t child = start(reader, pair);
    noted(pair[0], file, &offset, 3UL << 30);
    note("offset %lld ", (long long)offset);
    check_ids(pair[0]);
    close(pair[0]);
    CHECK(waitpid(child, NULL, 0) == child);
}

static void ktls(void)
{
    int pair[2], file = make_file(LENGTH);
    tcp_pair(pair);
    if (setsockopt(pair[0], IPPROTO_TCP, TCP_ULP, "tls", 4)) {
        if (way == KERNEL)
            SKIP("kernel TLS: this kernel has no tls module (%s)", strerrorname_np(errno));
        note(ZC ? "EOPNOTSUPP " : "100 ");
        return;
    }
    /* Without keys it is still a plain socket; TLS 1.2, AES-GCM-128, keys of zeroes. */
    struct { uint16_t version, cipher; unsigned char rest[8 + 16 + 4 + 8]; } keys = { 0x0303, 51, { 0 } };
    CHECK(!setsockopt(pair[0], 282 /* SOL_TLS */, 1 /* TLS_TX */, &keys, sizeof keys));
    noted(pair[0], file, NULL, 100);
}

static const struct {
    const char *name;
    void (*body)(void);
    const char *zc; /* what SENDFILE_ZC does instead of the same */
    bool costly;
    bool unmapped; /* about a file that cannot be mapped, which a kernel with the series does not */
} CASES[] = {
#define CASE(name, zc, costly) { #name, name, zc, costly, false }
#define UNMAPPED(name, zc) { #name, name, zc, false, true }
    CASE(position_null_offset, NULL, false),
    CASE(position_with_offset, NULL, false),
    CASE(offset_kept_on_failure, NULL, false),
    CASE(offset_unreadable, NULL, false),
    CASE(offset_unwritable, NULL, false),
    CASE(to_a_file, "EINVAL position 0 ", false),
    CASE(to_itself, "EINVAL ", false),
    CASE(to_a_pipe, "EINVAL EINVAL EINVAL ", false),
    CASE(count_zero, NULL, false),
    CASE(count_limits, NULL, false),
    CASE(offset_limits, NULL, false),
    CASE(end_of_file, NULL, false),
    CASE(order_of_checks, NULL, false),
    CASE(the_last_offset, NULL, false),
    UNMAPPED(from_dev_zero, "EOPNOTSUPP "),
    UNMAPPED(from_proc, "EOPNOTSUPP at 0 "),
    CASE(from_a_memfd, NULL, false),
    UNMAPPED(from_a_sparse_memfd, "EOPNOTSUPP blocks 0 "),
    UNMAPPED(from_o_direct, "EOPNOTSUPP "),
    CASE(unix_stream, "EOPNOTSUPP EOPNOTSUPP ", false),
    CASE(unix_records, "EOPNOTSUPP ", false),
    CASE(udp_unconnected, NULL, false),
    CASE(udp_connected, NULL, false),
    CASE(tcp_unconnected, NULL, false),
    CASE(tcp_listening, NULL, false),
    CASE(would_block, NULL, false),
    CASE(nonblocking_input, NULL, false),
    CASE(waits_for_all, NULL, true),
    CASE(send_timeout, NULL, true),
    CASE(reset, NULL, false),
    CASE(progress_before_errors, NULL, true),
    CASE(interrupted, NULL, true),
    CASE(corked_header, NULL, false),
    CASE(hole_at_4_gib, NULL, false),
    CASE(the_cap, NULL, true),
    CASE(ktls, "EOPNOTSUPP ", false),
};

static void count_signal(int number)
{
    (void)number;
    signals++;
}

/* Whether zerocopy sends are charged to RLIMIT_MEMLOCK here, so that large ones come out short. */
static bool charged(void)
{
    int pair[2], file = make_file(0);
    struct rlimit limit;
    CHECK(!ftruncate(file, 1 << 30) && !getrlimit(RLIMIT_MEMLOCK, &limit));
    if (limit.rlim_cur > 4UL << 30)
        return false;
    void *map = mmap(NULL, 1 << 30, PROT_READ, MAP_SHARED, file, 0);
    int on = 1;
    tcp_pair(pair);
    CHECK(map != MAP_FAILED && !setsockopt(pair[0], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    bool charged = send(pair[0], map, 1 << 30, MSG_ZEROCOPY | MSG_DONTWAIT) < 0;
    CHECK(!charged || errno == ENOBUFS);
    munmap(map, 1 << 30);
    close(pair[0]), close(pair[1]), close(file);
    return charged;
}

static char *shared; /* the transcript of a child */

static void run(void *argument)
{
    struct sigaction action = { .sa_handler = count_signal }; /* without SA_RESTART */
    CHECK(!sigaction(SIGPIPE, &action, NULL) && !sigaction(SIGUSR1, &action, NULL));
    /* Only a hang takes so long, also on a debug kernel under emulation. */
    alarm(600);
    CASES[*(size_t *)argument].body();
    strcpy(shared, transcript);
}

int main(void)
{
    int failures = 0;
    shared = mmap(NULL, sizeof transcript, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    bool short_counts = charged() && !in_kernel();
    if (short_counts)
        SKIP("large calls are charged to RLIMIT_MEMLOCK here: run as root to compare them");
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        char expected[sizeof transcript];
        if (short_counts && CASES[i].costly)
            continue;
        for (way = KERNEL; way < WAY_COUNT; way++) {
            strcpy(shared, "(nothing)");
            int status = in_a_child(run, &i);
            if (way == KERNEL)
                strcpy(expected, shared);
            bool other = ZC && CASES[i].zc && !(CASES[i].unmapped && in_kernel());
            const char *right = other ? CASES[i].zc : expected;
            if (status || strcmp(shared, right)) {
                failures++;
                printf("FAILED %s by %s: status %d\n  got      %s\n  expected %s\n", CASES[i].name,
                       WAYS[way], status, shared, right);
            }
        }
        printf("%s: %s%s%s\n", CASES[i].name, expected, CASES[i].zc ? "; by SENDFILE_ZC " : "",
               CASES[i].zc ? CASES[i].zc : "");
    }
    return failures > 0;
}
