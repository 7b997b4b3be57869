/* refused FILE: calls of sendfile that nobody can answer; prints their errors. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/sendfile.h>
#include <sys/socket.h>

int main(int count, char **arguments)
{
    int pair[2], file = count > 1 ? open(arguments[1], O_RDONLY) : -1;
    off_t offset = 0;
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
#ifdef __x86_64__
    /* As a 32-bit program: sendfile64 of descriptors that there are not. */
    long ret = 239;
    __asm__ volatile("int $0x80" : "+a"(ret) : "b"(-1L), "c"(-1L), "d"(0L), "S"(5L) : "memory", "r8", "r9", "r10", "r11");
    puts(strerrorname_np((int)-ret));
#else
    puts("ENOSYS");
#endif
    prctl(PR_SET_DUMPABLE, 0);
    ssize_t sent = sendfile(pair[0], file, &offset, 5);
    puts(sent < 0 ? strerrorname_np(errno) : "sent");
    return 0;
}
