// SPDX-License-Identifier: GPL-2.0
/*
 * sendfile(2) that tells when the file's pages are no longer used.
 *
 * sendfile(2) gives pages of the page cache to the network stack and returns; who overwrites the
 * file then changes what the peer receives. Here the stack's references are counted by the same
 * structure as those of send(MSG_ZEROCOPY), so the same notification on the socket's error queue
 * says when the last one is gone; or it wakes the caller, or completes an io_uring command.
 *
 * Copyright (c) 2026 The sendfile2 authors
 */
#include <linux/bits.h>
#include <linux/bvec.h>
#include <linux/completion.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/fsnotify.h>
#include <linux/io_uring/cmd.h>
#include <linux/ktime.h>
#include <linux/miscdevice.h>
#include <linux/module.h>
#include <linux/net.h>
#include <linux/pipe_fs_i.h>
#include <linux/rcupdate.h>
#include <linux/sched/signal.h>
#include <linux/sched/xacct.h>
#include <linux/skbuff.h>
#include <linux/slab.h>
#include <linux/splice.h>
#include <linux/uaccess.h>
#include <net/sock.h>
#include <net/tcp.h>

#include "sendfile2_module.h"

#define SF2_FLAGS	(SENDFILE2_ZC | SENDFILE2_POSITION | SENDFILE2_DONTWAIT | \
			 SENDFILE2_MORE | SENDFILE2_NOSIGNAL | SENDFILE2_WAIT)

/* The bytes of a notification that several calls share. */
#define SF2_NOTE_BYTES	SZ_1M

/*
 * Who is told when the pages of an sf2_ubuf are free. Leaving SF2_PENDING decides it, once, by a
 * cmpxchg: towards SF2_RELEASED for who waits, towards SF2_ABANDONED if they no longer do.
 */
enum sf2_state {
	SF2_PENDING,
	SF2_RELEASED,
	SF2_ABANDONED,
};

/*
 * What counts the stack's references where not only the error queue is to be told. It outlives the
 * call, the command, the ring and the process, so it holds a reference to the module.
 */
struct sf2_ubuf {
	struct ubuf_info	ubuf;
	enum sf2_state		state;
	bool			copied;
	/* io_uring's, or NULL */
	struct io_uring_cmd	*cmd;
	ssize_t			sent;
	/* else: who waits, and what tells the error queue when they no longer do */
	struct completion	released;
	struct ubuf_info	*note;
};

struct sf2_send {
	struct socket		*sock;
	int			msg_flags;
	bool			wait;
	ktime_t			deadline;	/* or KTIME_MAX */
	struct io_uring_cmd	*cmd;
	size_t			count;
	bool			begun;
	/*
	 * What the stack's references are counted by: part of own, once there is something to
	 * send; or note, once something has been sent.
	 */
	struct ubuf_info	*ubuf;
	struct sf2_ubuf		*own;
	struct ubuf_info	*note;
};

static void sf2_free(struct sf2_ubuf *own)
{
	kfree(own);
	module_put(THIS_MODULE);
}

static void sf2_cmd_done(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct sf2_ubuf *own = *io_uring_cmd_to_pdu(cmd, struct sf2_ubuf *);
	u64 state = SENDFILE2_RELEASED | (own->copied ? SENDFILE2_COPIED : 0);

	/* Takes the command off the list of those to cancel: nobody else looks at own then. */
	io_uring_cmd_done(cmd, own->sent, state, issue_flags);
	sf2_free(own);
}

/* In whatever context the last segment is freed: softirq, or preemptible (TCP's backlog). */
static void sf2_complete(struct sk_buff *skb, struct ubuf_info *ubuf, bool success)
{
	struct sf2_ubuf *own = container_of(ubuf, struct sf2_ubuf, ubuf);

	if (!success)
		WRITE_ONCE(own->copied, true);
	if (!refcount_dec_and_test(&ubuf->refcnt))
		return;

	if (cmpxchg(&own->state, SF2_PENDING, SF2_RELEASED) == SF2_ABANDONED) {
		if (own->note) {
			uarg_to_msgzc(own->note)->zerocopy &= !own->copied;
			net_zcopy_put(own->note);
		}
		sf2_free(own);
	} else if (own->cmd) {
		io_uring_cmd_complete_in_task(own->cmd, sf2_cmd_done);
	} else {
		complete(&own->released);
	}
}

