/* SENDFILE_SYNC and files that are kept. 10.9.0.1 and 10.9.0.2 are addresses of this host, which
 * libsendfile2 takes for two hosts. */
#include "check.h"
#include <linux/filter.h>
#include <linux/io_uring.h>
#include <linux/seccomp.h>
#include <linux/sockios.h>
#include <pthread.h>
#include <stddef.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <time.h>

static char zeroes[4 << 20];
static volatile sig_atomic_t signals;

static void count_signal(int number)
{
    (void)number;
    signals++;
}

/* A pair that looks like one between two hosts. */
static void remote_pair(int pair[2], int receive_buffer)
{
    struct sockaddr_in from = { .sin_family = AF_INET }, to = from;
    socklen_t length = sizeof to;
    CHECK(inet_aton("10.9.0.1", &from.sin_addr) && inet_aton("10.9.0.2", &to.sin_addr));
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (receive_buffer)
        CHECK(!setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(int)));
    CHECK(!bind(listener, (void *)&to, sizeof to) && !listen(listener, 1));
    CHECK(!getsockname(listener, (void *)&to, &length));
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(!bind(pair[0], (void *)&from, sizeof from));
    CHECK(!connect(pair[0], (void *)&to, sizeof to));
    pair[1] = accept(listener, NULL, NULL);
    CHECK(pair[1] >= 0);
    close(listener);
}

/* Until not one byte more fits, and none does a while later. */
static void fill(int socket)
{
    struct pollfd room = { .fd = socket, .events = POLLOUT };
    nonblocking(socket, true);
    do {
        while (send(socket, zeroes, sizeof zeroes, 0) > 0)
            ;
        while (send(socket, zeroes, 1, 0) > 0)
            ;
    } while (poll(&room, 1, 100) > 0 || send(socket, zeroes, 1, 0) > 0);
    nonblocking(socket, false);
}

/* Reads just that many bytes. A completion of the thread's ring may cut a recv() short. */
static void receive_all(int socket, char *to, size_t length)
{
    for (size_t at = 0; at < length;) {
        ssize_t some = recv(socket, to + at, length - at, 0);
        CHECK(some > 0);
        at += (size_t)some;
    }
}

static struct timespec in_milliseconds(long milliseconds)
{
    struct timespec at;
    CHECK(!clock_gettime(CLOCK_MONOTONIC, &at));
    at.tv_sec += milliseconds / 1000;
    at.tv_nsec += milliseconds % 1000 * 1000000;
    if (at.tv_nsec >= 1000000000) {
        at.tv_sec++;
        at.tv_nsec -= 1000000000;
    }
    return at;
}

/* No id was used, and nothing is on the error queue: the program's own next one is the first. */
static void no_id_was_used(int pair[2])
{
    int on = 1;
    struct ids ids = { .socket = pair[0], .next = 1 };
    char byte = 0;
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    CHECK(send(pair[0], &byte, 1, MSG_ZEROCOPY) == 1);
    ids_check(&ids);
    free(ids.each);
}

struct receiver {
    int socket;
    size_t length, wrong;
};

static void *receive(void *argument)
{
    struct receiver *it = argument;
    static char got[1 << 20];
    for (size_t at = 0; at < it->length;) {
        ssize_t some = recv(it->socket, got, sizeof got, 0);
        CHECK(some > 0);
        for (ssize_t i = 0; i < some; i++, at++)
            it->wrong += (unsigned char)got[i] != pattern((off_t)at);
    }
    return NULL;
}

static void overwritten_at_return(bool remote)
{
    int pair[2], file = make_file(4 << 20);
    struct receiver it = { .length = 4 << 20 };
    struct sendfile2_result result;
    memset(&result, 0xff, sizeof result);
    pthread_t thread;
    off_t offset = 0;
    remote ? remote_pair(pair, 128 << 10) : tcp_pair_with(pair, 128 << 10);
    it.socket = pair[1];
    CHECK(!pthread_create(&thread, NULL, receive, &it));
    CHECK(sendfile2(pair[0], file, &offset, 3 << 20, SENDFILE_SYNC) == 3 << 20);
    CHECK(pwrite(file, zeroes, 3 << 20, 0) == 3 << 20);
    struct timespec never = in_milliseconds(TIMEOUT);
    CHECK(sendfile2_deadline(pair[0], file, &offset, 2 << 20, SENDFILE_SYNC, &never, &result) == 1 << 20);
    CHECK(result.state == SENDFILE2_COPIED); /* over lo the kernel always copies */
    /* The size is part of the ABI: what is added goes into the reserved words. */
    CHECK(sizeof result == 32 && !memcmp(result.reserved, zeroes, sizeof result.reserved));
    CHECK(pwrite(file, zeroes, 4 << 20, 0) == 4 << 20 && offset == 4 << 20);
    CHECK(!pthread_join(thread, NULL));
    CHECK(it.wrong == 0);
    no_id_was_used(pair);
}

