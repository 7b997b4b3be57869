#!/bin/sh
# Sends from one network namespace to another over a veth pair, without and with zerocopy, from
# memory and from a file. Needs no root.
#
#   msg_zerocopy.sh                         tcp and udp, over IPv4 and IPv6
#   msg_zerocopy.sh 4|6 tcp|udp [OPTION]... these options, without -z and with it
#
# TX and RX are the programs that send and receive: msg_zerocopy of this directory or of PATH.
# T is how many seconds each sends: 1.
set -eu

if [ -z "${MSG_ZEROCOPY_INSIDE:-}" ]; then
    export MSG_ZEROCOPY_INSIDE=1
    exec unshare --user --map-root-user --net --mount "$0" "$@"
fi

here=$(dirname "$0")
own=msg_zerocopy
[ ! -x "$here/msg_zerocopy" ] || own=$here/msg_zerocopy
T=${T:-1}
TX=${TX:-$own}
RX=${RX:-$own}

work=$(mktemp -d)
mkfifo "$work/in" "$work/out"
unshare --net sh -c 'echo ready; exec cat' <"$work/in" >"$work/out" &
there=$!
exec 8>"$work/in"
# The other namespace goes with the process in it.
trap 'exec 8>&-; wait; rm -rf "$work"' EXIT
read -r _ <"$work/out"
over_there() { nsenter -t "$there" -n "$@"; }

# The neighbours know each other: a datagram that waits for that is not let go of for a second.
ip link set lo up
ip link add eth0 mtu 65535 address 02:00:00:00:00:01 type veth \
    peer name eth0 mtu 65535 address 02:00:00:00:00:02 netns "$there"
ip addr add 192.168.1.1/24 dev eth0
ip addr add fd::1/64 dev eth0 nodad
ip link set eth0 up
ip neigh add 192.168.1.2 lladdr 02:00:00:00:00:02 dev eth0
ip neigh add fd::2 lladdr 02:00:00:00:00:02 dev eth0
over_there sh -ec '
    ip link set lo up
    ip addr add 192.168.1.2/24 dev eth0
    ip addr add fd::2/64 dev eth0 nodad
    ip link set eth0 up
    ip neigh add 192.168.1.1 lladdr 02:00:00:00:00:01 dev eth0
    ip neigh add fd::1 lladdr 02:00:00:00:00:01 dev eth0'

# listens PROTOCOL: whether somebody receives on port 8000 there.
listens() { over_there sh -c "grep -qs ':1F40 ' /proc/net/$1 /proc/net/${1}6"; }

# run VERSION PROTOCOL [OPTION]...
run() {
    version=$1 protocol=$2
    shift 2
    case $version in
    4) from=192.168.1.1 to=192.168.1.2 ;;
    6) from=fd::1 to=fd::2 ;;
    *) echo "$version is neither 4 nor 6" >&2; exit 1 ;;
    esac
    echo "ipv$version $protocol $*"
    transfer "over_there $RX -$version -i eth0 -D $to -t $((T + 1)) $* -r $protocol" \
        "$TX -$version -i eth0 -S $from -D $to -t $T $* $protocol"
}

# transfer RECEIVER SENDER: their command lines.
transfer() {
    $1 >"$work/received" 2>&1 &
    receiver=$!
    until listens "$protocol"; do
        if ! kill -0 "$receiver" 2>/dev/null; then finish; fi
        sleep 0.02
    done
    $2
    finish
}

finish() {
    status=0
    wait "$receiver" || status=$?
    cat "$work/received"
    [ "$status" = 0 ] || exit "$status"
}

if [ $# = 0 ]; then
    head -c 8388608 /dev/urandom >"$work/file"
    for version in 4 6; do
        for protocol in tcp udp; do
            run "$version" "$protocol"
            run "$version" "$protocol" -z
            run "$version" "$protocol" -f "$work/file"
            run "$version" "$protocol" -z -f "$work/file"
        done
    done
    echo "as in the RFC"
    head -c 8388608 /dev/zero >"$work/sendfile_data"
    cd "$work"
    protocol=tcp
    transfer "over_there $RX -4 -i eth0 -t 2 -v -r tcp" \
        "$TX -4 -i eth0 -D 192.168.1.2 -v -l 1 -t 2 -z -f sendfile_data tcp"
elif [ $# = 1 ]; then
    echo "usage: $0 [4|6 tcp|udp [OPTION]...]" >&2
    exit 1
else
    run "$@"
    run "$@" -z
fi
echo ok
