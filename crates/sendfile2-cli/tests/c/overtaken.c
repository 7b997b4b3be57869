/* overtaken FILE: sends the file to the first client, overwrites it with the letter B when sendfile has
 * returned, says so, and waits until its standard input ends. */
#include <arpa/inet.h>
#include <stdio.h>
#include <stdlib.h>
#include <fcntl.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

#define CHECK(it) do { if (!(it)) { perror(#it); exit(1); } } while (0)

int main(int count, char **arguments)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof at;
    struct stat stat;
    CHECK(count == 2);
    int listener = socket(AF_INET, SOCK_STREAM, 0), file = open(arguments[1], O_RDWR);
    CHECK(listener >= 0 && file >= 0 && !fstat(file, &stat));
    CHECK(!bind(listener, (void *)&at, sizeof at) && !listen(listener, 1));
    CHECK(!getsockname(listener, (void *)&at, &length));
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    int client = accept(listener, NULL, NULL);
    CHECK(client >= 0);
    /* Half by an offset, half by the file's position. */
    off_t offset = 0, half = stat.st_size / 2;
    while (offset < half)
        CHECK(sendfile(client, file, &offset, (size_t)(half - offset)) > 0);
    CHECK(offset == half && lseek(file, 0, SEEK_CUR) == 0 && lseek(file, half, SEEK_SET) == half);
    for (ssize_t sent; (sent = sendfile(client, file, NULL, 1 << 30)) != 0;)
        CHECK(sent > 0);
    CHECK(lseek(file, 0, SEEK_CUR) == stat.st_size);
    char *others = malloc((size_t)stat.st_size);
    memset(others, 'B', (size_t)stat.st_size);
    CHECK(pwrite(file, others, (size_t)stat.st_size, 0) == stat.st_size);
    puts("overwritten");
    fflush(stdout);
    close(client);
    while (read(0, others, 1) > 0)
        ;
    return 0;
}
