/* SPDX-License-Identifier: Apache-2.0 */
/* call.h: one request on its way to its reply.
 *
 *            receive, unpack, session         handler
 *   FREE ───────────────────────────► RUNNING ───────► done ──► reply sent ──► FREE
 *     ▲                                 │  ▲ │
 *     │  refused before it had a call   │  │ └► pending: jobs in the device; ends in kvr_call_done
 *     └─────────────────────────────────┘  └──► waiting in a sequence's queue; run again
 *
 * The unpacked request lives in the call's own message arena until the reply is sent, so that a
 * handler that had to wait finds it as it was. A handler that waits has changed nothing.
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_CALL_H
#define KVR_DAEMON_CALL_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/net.h"
#include "daemon/session.h"
#include "daemon/waiter.h"
#include "proto/message.h"

struct kvr_daemon;
struct kvr_model;
struct kvr_sequence;
struct kvr_work;

#define KVR_CALLS_MAX 1024u /* running at once, all sessions */

enum kvr_outcome {
	KVR_OUTCOME_DONE,    /* call->reply is complete */
	KVR_OUTCOME_PENDING, /* kvr_call_done will be called */
	KVR_OUTCOME_WAIT,    /* in a sequence's queue; run again when woken */
};

struct kvr_call {
	struct kvr_daemon *daemon;
	struct kvr_session *session;
	struct kvr_net_route route;
	struct kvr_message_arena *arena;
	struct kvr_request request;
	struct kvr_reply reply;
	struct kvr_waiter waiter; /* on waits_on->waiters */
	struct kvr_sequence
		*waits_on; /* of use while the waiter is on its list; NULL: another list */
	struct kvr_list session_link; /* also links free calls */
	struct kvr_list wait_link;    /* of all that wait, for their deadlines */
	uint64_t start_ns, deadline_ns;
	/* Of a call of the daemon's own: told when it is done, in place of a reply. NULL: a client's. */
	void (*done)(struct kvr_call *call);
	/* A handler's progress through the device, in rounds (recall, fetch). */
	uint32_t cursor_item, cursor_head;
	uint32_t cursor_segment, round_segment; /* of fetch */
	bool round_running;
	struct kvr_work *work; /* fetch keeps one to its end */
	uint32_t works_running;
	bool started; /* sync and append: a seal has been started for it; fetch: memory was overtaken */
	struct kvr_sequence *sequence; /* the one that append, fetch or fork runs on */
	struct kvr_sequence *made;     /* by fork */
	/* Of a recall, [item_count], parts of the arrays below: sequences and results. */
	struct kvr_sequence **sequences;
	struct kvr_wire_recalled *recalled;
};

struct kvr_calls {
	struct kvr_call *entries; /* KVR_CALLS_MAX */
	/* KVR_CALLS_MAX x KVR_RECALL_ITEMS_MAX each; pages are touched as needed. */
	struct kvr_sequence **sequences;
	struct kvr_wire_recalled *recalled;
	struct kvr_list free;
	struct kvr_list waiting;
	struct kvr_message_arena *spare; /* to unpack into before there is a session */
	uint8_t *packed;                 /* KVR_REPLY_BYTES_MAX */
	uint32_t running;
};

/* Errors: -ENOMEM. */
int kvr_calls_open(struct kvr_calls *calls, struct kvr_daemon *daemon);
void kvr_calls_close(struct kvr_calls *calls);

/* Takes one message from the net and runs it. Returns whether there was one and a free call for it. */
bool kvr_calls_receive(struct kvr_daemon *daemon);

/* Runs a request of the daemon's own, in a session that is in no table. Everything that the request points at stays
 * until `done`, which may be called from inside. Its jobs and reads yield to those of clients. False: no call is free. */
bool kvr_call_start_own(struct kvr_daemon *daemon, struct kvr_session *session,
	const struct kvr_request *request, void (*done)(struct kvr_call *));

/* Whether nobody waits for the call yet. */
bool kvr_call_background(const struct kvr_call *call);

/* Frees the waiting calls of a session that ends; running ones end by themselves, unanswered. */
void kvr_calls_cancel(struct kvr_session *session);

/* Answers what has waited past its deadline with TIMEOUT. */
void kvr_calls_tick(struct kvr_daemon *daemon, uint64_t now_ns);

/* Sends the reply of a pending call and frees it. */
void kvr_call_done(struct kvr_call *call);

/* Makes the reply a refusal; `format` says what was refused, on what. Returns KVR_OUTCOME_DONE. */
__attribute__((format(printf, 3, 4))) enum kvr_outcome kvr_call_refuse(
	struct kvr_call *call, enum kvr_code code, const char *format, ...);

/* Puts the call into a sequence's queue. Returns KVR_OUTCOME_WAIT. */
enum kvr_outcome kvr_call_wait(struct kvr_call *call, struct kvr_sequence *sequence);

/* The same for a call that could run, had it a work: the queue is served when one is free. */
enum kvr_outcome kvr_call_wait_work(struct kvr_call *call, struct kvr_sequence *sequence);

/* The same for one that waits for memory that is on its way out (-EAGAIN of the directory). */
enum kvr_outcome kvr_call_wait_memory(struct kvr_call *call, struct kvr_sequence *sequence);

/* Puts the call on another list, of waiters that are woken together; it blocks no sequence. Returns KVR_OUTCOME_WAIT. */
enum kvr_outcome kvr_call_wait_on(struct kvr_call *call, struct kvr_list *waiters);

/* The code for an errno from directory or sequence: FULL, QUOTA or INTERNAL. */
enum kvr_code kvr_call_code(int error);

/* Opens a sequence on the best match that is in memory: what an `open` ends with. */
enum kvr_outcome kvr_call_open(
	struct kvr_call *call, struct kvr_model *model, const uint32_t *ids, uint32_t count);

/* Makes known what is stored of the caller's models, registered since the daemon's start or not. (model_calls.c) */
void kvr_call_models(struct kvr_call *call);

/* The session's sequence, or NULL after a refusal in call->reply. */
struct kvr_sequence *kvr_call_sequence(struct kvr_call *call, uint64_t id);

/* `bytes` of the region at `offset`; an empty span after a refusal that names `what`. */
struct kvr_span kvr_call_region(
	struct kvr_call *call, uint64_t offset, uint64_t bytes, const char *what);

/* ---- handlers, one per kind of request ------------------------------------------------------- */

typedef enum kvr_outcome kvr_handler(struct kvr_daemon *daemon, struct kvr_call *call);

kvr_handler kvr_handle_model_register, kvr_handle_model_list; /* model_calls.c */
kvr_handler kvr_handle_open, kvr_handle_fork, kvr_handle_close,
	kvr_handle_sync;                              /* sequence_calls.c */
kvr_handler kvr_handle_append;                        /* append.c */
kvr_handler kvr_handle_recall;                        /* recall.c */
kvr_handler kvr_handle_fetch;                         /* fetch.c */
kvr_handler kvr_handle_drop, kvr_handle_segment_list; /* segment_calls.c */
kvr_handler kvr_handle_pin;                           /* pin_calls.c */
struct kvr_store_job;
void kvr_pin_done(struct kvr_daemon *daemon, struct kvr_store_job *job);     /* a CHAIN or MARK */
void kvr_segment_done(struct kvr_daemon *daemon, struct kvr_store_job *job); /* a DROP or LIST */
kvr_handler kvr_handle_stats;                                                /* stats.c */

#endif
