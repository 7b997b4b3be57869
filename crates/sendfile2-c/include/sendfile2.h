/* libsendfile2: the safe sendfile(2). SPDX-License-Identifier: MIT OR Apache-2.0 */
/* Made from crates/sendfile2-c/src/abi.rs by `cargo xtask header`. See sendfile2(3). */

#ifndef SENDFILE2_H
#define SENDFILE2_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>
#include <time.h>
/* What <fcntl.h> calls loff_t, but only under _GNU_SOURCE. */
#ifndef __USE_MISC
typedef int64_t loff_t;
#endif
/* Which <time.h> defines, but not under -std=c99. */
struct timespec;

/*
 Flag of sendfile2(): as sendfile(2), as without flags.
 */
#define SENDFILE_DEFAULT 1

/*
 Flag of sendfile2(): a call that returns more than 0 uses one notification id of the socket. Its
 completion arrives on the socket's error queue, as for MSG_ZEROCOPY.
 */
#define SENDFILE_ZC 2

/*
 Flag of sendfile2(): when the call returns, the kernel no longer reads what was sent. It reads
 nothing from the socket's error queue, and uses no id. Not a flag of the RFC.
 */
#define SENDFILE_SYNC 4

/*
 State in a sendfile2_result: sent by reference, and released.
 */
#define SENDFILE2_RELEASED 1

/*
 State in a sendfile2_result: released; the kernel has copied at least a part.
 */
#define SENDFILE2_COPIED 2

/*
 State in a sendfile2_result: the release is not known: the deadline passed, or the ring was lost.
 The kernel may still read the range.
 */
#define SENDFILE2_UNKNOWN 3

/*
 Kind of a sendfile2_entry: sends are released.
 */
#define SENDFILE2_COMPLETION 1

/*
 Kind of a sendfile2_entry: another message, for the code that asked for it: an ICMP error, a
 timestamp.
 */
#define SENDFILE2_FOREIGN 2

/*
 Kind of a sendfile2_entry: a message that could not be decoded; nothing is released for it.
 */
#define SENDFILE2_BROKEN 3

/*
 A file that is kept open and mapped, for programs that send from it again and again.
 */
struct sendfile2_file;

/*
 The error queue of one socket, and the account of its ids.
 */
struct sendfile2_queue;

/*
 The outcome of sendfile2_deadline(), beside the number of bytes.
 */
struct sendfile2_result {
    /*
     SENDFILE2_RELEASED, SENDFILE2_COPIED or SENDFILE2_UNKNOWN.
     */
    int state;
    /*
     0; space for what later versions tell.
     */
    uint32_t reserved[7];
};

/*
 An entry of an error queue.
 */
struct sendfile2_entry {
    /*
     SENDFILE2_COMPLETION, SENDFILE2_FOREIGN or SENDFILE2_BROKEN.
     */
    int kind;
    /*
     Not 0 in a completion if the kernel has made a copy of (at least the first of) these sends.
     */
    int copied;
    /*
     The first id of a completion.
     */
    uint64_t first;
    /*
     The last id of a completion, inclusive.
     */
    uint64_t last;
    /*
     The control messages of a foreign entry, for CMSG_FIRSTHDR(3) as msg_control. They stay
     until the next sendfile2_queue_reap() or sendfile2_queue_close().
     */
    const void *control;
    /*
     Bytes of control messages.
     */
    size_t control_length;
    /*
     The payload of a foreign entry. It stays until then, too.
     */
    const void *payload;
    /*
     Bytes of payload.
     */
    size_t payload_length;
    /*
     Not 0 in a foreign entry if the payload was longer than 2048 bytes, and cut off.
     */
    int truncated;
    /*
     0; space for what later versions tell.
     */
    uint32_t reserved[9];
};

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/*
 Sends up to count bytes of the file in_fd to out_fd, as sendfile(2) does, and reports, in the
 way that the flag asks for, when they may be overwritten.

 flags is 0, SENDFILE_DEFAULT, SENDFILE_ZC or SENDFILE_SYNC. See sendfile2(3).
 */
ssize_t sendfile2(int out_fd, int in_fd, loff_t *offset, size_t count, int flags);

