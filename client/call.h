/* SPDX-License-Identifier: Apache-2.0 */
/* call.h: the table of requests that are out.
 *
 *          start             reply, deadline, loss            end
 *   free ─────────► out ─────────────────────────► done ─────────► free
 *                  ▲   │
 *                  └───┘ resend: the same bytes, so the same id
 *
 * Invariants:
 *   T1  Ids rise and are never used twice by a client, whatever the session.
 *   T2  Requests that are out: at most the session's credits. Their replies, at their largest, sum
 *       to KVR_CLIENT_REPLY_BYTES at most: the daemon's socket drops what its buffer cannot take.
 *   T3  A request becomes done once. What comes for an id that is not out is dropped.
 *   T4  The last slot is for calls that wait; the others are for submitted ones, which hold theirs
 *       until they are polled. So a call that waits always finds a slot.
 *
 * It does not wait and does not know time but as an argument: that is wait.c's.
 *
 * Threads: owned by the client's thread. */
#ifndef KVR_CLIENT_CALL_H
#define KVR_CLIENT_CALL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/span.h"
#include "client/kvrecall.h"
#include "proto/message.h"

#define KVR_CLIENT_SUBMITTED   KVR_CREDITS_MAX
#define KVR_CLIENT_CALLS       (KVR_CLIENT_SUBMITTED + 1u) /* T4 */
#define KVR_CLIENT_REPLY_BYTES (96u << 10)

/* Why a call failed; error 0: it did not. */
struct kvr_client_failure {
	uint32_t code; /* base/code.h; 0: the library's own finding */
	int error;     /* positive */
	const char *remedy;
	char subject[KVR_TEXT_MAX];
};

enum kvr_client_call_state {
	KVR_CLIENT_CALL_FREE,
	KVR_CLIENT_CALL_OUT,
	KVR_CLIENT_CALL_DONE,
};

struct kvr_client_call {
	enum kvr_client_call_state state;
	enum kvr_request_kind kind;
	uint64_t id;
	uint64_t deadline_ns;
	uint64_t send_ns;        /* when it is sent (again), while it is out */
	uint32_t reply_cost;     /* largest reply, bytes (T2) */
	struct kvr_span message; /* packed; in this slot's memory */
	/* Where a recall's results go; NULL: not a recall. The caller's, until done. */
	struct kvr_recall *recall;
	/* Of a call that is done. */
	struct kvr_appended appended;
	struct kvr_client_failure failure;
};

struct kvr_client_calls {
	struct kvr_client_call slots[KVR_CLIENT_CALLS];
	uint8_t *memory; /* [KVR_CLIENT_CALLS][KVR_MESSAGE_BYTES_MAX] */
	uint64_t id_last;
	uint32_t out_count;  /* T2 */
	uint32_t out_bytes;  /* T2: sum of reply_cost */
	uint32_t done_count; /* submitted ones, to be polled */
};

struct kvr_client;

int kvr_client_calls_init(struct kvr_client_calls *calls);
void kvr_client_calls_fini(struct kvr_client_calls *calls);

/* Packs a request into a free slot and sends it, or leaves it due for sending where the socket has
 * no room. Session, secret, id and deadline of `request` are filled in here.
 * Errors: -EAGAIN (no credit: nothing changed), -E2BIG (past KVR_MESSAGE_BYTES_MAX; kvr_error is
 * filled). */
int kvr_client_call_start(struct kvr_client *client, struct kvr_request *request,
	struct kvr_recall *recall, bool submitted, uint64_t now_ns, uint64_t deadline_ns,
	struct kvr_client_call **ret_call);

/* Takes one message from the net and does what it says. -EAGAIN: there was none. */
int kvr_client_call_take(struct kvr_client *client);

/* Resends what is due and ends what is late. */
void kvr_client_calls_expire(struct kvr_client *client, uint64_t now_ns);

/* When expire has something to do next; 0: never. */
uint64_t kvr_client_calls_due(const struct kvr_client *client);

/* Ends all that are out with -ECONNRESET. */
void kvr_client_calls_lose(struct kvr_client *client);

/* The submitted call of a ticket, or NULL. */
struct kvr_client_call *kvr_client_call_find(struct kvr_client *client, uint64_t ticket);

/* Frees the slot of a call that is done. */
void kvr_client_call_end(struct kvr_client *client, struct kvr_client_call *call);

/* ---- wait.c ----------------------------------------------------------------------------------- */

/* Sends a request and waits for its reply, which is then client->reply; a recall's results are
 * written through `recall` (else NULL). Errors: that of the reply, -ETIMEDOUT, -ECONNRESET, -E2BIG;
 * kvr_error is filled. */
int kvr_client_call(struct kvr_client *client, struct kvr_request *request,
	struct kvr_recall *recall, uint64_t deadline_ns);

/* Keeps kvr_fd readable while done requests are to be polled, and sets its alarm for the others. */
void kvr_client_settle(struct kvr_client *client, uint64_t now_ns);

/* Sends and returns. Errors: -EAGAIN, -E2BIG. */
int kvr_client_submit(struct kvr_client *client, struct kvr_request *request,
	struct kvr_recall *recall, uint64_t *ret_ticket);

#endif
