/* many FILE SIZE COUNT: sends to each of so many clients, which begin by its number, its part of the file,
 * of this size, in a thread of its own, and overwrites the part when the calls have returned. Says when
 * all are sent. */
#include <arpa/inet.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <unistd.h>

#define CHECK(it) do { if (!(it)) { perror(#it); exit(1); } } while (0)

static int file;
static size_t size;

static void *serve(void *argument)
{
    int client = (int)(intptr_t)argument;
    uint32_t number;
    CHECK(recv(client, &number, sizeof number, MSG_WAITALL) == sizeof number);
    off_t begin = (off_t)number * (off_t)size, offset = begin, end = begin + (off_t)size;
    while (offset < end)
        CHECK(sendfile(client, file, &offset, (size_t)(end - offset)) > 0);
    char *others = malloc(size);
    CHECK(others);
    memset(others, 0xff, size);
    CHECK(pwrite(file, others, size, begin) == (ssize_t)size);
    free(others);
    close(client);
    return NULL;
}

int main(int words, char **arguments)
{
    struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    socklen_t length = sizeof at;
    struct rlimit limit;
    pthread_attr_t attributes;
    int small = 1 << 14;
    CHECK(words == 4);
    size = strtoul(arguments[2], NULL, 10);
    unsigned long count = strtoul(arguments[3], NULL, 10);
    CHECK(!getrlimit(RLIMIT_NOFILE, &limit));
    limit.rlim_cur = limit.rlim_max;
    CHECK(!setrlimit(RLIMIT_NOFILE, &limit));
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    file = open(arguments[1], O_RDWR);
    CHECK(listener >= 0 && file >= 0);
    CHECK(!setsockopt(listener, SOL_SOCKET, SO_SNDBUF, &small, sizeof small));
    CHECK(!bind(listener, (void *)&at, sizeof at) && !listen(listener, 4096));
    CHECK(!getsockname(listener, (void *)&at, &length));
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    pthread_t *threads = calloc(count, sizeof *threads);
    CHECK(threads && !pthread_attr_init(&attributes));
    CHECK(!pthread_attr_setstacksize(&attributes, 1 << 16));
    for (unsigned long i = 0; i < count; i++) {
        int client = accept(listener, NULL, NULL);
        CHECK(client >= 0);
        CHECK(!pthread_create(&threads[i], &attributes, serve, (void *)(intptr_t)client));
    }
    for (unsigned long i = 0; i < count; i++)
        CHECK(!pthread_join(threads[i], NULL));
    puts("sent");
    return 0;
}
