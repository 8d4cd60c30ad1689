/* SPDX-License-Identifier: Apache-2.0 */
/* net.h: the request socket: messages to the daemon and back, whole or not at all.
 *
 * It does not know what a message says, keeps no copy of one and never waits. Another transport can
 * stand beside net.c by implementing these functions.
 *
 * A message that was sent may get lost on its way (a pipe that breaks, a full buffer at the other
 * end): whoever sends it keeps it until the reply, and sends it again.
 *
 * Threads: a net belongs to one thread. */
#ifndef KVR_CLIENT_NET_H
#define KVR_CLIENT_NET_H

#include "base/span.h"

struct kvr_client_net;

/* Starts connecting to `url`; returns before the connection is up. Errors: -EINVAL (url), -EMFILE,
 * -ENOMEM. */
int kvr_client_net_open(const char *url, struct kvr_client_net **ret_net);
struct kvr_client_net *kvr_client_net_close(struct kvr_client_net *net);

/* Sends one message, copying it. `id` routes the reply and should differ between requests.
 * Errors: -EAGAIN (not connected yet, or no room), -ENOTCONN (the transport is gone for good). */
int kvr_client_net_send(struct kvr_client_net *net, uint64_t id, struct kvr_span message);

/* Takes one message; returns its bytes. Errors: -EAGAIN (there is none), -EMSGSIZE (it did not fit
 * and was dropped), -ENOTCONN. */
int64_t kvr_client_net_recv(struct kvr_client_net *net, struct kvr_span into);

/* Readable while recv has something; readable while send has room. Borrowed. */
int kvr_client_net_recv_fd(const struct kvr_client_net *net);
int kvr_client_net_send_fd(const struct kvr_client_net *net);

#endif
