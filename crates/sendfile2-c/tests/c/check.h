/* What the C tests share. A failed check ends the program with a line that says where. */
#ifndef CHECK_H
#define CHECK_H

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/errqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "sendfile2.h"

#define CHECK(condition) \
    do { \
        if (!(condition)) { \
            fprintf(stderr, "%s:%d: %s: %s (errno %s)\n", __FILE__, __LINE__, __func__, \
                    #condition, strerrorname_np(errno)); \
            exit(1); \
        } \
    } while (0)

#define SKIP(...) (printf("SKIP: " __VA_ARGS__), printf("\n"))

/* Whether sendfile2() is a system call of this kernel, as it is with the patch series. */
static inline bool in_kernel(void)
{
    int before = errno;
    bool there = access("/proc/sys/fs/sendfile2_nr", F_OK) == 0;
    errno = before;
    return there;
}

static const int TIMEOUT = 30000; /* milliseconds; only a hang reaches it */

static inline unsigned char pattern(off_t at)
{
    return (unsigned char)(at * 31 ^ (at >> 8) * 17 ^ (at >> 16) * 7 ^ 0x5a);
}

/* A temporary file of that many bytes of pattern(), in the directory TEST_DIR (on disk). */
static inline int make_file(size_t length)
{
    const char *directory = getenv("TEST_DIR");
    int fd = open(directory ? directory : ".", O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
    CHECK(fd >= 0);
    char buffer[65536];
    for (size_t at = 0; at < length;) {
        size_t part = length - at < sizeof buffer ? length - at : sizeof buffer;
        for (size_t i = 0; i < part; i++)
            buffer[i] = (char)pattern((off_t)(at + i));
        CHECK(pwrite(fd, buffer, part, (off_t)at) == (ssize_t)part);
        at += part;
    }
    return fd;
}

/* The same file, opened anew. */
static inline int reopen(int fd, int flags)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int again = open(path, flags | O_CLOEXEC);
    CHECK(again >= 0);
    return again;
}

/* A connected pair over loopback: pair[0] sends, pair[1] receives. */
static inline void tcp_pair_with(int pair[2], int receive_buffer)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof at;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(listener >= 0);
    if (receive_buffer)
        CHECK(!setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(int)));
    CHECK(!bind(listener, (void *)&at, sizeof at) && !listen(listener, 1));
    CHECK(!getsockname(listener, (void *)&at, &length));
    pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(pair[0] >= 0 && !connect(pair[0], (void *)&at, sizeof at));
    pair[1] = accept(listener, NULL, NULL);
    CHECK(pair[1] >= 0);
    close(listener);
}

static inline void tcp_pair(int pair[2])
{
    tcp_pair_with(pair, 0);
}

static inline void udp_pair(int pair[2])
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof at;
    pair[0] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    pair[1] = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    CHECK(pair[0] >= 0 && pair[1] >= 0);
    CHECK(!bind(pair[1], (void *)&at, sizeof at));
    CHECK(!getsockname(pair[1], (void *)&at, &length));
    CHECK(!connect(pair[0], (void *)&at, sizeof at));
}

static inline void nonblocking(int fd, bool on)
{
    int flags = fcntl(fd, F_GETFL);
    CHECK(!fcntl(fd, F_SETFL, on ? flags | O_NONBLOCK : flags & ~O_NONBLOCK));
}

/* Reads just that many bytes and compares them with the pattern from there on. */
static inline void expect(int fd, off_t at, size_t length)
{
    static char buffer[1 << 20];
    struct pollfd ready = { .fd = fd, .events = POLLIN };
    while (length > 0) {
        CHECK(poll(&ready, 1, TIMEOUT) == 1);
        ssize_t got = recv(fd, buffer, length < sizeof buffer ? length : sizeof buffer, 0);
        CHECK(got > 0);
        for (ssize_t i = 0; i < got; i++)
            if ((unsigned char)buffer[i] != pattern(at + i)) {
                fprintf(stderr, "byte %lld is wrong\n", (long long)(at + i));
                exit(1);
            }
        at += got;
        length -= (size_t)got;
    }
}

/* The notifications of one socket, read as any MSG_ZEROCOPY program reads them. */
struct ids {
    int socket;
    uint32_t next;       /* the id that the next call will use */
    size_t seen;         /* ids that have arrived */
    unsigned char *each; /* how often, by id */
    size_t room;
};

/* Reads what there is; returns how many ids. */
static inline size_t ids_read(struct ids *ids)
{
    size_t before = ids->seen;
    for (;;) {
        char control[256];
        struct msghdr message = { .msg_control = control, .msg_controllen = sizeof control };
        ssize_t got = recvmsg(ids->socket, &message, MSG_ERRQUEUE | MSG_DONTWAIT);
        if (got < 0 && errno == EAGAIN)
            return ids->seen - before;
        CHECK(got >= 0 && !(message.msg_flags & MSG_CTRUNC));
        struct cmsghdr *c = CMSG_FIRSTHDR(&message);
        CHECK(c && c->cmsg_level == SOL_IP && c->cmsg_type == IP_RECVERR);
        struct sock_extended_err *e = (void *)CMSG_DATA(c);
        CHECK(e->ee_origin == SO_EE_ORIGIN_ZEROCOPY && e->ee_errno == 0);
        for (uint32_t id = e->ee_info;; id++) {
            if (id >= ids->room) {
                size_t room = id + 1024;
                ids->each = realloc(ids->each, room);
                CHECK(ids->each);
                memset(ids->each + ids->room, 0, room - ids->room);
                ids->room = room;
            }
            ids->each[id]++;
            ids->seen++;
            if (id == e->ee_data)
                break;
        }
    }
}

/* Waits until as many ids have arrived as calls were made, each once, and no other. */
static inline void ids_check(struct ids *ids)
{
    while (ids_read(ids), ids->seen < ids->next) {
        struct pollfd ready = { .fd = ids->socket };
        CHECK(poll(&ready, 1, TIMEOUT) == 1);
    }
    CHECK(ids->seen == ids->next);
    for (uint32_t id = 0; id < ids->next; id++)
        CHECK(ids->each[id] == 1);
}

/* Runs it in a child; the status as of waitpid(2). */
static inline int in_a_child(void (*body)(void *), void *argument)
{
    fflush(NULL);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        body(argument);
        fflush(NULL);
        _exit(0);
    }
    int status;
    CHECK(waitpid(child, &status, 0) == child);
    return status;
}

#endif
