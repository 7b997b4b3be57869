/* A server that sends its file to one client after another, and writes into it before each: the
 * number of the client. A queue object keeps the account of SENDFILE_ZC's completions, and waits
 * for them; a client that stalls loses its connection.
 *
 * cc queue.c $(pkg-config --cflags --libs sendfile2) -o queue && ./queue 4000 FILE
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
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

enum { PATIENCE = 5 }; /* seconds that a client may read nothing, or need for the end */

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

static int wait_released(struct sendfile2_queue *queue, uint64_t id)
{
    struct timespec deadline;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += PATIENCE;
    return sendfile2_queue_wait(queue, id, &deadline);
}

/* Returns -1 if the kernel may still read the file. */
static int serve(int client, int file, off_t size)
{
    struct timeval patience = { .tv_sec = PATIENCE };
    struct sockaddr nowhere = { .sa_family = AF_UNSPEC };
    struct sendfile2_queue *queue = sendfile2_queue_open(client, 0);
    uint64_t next = 0, freed = 0; /* the id of the next call that sends */
    loff_t offset = 0;
    int flags = SENDFILE_ZC, left = 0;
    if (!queue || setsockopt(client, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience))
        return sendfile2_queue_close(queue), 0;
    while (offset < size) {
        ssize_t sent = sendfile2(client, file, &offset, (size_t)(size - offset), flags);
        if (sent > 0)
            next += flags == SENDFILE_ZC;
        else if (sent < 0 && errno == ENOBUFS && freed < next && !wait_released(queue, next - 1))
            freed = next; /* a limit: a release made room */
        else if (sent < 0 && flags == SENDFILE_ZC && (errno == ENOBUFS || errno == EOPNOTSUPP))
            flags = SENDFILE_SYNC; /* no notifications on this socket, or not of this file */
        else
            break;
    }
    if (offset < size || (next > 0 && wait_released(queue, next - 1))) {
        warn("a client is cut off");
        connect(client, &nowhere, sizeof nowhere); /* a reset: the kernel drops what is queued */
    }
    for (uint64_t id = 0; id < next && !left; id++) /* released in any order, so all of them */
        left = wait_released(queue, id);
    sendfile2_queue_close(queue);
    return left;
}

int main(int count, char **arguments)
{
    int listener, file;
    struct stat status;
    signal(SIGPIPE, SIG_IGN); /* a client that goes away is an error of a call */
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 3)
        errx(2, "usage: queue PORT FILE");
    if ((file = open(arguments[2], O_RDWR | O_CLOEXEC)) < 0 || fstat(file, &status))
        err(1, "%s", arguments[2]);
    listener = listen_at(arguments[1]);
    for (unsigned number = 1;; number++) {
        char stamp[9];
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        snprintf(stamp, sizeof stamp, "%07u\n", number % 10000000);
        if (client < 0 || pwrite(file, stamp, 8, 0) != 8)
            err(1, "accept, or writing");
        if (serve(client, file, status.st_size))
            err(1, "the kernel may still read the file");
        printf("client %u: released\n", number);
        close(client);
    }
}
