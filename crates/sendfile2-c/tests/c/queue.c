/* The queue object: for programs that have no error-queue code. */
#include "check.h"
#include <linux/net_tstamp.h>
#include <pthread.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <time.h>

static struct timespec in_milliseconds(long milliseconds)
{
    struct timespec at;
    CHECK(!clock_gettime(CLOCK_MONOTONIC, &at));
    at.tv_sec += milliseconds / 1000;
    at.tv_nsec = (at.tv_nsec + milliseconds % 1000 * 1000000) % 1000000000;
    return at;
}

static void sends_and_waits(void)
{
    int pair[2], file = make_file(4 << 20);
    static char zeroes[1 << 15];
    off_t offset = 0;
    tcp_pair(pair);
    struct sendfile2_queue *queue = sendfile2_queue_open(pair[0], 0);
    CHECK(queue);
    for (uint64_t id = 0; id < 16; id++) {
        off_t at = offset;
        struct timespec never = in_milliseconds(TIMEOUT);
        CHECK(sendfile2(pair[0], file, &offset, 1 << 15, SENDFILE_ZC) == 1 << 15);
        if (id % 2) /* before it is received, or after */
            expect(pair[1], at, 1 << 15);
        CHECK(!sendfile2_queue_wait(queue, id, &never));
        CHECK(pwrite(file, zeroes, 1 << 15, at) == 1 << 15);
        if (!(id % 2))
            expect(pair[1], at, 1 << 15);
        CHECK(!sendfile2_queue_wait(queue, 0, NULL)); /* again */
    }
    struct sendfile2_entry entries[4];
    CHECK(sendfile2_queue_reap(queue, entries, 4) == 0); /* the waits have read all of them */
    sendfile2_queue_close(queue);
    sendfile2_queue_close(NULL);
}

static void stalled_and_reaped(void)
{
    int pair[2], file = make_file(16 << 20);
    off_t offset = 0, received = 0;
    uint64_t next = 0;
    struct sendfile2_entry entries[3];
    tcp_pair_with(pair, 128 << 10);
    nonblocking(pair[0], true);
    struct sendfile2_queue *queue = sendfile2_queue_open(pair[0], 0);
    while (sendfile2(pair[0], file, &offset, 1 << 17, SENDFILE_ZC) > 0)
        next++;
    CHECK(next > 3);
    struct timespec soon = in_milliseconds(50), past = { 0 };
    CHECK(sendfile2_queue_wait(queue, next - 1, &soon) == -1 && errno == ETIMEDOUT);
    CHECK(sendfile2_queue_wait(queue, next - 1, &past) == -1 && errno == ETIMEDOUT);
    struct timespec wrong = { .tv_nsec = 1000000000 };
    CHECK(sendfile2_queue_wait(queue, next - 1, &wrong) == -1 && errno == EINVAL);
    /* Each id comes once, by reaping alone. */
    uint64_t seen = 0;
    unsigned char each[4096] = { 0 };
    for (uint64_t id = 0; id < next; id++) /* those that the waits have read */
        if (!sendfile2_queue_wait(queue, id, &past)) {
            each[id]++;
            seen++;
        }
    while (seen < next) {
        ssize_t count = sendfile2_queue_reap(queue, entries, 3);
        CHECK(count >= 0 && count <= 3);
        for (ssize_t i = 0; i < count; i++) {
            CHECK(entries[i].kind == SENDFILE2_COMPLETION && entries[i].last < next);
            for (uint64_t id = entries[i].first; id <= entries[i].last; id++, seen++)
                each[id]++;
        }
        if (received < offset) {
            size_t part = offset - received < 100000 ? (size_t)(offset - received) : 100000;
            expect(pair[1], received, part);
            received += (off_t)part;
        }
    }
    for (uint64_t id = 0; id < next; id++)
        CHECK(each[id] == 1);
    sendfile2_queue_close(queue);
}

static const uint32_t zeroes[9];

