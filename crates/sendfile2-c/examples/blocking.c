/* A server that sends its file to one client after another, and writes into it before each: the
 * number of the client. SENDFILE_ZC: each call that sends has an id, whose completion on the
 * socket's error queue says that what it sent may be overwritten, as with MSG_ZEROCOPY.
 *
 * cc blocking.c $(pkg-config --cflags --libs sendfile2) -o blocking && ./blocking 4000 FILE
 */
#define _GNU_SOURCE /* what is not of C; accept4 */
#include <arpa/inet.h>
#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sendfile2.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>
#include <linux/errqueue.h> /* after <time.h>, which it needs */

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

/* Reads completions until this many sends are released. */
static int wait_released(int client, uint32_t sends, uint32_t *released)
{
    while (*released < sends) {
        union { char space[128]; struct cmsghdr aligned; } control;
        struct msghdr message = { .msg_control = &control, .msg_controllen = sizeof control };
        struct pollfd ready = { .fd = client }; /* POLLERR comes unasked */
        if (recvmsg(client, &message, MSG_ERRQUEUE | MSG_DONTWAIT) < 0) {
            if (errno != EAGAIN || poll(&ready, 1, -1) < 0)
                return -1;
            continue;
        }
        struct sock_extended_err *completion = (void *)CMSG_DATA(CMSG_FIRSTHDR(&message));
        if (completion->ee_origin == SO_EE_ORIGIN_ZEROCOPY) /* of the ids from info to data */
            *released += completion->ee_data - completion->ee_info + 1;
    }
    return 0;
}

/* Returns -1 if the kernel may still read the file. */
static int serve(int client, int file, off_t size)
{
    uint32_t sends = 0, released = 0;
    int flags = SENDFILE_ZC;
    loff_t offset = 0;
    while (offset < size) {
        ssize_t sent = sendfile2(client, file, &offset, (size_t)(size - offset), flags);
        if (sent > 0)
            sends += flags == SENDFILE_ZC;
        else if (sent < 0 && errno == ENOBUFS && released < sends) {
            if (wait_released(client, released + 1, &released))
                return -1; /* a limit: a release makes room */
        } else if (sent < 0 && (errno == ENOBUFS || errno == EOPNOTSUPP))
            flags = SENDFILE_SYNC; /* no notifications on this socket, or not of this file */
        else
            break; /* the client is gone; what was sent may still be in flight */
    }
    return wait_released(client, sends, &released);
}

int main(int count, char **arguments)
{
    int listener, file;
    struct stat status;
    signal(SIGPIPE, SIG_IGN); /* a client that goes away is an error of a call */
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 3)
        errx(2, "usage: blocking PORT FILE");
    if ((file = open(arguments[2], O_RDWR | O_CLOEXEC)) < 0 || fstat(file, &status))
        err(1, "%s", arguments[2]);
    listener = listen_at(arguments[1]);
    for (unsigned number = 1;; number++) {
        char stamp[9];
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        snprintf(stamp, sizeof stamp, "%07u\n", number % 10000000);
        if (client < 0 || pwrite(file, stamp, 8, 0) != 8)
            err(1, "accept, or writing");
        /* A client that does not read holds up the others: queue.c does not wait for ever. */
        if (serve(client, file, status.st_size))
            err(1, "the kernel may still read the file");
        printf("client %u: released\n", number);
        close(client);
    }
}