static void small_nonblocking_unix(void)
{
    int pair[2], file = make_file(300000), out = make_file(0);
    off_t offset = 0;
    remote_pair(pair, 0);
    CHECK(sendfile2(pair[0], file, &offset, 1000, SENDFILE_SYNC) == 1000);
    nonblocking(pair[0], true);
    CHECK(sendfile2(pair[0], file, &offset, 100000, SENDFILE_SYNC) == 100000);
    expect(pair[1], 0, 101000);
    CHECK(sendfile2(out, file, &offset, 1, SENDFILE_SYNC) == -1 && errno == EINVAL);
    CHECK(socketpair(AF_UNIX, SOCK_STREAM, 0, pair) == 0);
    CHECK(sendfile2(pair[0], file, &offset, 50000, SENDFILE_SYNC) == 50000);
    expect(pair[1], 101000, 50000);
    int zero = open("/dev/zero", O_RDONLY);
    CHECK(sendfile2(pair[0], zero, NULL, 10, SENDFILE_SYNC) == 10);
    CHECK(sendfile2_deadline(pair[0], file, NULL, 1, 0, NULL, NULL) == -1 && errno == EINVAL);
}

/* The peer does not read: the time is over, and the range is not known to be free. */
static void deadline_passes(void)
{
    int pair[2], file = make_file(4 << 20);
    struct sendfile2_result result = { 0 };
    struct timespec soon = in_milliseconds(100), past = { 0 };
    off_t offset = 0, before;
    remote_pair(pair, 128 << 10);
    ssize_t sent = sendfile2_deadline(pair[0], file, &offset, 64 << 20, SENDFILE_SYNC, &soon, &result);
    CHECK(sent > 0 && offset == sent && result.state == SENDFILE2_UNKNOWN);
    /* It was by reference, so it was right to say so. */
    CHECK(pwrite(file, zeroes, 4 << 20, 0) == 4 << 20);
    static char got[4 << 20];
    size_t wrong = 0;
    receive_all(pair[1], got, (size_t)sent);
    for (ssize_t i = 0; i < sent; i++)
        wrong += (unsigned char)got[i] != pattern(i);
    CHECK(wrong > 100000);
    /* The ring goes on. */
    offset = 0;
    struct timespec never = in_milliseconds(TIMEOUT);
    CHECK(sendfile2_deadline(pair[0], file, &offset, 50000, SENDFILE_SYNC, &never, &result) == 50000);
    CHECK(result.state == SENDFILE2_COPIED);
    receive_all(pair[1], got, 50000);
    /* Nothing can be sent. */
    fill(pair[0]);
    for (size_t count = 100; count < 200000; count += 100000) {
        before = offset;
        soon = in_milliseconds(50);
        CHECK(sendfile2_deadline(pair[0], file, &offset, count, SENDFILE_SYNC, &soon, &result) == -1);
        CHECK(errno == ETIMEDOUT && offset == before);
        CHECK(sendfile2_deadline(pair[0], file, &offset, count, SENDFILE_SYNC, &past, &result) == -1);
        CHECK(errno == ETIMEDOUT && offset == before);
    }
}