static const struct ubuf_info_ops sf2_ubuf_ops = {
	.complete = sf2_complete,
};

/*
 * A notification without an id: one that says nothing when it is put. The exported way to get one
 * takes an id, so that is given back before the socket is unlocked, and nobody has seen it.
 */
static struct ubuf_info *sf2_note_alloc(struct sock *sk)
{
	struct ubuf_info *note;

	lock_sock(sk);
	note = msg_zerocopy_realloc(sk, 0, NULL);
	if (note) {
		msg_zerocopy_put_abort(note, false);
		uarg_to_msgzc(note)->bytelen = SF2_NOTE_BYTES;
	}
	release_sock(sk);
	return note;
}

/*
 * Under the socket's lock: msg_zerocopy_realloc() reads the counter, and sets it later. Whoever
 * holds a reference to the note holds back its notification, so it is not too late for an id.
 */
static void sf2_note_take_id(struct sock *sk, struct ubuf_info *note)
{
	struct ubuf_info_msgzc *uarg = uarg_to_msgzc(note);

	uarg->id = (u32)atomic_inc_return(&sk->sk_zckey) - 1;
	uarg->len = 1;
}

/*
 * Whether the note of what is still to be sent can be that of the next @count bytes, too. Its ids
 * are a range, without gaps; and it has one (that of a kernel with sendfile2(2) may not yet).
 */
static bool sf2_note_fits(struct sock *sk, struct ubuf_info *note, size_t count)
{
	struct ubuf_info_msgzc *uarg = uarg_to_msgzc(note);

	return note->ops == &msg_zerocopy_ubuf_ops && uarg->len && uarg->len < USHRT_MAX - 1 &&
	       uarg->id + uarg->len == (u32)atomic_read(&sk->sk_zckey) &&
	       count <= SF2_NOTE_BYTES && uarg->bytelen + count <= SF2_NOTE_BYTES;
}

/*
 * The note, and the id, of a call that is about to send its first bytes. As for send(MSG_ZEROCOPY),
 * calls share the note of what is still to be sent before them, and so its packet: small ones, and
 * what goes on where a call has found no more room. (But msg_zerocopy_realloc() extends none beyond
 * 512 KiB.) Under the socket's lock, which must be held until it is known whether the id is used,
 * or to be given back.
 */
static struct ubuf_info *sf2_note_get(struct sock *sk, size_t count)
{
	struct ubuf_info *tail = skb_zcopy(tcp_write_queue_tail(sk));

	if (tail && sf2_note_fits(sk, tail, count)) {
		uarg_to_msgzc(tail)->len++;
		atomic_inc(&sk->sk_zckey);
		net_zcopy_get(tail);
		return tail;
	}
	/* For no bytes: they are not charged to RLIMIT_MEMLOCK. */
	return msg_zerocopy_realloc(sk, 0, NULL);
}

static void sf2_note_add_bytes(struct ubuf_info *note, size_t count)
{
	struct ubuf_info_msgzc *uarg = uarg_to_msgzc(note);

	uarg->bytelen = min_t(size_t, uarg->bytelen + count, SF2_NOTE_BYTES);
}

