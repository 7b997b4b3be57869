/* Forks a child that sends nothing and one that calls sendfile once; each ends by exit(3). */
#include "check.h"

int main(void)
{
    int status, pair[2], file = make_file(1000);
    tcp_pair(pair);
    CHECK(sendfile(pair[0], file, &(off_t){ 0 }, 10) == 10);
    CHECK(sendfile(pair[0], file, &(off_t){ 0 }, 10) == 10);
    for (int i = 0; i < 2; i++) {
        fflush(NULL);
        pid_t child = fork();
        CHECK(child >= 0);
        if (child == 0) {
            if (i == 1)
                CHECK(sendfile(pair[0], file, &(off_t){ 0 }, 7) == 7);
            exit(0);
        }
        CHECK(waitpid(child, &status, 0) == child && status == 0);
    }
    return 0;
}
