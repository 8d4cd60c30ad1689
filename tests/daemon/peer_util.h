/* SPDX-License-Identifier: Apache-2.0 */
/* peer_util.h: a client without the library that asks without waiting, and a daemon for several.
 *
 * Rows are zeros (what they hold is other tests' concern), token ids those of peer_ids. */
#ifndef KVR_TESTS_DAEMON_PEER_H
#define KVR_TESTS_DAEMON_PEER_H

#include "tests/daemon/raw_util.h"

#define PEER_REGION (64u << 20)
#define PEER_TOKENS 4096u
#define PEER_OUT    (1u << 20) /* in the region: below are zeros, from here on rows may go */
#define PEER_ITEMS  256u       /* of a busy recall; with two heads each as many as one work holds */
#define PEER_ROWS   16u
#define PEER_KEYS   64u /* bytes of a row */
#define PEER_VALUES 48u
#define PEER_OUT_ITEM \
	((size_t)2 * PEER_ROWS * (PEER_KEYS + PEER_VALUES) + 64u) /* what one item writes */
#define PEER_KINDS 4096u

struct peer {
	struct raw raw;
	enum kvr_request_kind kinds[PEER_KINDS]; /* of what was asked, by id */
};

extern struct harness_daemon peer_daemon;
extern struct peer peer; /* attached by peer_begin */
extern uint32_t peer_ids[PEER_TOKENS];

/* Fixtures of a group and of a test. */
int peer_start(void **state);
int peer_stop(void **state);
int peer_begin(void **state);
int peer_end(void **state);

void peer_attach(struct peer *who);

/* Two layers of two kv heads. Returns its number. */
uint32_t peer_register(struct peer *who, uint32_t segment_tokens, uint32_t cluster_tokens);

uint64_t peer_open(struct peer *who, uint32_t model);

/* An append of both layers. */
struct kvr_request peer_append(
	uint64_t sequence, uint32_t first, uint32_t count, struct kvr_wire_layer *layers);

/* A recall of `count` items, one after the other on `sequences`, each with outputs of its own from region
 * offset `at` on. */
struct kvr_request peer_recall(const uint64_t *sequences, uint32_t sequence_count, uint32_t count,
	size_t at, struct kvr_wire_recall_item *items);

struct kvr_request peer_sync(uint64_t sequence);

/* Appends `count` tokens, a multiple of 512, and waits. */
void peer_put(struct peer *who, uint64_t sequence, uint32_t count);

/* Packs into memory that stays until the next call. */
struct kvr_span peer_keep(struct peer *who, struct kvr_request *request);

/* Sends and does not wait. */
void peer_ask(struct peer *who, struct kvr_request *request);

/* Takes one reply and returns its code. */
uint32_t peer_take(struct peer *who, struct kvr_reply *ret_reply);

/* Asks, and takes one reply, which is its own if nothing else is outstanding. */
uint32_t peer_call(struct peer *who, struct kvr_request *request, struct kvr_reply *ret_reply);

#endif
