/* On overlayfs after a copy-up a mapping shows other bytes than pread, so such files are refused,
 * but by a kernel that maps nothing. The directory given is on
 * such a filesystem; the file "lower" is in its lower layer, with pattern() in it. */
#include "check.h"

int main(int count, char **arguments)
{
    int pair[2];
    off_t offset = 0;
    CHECK(count == 2 && !chdir(arguments[1]));
    int file = open("lower", O_RDONLY);
    CHECK(file >= 0);
    tcp_pair(pair);
    for (int copied_up = 0; copied_up < 2; copied_up++) {
        if (copied_up) {
            int up = open("lower", O_WRONLY);
            CHECK(up >= 0 && pwrite(up, &(char){ (char)pattern(0) }, 1, 0) == 1);
            close(up);
        }
        offset = 0;
        ssize_t sent = sendfile2(pair[0], file, &offset, 5000, SENDFILE_ZC);
        if (in_kernel()) {
            CHECK(sent == 5000);
            expect(pair[1], 0, 5000);
        } else {
            CHECK(sent == -1 && errno == EOPNOTSUPP && offset == 0);
        }
    }
    offset = 0;
    int written = open("lower", O_RDWR);
    CHECK(written >= 0);
    CHECK(sendfile2(pair[0], written, &offset, 5000, SENDFILE_ZC) == 5000);
    expect(pair[1], 0, 5000);
    return 0;
}