/* Where TCP may probe for a larger MTU the kernel would say too early that a range is released. */
static void where_tcp_probes(void)
{
    static const char *const values[] = { "0", "1", "2" };
    for (int i = 2; i >= 0; i--) {
        int pair[2], room = 1 << 20, file = make_file(100000);
        int sysctl = open("/proc/sys/net/ipv4/tcp_mtu_probing", O_WRONLY | O_CLOEXEC);
        struct sendfile2_result result = { 0 };
        off_t offset = 0;
        CHECK(sysctl >= 0 && write(sysctl, values[i], 1) == 1);
        close(sysctl);
        /* The peer takes in less than the file, and the socket more. */
        remote_pair(pair, 4096);
        CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
        struct timespec at = in_milliseconds(i ? TIMEOUT : 100);
        CHECK(sendfile2_deadline(pair[0], file, &offset, 100000, SENDFILE_SYNC, &at, &result) == 100000);
        CHECK(result.state == (i ? SENDFILE2_COPIED : SENDFILE2_UNKNOWN));
        for (int count = 0; count <= 100; count += 100) {
            ssize_t sent = sendfile2(pair[0], file, NULL, (size_t)count, SENDFILE_ZC);
            CHECK((sent == -1 && errno == EOPNOTSUPP) == (i > 0 && !in_kernel()));
        }
        close(pair[1]);
        close(pair[0]);
        close(file);
    }
}

/* What counts is the sysctl of the socket's namespace, which this thread may not be in. */
static void of_another_namespace(void)
{
    int pair[2], room = 1 << 20, file = make_file(100000), own = open("/proc/self/ns/net", O_RDONLY);
    struct sendfile2_result result = { 0 };
    off_t offset = 0;
    CHECK(own >= 0);
    if (unshare(CLONE_NEWNET)) {
        SKIP("another network namespace: %s", strerrorname_np(errno));
        return;
    }
    CHECK(!system("ip link set lo up; ip addr add 10.9.0.1/32 dev lo; ip addr add 10.9.0.2/32 dev lo;"
                  "echo 2 > /proc/sys/net/ipv4/tcp_mtu_probing"));
    remote_pair(pair, 4096);
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
    CHECK(!setns(own, CLONE_NEWNET));
    unsigned long long there = 0, here = 0;
    socklen_t length = sizeof there;
    int other[2];
    tcp_pair(other);
    if (getsockopt(pair[0], SOL_SOCKET, 71 /* SO_NETNS_COOKIE */, &there, &length)) {
        SKIP("SO_NETNS_COOKIE: %s", strerrorname_np(errno));
        return;
    }
    CHECK(!getsockopt(other[0], SOL_SOCKET, 71, &here, &length) && here != there);
    CHECK(sendfile2(other[0], file, &offset, 1000, SENDFILE_ZC) == 1000); /* here it is 0 */
    offset = 0;
    ssize_t sent = sendfile2(pair[0], file, &offset, 100000, SENDFILE_ZC);
    if (!in_kernel())
        CHECK(sent == -1 && errno == EOPNOTSUPP && offset == 0);
    struct timespec at = in_milliseconds(TIMEOUT);
    offset = 0;
    CHECK(sendfile2_deadline(pair[0], file, &offset, 100000, SENDFILE_SYNC, &at, &result) == 100000);
    CHECK(result.state == SENDFILE2_COPIED);
}

static void *interrupt(void *argument)
{
    /* When the other thread sleeps. */
    char state, line[512];
    do {
        int stat = open(argument, O_RDONLY);
        ssize_t length = read(stat, line, sizeof line - 1);
        CHECK(stat >= 0 && length > 0);
        line[length] = 0;
        state = strrchr(line, ')')[2];
        close(stat);
        sched_yield();
    } while (state != 'S');
    kill(getpid(), SIGUSR1);
    return NULL;
}

static void interrupted(void)
{
    int pair[2], file = make_file(4 << 20);
    off_t offset = 0;
    pthread_t thread;
    char name[64];
    sigset_t usr1, before;
    remote_pair(pair, 128 << 10);
    fill(pair[0]);
    snprintf(name, sizeof name, "/proc/self/task/%d/stat", (int)getpid());
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    CHECK(!pthread_sigmask(SIG_BLOCK, &usr1, &before)); /* so that the thread does not get it */
    CHECK(!pthread_create(&thread, NULL, interrupt, name));
    CHECK(!pthread_sigmask(SIG_SETMASK, &before, NULL));
    signals = 0;
    CHECK(sendfile2(pair[0], file, &offset, 1 << 20, SENDFILE_SYNC) == -1 && errno == EINTR);
    CHECK(signals == 1 && offset == 0);
    CHECK(!pthread_join(thread, NULL));
}

