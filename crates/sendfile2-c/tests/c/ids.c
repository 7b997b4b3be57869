/* Notification ids: one for each call that sent something, in one row with those of the program's
 * own sendmsg(MSG_ZEROCOPY), on whatever socket has the descriptor's number now. */
#include "check.h"
#include <pthread.h>

static const size_t LENGTH = 300000;

/* Takes in whatever comes. */
static void *drain(void *argument)
{
    char buffer[65536];
    while (recv(*(int *)argument, buffer, sizeof buffer, MSG_TRUNC) > 0)
        ;
    return NULL;
}

static ssize_t own(int socket)
{
    static char buffer[30000];
    struct iovec part = { buffer, sizeof buffer };
    struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
    return sendmsg(socket, &message, MSG_ZEROCOPY);
}

static void mixed(void)
{
    int pair[2], file = make_file(LENGTH), on = 1;
    pthread_t reader;
    unsigned short dice[3] = { 1, 2, 3 };
    tcp_pair(pair);
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    CHECK(!pthread_create(&reader, NULL, drain, &pair[1]));
    struct ids ids = { .socket = pair[0] };
    for (int i = 0; i < 12000; i++) {
        ssize_t sent;
        off_t offset = nrand48(dice) % (long)(2 * LENGTH); /* half of them behind the end */
        switch (nrand48(dice) % 4) {
        case 0:
            sent = own(pair[0]);
            break;
        case 1:
            sent = sendfile(pair[0], file, &offset, 5000); /* uses none */
            CHECK(sent >= 0);
            continue;
        case 2:
            sent = sendfile2(pair[0], file, &offset, 0, SENDFILE_ZC);
            CHECK(sent == 0);
            break;
        default:
            sent = sendfile2(pair[0], file, &offset, (size_t)nrand48(dice) % 100000, SENDFILE_ZC);
        }
        if (sent < 0) {
            CHECK(errno == ENOBUFS); /* none was used; there is something to read */
            struct pollfd ready = { .fd = pair[0] };
            CHECK(poll(&ready, 1, TIMEOUT) == 1 && ids_read(&ids) > 0);
        }
        ids.next += sent > 0;
    }
    CHECK(ids.next > 4000);
    ids_check(&ids);
    printf("%u ids\n", ids.next);
    CHECK(!shutdown(pair[0], SHUT_WR) && !pthread_join(reader, NULL));
}

/* SO_ZEROCOPY is looked at in each call: the number may be another socket by now. */
static void the_same_number_again(void)
{
    int file = make_file(LENGTH);
    for (int round = 0; round < 3; round++) {
        int pair[2], number = 500, off = 0;
        off_t offset = 0;
        tcp_pair(pair);
        CHECK(dup2(pair[0], number) == number);
        close(pair[0]);
        struct ids ids = { .socket = number, .next = 2 };
        CHECK(sendfile2(number, file, &offset, 1000, SENDFILE_ZC) == 1000);
        CHECK(!setsockopt(number, SOL_SOCKET, SO_ZEROCOPY, &off, sizeof off));
        CHECK(sendfile2(number, file, &offset, 1000, SENDFILE_ZC) == 1000);
        expect(pair[1], 0, 2000);
        ids_check(&ids);
        free(ids.each);
        close(number), close(pair[1]);
    }
}

/* Notifications, not the return: what is overwritten before one is sent overwritten. */
static void too_early(void)
{
    int pair[2], file = make_file(4 << 20);
    off_t offset = 0;
    static char zeroes[4 << 20], got[4 << 20];
    tcp_pair_with(pair, 128 << 10);
    nonblocking(pair[0], true);
    ssize_t sent = sendfile2(pair[0], file, &offset, sizeof zeroes, SENDFILE_ZC);
    CHECK(sent > 1 << 20);
    CHECK(pwrite(file, zeroes, sizeof zeroes, 0) == sizeof zeroes);
    CHECK(recv(pair[1], got, (size_t)sent, MSG_WAITALL) == sent);
    size_t wrong = 0;
    for (ssize_t i = 0; i < sent; i++)
        wrong += (unsigned char)got[i] != pattern(i);
    CHECK(wrong > 100000);
    printf("control: %zu of %zd bytes are wrong when overwritten too early\n", wrong, sent);
}

static void in_time(void)
{
    int pair[2], file = make_file(4 << 20);
    off_t offset = 0;
    static char zeroes[4 << 20];
    tcp_pair_with(pair, 128 << 10);
    nonblocking(pair[0], true);
    struct ids ids = { .socket = pair[0], .next = 0 };
    off_t received = 0, cleared = 0;
    off_t ends[8192];
    while (cleared < 4 << 20) {
        ssize_t sent = sendfile2(pair[0], file, &offset, 1 << 17, SENDFILE_ZC);
        if (sent > 0) {
            CHECK(ids.next < 8192);
            ends[ids.next++] = offset;
        }
        ids_read(&ids);
        /* All up to here are released: overwrite that. */
        uint32_t done = 0;
        while (done < ids.next && done < ids.room && ids.each[done])
            done++;
        if (done > 0 && ends[done - 1] > cleared) {
            size_t length = (size_t)(ends[done - 1] - cleared);
            CHECK(pwrite(file, zeroes, length, cleared) == (ssize_t)length);
            cleared = ends[done - 1];
        }
        if (received < offset) {
            size_t part = offset - received < 30000 ? (size_t)(offset - received) : 30000;
            expect(pair[1], received, part);
            received += (off_t)part;
        }
    }
    expect(pair[1], received, (size_t)(4 << 20) - (size_t)received);
    ids_check(&ids);
}