/* There is something to send. */
static int sf2_begin(struct sf2_send *send)
{
	/*
	 * tcp_sendmsg_locked() asks no security module, and nobody else can; this does. What it
	 * says besides is what sending would; but if that would have to wait, it is not for here.
	 */
	struct msghdr nothing = { .msg_flags = send->msg_flags | MSG_DONTWAIT };
	struct sf2_ubuf *own;
	int ret;

	ret = sock_sendmsg(send->sock, &nothing);
	/* What TCP_FASTOPEN_CONNECT had put off has begun, and is waited for as room is. */
	if (ret == -EINPROGRESS && !(send->msg_flags & MSG_DONTWAIT))
		ret = 0;
	if (ret < 0 && ret != -EAGAIN)
		return ret;
	/* Of any other call the completion is no code of this module, which may be unloaded. */
	if (!send->cmd && !send->wait)
		return 0;

	if (send->wait) {
		send->note = sf2_note_alloc(send->sock->sk);
		if (!send->note)
			return -ENOBUFS;
	}
	own = kzalloc(sizeof(*own), GFP_KERNEL_ACCOUNT);
	if (!own) {
		if (send->note)
			net_zcopy_put(send->note);
		return -ENOMEM;
	}
	/* The open device holds one, too. */
	__module_get(THIS_MODULE);
	own->ubuf.ops = &sf2_ubuf_ops;
	own->ubuf.flags = SKBFL_ZEROCOPY_FRAG | SKBFL_DONT_ORPHAN;
	refcount_set(&own->ubuf.refcnt, 1);
	own->cmd = send->cmd;
	own->note = send->note;
	init_completion(&own->released);
	send->own = own;
	send->ubuf = &own->ubuf;
	return 0;
}

/* Jiffies until the deadline; 0 when it has passed. */
static long sf2_left(ktime_t deadline)
{
	s64 left;

	if (deadline == KTIME_MAX)
		return MAX_SCHEDULE_TIMEOUT;
	left = ktime_to_ns(ktime_sub(deadline, ktime_get()));
	if (left <= 0)
		return 0;
	return min_t(u64, nsecs_to_jiffies64(left) + 1, MAX_SCHEDULE_TIMEOUT - 1);
}

/* Puts pages into a packet, as zerocopy_fill_skb_from_iter() does, but knows what it is given. */
static int sf2_sg_from_iter(struct sk_buff *skb, struct iov_iter *from, size_t length)
{
	struct skb_shared_info *shinfo = skb_shinfo(skb);
	const struct bio_vec *bvec = from->bvec;
	size_t done = from->iov_offset;
	int frags = shinfo->nr_frags;
	unsigned int truesize = 0;
	size_t size = 0;

	length = min(length, from->count);
	while (size < length) {
		size_t part = min(length - size, bvec->bv_len - done);
		struct page *page = bvec->bv_page;
		struct page *head = compound_head(page);
		size_t offset = bvec->bv_offset + done;
		skb_frag_t *last = frags ? &shinfo->frags[frags - 1] : NULL;

		offset += (page - head) << PAGE_SHIFT;
		if (last && skb_frag_page(last) == head &&
		    skb_frag_off(last) + skb_frag_size(last) == offset) {
			skb_frag_size_add(last, part);
			truesize += part;
		} else {
			if (frags == MAX_SKB_FRAGS)
				break;
			truesize += PAGE_ALIGN(offset_in_page(offset) + part);
			get_page(head);
			__skb_fill_page_desc_noacc(shinfo, frags++, head, offset, part);
		}
		size += part;
		done += part;
		if (done == bvec->bv_len) {
			bvec++;
			done = 0;
		}
	}

	shinfo->nr_frags = frags;
	from->nr_segs -= bvec - from->bvec;
	from->bvec = bvec;
	from->iov_offset = done;
	from->count -= size;
	skb->data_len += size;
	skb->len += size;
	skb->truesize += truesize;
	return size < length ? -EMSGSIZE : 0;
}

/*
 * Whether the socket's protocol keeps a reference to msg_ubuf for as long as to the pages. TCP
 * does, but a probe of the path's MTU takes pages over without it (tcp_clone_payload()).
 */
static bool sf2_supports(struct socket *sock)
{
	struct sock *sk = sock->sk;

	return (sk->sk_family == AF_INET || sk->sk_family == AF_INET6) &&
	       sk->sk_type == SOCK_STREAM && sk->sk_protocol == IPPROTO_TCP &&
	       test_bit(SOCK_SUPPORT_ZC, &sock->flags) &&
	       !inet_csk(sk)->icsk_mtup.enabled &&
	       !READ_ONCE(sock_net(sk)->ipv4.sysctl_tcp_mtu_probing);
}