static void dead_peers(void)
{
    int pair[2], file = make_file(1 << 20);
    struct linger now = { .l_onoff = 1 };
    off_t offset = 0;
    remote_pair(pair, 0);
    CHECK(!shutdown(pair[0], SHUT_WR));
    signals = 0;
    CHECK(sendfile2(pair[0], file, &offset, 1 << 20, SENDFILE_SYNC) == -1 && errno == EPIPE);
    CHECK(signals == 1 && offset == 0);
    remote_pair(pair, 0);
    CHECK(!setsockopt(pair[1], SOL_SOCKET, SO_LINGER, &now, sizeof now));
    close(pair[1]);
    struct pollfd dead = { .fd = pair[0] };
    CHECK(poll(&dead, 1, TIMEOUT) == 1);
    CHECK(sendfile2(pair[0], file, &offset, 1 << 20, SENDFILE_SYNC) == -1 && errno == ECONNRESET);
    CHECK(signals == 1);
    CHECK(sendfile2(pair[0], file, &offset, 1 << 20, SENDFILE_SYNC) == -1 && errno == EPIPE);
    CHECK(signals == 2);
}

/* The program's own ids stay its own. */
static void beside_own_ids(void)
{
    int pair[2], file = make_file(300000), on = 1;
    off_t offset = 0;
    remote_pair(pair, 0);
    struct ids ids = { .socket = pair[0] };
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    for (int i = 0; i < 10; i++) {
        offset = 0;
        CHECK(sendfile2(pair[0], file, &offset, 20000, SENDFILE_SYNC) == 20000);
        CHECK(sendfile2(pair[0], file, &offset, 20000, SENDFILE_ZC) == 20000);
        ids.next++;
        expect(pair[1], 0, 40000);
    }
    ids_check(&ids);
}

/* How many io_uring descriptors there are; each must go with exec. */
static int rings(void)
{
    int found = 0;
    for (int fd = 0; fd < 256; fd++) {
        char path[64], target[64] = { 0 };
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, target, sizeof target - 1) > 0 && strstr(target, "[io_uring]")) {
            CHECK(fcntl(fd, F_GETFD) & FD_CLOEXEC);
            found++;
        }
    }
    return found;
}

static int the_ring(void)
{
    for (int fd = 0; fd < 256; fd++) {
        char path[64], target[64] = { 0 };
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, target, sizeof target - 1) > 0 && strstr(target, "[io_uring]"))
            return fd;
    }
    return -1;
}

static void send_and_expect(int pair[2], int file)
{
    off_t offset = 0;
    CHECK(sendfile2(pair[0], file, &offset, 50000, SENDFILE_SYNC) == 50000);
    expect(pair[1], 0, 50000);
}

static void *in_a_thread(void *argument)
{
    int pair[2];
    remote_pair(pair, 0);
    for (int i = 0; i < 20; i++)
        send_and_expect(pair, *(int *)argument);
    CHECK(in_kernel() || rings() >= 2);
    close(pair[0]), close(pair[1]);
    return NULL;
}

static void forks_and_threads(void)
{
    int pair[2], file = make_file(300000);
    pthread_t threads[2];
    remote_pair(pair, 0);
    send_and_expect(pair, file);
    CHECK(rings() == !in_kernel());
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        send_and_expect(pair, file); /* on a ring of its own */
        CHECK(rings() == (in_kernel() ? 0 : 2));
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    send_and_expect(pair, file);
    for (int i = 0; i < 2; i++)
        CHECK(!pthread_create(&threads[i], NULL, in_a_thread, &file));
    for (int i = 0; i < 2; i++)
        CHECK(!pthread_join(threads[i], NULL));
    CHECK(rings() == !in_kernel()); /* a thread's ring ends with it */
}

/* What takes the number of the library's ring once the program has closed that. */
enum after { NOTHING, A_FILE, A_RING, A_RING_WITH_WORK, AFTERS };

