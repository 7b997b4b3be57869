// SPDX-License-Identifier: GPL-2.0
/*
 * Counts packets that carry pages of the page cache, and whether they say so.
 *
 * Code below TCP may write to a packet's pages in place unless SKBFL_SHARED_FRAG is set: who puts
 * pages of the page cache into a packet must set it, and who moves them must keep it. This looks at
 * each packet as it leaves, after routing, at a packet tap, at the device, and where it arrives.
 *
 * For tests in guests alone: two of its modes break what it looks for, to show that it is seen.
 *
 * Copyright (c) 2026 The sendfile2 authors
 */
#include <linux/atomic.h>
#include <linux/highmem.h>
#include <linux/mm.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter_ipv4.h>
#include <linux/pagemap.h>
#include <linux/skbuff.h>
#include <linux/string.h>
#include <linux/tracepoint.h>
#include <net/net_namespace.h>

enum sfp_place {
	SFP_LEFT,	/* before anything else of NF_INET_LOCAL_OUT */
	SFP_ROUTED,	/* after NF_INET_POST_ROUTING */
	SFP_TAP,	/* the copy of what is sent that a packet tap gets */
	SFP_DEVICE,	/* what a driver is given */
	SFP_ARRIVED,	/* the copy of what has arrived that a packet tap gets */
	SFP_PLACES,
};

/* Of packets that have frags. */
enum sfp_kind {
	SFP_PRIVATE,	/* no page of the page cache */
	SFP_MARKED,	/* one at least, and SKBFL_SHARED_FRAG */
	SFP_UNMARKED,	/* one at least, without it */
	SFP_KINDS,
};

/* What is done to packets with pages of the page cache, where they leave their socket. */
enum sfp_mode {
	SFP_LOOK,
	SFP_UNMARK,	/* takes SKBFL_SHARED_FRAG away */
	SFP_WRITE,	/* inverts the first byte of each such page */
	SFP_MODES,
};

static atomic_long_t sfp_counts[SFP_PLACES][SFP_KINDS];
static unsigned int sfp_mode;

static bool sfp_is_cached(const skb_frag_t *frag)
{
	struct page *page = skb_frag_page(frag);
	struct folio *folio;

	if (!page)
		return false;
	folio = page_folio(page);
	/* None for anonymous memory, and for what the kernel allocates for itself. */
	return folio_mapping(folio) && !folio_test_swapcache(folio);
}

static void sfp_look_at_one(const struct sk_buff *skb, enum sfp_place place)
{
	const struct skb_shared_info *shinfo = skb_shinfo(skb);
	enum sfp_kind kind = SFP_PRIVATE;
	int i;

	for (i = 0; i < shinfo->nr_frags; i++) {
		if (sfp_is_cached(&shinfo->frags[i]))
			kind = shinfo->flags & SKBFL_SHARED_FRAG ? SFP_MARKED : SFP_UNMARKED;
	}
	if (shinfo->nr_frags)
		atomic_long_inc(&sfp_counts[place][kind]);
}

static void sfp_look(const struct sk_buff *skb, enum sfp_place place)
{
	const struct sk_buff *part;

	sfp_look_at_one(skb, place);
	skb_walk_frags(skb, part)
		sfp_look_at_one(part, place);
}

static void sfp_break(struct sk_buff *skb, unsigned int mode)
{
	struct skb_shared_info *shinfo = skb_shinfo(skb);
	int i;

	for (i = 0; i < shinfo->nr_frags; i++) {
		skb_frag_t *frag = &shinfo->frags[i];
		unsigned int at = skb_frag_off(frag);
		u8 *byte;

		if (!sfp_is_cached(frag))
			continue;
		if (mode == SFP_UNMARK) {
			shinfo->flags &= ~SKBFL_SHARED_FRAG;
			continue;
		}
		byte = kmap_local_page(skb_frag_page(frag) + (at >> PAGE_SHIFT));
		byte[offset_in_page(at)] ^= 0xff;
		kunmap_local(byte);
	}
}

static unsigned int sfp_leaves(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	unsigned int mode = READ_ONCE(sfp_mode);

	sfp_look(skb, SFP_LEFT);
	if (mode != SFP_LOOK)
		sfp_break(skb, mode);
	return NF_ACCEPT;
}

static unsigned int sfp_routed(void *priv, struct sk_buff *skb, const struct nf_hook_state *state)
{
	sfp_look(skb, SFP_ROUTED);
	return NF_ACCEPT;
}

