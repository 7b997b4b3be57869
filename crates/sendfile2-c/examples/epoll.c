/* A server that sends its file to many clients at once, by epoll and SENDFILE_ZC. It writes into
 * the file, the number of the client, before each that comes when nobody is being sent it.
 *
 * cc epoll.c $(pkg-config --cflags --libs sendfile2) -o epoll && ./epoll 4000 FILE
 */
#define _GNU_SOURCE /* what is not of C; accept4 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <sendfile2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/errqueue.h> /* after <time.h>, which it needs */

struct client { int socket, flags; loff_t offset, size; uint32_t sends, released; };

static int listen_at(const char *port)
{
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(port)) };
    socklen_t length = sizeof address;
    int one = 1, listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (listener < 0 || setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one)
        || bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16)
        || getsockname(listener, (struct sockaddr *)&address, &length))
        err(1, "cannot listen at port %s", port);
    printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
    return listener;
}

/* Sends and reads completions until both would block. Returns whether nothing is left to do. */
static int advance(struct client *c, int file)
{
    union { char space[128]; struct cmsghdr aligned; } control;
    struct msghdr message = { .msg_control = &control, .msg_controllen = sizeof control };
    while (recvmsg(c->socket, &message, MSG_ERRQUEUE) >= 0) {
        struct sock_extended_err *completion = (void *)CMSG_DATA(CMSG_FIRSTHDR(&message));
        if (completion->ee_origin == SO_EE_ORIGIN_ZEROCOPY) /* of the ids from info to data */
            c->released += completion->ee_data - completion->ee_info + 1;
        message.msg_controllen = sizeof control;
    }
    while (c->offset < c->size) {
        size_t left = (size_t)(c->size - c->offset);
        errno = 0; /* the end of the file, 0 bytes, leaves it alone */
        if (sendfile2(c->socket, file, &c->offset, left, c->flags) > 0)
            c->sends += c->flags == SENDFILE_ZC;
        else if (errno == EAGAIN || (errno == ENOBUFS && c->released < c->sends))
            return 0; /* EPOLLOUT follows; or EPOLLERR, with a release, which makes room */
        else if (errno == ENOBUFS || errno == EOPNOTSUPP)
            c->flags = SENDFILE_SYNC; /* no notifications on this socket, or not of this file */
        else
            c->size = 0; /* the client is gone; what was sent may still be in flight */
    }
    return c->released == c->sends;
}

int main(int count, char **arguments)
{
    int listener, file, in_flight = 0, epoll = epoll_create1(EPOLL_CLOEXEC);
    struct stat status;
    struct epoll_event event = { .events = EPOLLIN };
    signal(SIGPIPE, SIG_IGN); /* a client that goes away is an error of a call */
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 3)
        errx(2, "usage: epoll PORT FILE");
    if ((file = open(arguments[2], O_RDWR | O_CLOEXEC)) < 0 || fstat(file, &status))
        err(1, "%s", arguments[2]);
    listener = listen_at(arguments[1]);
    if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event))
        err(1, "epoll");
    for (unsigned number = 1; epoll_wait(epoll, &event, 1, -1) == 1;) {
        struct client *c = event.data.ptr;
        if (!c) {
            char stamp[9];
            struct client new = { .flags = SENDFILE_ZC, .size = status.st_size };
            new.socket = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
            snprintf(stamp, sizeof stamp, "%07u\n", number++ % 10000000);
            if (new.socket < 0 || (in_flight++ == 0 && pwrite(file, stamp, 8, 0) != 8))
                err(1, "accept, or writing");
            if ((c = malloc(sizeof *c)))
                *c = new;
            /* At edges: followed until it would block. EPOLLERR comes unasked. */
            event = (struct epoll_event){ .events = EPOLLOUT | EPOLLET, .data.ptr = c };
            if (!c || epoll_ctl(epoll, EPOLL_CTL_ADD, new.socket, &event))
                err(1, "epoll_ctl");
        } else if (advance(c, file)) {
            close(c->socket);
            free(c);
            printf("%d clients are being sent the file\n", --in_flight);
        }
    }
    err(1, "epoll_wait");
}