/* Under the socket's lock, which is not given up: nothing waits here. */
static int sf2_sendmsg_locked(struct sf2_send *send, struct msghdr *msg)
{
	struct sock *sk = send->sock->sk;
	struct ubuf_info *note = NULL;
	int ret;

	/* Another protocol may have been put on the socket meanwhile. */
	if (!sf2_supports(send->sock) || READ_ONCE(sk->sk_prot)->sendmsg != tcp_sendmsg)
		return -EOPNOTSUPP;
	if (!send->ubuf) {
		note = sf2_note_get(sk, send->count);
		if (!note)
			return -ENOBUFS;
	}
	msg->msg_ubuf = send->ubuf ?: note;
	ret = tcp_sendmsg_locked(sk, msg, msg_data_left(msg));
	if (note && ret > 0) {
		/* A call that waits holds the note back until all that it asks for is sent. */
		if (!(send->msg_flags & MSG_DONTWAIT))
			sf2_note_add_bytes(note, send->count);
		send->note = note;
		send->ubuf = note;
	} else if (note) {
		msg_zerocopy_put_abort(note, true);
	}
	if (!send->own && ret > 0 && (send->msg_flags & MSG_DONTWAIT))
		sf2_note_add_bytes(send->note, ret);
	/* Without scatter and gather TCP has copied everything. */
	if (ret > 0 && !(sk->sk_route_caps & NETIF_F_SG)) {
		if (send->own)
			WRITE_ONCE(send->own->copied, true);
		else
			uarg_to_msgzc(send->note)->zerocopy = 0;
	}
	return ret;
}

/* Pages of the page cache go by reference. */
static int sf2_sendmsg(struct sf2_send *send, struct bio_vec *bvec, int segments, size_t size,
		       int more)
{
	struct sock *sk = send->sock->sk;
	bool tried = false;
	int ret;

	lock_sock(sk);
	for (;;) {
		struct msghdr msg = {
			.msg_flags = send->msg_flags | more | MSG_DONTWAIT,
			.sg_from_iter = sf2_sg_from_iter,
		};
		long left;

		iov_iter_bvec(&msg.msg_iter, ITER_SOURCE, bvec, segments, size);
		ret = sf2_sendmsg_locked(send, &msg);
		if (ret != -EAGAIN || (send->msg_flags & MSG_DONTWAIT))
			break;

		left = min(sf2_left(send->deadline), sock_sndtimeo(sk, false));
		/* There may be room by now; but if memory is short, room does not mean much. */
		ret = 0;
		if (left && !((1 << sk->sk_state) & (TCPF_ESTABLISHED | TCPF_CLOSE_WAIT)))
			ret = sk_stream_wait_connect(sk, &left);
		else if (left && (tried || !sk_stream_memory_free(sk)))
			ret = sk_stream_wait_memory(sk, &left);
		tried = true;
		if (!sf2_left(send->deadline)) {
			ret = -ETIMEDOUT;
			break;
		}
		/* -EPIPE: the next attempt says why. */
		if (!left || (ret && ret != -EPIPE)) {
			ret = ret ?: -EAGAIN;
			break;
		}
	}
	release_sock(sk);
	return ret;
}

/* The pipe is the task's own, without a lock. */
static int sf2_actor(struct pipe_inode_info *pipe, struct splice_desc *sd)
{
	struct sf2_send *send = sd->u.data;
	unsigned int mask = pipe->ring_size - 1;
	size_t left = sd->total_len;
	size_t sent = 0;
	int ret = 0;

	if (!send->begun) {
		ret = sf2_begin(send);
		if (ret)
			return ret;
		send->begun = true;
	}

	while (left && !pipe_empty(pipe->head, pipe->tail)) {
		struct bio_vec bvec[PIPE_DEF_BUFFERS];
		unsigned int tail = pipe->tail;
		int segments = 0;
		size_t size = 0;
		bool more;

		if (signal_pending(current)) {
			ret = -ERESTARTSYS;
			break;
		}
		for (; size < left && segments < ARRAY_SIZE(bvec) && tail != pipe->head; tail++) {
			struct pipe_buffer *buf = &pipe->bufs[tail & mask];
			size_t part = min_t(size_t, buf->len, left - size);

			ret = pipe_buf_confirm(pipe, buf);
			if (!ret && !sendpage_ok(buf->page))
				ret = -EIO;
			if (ret)
				break;
			bvec_set_page(&bvec[segments++], buf->page, part, buf->offset);
			size += part;
		}
		if (!size) {
			/* Truncated meanwhile. */
			if (ret == -ENODATA)
				ret = 0;
			break;
		}

		more = (sd->flags & SPLICE_F_MORE) || size < left;
		ret = sf2_sendmsg(send, bvec, segments, size, more ? MSG_MORE : 0);
		if (ret <= 0)
			break;

		sent += ret;
		left -= ret;
		for (size = ret; size;) {
			struct pipe_buffer *buf = &pipe->bufs[pipe->tail & mask];
			size_t part = min_t(size_t, buf->len, size);

			buf->offset += part;
			buf->len -= part;
			size -= part;
			if (!buf->len) {
				pipe_buf_release(pipe, buf);
				pipe->tail++;
			}
		}
	}
	return sent ?: ret;
}

