/* stream FILE [signals]: sends the file to the first client, with its length before it, and overwrites each
 * part when the call that has sent it has returned. Where sendfile fails with ENOSYS it goes on by read
 * and write, as programs do that know older kernels. With "signals" one comes every millisecond. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <unistd.h>

#define CHECK(it) do { if (!(it)) { perror(#it); exit(1); } } while (0)

static volatile sig_atomic_t signals;
static char others[1 << 20];

static void handler(int number)
{
    (void)number;
    signals++;
}

int main(int count, char **arguments)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof at;
    struct stat stat;
    int small = 1 << 16;
    memset(others, 0xff, sizeof others);
    signal(SIGPIPE, SIG_IGN);
    CHECK(count >= 2);
    int listener = socket(AF_INET, SOCK_STREAM, 0), file = open(arguments[1], O_RDWR);
    CHECK(listener >= 0 && file >= 0 && !fstat(file, &stat));
    CHECK(!setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
    CHECK(!bind(listener, (void *)&at, sizeof at) && !listen(listener, 1));
    CHECK(!getsockname(listener, (void *)&at, &length));
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    int client = accept(listener, NULL, NULL);
    CHECK(client >= 0);
    uint64_t size = (uint64_t)stat.st_size;
    CHECK(write(client, &size, sizeof size) == sizeof size);
    if (count > 2) {
        struct sigaction action = { .sa_handler = handler };
        /* Half of them interrupt the call. */
        action.sa_flags = SA_RESTART;
        CHECK(!sigaction(SIGALRM, &action, NULL));
        action.sa_flags = 0;
        CHECK(!sigaction(SIGVTALRM, &action, NULL) && !sigaction(SIGPROF, &action, NULL));
        struct itimerval often = { { 0, 1000 }, { 0, 1000 } };
        CHECK(!setitimer(ITIMER_REAL, &often, NULL) && !setitimer(ITIMER_PROF, &often, NULL));
    }
    off_t offset = 0;
    int copied = 0, interrupted = 0;
    while (offset < stat.st_size) {
        off_t before = offset;
        ssize_t sent = sendfile(client, file, &offset, (size_t)(stat.st_size - offset));
        if (sent < 0 && errno == EINTR) {
            CHECK(count > 2 && offset == before);
            interrupted++;
            continue;
        }
        if (sent < 0 && errno == ENOSYS) {
            static char bytes[1 << 16];
            copied = 1;
            ssize_t got = pread(file, bytes, sizeof bytes, offset);
            CHECK(got > 0);
            do
                sent = write(client, bytes, (size_t)got);
            while (sent < 0 && errno == EINTR);
            if (sent > 0)
                offset += sent;
        }
        if (sent <= 0)
            printf("sendfile: %s\n", sent ? strerror(errno) : "0");
        CHECK(sent > 0 && offset == before + sent);
        for (off_t done = before; done < offset;) {
            size_t part = sizeof others;
            if ((off_t)part > offset - done)
                part = (size_t)(offset - done);
            ssize_t written = pwrite(file, others, part, done);
            CHECK(written > 0 || errno == EINTR);
            done += written > 0 ? written : 0;
        }
    }
    shutdown(client, SHUT_WR);
    printf("%s, %d signals, %d interrupted\n", copied ? "copied" : "sent", (int)signals, interrupted);
    return 0;
}