/* A child goes on with its parent's socket: the ids are the socket's. */
static void forked(void)
{
    int pair[2], file = make_file(LENGTH);
    tcp_pair(pair);
    CHECK(sendfile2(pair[0], file, NULL, 1000, SENDFILE_ZC) == 1000);
    fflush(NULL);
    pid_t child = fork();
    if (child == 0)
        _exit(sendfile2(pair[0], file, NULL, 2000, SENDFILE_ZC) == 2000 ? 0 : 1);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
    CHECK(sendfile2(pair[0], file, NULL, 3000, SENDFILE_ZC) == 3000); /* the position is shared */
    expect(pair[1], 0, 6000);
    struct ids ids = { .socket = pair[0], .next = 3 };
    ids_check(&ids);
}

struct job {
    int socket, file;
    uint32_t sent;
};

static void *many(void *argument)
{
    struct job *job = argument;
    for (int i = 0; i < 1500; i++) {
        off_t offset = 0;
        ssize_t sent = sendfile2(job->socket, job->file, &offset, 20000, SENDFILE_ZC);
        if (sent < 0) {
            CHECK(errno == ENOBUFS);
            sched_yield(); /* another thread reads the notifications */
        }
        job->sent += sent > 0;
    }
    return NULL;
}

static void *read_ids(void *argument)
{
    struct ids *ids = argument;
    while (__atomic_load_n(&ids->next, __ATOMIC_ACQUIRE) == UINT32_MAX) {
        struct pollfd ready = { .fd = ids->socket };
        poll(&ready, 1, 1);
        ids_read(ids);
    }
    return NULL;
}

static void two_threads(bool one_socket)
{
    int pairs[2][2], file = make_file(LENGTH);
    pthread_t readers[2], senders[2], reapers[2];
    struct job jobs[2];
    struct ids ids[2];
    int sockets = one_socket ? 1 : 2;
    for (int i = 0; i < sockets; i++) {
        tcp_pair(pairs[i]);
        ids[i] = (struct ids){ .socket = pairs[i][0], .next = UINT32_MAX };
        CHECK(!pthread_create(&readers[i], NULL, drain, &pairs[i][1]));
        CHECK(!pthread_create(&reapers[i], NULL, read_ids, &ids[i]));
    }
    for (int i = 0; i < 2; i++) {
        jobs[i] = (struct job){ .socket = pairs[i % sockets][0], .file = file };
        CHECK(!pthread_create(&senders[i], NULL, many, &jobs[i]));
    }
    uint32_t sent[2] = { 0 };
    for (int i = 0; i < 2; i++) {
        CHECK(!pthread_join(senders[i], NULL));
        sent[i % sockets] += jobs[i].sent;
    }
    for (int i = 0; i < sockets; i++) {
        __atomic_store_n(&ids[i].next, sent[i], __ATOMIC_RELEASE);
        CHECK(!pthread_join(reapers[i], NULL));
        CHECK(ids[i].next > 100);
        ids_check(&ids[i]);
        CHECK(!shutdown(pairs[i][0], SHUT_WR) && !pthread_join(readers[i], NULL));
    }
}

/* Nothing is kept: neither a lock on the file, nor its seals, nor its space. */
static void nothing_is_kept(void)
{
    int pair[2], memory = memfd_create("it", MFD_ALLOW_SEALING), file = make_file(LENGTH);
    char bytes[70000] = { 0 };
    CHECK(write(memory, bytes, sizeof bytes) == sizeof bytes);
    off_t offset = 0;
    tcp_pair(pair);
    CHECK(sendfile2(pair[0], memory, &offset, sizeof bytes, SENDFILE_ZC) == sizeof bytes);
    CHECK(recv(pair[1], bytes, sizeof bytes, MSG_WAITALL) == sizeof bytes);
    struct ids ids = { .socket = pair[0], .next = 1 };
    ids_check(&ids);
    CHECK(!fcntl(memory, F_ADD_SEALS, F_SEAL_WRITE));

    int again = reopen(file, O_RDWR);
    struct flock lock = { .l_type = F_WRLCK };
    CHECK(!fcntl(file, F_OFD_SETLK, &lock));
    offset = 0;
    CHECK(sendfile2(pair[0], file, &offset, 1000, SENDFILE_ZC) == 1000);
    close(file);
    CHECK(!fcntl(again, F_OFD_SETLK, &lock));
}

/* A thread that is to be cancelled is not cancelled in a call: sendfile(2) is no such place. */
static void *cancelled(void *argument)
{
    int *pair = argument;
    CHECK(!pthread_cancel(pthread_self()));
    off_t offset = 0;
    CHECK(sendfile2(pair[0], pair[2], &offset, 1000, SENDFILE_ZC) == 1000);
    pair[3] = 1;
    pthread_testcancel();
    return NULL;
}

static void cancellation(void)
{
    int pair[4] = { 0, 0, make_file(LENGTH), 0 };
    pthread_t thread;
    void *result;
    tcp_pair(pair);
    CHECK(!pthread_create(&thread, NULL, cancelled, pair));
    CHECK(!pthread_join(thread, &result) && result == PTHREAD_CANCELED && pair[3] == 1);
}

static void flags(void)
{
    int pair[2], file = make_file(LENGTH);
    tcp_pair(pair);
    int wrong[] = { 3, 6, 8, 16, 0x40000000, -1, INT_MIN };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++)
        CHECK(sendfile2(pair[0], file, NULL, 100, wrong[i]) == -1 && errno == EINVAL);
    CHECK(sendfile2(-1, -1, NULL, 100, 8) == -1 && errno == EINVAL);
    CHECK(lseek(file, 0, SEEK_CUR) == 0);
}

int main(void)
{
    alarm(120);
    flags();
    mixed();
    the_same_number_again();
    too_early();
    in_time();
    forked();
    two_threads(false);
    two_threads(true);
    nothing_is_kept();
    cancellation();
    return 0;
}