/* Waits for the release until the deadline; returns the state for the caller. */
static u32 sf2_wait(struct sf2_send *send)
{
	struct sock *sk = send->sock->sk;
	struct sf2_ubuf *own = send->own;
	bool released;
	u32 state;

	released = wait_for_completion_interruptible_timeout(&own->released,
							     sf2_left(send->deadline)) > 0;
	if (!released) {
		/* First the id, since at once the notification may use it. */
		lock_sock(sk);
		sf2_note_take_id(sk, own->note);
		released = cmpxchg(&own->state, SF2_PENDING, SF2_ABANDONED) != SF2_PENDING;
		if (released)
			msg_zerocopy_put_abort(own->note, false);
		release_sock(sk);
		if (!released)
			return 0;
		/* It is being said this moment. */
		wait_for_completion(&own->released);
	}
	state = SENDFILE2_RELEASED | (own->copied ? SENDFILE2_COPIED : 0);
	net_zcopy_put(own->note);
	sf2_free(own);
	return state;
}

/* The end of a call: for @sent bytes somebody is told, for none nobody. */
static void sf2_end(struct sf2_send *send, ssize_t sent, u32 *state, unsigned int issue_flags)
{
	struct sf2_ubuf *own = send->own;

	if (!own) {
		/* The notification that it has held back may come. */
		net_zcopy_put(send->note);
		return;
	}

	if (sent <= 0) {
		WRITE_ONCE(own->state, SF2_ABANDONED);
		net_zcopy_put(&own->ubuf);
	} else if (send->cmd) {
		own->sent = sent;
		*io_uring_cmd_to_pdu(send->cmd, struct sf2_ubuf *) = own;
		io_uring_cmd_mark_cancelable(send->cmd, issue_flags);
		/* From here on the command is whoever's who completes it. */
		net_zcopy_put(&own->ubuf);
	} else {
		net_zcopy_put(&own->ubuf);
		*state = sf2_wait(send);
	}
}

/*
 * Whether a call that must not wait would find no room: then it need not read the file for that.
 * An error of the socket is told by the attempt to send, and so is the end of the file.
 */
static bool sf2_full(struct sf2_send *send, struct file *in, loff_t pos)
{
	struct sock *sk = send->sock->sk;
	long now = 0;
	bool full = false;

	if (!(send->msg_flags & MSG_DONTWAIT) || sk_stream_memory_free(sk) ||
	    !send->count || pos >= i_size_read(file_inode(in)))
		return false;
	lock_sock(sk);
	/* This also asks for EPOLLOUT. */
	if (!sk_stream_memory_free(sk))
		full = sk_stream_wait_memory(sk, &now) == -EAGAIN;
	release_sock(sk);
	return full;
}

static bool sf2_args_valid(const struct sendfile2_args *args, bool uring)
{
	u32 flags = args->flags;

	if (!(flags & SENDFILE2_ZC) || (flags & ~SF2_FLAGS) || args->state)
		return false;
	if ((flags & SENDFILE2_POSITION) && args->offset)
		return false;
	if (flags & SENDFILE2_WAIT)
		return !uring && !(flags & SENDFILE2_MORE) && args->deadline <= KTIME_MAX;
	return !args->deadline;
}