/* What is not a completion is handed out whole. */
static void foreign_entries(void)
{
    int pair[2], file = make_file(100000);
    udp_pair(pair);
    int stamps = SOF_TIMESTAMPING_TX_SOFTWARE | SOF_TIMESTAMPING_SOFTWARE;
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_TIMESTAMPING, &stamps, sizeof stamps));
    struct sendfile2_queue *queue = sendfile2_queue_open(pair[0], 0);
    struct sendfile2_entry entries[8];
    struct timespec never = in_milliseconds(TIMEOUT);
    CHECK(send(pair[0], "hello", 5, 0) == 5);
    off_t offset = 0;
    CHECK(sendfile2(pair[0], file, &offset, 1000, SENDFILE_ZC) == 1000);
    char datagram[2000];
    CHECK(recv(pair[1], datagram, sizeof datagram, 0) == 5);
    CHECK(recv(pair[1], datagram, sizeof datagram, 0) == 1000);
    CHECK(!sendfile2_queue_wait(queue, 0, &never));
    int found = 0;
    ssize_t count;
    memset(entries, 0xff, sizeof entries);
    while ((count = sendfile2_queue_reap(queue, entries, 8)) > 0)
        for (ssize_t i = 0; i < count; i++) {
            /* The size is part of the ABI: what is added goes into the reserved words. */
            CHECK(sizeof entries[i] == (sizeof(void *) == 8 ? 96 : 80));
            CHECK(!memcmp(entries[i].reserved, zeroes, sizeof entries[i].reserved));
            CHECK(entries[i].kind == SENDFILE2_FOREIGN && !entries[i].truncated);
            struct msghdr message = { .msg_control = (void *)entries[i].control,
                                      .msg_controllen = entries[i].control_length };
            bool stamp = false, error = false;
            for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c)) {
                stamp |= c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_TIMESTAMPING;
                error |= c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR;
            }
            CHECK(stamp && error);
            /* The payload is the packet, with its headers. */
            const char *payload = entries[i].payload;
            size_t length = entries[i].payload_length;
            if (length < 1000) {
                CHECK(length > 5 && !memcmp(payload + length - 5, "hello", 5));
                found++;
            }
        }
    CHECK(count == 0 && found == 1);
    /* They are kept while a program waits, up to a point, and none is lost. */
    for (int i = 0; i < 100; i++) {
        CHECK(send(pair[0], "hello", 5, 0) == 5);
        CHECK(recv(pair[1], datagram, sizeof datagram, 0) == 5);
    }
    struct timespec soon = in_milliseconds(TIMEOUT);
    CHECK(sendfile2_queue_wait(queue, 1, &soon) == -1 && errno == ENOBUFS);
    found = 0;
    while ((count = sendfile2_queue_reap(queue, entries, 8)) > 0)
        found += (int)count;
    CHECK(found == 100);
    sendfile2_queue_close(queue);
}

struct waiter {
    struct sendfile2_queue *queue;
    uint64_t id;
};

static void *wait_for(void *argument)
{
    struct waiter *it = argument;
    struct timespec never = in_milliseconds(TIMEOUT);
    CHECK(!sendfile2_queue_wait(it->queue, it->id, &never));
    return NULL;
}

static void *drain(void *argument)
{
    char buffer[65536];
    while (recv(*(int *)argument, buffer, sizeof buffer, MSG_TRUNC) > 0)
        ;
    return NULL;
}

/* Whoever reads wakes all that wait. */
static void many_waiters(void)
{
    for (int round = 0; round < 20; round++) {
        int pair[2], file = make_file(16 << 20);
        off_t offset = 0;
        uint64_t next = 0;
        pthread_t threads[8], reader;
        struct waiter waiters[8];
        struct sendfile2_entry entries[2];
        tcp_pair_with(pair, 128 << 10);
        nonblocking(pair[0], true);
        struct sendfile2_queue *queue = sendfile2_queue_open(pair[0], 0);
        while (sendfile2(pair[0], file, &offset, 1 << 17, SENDFILE_ZC) > 0)
            next++;
        for (int i = 0; i < 8; i++) {
            waiters[i] = (struct waiter){ queue, next - 1 - (uint64_t)i % next };
            CHECK(!pthread_create(&threads[i], NULL, wait_for, &waiters[i]));
        }
        CHECK(!pthread_create(&reader, NULL, drain, &pair[1]));
        for (int i = 0; i < 200; i++) /* a thief */
            CHECK(sendfile2_queue_reap(queue, entries, 2) >= 0);
        for (int i = 0; i < 8; i++)
            CHECK(!pthread_join(threads[i], NULL));
        CHECK(!shutdown(pair[0], SHUT_WR) && !pthread_join(reader, NULL));
        sendfile2_queue_close(queue);
        close(pair[0]), close(pair[1]), close(file);
    }
}

