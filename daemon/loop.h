/* SPDX-License-Identifier: Apache-2.0 */
/* loop.h: the core thread's event loop: epoll, and nothing else.
 *
 * A watch is a file descriptor and a function. It may be removed at any time, also from inside a
 * function that the loop has called. A function may be called without cause (a descriptor's number
 * was used again within one round): it reads without blocking and takes EAGAIN for an answer. */
#ifndef KVR_DAEMON_LOOP_H
#define KVR_DAEMON_LOOP_H

#include <stdint.h>

struct kvr_watch {
	int fd;
	void (*ready)(struct kvr_watch *watch);
	void *owner;
};

struct kvr_loop {
	int fd;
};

/* Errors: -EMFILE, -ENOMEM. */
int kvr_loop_open(struct kvr_loop *loop);
void kvr_loop_close(struct kvr_loop *loop);

/* Calls watch->ready while watch->fd is readable or hung up. The watch stays the caller's.
 * Errors: -ENOMEM, -ENOSPC. */
int kvr_loop_add(struct kvr_loop *loop, struct kvr_watch *watch);

/* Takes NULL fds (-1) and sets fd to -1; does not close it. */
void kvr_loop_remove(struct kvr_loop *loop, struct kvr_watch *watch);

/* One round: waits up to timeout_ms (-1: for ever) and calls what is ready. */
void kvr_loop_round(struct kvr_loop *loop, int timeout_ms);

#endif
