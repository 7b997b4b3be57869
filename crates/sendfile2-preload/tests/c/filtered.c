/* The shim where a filter (seccomp) forbids a system call: filtered safe|off.
 * Plain sendfile(2) works in all of these; the shim is to work, or to refuse, and in no case to send
 * the file's pages by reference. */
#include "check.h"
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

enum { LENGTH = 300000 };

struct filtered {
    const char *name;
    int calls[4];   /* forbidden; the rest is 0, which is read(2) and stays allowed */
    bool datagrams; /* to a unix datagram socket */
    bool refused;   /* it cannot be done without */
};

static const struct filtered cases[] = {
    { "nothing", { 0 }, false, false },
    { "mmap", { SYS_mmap }, false, false },
    { "munmap", { SYS_munmap }, false, false },
    { "sendto", { SYS_sendto }, false, false },
    { "mmap and sendto", { SYS_mmap, SYS_sendto }, false, false },
    { "fstatfs", { SYS_fstatfs }, false, false },
    { "fcntl", { SYS_fcntl }, false, false },
#ifdef SYS_newfstatat
    { "fstat", { SYS_fstat, SYS_newfstatat, SYS_statx }, false, false },
#else
    { "fstat", { SYS_fstat, SYS_statx }, false, false },
#endif
    { "getsockopt", { SYS_getsockopt }, false, false },
    { "pipe2", { SYS_pipe2 }, false, false },
    { "getsockopt and fstat", { SYS_getsockopt, SYS_fstat, SYS_statx }, false, false },
    { "pread64", { SYS_pread64 }, false, false },
    { "mmap and pread64", { SYS_mmap, SYS_pread64 }, false, true },
    { "sendto and write", { SYS_sendto, SYS_write }, false, true },
    { "lseek", { SYS_lseek }, false, false },
    { "nothing, datagrams", { 0 }, true, false },
    { "mmap, datagrams", { SYS_mmap }, true, true },
    { "sendto, datagrams", { SYS_sendto }, true, false },
    { "getsockopt, datagrams", { SYS_getsockopt }, true, false },
    { "fstatfs, datagrams", { SYS_fstatfs }, true, false },
};

static int forbidden_with;
static bool off;

static void forbid(const int calls[4])
{
    struct sock_filter filter[16];
    unsigned short length = 0;
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < 4 && calls[i]; i++) {
        filter[length++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], 0, 1);
        filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (unsigned)forbidden_with);
    }
    filter[length++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW);
    struct sock_fprog program = { length, filter };
    CHECK(!prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
    CHECK(!prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program));
}

static void filtered(void *argument)
{
    const struct filtered *it = argument;
    static char got[LENGTH], others[LENGTH];
    int pair[2], file = make_file(LENGTH), copy = make_file(0), room = 1 << 20;
    if (it->datagrams)
        CHECK(!socketpair(AF_UNIX, SOCK_DGRAM, 0, pair));
    else
        tcp_pair(pair);
    CHECK(!setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &room, sizeof room));
    nonblocking(pair[0], true);
    nonblocking(pair[1], true);
    off_t offset = 0;
    size_t wrong = 0, got_in_all = 0, count = it->datagrams ? 60000 : LENGTH;
    forbid(it->calls);
    errno = 0;
    ssize_t sent = sendfile(pair[0], file, &offset, count);
    int error = errno;
    /* Overwritten at the return. */
    CHECK(pwrite(file, others, LENGTH, 0) == LENGTH);
    /* What is no socket is the kernel's affair still. */
    CHECK(sendfile(copy, file, &(off_t){ 0 }, 10) == 10);
    for (ssize_t some; sent > 0 && got_in_all < (size_t)sent;) {
        some = recvfrom(pair[1], got, sizeof got, 0, NULL, NULL);
        if (some < 0 && errno == EAGAIN) {
            struct pollfd ready = { .fd = pair[1], .events = POLLIN };
            CHECK(poll(&ready, 1, TIMEOUT) == 1);
            continue;
        }
        CHECK(some > 0);
        for (ssize_t i = 0; i < some; i++)
            wrong += (unsigned char)got[i] != pattern((off_t)(got_in_all + (size_t)i));
        got_in_all += (size_t)some;
    }
    if (off) { /* the control: what is told to be wrong can be seen */
        CHECK(sent > 0 && wrong > 0);
        _exit(0);
    }
    if (it->refused ? sent != -1 || error != forbidden_with
                    : sent <= 0 || (!it->datagrams && sent != LENGTH))
        _exit(2);
    if (wrong || (sent > 0 && offset != sent))
        _exit(3);
    _exit(0);
}

int main(int argc, char **arguments)
{
    static const int with[] = { EPERM, ENOSYS, EACCES };
    int failed = 0;
    CHECK(argc == 2);
    off = !strcmp(arguments[1], "off");
    alarm(120);
    for (size_t w = 0; w < sizeof with / sizeof *with; w++)
        for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
            forbidden_with = with[w];
            if (off && (cases[i].refused || cases[i].datagrams))
                continue;
            int status = in_a_child(filtered, (void *)&cases[i]);
            if (status) {
                printf("%s, %s: status %#x\n", cases[i].name, strerrorname_np(with[w]), status);
                failed++;
            }
        }
    return failed > 0;
}
