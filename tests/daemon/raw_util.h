/* SPDX-License-Identifier: Apache-2.0 */
/* raw_util.h: a client without the library: messages as bytes, so that they can be wrong. */
#ifndef KVR_TESTS_DAEMON_RAW_H
#define KVR_TESTS_DAEMON_RAW_H

#include "client/net.h"
#include "proto/message.h"
#include "tests/daemon/harness_util.h"

struct raw {
	int attach; /* socket */
	int region_fd;
	struct kvr_span region;
	struct kvr_welcome welcome;
	struct kvr_client_net *net;
	struct kvr_message_arena *arena;
	uint64_t id;
	uint8_t packed[KVR_MESSAGE_BYTES_MAX];
};

/* Connects the attach socket and sends these bytes; returns the Welcome's code (or -1: closed). */
int raw_hello(struct raw *raw, const struct harness_daemon *daemon, struct kvr_span hello);

/* A whole attachment with a region. */
void raw_attach(struct raw *raw, const struct harness_daemon *daemon, uint64_t region_bytes);
void raw_detach(struct raw *raw);

/* Fills in id, session and secret, sends, waits for the reply, asserts that its id is the request's.
 * Returns its code. */
uint32_t raw_call(struct raw *raw, struct kvr_request *request, struct kvr_reply *ret_reply);

/* Packs only; the bytes are in raw->packed. */
struct kvr_span raw_pack(struct raw *raw, struct kvr_request *request);

/* Sends bytes as they are. */
void raw_send(struct raw *raw, struct kvr_span bytes);

/* Waits up to timeout_ms for a message; returns its bytes in `into`, 0 on timeout. */
size_t raw_receive(struct raw *raw, struct kvr_span into, int timeout_ms);

#endif
