/* What the shim's sendfile() answers, against the system call: each kind of input with each kind of
 * output, offset and count. compare safe|notify|off */
#include "check.h"
#include <linux/userfaultfd.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>

enum { LENGTH = 70001, POSITION = 100 };

static volatile sig_atomic_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

/* What can be sent from, made anew for each call. */

static int in_file(void)
{
    static int file = -1;
    if (file < 0)
        file = make_file(LENGTH);
    return reopen(file, O_RDWR);
}

static int in_file_anew(int flags)
{
    int file = in_file(), again = reopen(file, flags);
    close(file);
    return again;
}

static int in_empty(void)
{
    return make_file(0);
}

static int in_direct(void)
{
    int file = in_file(), direct = -1;
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", file);
    direct = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
    close(file);
    return direct;
}

static int in_write_only(void)
{
    return in_file_anew(O_WRONLY);
}

static int in_path(void)
{
    return in_file_anew(O_PATH);
}

static int in_memory(void)
{
    int memory = memfd_create("it", MFD_CLOEXEC);
    static char bytes[LENGTH];
    for (int i = 0; i < LENGTH; i++)
        bytes[i] = (char)pattern(i);
    CHECK(write(memory, bytes, LENGTH) == LENGTH && !lseek(memory, 0, SEEK_SET));
    return memory;
}

static int in_sparse_memory(void)
{
    int memory = memfd_create("it", MFD_CLOEXEC);
    CHECK(!ftruncate(memory, LENGTH) && pwrite(memory, "it", 2, 4096) == 2);
    return memory;
}

static int in_secret(void)
{
    int memory = (int)syscall(SYS_memfd_secret, O_CLOEXEC);
    if (memory >= 0)
        CHECK(!ftruncate(memory, LENGTH));
    return memory;
}

static int in_pipe(void)
{
    int ends[2];
    CHECK(!pipe2(ends, O_CLOEXEC) && write(ends[1], "it", 2) == 2);
    close(ends[1]);
    return ends[0];
}

static int in_socket(void)
{
    int pair[2];
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) && write(pair[1], "it", 2) == 2);
    close(pair[1]);
    return pair[0];
}

static int in_timer(void)
{
    return timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC);
}

static int in_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    return signalfd(-1, &set, SFD_CLOEXEC);
}

static int in_inotify(void)
{
    return inotify_init1(IN_CLOEXEC);
}

static int in_epoll(void)
{
    return epoll_create1(EPOLL_CLOEXEC);
}

static int in_event(void)
{
    return eventfd(3, EFD_CLOEXEC);
}

static int in_faults(void)
{
    return (int)syscall(SYS_userfaultfd, O_CLOEXEC | UFFD_USER_MODE_ONLY);
}

static int in_process(void)
{
    return (int)syscall(SYS_pidfd_open, getpid(), 0);
}

static int in_minus_one(void)
{
    return -1;
}

static int in_closed(void)
{
    return 999;
}

#define OPEN(name, path, flags) \
    static int name(void) { return open(path, (flags) | O_CLOEXEC); }