static void *cancelled(void *argument)
{
    struct timespec soon = in_milliseconds(10);
    CHECK(!pthread_cancel(pthread_self()));
    CHECK(sendfile2_queue_wait(argument, 1000, &soon) == -1 && errno == ETIMEDOUT);
    struct sendfile2_entry entry;
    CHECK(sendfile2_queue_reap(argument, &entry, 1) == 0);
    pthread_testcancel();
    return NULL;
}

static void dead_refused_and_cancelled(void)
{
    int pair[2], file = make_file(16 << 20);
    off_t offset = 0;
    struct linger now = { .l_onoff = 1 };
    struct timespec never = in_milliseconds(TIMEOUT);
    uint64_t next = 0;
    tcp_pair_with(pair, 128 << 10);
    nonblocking(pair[0], true);
    struct sendfile2_queue *queue = sendfile2_queue_open(pair[0], 0);
    while (sendfile2(pair[0], file, &offset, 1 << 17, SENDFILE_ZC) > 0)
        next++;
    CHECK(!setsockopt(pair[1], SOL_SOCKET, SO_LINGER, &now, sizeof now));
    close(pair[1]); /* a reset releases what was not sent */
    CHECK(!sendfile2_queue_wait(queue, next - 1, &never));
    /* The error is the program's still. */
    int error = 0;
    socklen_t length = sizeof error;
    CHECK(!getsockopt(pair[0], SOL_SOCKET, SO_ERROR, &error, &length) && error == ECONNRESET);
    pthread_t thread;
    void *result;
    CHECK(!pthread_create(&thread, NULL, cancelled, queue));
    CHECK(!pthread_join(thread, &result) && result == PTHREAD_CANCELED);
    sendfile2_queue_close(queue);

    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    CHECK(!sendfile2_queue_open(pair[0], 0) && errno == EOPNOTSUPP);
    CHECK(!sendfile2_queue_open(-1, 0) && errno == EBADF);
    CHECK(!sendfile2_queue_open(999, 0) && errno == EBADF);
    CHECK(sendfile2_queue_wait(NULL, 0, NULL) == -1 && errno == EBADF);
}

static int the_descriptor(const char *kind)
{
    for (int fd = 3; fd < 256; fd++) {
        char path[64], target[64] = { 0 };
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        if (readlink(path, target, sizeof target - 1) > 0 && strstr(target, kind))
            return fd;
    }
    return -1;
}

/* The program closes what the queue waits with; perhaps it has something of its own there then. */
static void closed_by_the_program(void *argument)
{
    int pair[2], file = make_file(16 << 20), replaced = *(int *)argument, own = -1, bell = -1;
    off_t offset = 0;
    uint64_t next = 0;
    alarm(60);
    tcp_pair_with(pair, 128 << 10);
    nonblocking(pair[0], true);
    struct sendfile2_queue *queue = sendfile2_queue_open(pair[0], 0);
    CHECK(queue);
    while (sendfile2(pair[0], file, &offset, 1 << 17, SENDFILE_ZC) > 0)
        next++;
    int was_epoll = the_descriptor("[eventpoll]"), was_bell = the_descriptor("[eventfd]");
    CHECK(was_epoll >= 0 && was_bell > was_epoll);
    close(was_epoll), close(was_bell);
    if (replaced) {
        struct epoll_event event = { .events = EPOLLIN, .data.fd = was_bell };
        CHECK((own = epoll_create1(0)) == was_epoll && (bell = eventfd(1, 0)) == was_bell);
        CHECK(!epoll_ctl(own, EPOLL_CTL_ADD, bell, &event));
    }
    /* The peer reads nothing: it is told at once that this cannot be waited for. */
    CHECK(sendfile2_queue_wait(queue, next - 1, NULL) == -1 && errno == EBADF);
    if (replaced) {
        uint64_t value = 0;
        CHECK(read(bell, &value, sizeof value) == sizeof value && value == 1); /* not touched */
    }
}

int main(void)
{
    for (int replaced = 0; replaced < 2; replaced++)
        CHECK(in_a_child(closed_by_the_program, &replaced) == 0);

    alarm(120);
    sends_and_waits();
    stalled_and_reaped();
    foreign_entries();
    many_waiters();
    dead_refused_and_cancelled();
    return 0;
}
