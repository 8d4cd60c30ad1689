/* SPDX-License-Identifier: Apache-2.0 */
/* fake_util.h: a small daemon that does what a test tells it: it answers every request with made-up
 * numbers, or holds, drops, doubles or garbles its answer, and shows what came over the wire.
 *
 * It stores nothing and recalls nothing. It runs in a thread of the test, on both sockets, in a
 * folder of its own.
 *
 * Threads: all functions are the test's; what both threads touch is behind a mutex. A script runs
 * on the fake's thread with the mutex held. */
#ifndef KVR_TESTS_CLIENT_FAKE_UTIL_H
#define KVR_TESTS_CLIENT_FAKE_UTIL_H

#include <stdbool.h>
#include <stdint.h>

#include "client/kvrecall.h"
#include "proto/message.h"

#define FAKE_MODEL        7u   /* the number that a registered model gets */
#define FAKE_SEQUENCE     100u /* sequences are numbered from here */
#define FAKE_LIST_TOTAL   25u  /* models, segments, metrics there are */
#define FAKE_LIST_PAGE    10u  /* of these, in one reply */
#define FAKE_TOKENS_MAX   64u  /* inline tokens shown of a request */
#define FAKE_QUERY_MAX    256u /* bytes of an inline query shown */
#define FAKE_REQUESTS_MAX 65536u

enum fake_action {
	FAKE_REPLY,
	FAKE_DROP,    /* no reply */
	FAKE_TWICE,   /* the same reply twice */
	FAKE_GARBAGE, /* noise before the reply: random bytes, an id that is not out, an empty one */
	FAKE_HOLD,    /* replied to at fake_release */
	FAKE_BROKEN,  /* the right id, and a body that is none */
};

enum fake_welcome {
	FAKE_WELCOME_GOOD,
	FAKE_WELCOME_NO_FD,
	FAKE_WELCOME_TWO_FDS,
	FAKE_WELCOME_UNSEALED,
	FAKE_WELCOME_NOT_MEMFD,
	FAKE_WELCOME_SHORT_FD,   /* the descriptor is smaller than the message says */
	FAKE_WELCOME_WRONG_SIZE, /* the message says another size than was asked for */
	FAKE_WELCOME_WRONG_VERSION,
	FAKE_WELCOME_NO_CREDITS,
	FAKE_WELCOME_BAD_URL,
	FAKE_WELCOME_DEAD_URL, /* nothing listens there */
	FAKE_WELCOME_GARBAGE,
	FAKE_WELCOME_HUGE, /* does not fit any buffer */
	FAKE_WELCOME_SILENT,
	FAKE_WELCOME_CLOSED,
	FAKE_WELCOME_REFUSED, /* DENIED, with a subject */
};

/* What came with the last request of a kind, arrays copied. */
struct fake_seen {
	struct kvr_request request; /* its pointers are not to be followed */
	struct kvr_wire_layer layers[8];
	struct kvr_wire_recall_item items[8];
	uint8_t query[FAKE_QUERY_MAX]; /* of item 0, inline */
	uint32_t tokens[FAKE_TOKENS_MAX];
	bool inline_tokens;
};

struct fake;

/* Decides what happens to a request; may change the reply, which is a good one. */
typedef enum fake_action (*fake_script)(struct fake *fake, const struct kvr_request *request,
	struct kvr_reply *reply, void *cookie);

/* Makes the folder and starts serving. Aborts where the system does not let it. */
struct fake *fake_open(void);
struct fake *fake_close(struct fake *fake);

const char *fake_path(const struct fake *fake);

/* Dies like a killed daemon: all sockets at once. start: another daemon in the same place. */
void fake_kill(struct fake *fake);
void fake_start(struct fake *fake);

void fake_set_script(struct fake *fake, fake_script script, void *cookie);
void fake_set_welcome(struct fake *fake, enum fake_welcome welcome);
void fake_set_credits(struct fake *fake, uint32_t credits);

/* Replies to what is held, the newest first. */
void fake_release(struct fake *fake);

/* Closes the attach sockets alone. */
void fake_hang_up(struct fake *fake);

/* What came so far. */
uint32_t fake_requests(struct fake *fake);           /* messages, resends too */
uint32_t fake_held(struct fake *fake);               /* held now */
uint32_t fake_held_max(struct fake *fake);           /* and at most so far */
uint32_t fake_attached(struct fake *fake);           /* sessions that are open */
uint64_t fake_id(struct fake *fake, uint32_t index); /* of the index-th message */
bool fake_seen(struct fake *fake, enum kvr_request_kind kind, struct fake_seen *ret_seen);
void fake_hello(struct fake *fake, struct kvr_hello *ret_hello);

/* Reads from the region of the newest session, as the daemon sees it. */
void fake_region_read(struct fake *fake, uint64_t offset, void *into, size_t bytes);

#endif
