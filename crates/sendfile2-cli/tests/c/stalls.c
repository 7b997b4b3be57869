/* Calls of sendfile that wait for space which never comes: signals come through, time limits end them, and
 * other calls go on. Ends with 0, and prints the same, if all is as without anybody between the program and
 * the kernel. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHECK(it) do { if (!(it)) { fprintf(stderr, "%d: %s: %s\n", __LINE__, #it, strerror(errno)); exit(1); } } while (0)

static volatile sig_atomic_t signals;
static int pair[2], file;

static void handler(int number)
{
    (void)number;
    signals++;
}

/* Reads all that there is. */
static void drain(int number)
{
    static char bytes[1 << 20];
    (void)number;
    signals++;
    while (recv(pair[1], bytes, sizeof bytes, MSG_DONTWAIT) > 0)
        ;
}

/* Sends until there is no space, by sendfile: before Linux 6.5 it went on where send had no space, by pages
 * that it added to the last packet. */
static void fill(void)
{
    off_t offset = 0;
    CHECK(!fcntl(pair[0], F_SETFL, O_NONBLOCK));
    while (sendfile(pair[0], file, &offset, 1 << 16) > 0)
        ;
    CHECK(errno == EAGAIN && !fcntl(pair[0], F_SETFL, 0));
}

static void on(int number, void (*function)(int), int flags)
{
    struct sigaction action = { .sa_handler = function, .sa_flags = flags };
    CHECK(!sigaction(number, &action, NULL));
}

static void *other(void *argument)
{
    int others[2];
    char byte;
    (void)argument;
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, others));
    for (int i = 0; i < 100; i++) {
        off_t offset = 5;
        CHECK(sendfile(others[0], file, &offset, 1) == 1 && offset == 6);
        CHECK(read(others[1], &byte, 1) == 1);
    }
    shutdown(pair[1], SHUT_RD); /* ends the call that waits */
    return NULL;
}

int main(void)
{
    off_t offset = 0;
    struct timeval soon = { 0, 300000 };
    file = fileno(tmpfile());
    CHECK(!ftruncate(file, 64 << 20));
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));

    /* A signal ends a call with what was sent. */
    on(SIGALRM, handler, 0);
    alarm(1);
    ssize_t sent = sendfile(pair[0], file, &offset, 64 << 20);
    CHECK(sent > 0 && sent < 64 << 20 && offset == sent && signals == 1);
    /* Where nothing was sent, it is interrupted. */
    alarm(1);
    CHECK(sendfile(pair[0], file, &offset, 10) == -1 && errno == EINTR && signals == 2);
    CHECK(offset == sent);
    /* Or made again. */
    on(SIGALRM, drain, SA_RESTART);
    alarm(1);
    CHECK(sendfile(pair[0], file, &offset, 10) == 10 && signals == 3 && offset == sent + 10);

    /* SIGSTOP stops it, and SIGCONT lets it go on. */
    fill();
    pid_t child = fork();
    if (child == 0) {
        offset = 0;
        on(SIGALRM, drain, SA_RESTART);
        _exit(sendfile(pair[0], file, &offset, 10) == 10 ? 0 : 1);
    }
    int status;
    usleep(100000);
    CHECK(!kill(child, SIGSTOP) && waitpid(child, &status, WUNTRACED) == child && WIFSTOPPED(status));
    CHECK(!kill(child, SIGCONT) && waitpid(child, &status, WCONTINUED) == child && WIFCONTINUED(status));
    CHECK(!kill(child, SIGALRM) && waitpid(child, &status, 0) == child && status == 0);

    /* SIGKILL kills it. */
    fill();
    child = fork();
    if (child == 0)
        _exit(sendfile(pair[0], file, &offset, 10) == 10 ? 0 : 1);
    usleep(100000);
    CHECK(!kill(child, SIGKILL) && waitpid(child, &status, 0) == child && WIFSIGNALED(status));

    /* A time limit. */
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon));
    offset = 0;
    CHECK(sendfile(pair[0], file, &offset, 10) == -1 && errno == EAGAIN && offset == 0);
    soon.tv_usec = 0;
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_SNDTIMEO, &soon, sizeof soon));

    /* Another thread goes on; its peer's end ends a call, and raises SIGPIPE. */
    pthread_t thread;
    on(SIGPIPE, handler, 0);
    signals = 0;
    CHECK(!pthread_create(&thread, NULL, other, NULL));
    sent = sendfile(pair[0], file, &offset, 10);
    CHECK(sent == -1 && errno == EPIPE);
    CHECK(!pthread_join(thread, NULL));
    signals = 0;
    CHECK(sendfile(pair[0], file, &offset, 10) == -1 && errno == EPIPE && signals == 1);

    /* What is closed is closed. */
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    CHECK(sendfile(pair[0], file, &offset, 10) == 10 && !close(pair[0]));
    char bytes[11];
    CHECK(recv(pair[1], bytes, 11, MSG_WAITALL) == 10);

    /* Errors, in the kernel's order, and what is not to a socket. */
    CHECK(!socketpair(AF_UNIX, SOCK_STREAM, 0, pair));
    CHECK(sendfile(pair[0], -1, NULL, 1) == -1 && errno == EBADF);
    CHECK(sendfile(-1, file, NULL, 1) == -1 && errno == EBADF);
    CHECK(sendfile(pair[0], file, (void *)8, 1) == -1 && errno == EFAULT);
    offset = -1;
    CHECK(sendfile(pair[0], file, &offset, 1) == -1 && errno == EINVAL);
    /* Whether that is too far for the filesystem is for whoever compares. */
    offset = 1LL << 62;
    errno = 0;
    sent = sendfile(pair[0], file, &offset, 1);
    printf("far behind the end: %zd, %s\n", sent, strerror(errno));
    offset = 64 << 20;
    CHECK(sendfile(pair[0], file, &offset, 1) == 0);
    CHECK(sendfile(pair[0], pair[1], NULL, 1) == -1 && errno == EINVAL);
    int pipe[2], copy = fileno(tmpfile());
    CHECK(!pipe2(pipe, 0));
    offset = 0;
    CHECK(sendfile(pipe[1], file, &offset, 10) == 10 && read(pipe[0], bytes, 10) == 10);
    CHECK(sendfile(copy, file, &offset, 10) == 10 && lseek(copy, 0, SEEK_CUR) == 10);
    return 0;
}
