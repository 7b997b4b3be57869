//! What lies below TCP, and how it is set up between two ends of a link.

/// One thing below TCP. The scripts have `$DEV` and `$HERE`, the device and the address of this
/// end, `$PDEV` and `$THERE`, those of the other one in the namespace `peer`, and [`PRELUDE`].
#[derive(Debug, Clone, Copy)]
pub(crate) struct Layer {
    pub(crate) name: &'static str,
    pub(crate) up: &'static str,
    pub(crate) down: &'static str,
    /// The address that is sent to, if it is not `$THERE`.
    pub(crate) to: Option<&'static str>,
    /// Whether it writes an X into what is sent, so that it is seen to have done something.
    pub(crate) writes: bool,
    /// Whether it is tried over the network device, too: what makes packets anew.
    pub(crate) device: bool,
    /// Whether what is not sent again may not arrive.
    pub(crate) lossy: bool,
    pub(crate) helper: Option<Helper>,
}

/// A task of this program's for a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Helper {
    /// Carries packets between two tun devices.
    Tun,
    /// Writes an X into packets of a queue of netfilter's.
    Queue,
    /// Takes packets of such a queue before they are cut, and lets them go.
    QueueWhole,
    /// Puts the kernel's TLS on both sockets.
    Tls,
}

/// The path at which a BPF program is pinned that writes an X.
pub(crate) const PROGRAM: &std::ffi::CStr = c"/tmp/bpf/write";

/// Functions of the scripts, and the ends of what they begin.
pub(crate) const PRELUDE: &str = r#"
p() { ip netns exec peer "$@"; }
there() { printf '%s\n' "$@" | ip -n peer -batch -; }
addresses() {
    printf '%s\n' 'addr add 10.10.0.1/24 dev over0' 'link set over0 up' | ip -batch -
    there 'addr add 10.10.0.2/24 dev over1' 'link set over1 up'
}
no_over() { ip link del over0; ip -n peer link del over1; }
xfrm() {
    t="proto $1 mode $2"; shift 2
    s="xfrm state add src $HERE dst $THERE spi 0x100 $t $*
xfrm state add src $THERE dst $HERE spi 0x101 $t $*"
    o="tmpl src $HERE dst $THERE $t $L"; i="tmpl src $THERE dst $HERE $t $L"
    printf '%s\n' "$s" "xfrm policy add src $HERE dst $THERE dir out $o" \
        "xfrm policy add src $THERE dst $HERE dir in $i" | ip -batch -
    there "$s" "xfrm policy add src $THERE dst $HERE dir out $i" \
        "xfrm policy add src $HERE dst $THERE dir in $o"
}
no_xfrm() {
    printf '%s\n' 'xfrm state flush' 'xfrm policy flush' | ip -batch -
    there 'xfrm state flush' 'xfrm policy flush'
}
L=
k=000102030405060708090a0b0c0d0e0f
mac() { cat /sys/class/net/$1/address; }
tx() { tc qdisc add dev $DEV clsact; tc filter add dev $DEV egress "$@"; }
no_tx() { tc qdisc del dev $DEV clsact; }
rx() { tc -n peer qdisc add dev $PDEV clsact; tc -n peer filter add dev $PDEV ingress "$@"; }
no_rx() { tc -n peer qdisc del dev $PDEV clsact; }
"#;

const PLAIN: Layer = Layer {
    name: "nothing",
    up: "",
    down: "",
    to: None,
    writes: false,
    device: false,
    lossy: false,
    helper: None,
};

/// The address behind what makes a network of its own.
const OVER: Option<&str> = Some("10.10.0.2");