static void *closing(void *argument)
{
    static int into[AFTERS];
    enum after after = *(enum after *)argument;
    int pair[2], file = make_file(300000), *number = &into[after], tail = 0;
    unsigned *head = NULL;
    struct sendfile2_result result = { 0 };
    struct io_uring_params parameters = { 0 };
    off_t offset = 50000;
    remote_pair(pair, 0);
    send_and_expect(pair, file);
    *number = the_ring();
    CHECK(in_kernel() || *number >= 0);
    if (*number < 0)
        return NULL;
    close(*number);
    if (after == A_FILE)
        CHECK(open("/dev/null", O_RDWR | O_CLOEXEC) == *number);
    if (after >= A_RING) {
        int own = (int)syscall(SYS_io_uring_setup, 8, &parameters);
        CHECK(own == *number);
        char *ring = mmap(NULL, parameters.sq_off.array + parameters.sq_entries * 4,
                          PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, own, IORING_OFF_SQ_RING);
        struct io_uring_sqe *entries = mmap(NULL, parameters.sq_entries * sizeof *entries,
                                            PROT_READ | PROT_WRITE, MAP_SHARED, own, IORING_OFF_SQES);
        CHECK(ring != MAP_FAILED && (void *)entries != MAP_FAILED);
        head = (unsigned *)(ring + parameters.sq_off.head);
        entries->opcode = IORING_OP_NOP;
        tail = after == A_RING_WITH_WORK;
        __atomic_store_n((unsigned *)(ring + parameters.sq_off.tail), (unsigned)tail, __ATOMIC_RELEASE);
    }
    /* The library goes on with its own. */
    struct timespec never = in_milliseconds(TIMEOUT);
    for (int i = 0; i < 3; i++) {
        CHECK(sendfile2_deadline(pair[0], file, &offset, 50000, SENDFILE_SYNC, &never, &result) == 50000);
        CHECK(result.state == SENDFILE2_COPIED && offset == 50000 * (i + 2));
        expect(pair[1], 50000 * (i + 1), 50000);
    }
    /* The program's was not touched. */
    CHECK(!head || *head == 0);
    close(pair[0]), close(pair[1]), close(file);
    return number;
}

/* The program closes the descriptor of the thread's ring, and opens something else. */
static void closed_by_the_program(void)
{
    for (enum after after = NOTHING; after < AFTERS; after++) {
        pthread_t thread;
        void *number;
        CHECK(!pthread_create(&thread, NULL, closing, &after));
        CHECK(!pthread_join(thread, &number));
        /* Nor did the thread's end close what has got the number. */
        CHECK(!number || (fcntl(*(int *)number, F_GETFD) >= 0) == (after != NOTHING));
        if (number && after != NOTHING)
            close(*(int *)number);
    }
}

/* Where io_uring is forbidden, the kernel copies. */
static void without_io_uring(void *argument)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_uring_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    (void)argument;
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
    int pair[2], file = make_file(300000);
    struct sendfile2_result result = { 0 };
    off_t offset = 0;
    remote_pair(pair, 0);
    CHECK(sendfile2_deadline(pair[0], file, &offset, 200000, SENDFILE_SYNC, NULL, &result) == 200000);
    CHECK(result.state == SENDFILE2_COPIED && rings() == 0);
    expect(pair[1], 0, 200000);
}

static void filter_for_all_threads(int number)
{
    struct sock_filter filter[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)number, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    struct sock_fprog program = { sizeof filter / sizeof *filter, filter };
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program));
}

static void *forbid(void *socket)
{
    char name[64];
    int queued = 0;
    snprintf(name, sizeof name, "/proc/self/task/%d/stat", (int)getpid());
    while (!queued) {
        CHECK(!ioctl(*(int *)socket, SIOCOUTQ, &queued));
        sched_yield();
    }
    filter_for_all_threads(SYS_io_uring_enter);
    return interrupt(name);
}

/* io_uring is forbidden while a range is in flight: nothing will tell of its release, and to return
 * the bytes would say that they are free. */
static void forbidden_meanwhile(void *argument)
{
    int pair[2], file = make_file(4 << 20), queued = 0;
    off_t offset = 0;
    pthread_t thread;
    sigset_t usr1, before;
    (void)argument;
    remote_pair(pair, 128 << 10);
    send_and_expect(pair, file);
    if (rings() == 0)
        return;
    sigemptyset(&usr1);
    sigaddset(&usr1, SIGUSR1);
    CHECK(!pthread_sigmask(SIG_BLOCK, &usr1, &before));
    CHECK(!pthread_create(&thread, NULL, forbid, &pair[0]));
    CHECK(!pthread_sigmask(SIG_SETMASK, &before, NULL));
    CHECK(sendfile2(pair[0], file, &offset, 1 << 20, SENDFILE_SYNC) == -1 && errno == EIO);
    CHECK(!ioctl(pair[0], SIOCOUTQ, &queued) && queued > 0);
    CHECK(!pthread_join(thread, NULL));
}

