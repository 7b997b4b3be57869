/* Imports sendfile, says that it runs, and waits until its standard input ends. */
#include <stdio.h>
#include <sys/sendfile.h>
#include <unistd.h>

int main(void)
{
    char byte;
    printf("%zd\n", sendfile(-1, -1, 0, 0));
    fflush(stdout);
    while (read(0, &byte, 1) > 0)
        ;
    return 0;
}
