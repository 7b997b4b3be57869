/* SPDX-License-Identifier: (GPL-2.0 WITH Linux-syscall-note) OR MIT */
/*
 * What programs and the module sendfile2 say to each other through /dev/sendfile2.
 *
 * Copyright (c) 2026 The sendfile2 authors
 */
#ifndef SENDFILE2_MODULE_H
#define SENDFILE2_MODULE_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* Counts up when something here changes its meaning; what is added shows in the query. */
#define SENDFILE2_MODULE_VERSION	1

/*
 * What a call asks for. SENDFILE2_ZC is the kernel RFC's SENDFILE_ZC, and must be set: one
 * notification id on the socket's error queue for each call that returned more than 0.
 */
#define SENDFILE2_ZC			0x2
/* From in_fd's own position, which moves; offset is not used, and must be 0. */
#define SENDFILE2_POSITION		0x100
/* MSG_DONTWAIT, MSG_MORE and MSG_NOSIGNAL of send(2). */
#define SENDFILE2_DONTWAIT		0x200
#define SENDFILE2_MORE			0x400
#define SENDFILE2_NOSIGNAL		0x800
/*
 * Return when the pages are released, no later than at the deadline, and say so in state. Then
 * no id is used; if the deadline or a signal comes first, one is. Not with SENDFILE2_MORE, and
 * not through io_uring, whose completion is the release.
 */
#define SENDFILE2_WAIT			0x1000

/*
 * state: with SENDFILE2_WAIT, the pages were released before the call returned. Bits, written as
 * libsendfile2's sendfile2.h writes its states of these names, so that a program may include both.
 */
#define SENDFILE2_RELEASED		1
/* state: with SENDFILE2_RELEASED, the kernel has made a copy of some of them. */
#define SENDFILE2_COPIED		2

struct sendfile2_args {
	__s32	out_fd;
	__s32	in_fd;
	__s64	offset;		/* in: where to begin; out: behind the last byte sent */
	__u64	count;
	__u32	flags;
	__u32	state;		/* in: 0; out: SENDFILE2_RELEASED and SENDFILE2_COPIED */
	__u64	deadline;	/* with SENDFILE2_WAIT: ns of CLOCK_MONOTONIC, or 0 for none */
};

/* features: SENDFILE2_IOC_SEND is also a command of IORING_OP_URING_CMD. */
#define SENDFILE2_FEATURE_URING		0x1

struct sendfile2_query {
	__u32	version;	/* SENDFILE2_MODULE_VERSION */
	__u32	flags;		/* the flags a call may have */
	__u32	features;
	__u32	reserved;	/* 0 */
};

#define SENDFILE2_IOC_QUERY	_IOR(0xF7, 0, struct sendfile2_query)
/*
 * Returns the bytes sent, and errors as sendfile(2) does. Besides: EINVAL for what is not a
 * socket, EOPNOTSUPP for sockets that cannot tell when they let go of pages (all but TCP, and TCP
 * with kernel TLS, in a sockmap, or where it may probe the path's MTU), ENOBUFS if
 * net.core.optmem_max is full of notifications, ETIMEDOUT if nothing was sent by the deadline.
 *
 * As cmd_op of an IORING_OP_URING_CMD on a ring with IORING_SETUP_SQE128 it takes the arguments
 * from the submission entry's cmd, and uses no id: its one completion, with the bytes sent,
 * arrives when the pages are released, and in its big_cqe[0], on a ring with IORING_SETUP_CQE32,
 * is SENDFILE2_RELEASED with or without SENDFILE2_COPIED. The entry must have IOSQE_ASYNC, or it
 * fails with EINVAL: a worker of the kernel's does it, and without that flag Linux leaves the
 * arguments in the ring, where the next entry may replace them. The worker looks the descriptors
 * up: they must stay open, and what they are, until the completion.
 */
#define SENDFILE2_IOC_SEND	_IOWR(0xF7, 1, struct sendfile2_args)

#endif