/*
 Sends as sendfile2() with SENDFILE_SYNC does, but waits no longer than until the deadline, an
 absolute time of CLOCK_MONOTONIC (NULL: for ever). The state of the range is written to result
 unless result is NULL; it is set if the call returns more than 0.

 Fails with ETIMEDOUT if nothing was sent by then. flags is SENDFILE_SYNC.
 */
ssize_t sendfile2_deadline(int out_fd,
                           int in_fd,
                           loff_t *offset,
                           size_t count,
                           int flags,
                           const struct timespec *deadline,
                           struct sendfile2_result *result);

/*
 Keeps in_fd, of which it makes a duplicate, and a mapping of it, until sendfile2_file_close().
 While it is kept, so are locks of flock(2) on it, and the space of a deleted file; F_SEAL_WRITE
 fails. NULL and errno if that fails.
 */
struct sendfile2_file *sendfile2_file_open(int in_fd);

/*
 Sends as sendfile2() does, from a file that is kept. With SENDFILE_ZC and SENDFILE_SYNC the file
 is not mapped anew for each call. If offset is NULL, the position of the descriptor that was
 kept counts. Threads may use one file at the same time.
 */
ssize_t sendfile2_file_send(int out_fd,
                            const struct sendfile2_file *file,
                            loff_t *offset,
                            size_t count,
                            int flags);

/*
 Closes a file that was kept. What is in flight is not affected. NULL is no error.
 */
void sendfile2_file_close(struct sendfile2_file *file);

/*
 Overwrites count bytes of a file at offset, whole units of sendfile2_pwrite_unit() within the
 file, while anybody may be sending them: what is in flight, by sendfile(2) of any program, keeps
 the old bytes. Nothing is ever written in place: where that is impossible it is refused. Neither
 the descriptor nor its position is changed, and it may be open for reading only if the file may
 be written. flags is 0.

 Returns the bytes written, which may be fewer than count; or, if none were, -1 and errno:
 EOPNOTSUPP: not on this file (tmpfs, overlayfs, no direct I/O, no way to ask the page cache).
 EINVAL: not whole units; not a regular file or block device; flags.
 ENXIO: behind the end of the file.
 EBUSY: pages came back into the page cache at each try: another program writes there; or, on
 XFS, asks for the file's times all the while.
 EBADF; EFAULT: buf is NULL; EACCES, EROFS, EFBIG, ENOSPC, EIO and others, as open(2) and write(2).
 See sendfile2_pwrite(3).
 */
ssize_t sendfile2_pwrite(int fd, const void *buf, size_t count, off_t offset, int flags);

/*
 Returns the unit, in bytes, of what sendfile2_pwrite() writes now: offsets and counts are
 multiples of it. A reflink of the file changes it. -1 and errno, as of sendfile2_pwrite(), if it
 is known that the file cannot be overwritten so; some filesystems tell only when it is tried.
 */
ssize_t sendfile2_pwrite_unit(int fd);

/*
 Opens a queue, which keeps the account of the notifications of a TCP or UDP socket, and must
 read all of them from now on. next_id is the number of zerocopy sends made on it so far, and so
 the id of the next one; 0 on a new socket. Ids are counted in 64 bits, where the kernel's wrap
 at 32.

 The socket stays the program's, which closes it after the queue. NULL and errno if that fails.
 */
struct sendfile2_queue *sendfile2_queue_open(int socket, uint64_t next_id);

/*
 Reads up to room entries of the error queue, without waiting, and returns how many. If another
 thread waits for ids that are read here, it is woken. Completions that sendfile2_queue_wait() has read
 are not returned; its other entries are. One thread at a time.
 */
ssize_t sendfile2_queue_reap(struct sendfile2_queue *queue,
                             struct sendfile2_entry *entries,
                             size_t room);

/*
 Waits until the send with this id is released, or until the deadline, an absolute time of
 CLOCK_MONOTONIC (NULL: for ever). Returns 0, or -1 and errno: ETIMEDOUT, or ENOBUFS if entries
 that are no completions have piled up: sendfile2_queue_reap() hands them out. Any number of threads
 may wait.
 */
int sendfile2_queue_wait(struct sendfile2_queue *queue,
                         uint64_t id,
                         const struct timespec *deadline);

/*
 Ends the account; what is in flight is not affected. Before the socket is closed. NULL is no
 error.
 */
void sendfile2_queue_close(struct sendfile2_queue *queue);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif  /* SENDFILE2_H */
