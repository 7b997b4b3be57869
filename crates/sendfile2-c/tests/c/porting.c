/* Overtakes a server of the porting guide: porting before|after. The file is overwritten as soon as
 * serve() has returned. */
#include "check.h"
#include <pthread.h>

int serve(int client, int file, off_t size);

enum { SIZE = 1 << 20 };
static char body[SIZE + 64], new[SIZE];
static size_t length;

static void *receive(void *argument)
{
    ssize_t some;
    while ((some = recv(*(int *)argument, body + length, sizeof body - length, 0)) > 0)
        length += (size_t)some;
    return NULL;
}

int main(int count, char **arguments)
{
    int pair[2], file = make_file(SIZE);
    bool after = count == 2 && !strcmp(arguments[1], "after");
    pthread_t thread;
    alarm(60);
    tcp_pair(pair);
    /* Before, all of it fits the socket, and is received when it has been overwritten. */
    if (after)
        CHECK(!pthread_create(&thread, NULL, receive, &pair[1]));
    CHECK(!serve(pair[0], file, SIZE));
    CHECK(pwrite(file, new, SIZE, 0) == SIZE);
    CHECK(!shutdown(pair[0], SHUT_WR));
    if (!after)
        CHECK(!pthread_create(&thread, NULL, receive, &pair[1]));
    CHECK(!pthread_join(thread, NULL));
    size_t wrong = 0, header = length - SIZE;
    CHECK(length == SIZE || length == SIZE + 19);
    for (size_t i = 0; i < SIZE; i++)
        wrong += (unsigned char)body[header + i] != pattern((off_t)i);
    printf("%zu of %d bytes are wrong\n", wrong, SIZE);
    CHECK(after ? wrong == 0 : wrong > SIZE / 2);
    return 0;
}