OPEN(in_directory, "/", O_RDONLY)
OPEN(in_zero, "/dev/zero", O_RDONLY)
OPEN(in_null, "/dev/null", O_RDWR)
OPEN(in_full, "/dev/full", O_RDONLY)
OPEN(in_random, "/dev/random", O_RDONLY)
OPEN(in_urandom, "/dev/urandom", O_RDONLY)
OPEN(in_kmsg, "/dev/kmsg", O_RDONLY | O_NONBLOCK)
OPEN(in_terminal, "/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK)
OPEN(in_version, "/proc/version", O_RDONLY)
OPEN(in_mounts, "/proc/filesystems", O_RDONLY)
OPEN(in_status, "/proc/self/status", O_RDONLY)
OPEN(in_sysctl, "/proc/sys/kernel/ostype", O_RDONLY)
OPEN(in_sys, "/sys/kernel/uevent_seqnum", O_RDONLY)

static const struct input {
    const char *name;
    int (*make)(void);
    bool random; /* other bytes each time */
    bool unmapped; /* SENDFILE_ZC says EOPNOTSUPP */
} inputs[] = {
    { "a file", in_file, false, false },
    { "an empty file", in_empty, false, false },
    { "O_DIRECT", in_direct, false, true },
    { "O_WRONLY", in_write_only, false, false },
    { "O_PATH", in_path, false, false },
    { "a memfd", in_memory, false, false },
    { "a memfd with holes", in_sparse_memory, false, true },
    { "memfd_secret", in_secret, false, true },
    { "a pipe", in_pipe, false, false },
    { "a socket", in_socket, false, false },
    { "timerfd", in_timer, false, false },
    { "signalfd", in_signals, false, false },
    { "inotify", in_inotify, false, false },
    { "epoll", in_epoll, false, false },
    { "eventfd", in_event, false, false },
    { "userfaultfd", in_faults, false, false },
    { "pidfd", in_process, false, false },
    { "-1", in_minus_one, false, false },
    { "closed", in_closed, false, false },
    { "a directory", in_directory, false, false },
    { "/dev/zero", in_zero, false, true },
    { "/dev/null", in_null, false, true },
    { "/dev/full", in_full, false, true },
    { "/dev/random", in_random, true, true },
    { "/dev/urandom", in_urandom, true, true },
    { "/dev/kmsg", in_kmsg, false, true },
    { "a terminal", in_terminal, false, true },
    { "/proc/version", in_version, false, true },
    { "/proc/filesystems", in_mounts, false, true },
    { "/proc/self/status", in_status, false, true },
    { "/proc/sys", in_sysctl, false, true },
    { "/sys", in_sys, false, true },
};

/* What can be sent to. */

static void out_tcp(int pair[2])
{
    int room = 1 << 20;
    tcp_pair(pair);
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
}

static void out_tcp_zerocopy(int pair[2])
{
    int on = 1;
    out_tcp(pair);
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
}

static void out_tcp_nonblocking(int pair[2])
{
    out_tcp(pair);
    nonblocking(pair[0], true);
}

static void out_tcp_full(int pair[2])
{
    static int full = -1; /* and stays so */
    static char zeroes[1 << 16];
    if (full < 0) {
        int room = 4096, ends[2], file = in_file();
        tcp_pair_with(ends, 4096);
        full = ends[0];
        CHECK(!setsockopt(full, SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
        nonblocking(full, true);
        struct pollfd ready = { .fd = full, .events = POLLOUT };
        for (bool more = true; more; poll(&ready, 1, 300)) /* the peer takes in some yet */
            for (more = false; send(full, zeroes, sizeof zeroes, 0) > 0 || send(full, zeroes, 1, 0) > 0
                               || syscall(SYS_sendfile, full, file, &(off_t){ 0 }, 4096) > 0;)
                more = true;
        close(file);
    }
    pair[0] = fcntl(full, F_DUPFD_CLOEXEC, 0);
}

static void out_tcp_unconnected(int pair[2])
{
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
}

static void out_tcp_listening(int pair[2])
{
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(!listen(pair[0], 1));
}

static void out_tcp_shut_down(int pair[2])
{
    tcp_pair(pair);
    CHECK(!shutdown(pair[0], SHUT_WR));
}

static void out_tcp_reset(int pair[2])
{
    struct linger now = { .l_onoff = 1 };
    tcp_pair(pair);
    CHECK(!setsockopt(pair[1], SOL_SOCKET, SO_LINGER, &now, sizeof now));
    close(pair[1]);
    pair[1] = -1;
    struct pollfd ready = { .fd = pair[0], .events = POLLIN };
    CHECK(poll(&ready, 1, TIMEOUT) == 1);
}

static void unix_pair(int pair[2], int type)
{
    int room = 1 << 20;
    CHECK(!socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, pair));
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
}

static void out_unix(int pair[2])
{
    unix_pair(pair, SOCK_STREAM);
}

static void out_unix_datagrams(int pair[2])
{
    unix_pair(pair, SOCK_DGRAM);
}

static void out_unix_records(int pair[2])
{
    unix_pair(pair, SOCK_SEQPACKET);
}

static void out_udp(int pair[2])
{
    udp_pair(pair);
}

static void out_pipe(int pair[2])
{
    int ends[2];
    CHECK(!pipe2(ends, O_CLOEXEC | O_NONBLOCK));
    pair[0] = ends[1], pair[1] = ends[0];
}

static void out_read_end(int pair[2])
{
    int ends[2];
    CHECK(!pipe2(ends, O_CLOEXEC));
    pair[0] = ends[0], pair[1] = ends[1];
}

static void out_file(int pair[2])
{
    pair[0] = make_file(0);
    pair[1] = reopen(pair[0], O_RDONLY);
}

static void out_append(int pair[2])
{
    int file = make_file(0);
    pair[0] = reopen(file, O_RDWR | O_APPEND);
    close(file);
}

static void out_null(int pair[2])
{
    pair[0] = open("/dev/null", O_WRONLY | O_CLOEXEC);
}

static void out_event(int pair[2])
{
    pair[0] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
}

static void out_closed(int pair[2])
{
    pair[0] = 999;
}

static const struct output {
    const char *name;
    void (*make)(int pair[2]);
    bool zerocopy; /* it takes notifications */
} outputs[] = {
    { "TCP", out_tcp, false },
    { "TCP, SO_ZEROCOPY", out_tcp_zerocopy, true },
    { "TCP, non-blocking", out_tcp_nonblocking, false },
    { "TCP, full", out_tcp_full, false },
    { "TCP, unconnected", out_tcp_unconnected, false },
    { "TCP, listening", out_tcp_listening, false },
    { "TCP, shut down", out_tcp_shut_down, false },
    { "TCP, reset", out_tcp_reset, false },
    { "unix", out_unix, false },
    { "unix datagrams", out_unix_datagrams, false },
    { "unix records", out_unix_records, false },
    { "UDP", out_udp, false },
    { "a pipe", out_pipe, false },
    { "a pipe's other end", out_read_end, false },
    { "a file", out_file, false },
    { "O_APPEND", out_append, false },
    { "/dev/null", out_null, false },
    { "eventfd", out_event, false },
    { "closed", out_closed, false },
};

enum kind { VALUE, POSITIONED, UNREADABLE, UNWRITABLE };

static const struct place {
    enum kind kind;
    off_t at;
} places[] = {
    { POSITIONED, 0 },      { POSITIONED, POSITION }, { POSITIONED, LENGTH },
    { POSITIONED, LENGTH + 5000 },
    { VALUE, 0 },           { VALUE, POSITION },      { VALUE, LENGTH - 1 },
    { VALUE, LENGTH },      { VALUE, LENGTH + 5000 }, { VALUE, -1 },
    { VALUE, INT64_MIN },   { VALUE, INT64_MAX },     { VALUE, INT64_MAX - 4096 },
    { UNREADABLE, 0 },      { UNWRITABLE, 0 },
};

static const size_t counts[] = { 0, 1, 4096, LENGTH + 4096, 0x7ffff000, SSIZE_MAX, SIZE_MAX };

/* What came of a call. */
struct outcome {
    ssize_t result;
    int error;
    off_t offset, position;
    int signals;
    size_t received, records;
    uint64_t sum; /* of the bytes */
};

static void receive(int fd, bool tcp, struct outcome *it)
{
    static unsigned char bytes[1 << 17];
    ssize_t some;
    if (fd < 0)
        return;
    fcntl(fd, F_SETFL, fcntl(fd, F_GETFL) | O_NONBLOCK);
    /* All but TCP have delivered already. */
    while (it->result > 0 && it->received < (size_t)it->result) {
        some = read(fd, bytes, sizeof bytes);
        if (some < 0 && errno == EAGAIN) {
            struct pollfd ready = { .fd = fd, .events = POLLIN };
            if (poll(&ready, 1, tcp ? TIMEOUT : 0) != 1)
                return;
            continue;
        }
        if (some <= 0)
            return;
        it->received += (size_t)some;
        it->records++;
        for (ssize_t i = 0; i < some; i++)
            it->sum = (it->sum ^ bytes[i]) * 0x100000001b3;
    }
}

static struct outcome call(bool kernel, const struct input *input, const struct output *output,
                           const struct place *place, size_t count)
{
    static void *page;
    if (!page)
        page = mmap(NULL, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    int pair[2] = { -1, -1 }, file = input->make();
    off_t offset = place->at, *where = &offset;
    output->make(pair);
    if (place->kind == POSITIONED)
        lseek(file, place->at, SEEK_SET), where = NULL;
    else if (place->kind == UNREADABLE)
        where = (off_t *)8;
    else if (place->kind == UNWRITABLE)
        where = page;
    struct outcome it = { 0 };
    signals = 0;
    errno = 0;
    it.result = kernel ? syscall(SYS_sendfile, pair[0], file, where, count)
                       : sendfile(pair[0], file, where, count);
    it.error = it.result < 0 ? errno : 0;
    it.offset = offset;
    it.position = lseek(file, 0, SEEK_CUR);
    it.signals = signals;
    bool tcp = !strncmp(output->name, "TCP", 3);
    receive(pair[1], tcp, &it);
    if (tcp || !strcmp(output->name, "unix"))
        it.records = 0; /* a stream has none */
    if (input->random)
        it.sum = 0;
    struct linger now = { .l_onoff = 1 };
    if (tcp && pair[1] >= 0) /* so that no ports are used up */
        setsockopt(pair[0], SOL_SOCKET, SO_LINGER, &now, sizeof now);
    if (file >= 0 && file != 999)
        close(file);
    if (pair[0] != 999)
        close(pair[0]);
    if (pair[1] >= 0)
        close(pair[1]);
    return it;
}

/* What sendfile2(7) says is different. */
static bool is_told(bool notify, const struct input *input, const struct output *output,
                    const struct place *place, struct outcome kernel, struct outcome shim)
{
    /* EFAULT comes before anything is sent. */
    if (place->kind == UNWRITABLE && shim.error == EFAULT)
        return kernel.error == EFAULT || kernel.result >= 0;
    /* There would be no notification. */
    return notify && output->zerocopy && shim.error == EOPNOTSUPP && input->unmapped
           && kernel.result > 0;
}

int main(int argc, char **arguments)
{
    struct sigaction action = { .sa_handler = count_signal };
    unsigned combinations = 0, different = 0, told = 0, sent = 0;
    CHECK(argc == 2);
    bool notify = !strcmp(arguments[1], "notify");
    alarm(600);
    setvbuf(stdout, NULL, _IOLBF, 0);
    CHECK(!sigaction(SIGPIPE, &action, NULL));
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) {
        int there = inputs[i].make();
        if (there < 0 && inputs[i].make != in_minus_one) {
            SKIP("%s: %s", inputs[i].name, strerror(errno));
            continue;
        }
        close(there);
        for (size_t o = 0; o < sizeof outputs / sizeof *outputs; o++)
            for (size_t p = 0; p < sizeof places / sizeof *places; p++)
                for (size_t c = 0; c < sizeof counts / sizeof *counts; c++) {
                    bool endless = inputs[i].unmapped && !strncmp(inputs[i].name, "/dev", 4);
                    if (endless && counts[c] > LENGTH)
                        continue; /* it would send for ever */
                    struct outcome kernel = call(true, &inputs[i], &outputs[o], &places[p], counts[c]);
                    struct outcome shim = call(false, &inputs[i], &outputs[o], &places[p], counts[c]);
                    combinations++;
                    sent += kernel.result > 0;
                    if (!memcmp(&kernel, &shim, sizeof kernel))
                        continue;
                    if (is_told(notify, &inputs[i], &outputs[o], &places[p], kernel, shim)) {
                        told++;
                        continue;
                    }
                    if (++different <= 40)
                        printf("%s to %s, %s %lld, count %zu:\n"
                               "  kernel %zd %s, offset %lld, position %lld, signals %d, %zu bytes in %zu\n"
                               "  shim   %zd %s, offset %lld, position %lld, signals %d, %zu bytes in %zu%s\n",
                               inputs[i].name, outputs[o].name,
                               places[p].kind == POSITIONED ? "position" : "offset",
                               (long long)places[p].at, counts[c], kernel.result,
                               strerrorname_np(kernel.error), (long long)kernel.offset,
                               (long long)kernel.position, kernel.signals, kernel.received,
                               kernel.records, shim.result, strerrorname_np(shim.error),
                               (long long)shim.offset, (long long)shim.position, shim.signals,
                               shim.received, shim.records,
                               kernel.sum == shim.sum ? "" : ", other bytes");
                }
    }
    printf("%u combinations, %u of which send; %u different, %u as sendfile2(7) says\n", combinations,
           sent, different, told);
    CHECK(combinations > 20000 && sent > 1000);
    return different > 0;
}
