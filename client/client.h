/* SPDX-License-Identifier: Apache-2.0 */
/* client.h: what the files of the library share: the client, its handles, its errors.
 *
 *   append.c recall.c fetch.c model.c sequence.c admin.c    the calls of kvrecall.h: arguments in,
 *        │                                                  a kvr_request out, its reply in
 *        ▼
 *   wait.c       when something is sent, taken, awaited and given up
 *        │
 *   call.c       the table of requests that are out            attach.c   a session of a daemon
 *        │                                                     region.c   its memory
 *   net.c        messages                                      client.c   holds them together
 *
 * States of a client:
 *
 *                attach (kvr_connect, begin)
 *   detached ─────────────────────────────────► attached
 *            ◄─────────────────────────────────
 *                lose (daemon gone, session refused)
 *
 * Invariants:
 *   C1  attached <=> attach_fd >= 0 <=> net != NULL. Detached, no request is out.
 *   C2  A handle whose generation is not the client's, or whose client is detached, belongs to a
 *       daemon that is gone.
 *   C3  Nothing in the library outlives a deadline: every wait is bounded by one.
 *
 * Threads: a client and all that hangs from it is used by one thread at a time; nothing here locks.
 *
 * Memory, all of it taken by kvr_connect; append and recall allocate nothing (nanomsg takes a chunk
 * per message):
 *     66 MiB  messages that are out, KVR_CLIENT_CALLS x KVR_MESSAGE_BYTES_MAX; address space, of
 *             which the pages that messages have needed are backed; low slots are used first
 *     88 KiB  items of the recall being packed
 *      6 KiB  layers of the append or fetch being packed
 *     16 KiB  the reply being unpacked, KVR_REPLY_BYTES_MAX, beside the arena of proto/ */
#ifndef KVR_CLIENT_CLIENT_H
#define KVR_CLIENT_CLIENT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "client/call.h"
#include "client/kvrecall.h"
#include "client/net.h"
#include "client/region.h"
#include "proto/message.h"

#define KVR_CLIENT_PATH_MAX 108u /* what sun_path holds, with the final NUL */

struct kvr_client {
	/* Fixed by kvr_connect. */
	char path[KVR_CLIENT_PATH_MAX];
	char name[KVR_NAME_MAX];
	uint32_t timeout_ms;

	/* The session. */
	struct kvr_client_region region;
	struct kvr_client_net *net;
	int attach_fd;
	uint64_t session;
	uint8_t secret[KVR_SECRET_BYTES];
	uint32_t credits;
	uint32_t generation; /* sessions so far */

	/* Requests. */
	struct kvr_client_calls calls;
	int epoll_fd;      /* over attach_fd, the net and alarm_fd: kvr_fd */
	int alarm_fd;      /* a timer: readable when kvr_poll is due without a message */
	uint64_t alarm_ns; /* when it goes off; 0: never */

	/* Work space. */
	struct kvr_message_arena *arena;
	struct kvr_reply reply; /* the last one taken; its arrays lie in the arena */
	uint8_t reply_bytes[KVR_REPLY_BYTES_MAX];
	struct kvr_wire_recall_item items[KVR_RECALL_ITEMS_MAX];
	struct kvr_wire_layer layers[KVR_APPEND_LAYERS_MAX];

	struct kvr_list models;
	struct kvr_list sequences;
	struct kvr_client_failure failure;
	struct kvr_error error; /* the same, for the caller */
};

struct kvr_model {
	struct kvr_list link; /* in client->models */
	struct kvr_client *client;
	uint32_t generation;
	uint32_t number;              /* the daemon's; of this generation */
	struct kvr_geometry geometry; /* defaults filled in */
	/* What was asked for, to ask again. */
	char name[KVR_NAME_MAX];
	uint8_t digest[KVR_HASH_BYTES];
	struct kvr_geometry wanted;
	uint32_t rank;
};

struct kvr_sequence {
	struct kvr_list link; /* in client->sequences */
	struct kvr_client *client;
	struct kvr_model *model;
	uint32_t generation;
	uint64_t number;
};

/* ---- errors: each fills kvr_error and returns -errno ------------------------------------------ */

/* The library refuses. `error` is positive; `remedy` must be a literal. */
__attribute__((format(printf, 4, 5))) int kvr_client_refuse(
	struct kvr_client *client, int error, const char *remedy, const char *subject, ...);

/* An argument is wrong: -EINVAL. */
__attribute__((format(printf, 2, 3))) int kvr_client_argument(
	struct kvr_client *client, const char *subject, ...);

/* A code of base/code.h: from the daemon, or found out about it. */
int kvr_client_code(struct kvr_client *client, uint32_t code, const char *subject);

/* What a request that has ended left behind. Its error must be set. */
int kvr_client_failed(struct kvr_client *client, const struct kvr_client_failure *failure);

/* ---- the session ------------------------------------------------------------------------------ */

/* Begins a call that any daemon can answer: attaches if the client is detached. */
int kvr_client_begin(struct kvr_client *client, uint64_t deadline_ns);

/* Begins a call on a sequence: refuses one that is NULL, of another client, or of a daemon that is
 * gone (C2). Never waits. */
int kvr_client_begin_sequence(struct kvr_client *client, const struct kvr_sequence *sequence);

/* As above, but any daemon's is good. */
int kvr_client_begin_model(struct kvr_model *model, uint64_t deadline_ns);

/* Looks whether the daemon has closed the attach socket; loses the session if so. */
void kvr_client_look(struct kvr_client *client);

/* Ends the session: requests that are out fail with -ECONNRESET. */
void kvr_client_lose(struct kvr_client *client);

uint64_t kvr_client_deadline(const struct kvr_client *client);

/* ---- attach.c --------------------------------------------------------------------------------- */

struct kvr_client_attached {
	int socket_fd;
	int region_fd;
	struct kvr_welcome welcome;
};

/* One Hello, one Welcome. With `patient`, a daemon that is not there is waited for. The caller owns
 * both descriptors. Errors (kvr_error is filled): -ENOENT, -ECONNREFUSED, -EACCES, -ENOTCONN (not
 * there until the deadline), -ETIMEDOUT, -EPROTO (not a Welcome), and that of the Welcome's code. */
int kvr_client_attach(struct kvr_client *client, bool patient, uint64_t deadline_ns,
	struct kvr_client_attached *ret_attached);

/* ---- what several calls need ------------------------------------------------------------------ */

/* Turns a pointer that must lie in the region into its offset; `what` names it. -EFAULT. */
int kvr_client_offset(struct kvr_client *client, const char *what, const void *pointer,
	uint64_t bytes, uint64_t *ret_offset);

/* Copies layers of an append or a fetch, checked, to client->layers. */
struct kvr_client_layer {
	uint32_t layer;
	const void *keys;
	const void *values;
};
int kvr_client_layer(struct kvr_client *client, const struct kvr_sequence *sequence, uint32_t count,
	uint32_t index, struct kvr_client_layer layer);

/* Checks a listing's page: the next one must come after it. -EPROTO. */
int kvr_client_page(struct kvr_client *client, uint32_t first, uint32_t next);

#endif