/// Layers whose names begin with ESP are tried again with `esp4_offload`, which segments and encrypts later.
pub(crate) const LAYERS: [Layer; 28] = [
    PLAIN,
    Layer {
        name: "ESP, transport, AES-GCM",
        up: "xfrm esp transport aead 'rfc4106(gcm(aes))' 0x${k}10111213 128",
        down: "no_xfrm",
        device: true,
        ..PLAIN
    },
    Layer {
        name: "ESP, tunnel, AES-GCM",
        up: "xfrm esp tunnel aead 'rfc4106(gcm(aes))' 0x${k}10111213 128",
        down: "no_xfrm",
        device: true,
        ..PLAIN
    },
    Layer {
        name: "ESP, transport, AES-CBC, SHA-256, ESN",
        up: "xfrm esp transport auth 'hmac(sha256)' 0x$k$k enc 'cbc(aes)' 0x$k \
             flag esn replay-window 32",
        down: "no_xfrm",
        device: true,
        ..PLAIN
    },
    Layer {
        name: "AH, transport, SHA-256",
        up: "xfrm ah transport auth 'hmac(sha256)' 0x$k$k",
        down: "no_xfrm",
        device: true,
        ..PLAIN
    },
    Layer {
        name: "IPComp, deflate",
        up: "L='level use'; xfrm comp transport comp deflate",
        down: "no_xfrm",
        device: true,
        ..PLAIN
    },
    Layer {
        name: "MACsec, encrypted",
        up: "a=$(mac $DEV); b=$(p cat /sys/class/net/$PDEV/address)
             ip link add link $DEV over0 type macsec encrypt on
             m='macsec add over0'
             printf '%s\\n' \"$m tx sa 0 pn 1 on key 01 $k\" \"$m rx port 1 address $b\" \
                 \"$m rx port 1 address $b sa 0 pn 1 on key 01 $k\" | ip -batch -
             there \"link add link $PDEV over1 type macsec encrypt on\" \
                 \"macsec add over1 tx sa 0 pn 1 on key 01 $k\" \
                 \"macsec add over1 rx port 1 address $a\" \
                 \"macsec add over1 rx port 1 address $a sa 0 pn 1 on key 01 $k\"
             addresses",
        down: "no_over",
        to: OVER,
        device: true,
        ..PLAIN
    },
    Layer {
        name: "WireGuard",
        up: "umask 077; wg genkey > /tmp/a; wg genkey > /tmp/b
             ip link add over0 type wireguard; ip -n peer link add over1 type wireguard
             wg set over0 private-key /tmp/a listen-port 51820 peer $(wg pubkey < /tmp/b) \
                 allowed-ips 10.10.0.2/32 endpoint $THERE:51820
             p wg set over1 private-key /tmp/b listen-port 51820 peer $(wg pubkey < /tmp/a) \
                 allowed-ips 10.10.0.1/32 endpoint $HERE:51820
             addresses",
        down: "no_over",
        to: OVER,
        device: true,
        ..PLAIN
    },
    Layer {
        name: "VXLAN with checksums",
        up: "o='id 1 dstport 4789 udpcsum'
             ip link add over0 type vxlan local $HERE remote $THERE $o
             ip -n peer link add over1 type vxlan local $THERE remote $HERE $o
             addresses",
        down: "no_over",
        to: OVER,
        device: true,
        ..PLAIN
    },
    Layer {
        name: "GRE with checksums",
        up: "ip link add over0 type gre local $HERE remote $THERE csum
             ip -n peer link add over1 type gre local $THERE remote $HERE csum
             addresses",
        down: "no_over",
        to: OVER,
        device: true,
        ..PLAIN
    },
    Layer {
        name: "tun, read by a program",
        up: "addresses",
        to: OVER,
        helper: Some(Helper::Tun),
        ..PLAIN
    },
    Layer { name: "kernel TLS", helper: Some(Helper::Tls), ..PLAIN },
    Layer {
        name: "tc, segmented by tbf",
        up: "tc qdisc replace dev $DEV root tbf rate 1gbit burst 10kb limit 1mb",
        down: "tc qdisc del dev $DEV root",
        device: true,
        ..PLAIN
    },
    Layer {
        name: "tc, corrupted by netem",
        up: "tc qdisc replace dev $DEV root netem corrupt 2%",
        down: "tc qdisc del dev $DEV root",
        lossy: true,
        ..PLAIN
    },
    Layer {
        name: "tc, csum",
        up: "tx protocol ip matchall action csum ip tcp",
        down: "no_tx",
        ..PLAIN
    },
    Layer {
        name: "tc, pedit of the payload",
        up: "tx protocol ip matchall action pedit munge offset 140 u8 set 0x58",
        down: "no_tx",
        writes: true,
        ..PLAIN
    },
    Layer {
        name: "tc, pedit of the payload, where it arrives",
        up: "rx protocol ip matchall action pedit munge offset 140 u8 set 0x58",
        down: "no_rx",
        writes: true,
        ..PLAIN
    },
    Layer {
        name: "tc, skbmod",
        up: "tx matchall action skbmod set smac $(mac $DEV)",
        down: "no_tx",
        ..PLAIN
    },
    Layer {
        name: "tc, BPF, bpf_skb_store_bytes",
        up: "tx bpf direct-action object-pinned /tmp/bpf/write",
        down: "no_tx",
        writes: true,
        ..PLAIN
    },
    Layer {
        name: "tc, BPF, bpf_skb_store_bytes, where it arrives",
        up: "rx bpf direct-action object-pinned /tmp/bpf/write",
        down: "no_rx",
        writes: true,
        ..PLAIN
    },
    Layer {
        name: "tc, mirrored to another device",
        up: "ip link add over0 type dummy; ip link set over0 up
             tx matchall action mirred egress mirror dev over0",
        down: "no_tx; ip link del over0",
        ..PLAIN
    },
    Layer {
        name: "nftables, NAT of both addresses",
        up: "nft add table ip t
             nft 'add chain ip t o { type nat hook output priority -100; }'
             nft 'add chain ip t p { type nat hook postrouting priority 100; }'
             nft add rule ip t o ip daddr 10.10.0.2 dnat to $THERE
             nft add rule ip t p oifname $DEV masquerade
             ip route add 10.10.0.2 dev $DEV",
        down: "nft delete table ip t; ip route del 10.10.0.2",
        to: OVER,
        ..PLAIN
    },
    Layer {
        name: "nftables, payload set",
        up: "nft add table ip t
             nft 'add chain ip t o { type filter hook output priority 0; }'
             nft add rule ip t o meta l4proto tcp meta length '>' 300 @th,960,8 set 0x58",
        down: "nft delete table ip t",
        writes: true,
        ..PLAIN
    },
    Layer {
        name: "nftables, payload set, where it arrives",
        up: "p nft add table ip t
             p nft 'add chain ip t i { type filter hook prerouting priority 0; }'
             p nft add rule ip t i meta l4proto tcp meta length '>' 300 @th,960,8 set 0x58",
        down: "p nft delete table ip t",
        writes: true,
        ..PLAIN
    },
    Layer {
        name: "nftables, queue, written by a program",
        up: "nft add table ip t
             nft 'add chain ip t o { type filter hook output priority 0; }'
             nft add rule ip t o meta l4proto tcp ip daddr $THERE queue num 7",
        down: "nft delete table ip t",
        writes: true,
        helper: Some(Helper::Queue),
        ..PLAIN
    },
    Layer {
        name: "nftables, queue, of whole packets",
        up: "nft add table ip t
             nft 'add chain ip t o { type filter hook output priority 0; }'
             nft add rule ip t o meta l4proto tcp ip daddr $THERE queue num 7",
        down: "nft delete table ip t",
        helper: Some(Helper::QueueWhole),
        ..PLAIN
    },
    Layer {
        name: "VLAN",
        up: "ip link add link $DEV over0 type vlan id 5
             ip -n peer link add link $PDEV over1 type vlan id 5
             addresses",
        down: "no_over",
        to: OVER,
        ..PLAIN
    },
    Layer {
        name: "bridge",
        up: "ip link add over0 type bridge; ip link set $DEV master over0
             ip addr del $HERE/24 dev $DEV; ip addr add $HERE/24 dev over0; ip link set over0 up",
        down: "ip link del over0; ip addr add $HERE/24 dev $DEV",
        ..PLAIN
    },
];
