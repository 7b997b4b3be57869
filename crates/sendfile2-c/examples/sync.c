/* A server that sends its file to one client after another, and writes into it before each: the
 * number of the client. SENDFILE_SYNC: when the call returns, what was sent may be overwritten.
 *
 * cc sync.c $(pkg-config --cflags --libs sendfile2) -o sync && ./sync 4000 FILE
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

enum { PATIENCE = 10 }; /* seconds that a client may take */

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

/* Returns -1 if the kernel may still read the file. */
static int serve(int client, int file, off_t size)
{
    struct timespec deadline;
    struct sendfile2_result result = { .state = SENDFILE2_RELEASED };
    struct linger reset = { 1, 0 }; /* what is cut short is not to look like all */
    loff_t offset = 0;
    clock_gettime(CLOCK_MONOTONIC, &deadline);
    deadline.tv_sec += PATIENCE;
    while (offset < size && result.state != SENDFILE2_UNKNOWN)
        /* Without the deadline a client that does not read would hold this up for ever. */
        if (sendfile2_deadline(client, file, &offset, (size_t)(size - offset), SENDFILE_SYNC,
                               &deadline, &result) <= 0) {
            /* This call sent nothing, and what the others sent is released. */
            warn("a client that did not get all");
            setsockopt(client, SOL_SOCKET, SO_LINGER, &reset, sizeof reset);
            break;
        }
    return result.state == SENDFILE2_UNKNOWN ? -1 : 0;
}

int main(int count, char **arguments)
{
    int listener, file;
    struct stat status;
    signal(SIGPIPE, SIG_IGN); /* a client that goes away is an error of a call */
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (count != 3)
        errx(2, "usage: sync PORT FILE");
    if ((file = open(arguments[2], O_RDWR | O_CLOEXEC)) < 0 || fstat(file, &status))
        err(1, "%s", arguments[2]);
    listener = listen_at(arguments[1]);
    for (unsigned number = 1;; number++) {
        char stamp[9];
        int client = accept4(listener, NULL, NULL, SOCK_CLOEXEC);
        if (client < 0)
            err(1, "accept");
        snprintf(stamp, sizeof stamp, "%07u\n", number % 10000000);
        if (pwrite(file, stamp, 8, 0) != 8)
            err(1, "%s", arguments[2]);
        if (serve(client, file, status.st_size))
            /* Nothing will tell when that ends: the file is not to be written to any more. (A
             * program with more files would go on with the others; queue.c can tell.) */
            errx(1, "client %u keeps the file", number);
        printf("client %u: released\n", number);
        close(client);
    }
}
