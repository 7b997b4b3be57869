/*
 * Does to the socket that is its standard error what safe Rust cannot:
 *   sockmap  puts it into a BPF sockmap, until its standard input ends
 *   0, 1     sets SO_ZEROCOPY
 * It says "done" when that is done, and again when the socket is out of the map.
 */
#include <errno.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>

#include "sockmap.h"

int main(int count, char **arguments)
{
    const int socket = 2;
    if (count != 2)
        return 2;
    if (strcmp(arguments[1], "sockmap")) {
        int on = atoi(arguments[1]);
        if (setsockopt(socket, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on))
            return 1;
        puts("done");
        return 0;
    }
    int map = sockmap_new();
    if (map < 0 || sockmap_put(map, socket)) {
        printf("no sockmap here: %s\n", strerror(errno));
        return 0;
    }
    puts("done");
    fflush(stdout);
    while (getchar() != EOF)
        ;
    if (sockmap_take(map))
        return 1;
    puts("done");
    return 0;
}
