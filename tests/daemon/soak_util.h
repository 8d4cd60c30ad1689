/* SPDX-License-Identifier: Apache-2.0 */
/* soak_util.h: client processes that put, sync, recall, fetch, fork and drop without end and check every byte, through
 * any death of the daemon; and notes in shared memory of what was acknowledged to them.
 *
 *   sequence   NONE ──► PUTTING ──sync──► ACKED ──drop──► DROPPING ──done──► DROPPED
 *
 * A sequence is named by its owner (a client, or SOAK_PARENT: the test itself) and a number, and the content follows
 * from the name. Every eighth of a client's is in a model that is its alone and that it drops now and then. */
#ifndef KVR_TESTS_DAEMON_SOAK_H
#define KVR_TESTS_DAEMON_SOAK_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/daemon/harness_util.h"
#include "tests/daemon/process_util.h"

#define SOAK_CLIENTS 4u /* at most */
#define SOAK_PARENT  SOAK_CLIENTS
#define SOAK_ITEMS   (1u << 18)
#define SOAK_TOKENS  500u
#define SOAK_PREFIX  256u /* tokens that groups of sequences have in common */
#define SOAK_SLABS_MAX \
	1500u /* of 2 GiB, where nothing may be evicted; forks and what was cut off come on top */
#define SOAK_WAIT_MS 60000u
#define SOAK_NEWEST  48u /* clients like to look at their latest */

enum soak_state { SOAK_NONE, SOAK_PUTTING, SOAK_ACKED, SOAK_DROPPING, SOAK_DROPPED };
enum soak_phase {
	SOAK_IDLE,
	SOAK_OPEN,
	SOAK_APPEND,
	SOAK_SYNC,
	SOAK_RECALL,
	SOAK_FETCH,
	SOAK_DROP,
	SOAK_PHASES
};

/* All of this several processes read and write: through soak_get, soak_set and soak_add alone. */
struct soak_item {
	uint64_t state;
	uint64_t begun, last; /* ticks: when its put began; when it was touched last */
};

struct soak_notes {
	uint32_t clients;
	bool evicts; /* what was acknowledged may have gone for room */
	bool wide;   /* a model whose segments fill slabs */
	uint64_t tick, phase[SOAK_CLIENTS], made[SOAK_CLIENTS];
	uint64_t slabs; /* that were filled */
	uint64_t acked, checked_tokens, drops, forks, attached;
	struct soak_item items[SOAK_CLIENTS + 1][SOAK_ITEMS];
};

static inline uint64_t soak_get(const uint64_t *place)
{
	return __atomic_load_n(place, __ATOMIC_SEQ_CST);
}

static inline void soak_set(uint64_t *place, uint64_t value)
{
	__atomic_store_n(place, value, __ATOMIC_SEQ_CST);
}

/* Returns the sum. */
static inline uint64_t soak_add(uint64_t *place, uint64_t value)
{
	return __atomic_add_fetch(place, value, __ATOMIC_SEQ_CST);
}

extern struct soak_notes *soak_notes;
extern const char *const soak_phase_names[SOAK_PHASES];

/* Makes the notes, before any client starts; empties them. */
void soak_notes_make(void);
void soak_notes_clear(void);

/* Whether a long run is wanted. */
bool soak_long(void);

/* What a process does with a daemon. */
struct soak_engine {
	struct kvr_client *client;
	struct kvr_model_config config;
	struct kvr_model *shared, *own[SOAK_CLIENTS];
	struct kvr_sequence *sequence; /* open */
	uint32_t number, unfinished;   /* the put that was cut off, or SOAK_ITEMS */
	uint32_t ids[SOAK_TOKENS + 64];
};

/* The part of a client; ends at SIGTERM. */
int soak_play(const char *socket, uint32_t number);

uint32_t soak_count(uint32_t owner, uint32_t n); /* tokens */
uint32_t soak_slabs(uint32_t owner, uint32_t n); /* of the small model: a slab for each segment */
void soak_touch(uint32_t owner, uint32_t n);

/* Waits for a daemon. */
void soak_attach(struct soak_engine *engine, const char *socket);

/* These return the error of the call that failed; wrong bytes end the process. */
int soak_put(struct soak_engine *engine, uint32_t owner, uint32_t n);
int soak_open(struct soak_engine *engine, uint32_t owner, uint32_t n, uint32_t *ret_matched);
int soak_check(
	struct soak_engine *engine, uint32_t count); /* the first `count` tokens of what is open */
int soak_end(struct soak_engine *engine);            /* closes it */

#endif