/* The checks are sendfile(2)'s, in its order, and then those of the socket. */
static ssize_t sf2_sendfile(struct sendfile2_args *args, struct io_uring_cmd *cmd,
			    unsigned int issue_flags)
{
	struct sf2_send send = {
		.msg_flags = MSG_ZEROCOPY,
		.wait = args->flags & SENDFILE2_WAIT,
		.deadline = args->deadline ?: KTIME_MAX,
		.cmd = cmd,
	};
	struct splice_desc sd = { .u.data = &send };
	loff_t pos, out_pos, max;
	/* As sendfile(2) refuses what is negative; more than a word holds is only much. */
	size_t count = args->count >> 63 ? SIZE_MAX : min_t(u64, args->count, SSIZE_MAX);
	struct file *in, *out;
	ssize_t ret;

	if (!sf2_args_valid(args, cmd))
		return -EINVAL;

	CLASS(fd, in_fd)(args->in_fd);
	in = fd_file(in_fd);
	if (!in || !(in->f_mode & FMODE_READ))
		return -EBADF;
	if (args->flags & SENDFILE2_POSITION)
		pos = in->f_pos;
	else if (in->f_mode & FMODE_PREAD)
		pos = args->offset;
	else
		return -ESPIPE;
	ret = rw_verify_area(READ, in, &pos, count);
	if (ret < 0)
		return ret;
	count = min_t(size_t, count, MAX_RW_COUNT);

	CLASS(fd, out_fd)(args->out_fd);
	out = fd_file(out_fd);
	if (!out || !(out->f_mode & FMODE_WRITE))
		return -EBADF;
	out_pos = out->f_pos;
	max = min(file_inode(in)->i_sb->s_maxbytes, file_inode(out)->i_sb->s_maxbytes);
	if (unlikely(pos + count > max)) {
		if (pos >= max)
			return -EOVERFLOW;
		count = max - pos;
	}
	ret = rw_verify_area(WRITE, out, &out_pos, count);
	if (ret < 0)
		return ret;
	if (out->f_flags & O_APPEND)
		return -EINVAL;

	send.sock = sock_from_file(out);
	if (!send.sock)
		return -EINVAL;
	if (!sf2_supports(send.sock))
		return -EOPNOTSUPP;
	if ((out->f_flags & O_NONBLOCK) || (args->flags & SENDFILE2_DONTWAIT))
		send.msg_flags |= MSG_DONTWAIT;
	/* As io_uring's own sends: no signal would find the thread that submitted it. */
	if (cmd || (args->flags & SENDFILE2_NOSIGNAL))
		send.msg_flags |= MSG_NOSIGNAL;

	send.count = count;
	if (sf2_full(&send, in, pos))
		return -EAGAIN;
	sd.len = count;
	sd.total_len = count;
	sd.pos = pos;
	sd.flags = args->flags & SENDFILE2_MORE ? SPLICE_F_MORE : 0;
	ret = splice_direct_to_actor(in, &sd, sf2_actor);
	if (ret > 0) {
		/* What was sent last said that more follows, and nothing does. */
		if (ret < count && !(args->flags & SENDFILE2_MORE) && out->f_op->splice_eof)
			out->f_op->splice_eof(out);
		add_rchar(current, ret);
		add_wchar(current, ret);
		fsnotify_access(in);
		fsnotify_modify(out);
		if (args->flags & SENDFILE2_POSITION)
			in->f_pos = sd.pos;
		else
			args->offset = sd.pos;
	}
	inc_syscr(current);
	inc_syscw(current);
	if (send.ubuf)
		sf2_end(&send, ret, &args->state, issue_flags);
	return ret;
}

static long sf2_ioctl_query(struct sendfile2_query __user *to)
{
	static const struct sendfile2_query query = {
		.version = SENDFILE2_MODULE_VERSION,
		.flags = SF2_FLAGS,
		.features = IS_ENABLED(CONFIG_IO_URING) ? SENDFILE2_FEATURE_URING : 0,
	};

	return copy_to_user(to, &query, sizeof(query)) ? -EFAULT : 0;
}

