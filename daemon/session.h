/* SPDX-License-Identifier: Apache-2.0 */
/* session.h: attached clients.
 *
 *            accept            Hello, Welcome             socket closed        last call done
 *   FREE ───────────► GREETING ──────────────► ATTACHED ─────────────► ENDING ───────────────► FREE
 *     ▲                  │ 5 s, nonsense                                  no replies any more
 *     └──────────────────┘
 *
 * A session is a connection to attach.sock, and ends with it, however the client died. With it go its
 * sequences (tails are discarded), its leases and its region.
 *
 * Invariants:
 *   E1  The region stays mapped while a call of the session is running.
 *   E2  A request id is carried out at most once. A resend of one that is running is answered when that
 *       is done; of one that was answered, from memory; where the answer was too long to keep, or is
 *       forgotten, with TIMEOUT: a second run would write to memory that the client uses again.
 *   E3  At most `credits` calls of a session run at a time.
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_SESSION_H
#define KVR_DAEMON_SESSION_H

#include <stdbool.h>
#include <stdint.h>

#include "base/limits.h"
#include "base/list.h"
#include "base/span.h"
#include "daemon/config.h"
#include "daemon/loop.h"
#include "daemon/region.h"
#include "daemon/tenant.h"

enum kvr_session_state {
	KVR_SESSION_FREE,
	KVR_SESSION_GREETING,
	KVR_SESSION_ATTACHED,
	KVR_SESSION_ENDING,
};

#define KVR_ANSWER_BYTES_MAX 256u
#define KVR_ANSWERS_MAX      ((size_t)2 * KVR_CREDITS_MAX)

struct kvr_answer {
	uint64_t id;
	uint32_t bytes; /* 0: too long to keep */
	uint8_t data[KVR_ANSWER_BYTES_MAX];
};

struct kvr_sessions;

struct kvr_session {
	enum kvr_session_state state;
	struct kvr_sessions *sessions;
	struct kvr_watch watch; /* the attach socket */
	uint64_t id;
	uint8_t secret[KVR_SECRET_BYTES];
	struct kvr_tenant *tenant;
	char client[KVR_NAME_MAX];
	uint64_t greeting_until_ns;
	struct kvr_region region;
	struct kvr_list calls; /* running (daemon/call.h) */
	uint32_t call_count;
	struct kvr_list sequences;
	struct kvr_answer *answers; /* KVR_ANSWERS_MAX, a ring */
	uint32_t answer_next;
	uint64_t id_last;      /* highest request id so far: what is above is no resend */
	uint64_t id_forgotten; /* highest of those whose answers the ring has lost */
};

struct kvr_message_arena;

struct kvr_sessions {
	struct kvr_session *entries; /* KVR_SESSIONS_MAX */
	const struct kvr_config *config;
	struct kvr_loop *loop;
	struct kvr_tenants *tenants;
	struct kvr_message_arena *arena;
	const char *url;
	uint64_t boot;
	uint64_t counter;
	struct kvr_watch listener; /* fd -1 while paused */
	int listener_fd;
	bool listener_paused;  /* out of descriptors or memory: tries again at the next tick */
	bool listener_starved; /* the same, since the last accept: said once */
	char path[128];
	uint32_t attached_count, greeting_count;
	uint64_t attached_total, refused_total, region_bytes;
	/* Called when a session begins to end; it discards the sequences. */
	void (*ended)(void *context, struct kvr_session *session);
	void *context;
};

/* Listens on `path`. Errors: -EADDRINUSE (another daemon answers there), -ENOMEM, -errno. */
int kvr_sessions_open(struct kvr_sessions *sessions, const struct kvr_config *config,
	struct kvr_loop *loop, struct kvr_tenants *tenants, const char *path, const char *url);

/* Stops listening and begins to end every session. */
void kvr_sessions_stop(struct kvr_sessions *sessions);

/* Frees the table. Every session has ended. */
void kvr_sessions_close(struct kvr_sessions *sessions);

/* The attached session that a request names, if its secret is right; else NULL. */
struct kvr_session *kvr_sessions_find(
	struct kvr_sessions *sessions, uint64_t id, const uint8_t secret[KVR_SECRET_BYTES]);

/* Ends greetings that take too long; listens again after a pause. */
void kvr_sessions_tick(struct kvr_sessions *sessions, uint64_t now_ns);

/* To be called when a call of the session is done: frees an ENDING session after its last. */
void kvr_session_settle(struct kvr_session *session);

/* The answer to a request that was carried out or refused before (E2). Errors: -ENOENT (none was),
 * -ESTALE (it is not kept, or forgotten). */
int kvr_session_answer(struct kvr_session *session, uint64_t id, struct kvr_span *ret_answer);
void kvr_session_keep_answer(struct kvr_session *session, uint64_t id, struct kvr_span reply);

#endif