/* The kernel notifies also of a request that fails at RLIMIT_MEMLOCK: that makes no room for it. */
static void at_the_limit(void *argument)
{
    int pair[2], file = make_file(300000);
    struct sendfile2_result result = { 0 };
    off_t offset = 0;
    struct rlimit limit = { 65536, 65536 };
    (void)argument;
    remote_pair(pair, 0);
    send_and_expect(pair, file);
    if (rings() == 0)
        return;
    CHECK(!setrlimit(RLIMIT_MEMLOCK, &limit));
    CHECK(sendfile2_deadline(pair[0], file, &offset, 200000, SENDFILE_SYNC, NULL, &result) == 200000);
    CHECK(result.state == SENDFILE2_COPIED);
    expect(pair[1], 0, 200000);
}

static void kept_files(void)
{
    int pair[2], memory = memfd_create("it", MFD_ALLOW_SEALING), file = make_file(300000);
    static char bytes[300000];
    struct ids ids = { .next = 0 };
    off_t offset = 0;
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)pattern((off_t)i);
    CHECK(write(memory, bytes, 100000) == 100000);
    struct sendfile2_file *kept = sendfile2_file_open(memory);
    CHECK(kept);
    tcp_pair(pair);
    ids.socket = pair[0];
    for (int i = 0; i < 3; i++, ids.next++)
        CHECK(sendfile2_file_send(pair[0], kept, &offset, 30001, SENDFILE_ZC) == 30001);
    CHECK(sendfile2_file_send(pair[0], kept, &offset, 1 << 20, SENDFILE_ZC) == 9997);
    ids.next++;
    CHECK(sendfile2_file_send(pair[0], kept, &offset, 1 << 20, SENDFILE_ZC) == 0);
    /* It has grown. */
    CHECK(pwrite(memory, bytes + 100000, 200000, 100000) == 200000);
    CHECK(sendfile2_file_send(pair[0], kept, &offset, 1 << 20, SENDFILE_ZC) == 200000);
    ids.next++;
    expect(pair[1], 0, 300000);
    /* It has become shorter. */
    CHECK(!ftruncate(memory, 1000));
    offset = 0;
    CHECK(sendfile2_file_send(pair[0], kept, &offset, 1 << 20, SENDFILE_ZC) == 1000);
    ids.next++;
    expect(pair[1], 0, 1000);
    ids_check(&ids);
    /* A kept mapping keeps seals away, as it says; the system call needs none. */
    if (!in_kernel())
        CHECK(fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE) == -1 && errno == EBUSY);
    sendfile2_file_close(kept);
    CHECK(!fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE));

    kept = sendfile2_file_open(file);
    CHECK(lseek(file, 100, SEEK_SET) == 100);
    CHECK(sendfile2_file_send(pair[0], kept, NULL, 500, SENDFILE_SYNC) == 500);
    CHECK(sendfile2_file_send(pair[0], kept, NULL, 500, 0) == 500);
    CHECK(lseek(file, 0, SEEK_CUR) == 1100);
    expect(pair[1], 100, 1000);
    close(file); /* it was duplicated */
    offset = 7;
    CHECK(sendfile2_file_send(pair[0], kept, &offset, 100, SENDFILE_SYNC) == 100);
    expect(pair[1], 7, 100);
    sendfile2_file_close(kept);
    sendfile2_file_close(NULL);
    CHECK(!sendfile2_file_open(-1) && errno == EBADF);
    CHECK(sendfile2_file_send(pair[0], NULL, NULL, 1, 0) == -1 && errno == EBADF);
}

int main(void)
{
    struct sigaction action = { .sa_handler = count_signal };
    alarm(120);
    CHECK(!sigaction(SIGPIPE, &action, NULL) && !sigaction(SIGUSR1, &action, NULL));
    CHECK(in_a_child(without_io_uring, NULL) == 0);
    CHECK(in_a_child(forbidden_meanwhile, NULL) == 0);
    CHECK(in_a_child(at_the_limit, NULL) == 0);
    closed_by_the_program();
    forks_and_threads();
    overwritten_at_return(false);
    overwritten_at_return(true);
    small_nonblocking_unix();
    deadline_passes();
    where_tcp_probes();
    of_another_namespace();
    interrupted();
    dead_peers();
    beside_own_ids();
    kept_files();
    return 0;
}
