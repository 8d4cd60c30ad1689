/* SPDX-License-Identifier: Apache-2.0 */
/* net.h: the request socket: messages in, replies out, nothing about their content.
 *
 * The transport is nanomsg, raw REP over ipc://; another can stand beside it behind these functions.
 * Raw REP drops a reply silently when its peer's buffer is full: sessions bound what is outstanding
 * (credits), so that it never is.
 *
 * Threads: the core thread's. Nothing blocks. */
#ifndef KVR_DAEMON_NET_H
#define KVR_DAEMON_NET_H

#include <stdint.h>
#include <sys/types.h>

#include "base/span.h"

struct kvr_net;

#define KVR_NET_ROUTE_MAX 64u

/* The way back to whoever sent a message. */
struct kvr_net_route {
	uint32_t bytes;
	uint8_t data[KVR_NET_ROUTE_MAX];
};

/* Binds the socket file `path` with `mode`. Errors: -EADDRINUSE, -EACCES, -ENAMETOOLONG, -EMFILE,
 * -EIO. */
int kvr_net_open(const char *path, mode_t mode, struct kvr_net **ret_net);

/* The address clients connect to. Borrowed. */
const char *kvr_net_url(const struct kvr_net *net);

/* Readable while a message may be there. Borrowed. */
int kvr_net_fd(const struct kvr_net *net);

/* Takes one message; the span is to be given back with kvr_net_release. Errors: -EAGAIN (none). */
int kvr_net_receive(
	struct kvr_net *net, struct kvr_span *ret_message, struct kvr_net_route *ret_route);
void kvr_net_release(struct kvr_net *net, struct kvr_span message);

/* Sends a reply; the bytes are copied. Errors: -EIO (the peer is gone; nothing to be done). */
int kvr_net_send(struct kvr_net *net, struct kvr_span message, const struct kvr_net_route *route);

/* Takes NULL; returns NULL. */
struct kvr_net *kvr_net_close(struct kvr_net *net);

#endif