static const struct nf_hook_ops sfp_hooks[] = {
	{
		.hook		= sfp_leaves,
		.pf		= NFPROTO_INET,
		.hooknum	= NF_INET_LOCAL_OUT,
		.priority	= NF_IP_PRI_FIRST,
	},
	{
		.hook		= sfp_routed,
		.pf		= NFPROTO_INET,
		.hooknum	= NF_INET_POST_ROUTING,
		.priority	= NF_IP_PRI_LAST,
	},
};

static int __net_init sfp_net_init(struct net *net)
{
	return nf_register_net_hooks(net, sfp_hooks, ARRAY_SIZE(sfp_hooks));
}

static void __net_exit sfp_net_exit(struct net *net)
{
	nf_unregister_net_hooks(net, sfp_hooks, ARRAY_SIZE(sfp_hooks));
}

static struct pernet_operations sfp_net_ops = {
	.init	= sfp_net_init,
	.exit	= sfp_net_exit,
};

static int sfp_tapped(struct sk_buff *skb, struct net_device *dev, struct packet_type *type,
		      struct net_device *orig_dev)
{
	sfp_look(skb, skb->pkt_type == PACKET_OUTGOING ? SFP_TAP : SFP_ARRIVED);
	consume_skb(skb);
	return NET_RX_SUCCESS;
}

static struct packet_type sfp_tap = {
	.type	= htons(ETH_P_ALL),
	.func	= sfp_tapped,
};

static void sfp_device(void *data, const struct sk_buff *skb, const struct net_device *dev)
{
	sfp_look(skb, SFP_DEVICE);
}

/* It is not exported by its name. */
static struct tracepoint *sfp_tracepoint;

static void sfp_find(struct tracepoint *tp, void *data)
{
	if (!strcmp(tp->name, "net_dev_start_xmit"))
		sfp_tracepoint = tp;
}

static int sfp_get_counts(char *to, const struct kernel_param *kp)
{
	static const char *const places[] = { "left", "routed", "tap", "device", "arrived" };
	int place, len = 0;

	BUILD_BUG_ON(ARRAY_SIZE(places) != SFP_PLACES);
	for (place = 0; place < SFP_PLACES; place++) {
		const atomic_long_t *counts = sfp_counts[place];

		len += sysfs_emit_at(to, len, "%s %ld %ld %ld\n", places[place],
				     atomic_long_read(&counts[SFP_PRIVATE]),
				     atomic_long_read(&counts[SFP_MARKED]),
				     atomic_long_read(&counts[SFP_UNMARKED]));
	}
	return len;
}

/* Whatever is written, all begin from 0. */
static int sfp_set_counts(const char *from, const struct kernel_param *kp)
{
	int place, kind;

	for (place = 0; place < SFP_PLACES; place++) {
		for (kind = 0; kind < SFP_KINDS; kind++)
			atomic_long_set(&sfp_counts[place][kind], 0);
	}
	return 0;
}

static const struct kernel_param_ops sfp_counts_ops = {
	.get	= sfp_get_counts,
	.set	= sfp_set_counts,
};

module_param_cb(counts, &sfp_counts_ops, NULL, 0644);
MODULE_PARM_DESC(counts, "a line for each place: packets with private pages only, marked, unmarked");

static int sfp_set_mode(const char *from, const struct kernel_param *kp)
{
	return param_set_uint_minmax(from, kp, SFP_LOOK, SFP_MODES - 1);
}

static const struct kernel_param_ops sfp_mode_ops = {
	.get	= param_get_uint,
	.set	= sfp_set_mode,
};

module_param_cb(mode, &sfp_mode_ops, &sfp_mode, 0644);
MODULE_PARM_DESC(mode, "0 looks; 1 takes the mark away; 2 writes to pages of the page cache");

static int __init sfp_init(void)
{
	int ret;

	for_each_kernel_tracepoint(sfp_find, NULL);
	if (!sfp_tracepoint)
		return -ENOENT;
	ret = tracepoint_probe_register(sfp_tracepoint, sfp_device, NULL);
	if (ret)
		return ret;
	ret = register_pernet_subsys(&sfp_net_ops);
	if (ret) {
		tracepoint_probe_unregister(sfp_tracepoint, sfp_device, NULL);
		tracepoint_synchronize_unregister();
		return ret;
	}
	dev_add_pack(&sfp_tap);
	return 0;
}

static void __exit sfp_exit(void)
{
	dev_remove_pack(&sfp_tap);
	unregister_pernet_subsys(&sfp_net_ops);
	tracepoint_probe_unregister(sfp_tracepoint, sfp_device, NULL);
	tracepoint_synchronize_unregister();
}

module_init(sfp_init);
module_exit(sfp_exit);

MODULE_DESCRIPTION("counts packets with pages of the page cache, for tests");
MODULE_AUTHOR("The sendfile2 authors");
MODULE_LICENSE("GPL");
