/* A TCP socket in a BPF sockmap, and raw sockets: where no call has one id. */
#include "check.h"
#include "sockmap.h"

static char bytes[256 << 10];

static void send_all(int socket)
{
    int on = 1;
    CHECK(!setsockopt(socket, SOL_SOCKET, SO_ZEROCOPY, &on, sizeof on));
    CHECK(send(socket, bytes, sizeof bytes, MSG_ZEROCOPY) == sizeof bytes);
}

/* What the refusal is for: one send, many ids. */
static void control(int map)
{
    static char got[sizeof bytes];
    int pair[2];
    for (int inside = 0; inside <= 1; inside++) {
        tcp_pair(pair);
        struct ids ids = { .socket = pair[0] };
        if (inside)
            CHECK(!sockmap_put(map, pair[0]));
        send_all(pair[0]);
        CHECK(recv(pair[1], got, sizeof got, MSG_WAITALL) == sizeof got);
        while (ids_read(&ids), ids.seen < (inside ? 2 : 1)) {
            struct pollfd ready = { .fd = pair[0] };
            CHECK(poll(&ready, 1, TIMEOUT) == 1);
        }
        printf("%s the map: %zu ids or more\n", inside ? "in" : "not in", ids.seen);
        if (inside)
            CHECK(!sockmap_take(map));
        close(pair[0]);
        close(pair[1]);
    }
}

static void refused(int map)
{
    const size_t length = 200000;
    int pair[2], file = make_file(length);
    off_t offset = 0;
    tcp_pair(pair);
    struct ids ids = { .socket = pair[0] };
    CHECK(sendfile2(pair[0], file, &offset, 70000, SENDFILE_ZC) == 70000);
    expect(pair[1], 0, 70000);
    CHECK(!sockmap_put(map, pair[0]));
    CHECK(sendfile2(pair[0], file, &offset, 70000, SENDFILE_ZC) == -1);
    CHECK(errno == EOPNOTSUPP && offset == 70000);
    struct sendfile2_file *kept = sendfile2_file_open(file);
    CHECK(kept && sendfile2_file_send(pair[0], kept, &offset, 70000, SENDFILE_ZC) == -1);
    CHECK(errno == EOPNOTSUPP && offset == 70000);
    sendfile2_file_close(kept);
    /* It is copied there. */
    CHECK(sendfile2(pair[0], file, &offset, 50000, SENDFILE_SYNC) == 50000);
    expect(pair[1], 70000, 50000);
    CHECK(!sockmap_take(map));
    ids.next = 1;
    if (!in_kernel()) {
        CHECK(sendfile2(pair[0], file, &offset, 80000, SENDFILE_ZC) == 80000);
        expect(pair[1], 120000, 80000);
        ids.next = 2;
    }
    ids_check(&ids);
    close(pair[0]);
    close(pair[1]);
    close(file);
}

static void raw(int protocol)
{
    struct sockaddr_in to = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
    int file = make_file(100), out = socket(AF_INET, SOCK_RAW | SOCK_CLOEXEC, protocol);
    off_t offset = 0;
    if (out < 0) {
        SKIP("raw sockets: %s", strerrorname_np(errno));
        return;
    }
    CHECK(!connect(out, (void *)&to, sizeof to));
    CHECK(!sendfile2_queue_open(out, 0) && errno == EOPNOTSUPP);
    CHECK(sendfile2(out, file, &offset, 100, SENDFILE_ZC) == -1 && errno == EOPNOTSUPP && !offset);
    CHECK(sendfile2(out, file, &offset, 100, SENDFILE_SYNC) == 100);
    close(out);
    close(file);
}

int main(void)
{
    raw(IPPROTO_TCP);
    raw(IPPROTO_UDP);
    int map = sockmap_new();
    if (map < 0) {
        SKIP("no sockmap here: %s", strerrorname_np(errno));
        return 0;
    }
    control(map);
    refused(map);
    return 0;
}
