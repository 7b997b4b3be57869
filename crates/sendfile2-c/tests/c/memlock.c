/* RLIMIT_MEMLOCK, as an ordinary user meets it. */
#include "check.h"

static void limit_to(rlim_t bytes)
{
    struct rlimit limit;
    CHECK(!getrlimit(RLIMIT_MEMLOCK, &limit));
    limit.rlim_cur = bytes;
    CHECK(!setrlimit(RLIMIT_MEMLOCK, &limit));
}

/* Whether a notification for so many bytes fits, with nothing else in flight on the socket. */
static bool fits(size_t length)
{
    int pair[2], file = memfd_create("it", MFD_CLOEXEC), on = 1;
    CHECK(file >= 0 && !ftruncate(file, (off_t)length));
    tcp_pair(pair);
    void *map = mmap(NULL, length, PROT_READ, MAP_SHARED, file, 0);
    CHECK(map != MAP_FAILED && !setsockopt(pair[0], SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    ssize_t sent = send(pair[0], map, length, MSG_ZEROCOPY | MSG_DONTWAIT);
    CHECK(sent > 0 || errno == ENOBUFS);
    munmap(map, length);
    close(pair[0]), close(pair[1]), close(file);
    return sent > 0;
}

int main(void)
{
    int pair[2], file = make_file(64 << 20);
    off_t offset = 0;
    alarm(120);
    if (geteuid() == 0) {
        /* Some user that nothing else runs as: the limit is a user's, not a process's. */
        uid_t nobody = 61000 + (uid_t)getpid() % 4000;
        CHECK(!setgid(nobody) && !setuid(nobody));
    }
    limit_to(8 << 20);
    if (!fits(1 << 20)) {
        SKIP("RLIMIT_MEMLOCK: other processes of this user have used it up");
        return 0;
    }
    CHECK(!fits(64 << 20)); /* control: the limit is felt here */
    tcp_pair_with(pair, 128 << 10);
    nonblocking(pair[0], true);
    struct ids ids = { .socket = pair[0] };
    /* As much as anybody may ask for: a short count, not ENOBUFS for ever. */
    while (offset < 64 << 20) {
        off_t before = offset;
        ssize_t sent = sendfile2(pair[0], file, &offset, 64 << 20, SENDFILE_ZC);
        if (sent > 0) {
            ids.next++;
            CHECK(offset == before + sent);
        } else {
            CHECK(sent == -1 && (errno == EAGAIN || errno == ENOBUFS) && offset == before);
            /* Something is in flight, or it would wait for ever. */
            CHECK(ids.next > ids.seen || errno == EAGAIN);
        }
        static off_t received;
        if (received < offset) {
            size_t part = offset - received < 200000 ? (size_t)(offset - received) : 200000;
            expect(pair[1], received, part);
            received += (off_t)part;
        }
        ids_read(&ids);
    }
    close(pair[1]);
    printf("64 MiB in %u calls\n", ids.next);

    /* Nothing fits at all: ENOBUFS, nothing sent, the offset as it was. */
    limit_to(4096);
    tcp_pair(pair);
    offset = 77;
    if (in_kernel()) { /* not charged */
        CHECK(sendfile2(pair[0], file, &offset, 20000, SENDFILE_ZC) == 20000 && offset == 20077);
        expect(pair[1], 77, 20000);
        return 0;
    }
    CHECK(sendfile2(pair[0], file, &offset, 1 << 20, SENDFILE_ZC) == -1 && errno == ENOBUFS);
    CHECK(offset == 77);
    /* Three pages: one at a time. */
    limit_to(3 * 4096);
    if (!fits(4096)) {
        SKIP("a limit of three pages: what was sent before has not been let go of yet");
        return 0;
    }
    offset = 77;
    ssize_t sent = sendfile2(pair[0], file, &offset, 1 << 20, SENDFILE_ZC);
    CHECK(sent > 0 && sent <= 4096 && offset == 77 + sent);
    expect(pair[1], 77, (size_t)sent);
    return 0;
}
