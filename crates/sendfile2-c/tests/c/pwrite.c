/* sendfile2_pwrite(): what is queued by sendfile(2) keeps its bytes, and nothing is written where
 * that is impossible. */
#include "check.h"

#include <sys/prctl.h>

enum { SIZE = 1 << 20, FROM = 256 << 10, PART = 64 << 10 };

/* What is written instead of pattern(). */
static unsigned char fresh[PART];

/* Queues the part by sendfile(2), to a peer that does not read; returns that peer. */
static int queued(int file)
{
    int pair[2];
    tcp_pair_with(pair, 1 << 20);
    off_t at = FROM;
    while (at < FROM + PART)
        CHECK(sendfile(pair[0], file, &at, (size_t)(FROM + PART - at)) > 0);
    close(pair[0]);
    return pair[1];
}

/* The bytes that are not those that were queued. */
static size_t wrong(int peer)
{
    static unsigned char got[PART];
    size_t wrong = 0;
    CHECK(recv(peer, got, PART, MSG_WAITALL) == PART);
    for (off_t i = 0; i < PART; i++)
        wrong += got[i] != pattern(FROM + i);
    close(peer);
    return wrong;
}

static bool holds(int file, bool written)
{
    static unsigned char now[SIZE];
    CHECK(pread(file, now, SIZE, 0) == SIZE);
    for (off_t i = 0; i < SIZE; i++) {
        bool inside = written && i >= FROM && i < FROM + PART;
        if (now[i] != (inside ? fresh[i - FROM] : pattern(i)))
            return false;
    }
    return true;
}

static void control_pwrite(int file)
{
    int peer = queued(file);
    CHECK(pwrite(file, fresh, PART, FROM) == PART);
    CHECK(wrong(peer) > 0);
}

/* However the descriptor is open. */
static void overwritten(int file)
{
    static const int flags[] = { O_RDWR, O_RDONLY, O_WRONLY, O_RDWR | O_DIRECT, O_RDWR | O_APPEND };
    for (size_t i = 0; i < sizeof flags / sizeof *flags; i++) {
        for (off_t at = FROM; at < FROM + PART; at++)
            CHECK(pwrite(file, &(char){ (char)pattern(at) }, 1, at) == 1);
        int other = reopen(file, flags[i]), before = fcntl(other, F_GETFL);
        int peer = queued(file);
        errno = 12345;
        CHECK(sendfile2_pwrite(other, fresh, PART, FROM, 0) == PART && errno == 12345);
        CHECK(wrong(peer) == 0);
        CHECK(fcntl(other, F_GETFL) == before && lseek(other, 0, SEEK_CUR) == 0);
        CHECK(holds(file, true));
        close(other);
    }
}

static void fails(int fd, const void *buffer, size_t count, off_t offset, int flags, int error)
{
    errno = 0;
    CHECK(sendfile2_pwrite(fd, buffer, count, offset, flags) == -1);
    if (errno != error)
        fprintf(stderr, "count %zu, offset %lld: not %s\n", count, (long long)offset,
                strerrorname_np(error));
    CHECK(errno == error);
}

static void errors(int file)
{
    ssize_t unit = sendfile2_pwrite_unit(file);
    CHECK(unit >= 512 && unit <= PART);
    size_t one = (size_t)unit;
    fails(file, fresh, one, 0, 1, EINVAL);
    fails(file, fresh, one, 1, 0, EINVAL);
    fails(file, fresh, one - 1, 0, 0, EINVAL);
    fails(file, fresh, one, -unit, 0, EINVAL);
    fails(file, fresh, SIZE_MAX, 0, 0, EINVAL);
    fails(file, NULL, one, 0, 0, EFAULT);
    fails(file, fresh, one, SIZE, 0, ENXIO);
    fails(file, fresh, 2 * one, SIZE - unit, 0, ENXIO);
    CHECK(holds(file, false));
    CHECK(sendfile2_pwrite(file, NULL, 0, 0, 0) == 0);

    int path = open("/proc/self/exe", O_PATH), pipes[2], pair[2];
    CHECK(path >= 0 && !pipe(pipes));
    tcp_pair(pair);
    int directory = open("/", O_RDONLY), device = open("/dev/null", O_RDWR);
    const struct { int fd, error; } bad[] = {
        { -1, EBADF }, { 9999, EBADF }, { path, EBADF }, { pipes[1], EINVAL }, { pair[0], EINVAL },
        { directory, EINVAL }, { device, EINVAL },
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        fails(bad[i].fd, fresh, one, 0, 0, bad[i].error);
        errno = 0;
        CHECK(sendfile2_pwrite_unit(bad[i].fd) == -1 && errno == bad[i].error);
    }
}

/* The page cache is all that there is of such a file. */
static void in_memory(void)
{
    int file = memfd_create("file", MFD_CLOEXEC);
    CHECK(file >= 0 && !ftruncate(file, PART));
    fails(file, fresh, PART, 0, 0, EOPNOTSUPP);
    errno = 0;
    CHECK(sendfile2_pwrite_unit(file) == -1 && errno == EOPNOTSUPP);
    char first;
    CHECK(pread(file, &first, 1, 0) == 1 && first == 0);
    close(file);
}

/* A limit is an error, and no signal. */
static void limited(void *file)
{
    struct rlimit limit = { PART, RLIM_INFINITY };
    CHECK(!setrlimit(RLIMIT_FSIZE, &limit));
    fails(*(int *)file, fresh, PART, FROM, 0, EFBIG);
}

/* Whoever may not open the file for writing. */
static void not_permitted(void *file)
{
    if (geteuid() == 0) {
        CHECK(!setresgid(65534, 65534, 65534) && !setresuid(65534, 65534, 65534));
        /* Or /proc/self would be root's. */
        CHECK(!prctl(PR_SET_DUMPABLE, 1));
    } else {
        CHECK(!fchmod(*(int *)file, 0400));
    }
    fails(*(int *)file, fresh, PART, FROM, 0, EACCES);
}

int main(void)
{
    for (off_t i = 0; i < PART; i++)
        fresh[i] = (unsigned char)~pattern(FROM + i);
    in_memory();
    int file = make_file(SIZE);
    control_pwrite(file);
    close(file);
    file = make_file(SIZE);
    ssize_t done = sendfile2_pwrite(file, fresh, PART, FROM, 0);
    if (done == -1 && errno == EOPNOTSUPP) {
        CHECK(holds(file, false));
        SKIP("what is in flight cannot be detached on the filesystem of TEST_DIR");
        return 0;
    }
    CHECK(done == PART);
    overwritten(file);
    close(file);
    file = make_file(SIZE);
    errors(file);
    CHECK(in_a_child(limited, &file) == 0);
    CHECK(in_a_child(not_permitted, &file) == 0);
    CHECK(holds(file, false));
    return 0;
}