static long sf2_ioctl_send(struct sendfile2_args __user *user)
{
	struct sendfile2_args args;
	ssize_t ret;

	if (copy_from_user(&args, user, sizeof(args)))
		return -EFAULT;
	/* Found out before anything is sent: who has used an id must hear of it. */
	if (put_user(args.offset, &user->offset) || put_user(args.state, &user->state))
		return -EFAULT;
	ret = sf2_sendfile(&args, NULL, 0);
	if ((put_user(args.offset, &user->offset) || put_user(args.state, &user->state)) &&
	    ret <= 0)
		return -EFAULT;
	return ret;
}

static long sf2_ioctl(struct file *file, unsigned int op, unsigned long arg)
{
	switch (op) {
	case SENDFILE2_IOC_QUERY:
		return sf2_ioctl_query((void __user *)arg);
	case SENDFILE2_IOC_SEND:
		return sf2_ioctl_send((void __user *)arg);
	default:
		return -ENOTTY;
	}
}

/*
 * The ring, or its task, ends: nobody reads the completion, and the peer may keep the pages for
 * ever. Who wins the cmpxchg completes the command.
 */
static void sf2_cancel(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct sf2_ubuf *own = *io_uring_cmd_to_pdu(cmd, struct sf2_ubuf *);

	if (cmpxchg(&own->state, SF2_PENDING, SF2_ABANDONED) == SF2_PENDING)
		io_uring_cmd_done(cmd, -ECANCELED, 0, issue_flags);
}

/*
 * Whether the command's entry is still the ring's, where the program may put its next one at any
 * time: 6.12 leaves it there for the worker, unless IOSQE_ASYNC was set.
 */
static bool sf2_sqe_in_ring(struct io_uring_cmd *cmd)
{
	const struct io_ring_ctx *ctx = cmd_to_io_kiocb(cmd)->ctx;
	const struct io_uring_sqe *first = ctx->sq_sqes;

	/* An entry of 128 bytes takes two. */
	return cmd->sqe >= first && cmd->sqe < first + 2 * ctx->sq_entries;
}

static int sf2_uring_cmd(struct io_uring_cmd *cmd, unsigned int issue_flags)
{
	struct sendfile2_args args;
	ssize_t ret;

	if (issue_flags & IO_URING_F_CANCEL) {
		sf2_cancel(cmd, issue_flags);
		return 0;
	}
	if (cmd->cmd_op != SENDFILE2_IOC_SEND)
		return -ENOTTY;
	if (!(issue_flags & IO_URING_F_SQE128) || sf2_sqe_in_ring(cmd))
		return -EINVAL;
	/* The file may have to be read. */
	if (issue_flags & IO_URING_F_NONBLOCK)
		return -EAGAIN;

	memcpy(&args, io_uring_sqe_cmd(cmd->sqe), sizeof(args));
	ret = sf2_sendfile(&args, cmd, issue_flags);
	if (ret > 0)
		return -EIOCBQUEUED;
	return ret == -ERESTARTSYS ? -EINTR : ret;
}

static const struct file_operations sf2_fops = {
	.owner		= THIS_MODULE,
	.unlocked_ioctl	= sf2_ioctl,
	.compat_ioctl	= compat_ptr_ioctl,
	.uring_cmd	= sf2_uring_cmd,
};

static struct miscdevice sf2_device = {
	.minor	= MISC_DYNAMIC_MINOR,
	.name	= "sendfile2",
	.fops	= &sf2_fops,
	.mode	= 0600,
};

static int __init sf2_init(void)
{
	BUILD_BUG_ON(sizeof(struct sendfile2_args) > 80);
	return misc_register(&sf2_device);
}

static void __exit sf2_exit(void)
{
	misc_deregister(&sf2_device);
	/*
	 * Each sf2_ubuf has put its reference from within sf2_complete() or sf2_cmd_done(), which
	 * still has to return: with preemption disabled, or from a task that may be preempted.
	 */
	synchronize_rcu();
	synchronize_rcu_tasks();
}

module_init(sf2_init);
module_exit(sf2_exit);

MODULE_DESCRIPTION("sendfile that tells when the file's pages are released");
MODULE_AUTHOR("The sendfile2 authors");
MODULE_LICENSE("GPL");
