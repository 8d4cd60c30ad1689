/* SPDX-License-Identifier: Apache-2.0 */
/* sequence.h: one open sequence: a chain of sealed segments, and the tail behind it.
 *
 *   position  0              covered                     covered + fill[layer]
 *             ├── chain ───────┼── tail ───────────────────────┤
 *             │ leased segments│ blocks of KVR_BLOCK_TOKENS     │
 *
 * The tail is filled layer by layer, each without gaps; a token is whole when every layer has it.
 * Whole tokens at the start of the tail are sealed in the background (daemon/seal.h): the segment
 * joins the chain, and the tail moves up.
 *
 * Who may do what at the same time:
 *   * readers (recall, fetch, fork) run together, and together with an append, but for a fork, which
 *     copies whole blocks;
 *   * one append runs at a time; readers that come behind it wait for it, so that each sees what was
 *     sent before;
 *   * a finished seal joins the chain when no reader runs; readers that come then wait for that.
 *
 * Invariants:
 *   Q1  covered is the sum of the chain's token counts; every segment of the chain is leased.
 *   Q2  fill[layer] <= known <= blocks * KVR_BLOCK_TOKENS; whole = min over fill.
 *   Q3  While readers > 0, chain and blocks do not change, but for blocks behind the known tokens.
 *   Q4  Sealing covers the tail's first seal.count tokens, all whole; nobody changes them.
 *   Q5  Waiters are served in the order in which they came, and before what comes later: also one that
 *       waits for a free work (daemon/work.h) stays at the front of its sequence's queue.
 *
 * Threads: the core thread's; views and blocks are read (and blocks filled) by device workers. */
#ifndef KVR_DAEMON_SEQUENCE_H
#define KVR_DAEMON_SEQUENCE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "daemon/directory.h"
#include "daemon/seal.h"
#include "daemon/session.h"
#include "daemon/waiter.h"
#include "kernels/tail.h"

struct kvr_daemon;

struct kvr_sequence {
	uint64_t id;
	struct kvr_daemon *daemon;
	struct kvr_session *session; /* NULL once closed */
	struct kvr_model *model;
	struct kvr_list session_link;
	struct kvr_list waiters;       /* calls */
	struct kvr_waiter work_waiter; /* on works->waiters while the first of them lacks a work */
	/* Chain. */
	uint32_t *chain;                       /* segment indices, oldest first */
	const struct kvr_segment_view **views; /* theirs, for the device */
	uint32_t chain_count, chain_max;
	uint32_t covered;
	/* Tail. */
	uint8_t *blocks[KVR_TAIL_BLOCKS_MAX]; /* each with its token ids behind its rows */
	uint32_t block_count;
	struct kvr_tail_view tail; /* for the device: all of `blocks`, so that it never changes */
	uint32_t fill[KVR_LAYERS_MAX]; /* tokens that a layer has, from the tail's start */
	uint32_t known;                /* token ids known, likewise */
	/* What runs. */
	uint32_t readers;
	uint32_t copying; /* of these, forks */
	bool appending;
	bool waking; /* waiters are being served: a call that is woken does not queue behind itself */
	bool closing;               /* it has no session any more: free it when nothing runs */
	bool discard_tail;          /* then */
	struct kvr_list dirty_link; /* something changed: settle it at the end of this round */
	struct kvr_seal seal;
};

struct kvr_sequences {
	struct kvr_sequence **entries; /* KVR_SEQUENCES_MAX */
	uint32_t count;
	uint32_t search_from;
	uint64_t counter;
	struct kvr_list dirty;
	uint32_t *tokens; /* KVR_SEGMENT_TOKENS_MAX ids, scratch of the seals */
};

/* Errors: -ENOMEM. */
int kvr_sequences_open(struct kvr_sequences *sequences);
void kvr_sequences_close(struct kvr_sequences *sequences);

/* Opens a sequence that ends with segment `last` (KVR_SEGMENT_NONE: empty) and leases its chain.
 * Errors: -ENOSPC (KVR_SEQUENCES_MAX), -ENOMEM, -EAGAIN (the store has let go of one of them: match again). */
int kvr_sequence_open(struct kvr_daemon *daemon, struct kvr_session *session,
	struct kvr_model *model, uint32_t last, struct kvr_sequence **ret_sequence);

/* The session's sequence of this id, or NULL. */
struct kvr_sequence *kvr_sequence_find(
	struct kvr_daemon *daemon, const struct kvr_session *session, uint64_t id);

/* Takes the sequence from its session and frees it as soon as nothing runs on it; first seals the
 * whole tokens of its tail unless `discard`. */
void kvr_sequence_close(struct kvr_sequence *sequence, bool discard);

/* Something about the sequence changed (a reader ended, a seal is done): it is settled at the end of
 * this round of the loop. */
void kvr_sequence_touch(struct kvr_sequence *sequence);

/* Settles every touched sequence: joins a finished seal, starts the next one, serves waiters, frees a
 * closed sequence. Never called from inside a handler. */
void kvr_sequences_settle(struct kvr_sequences *sequences);

/* Tokens at the start of the tail that every layer has. */
uint32_t kvr_sequence_whole(const struct kvr_sequence *sequence);

/* Whether a call that comes now must wait behind others (Q5). */
bool kvr_sequence_queued(const struct kvr_sequence *sequence);

/* Whether a reader may start now; whether an append may. */
bool kvr_sequence_readable(const struct kvr_sequence *sequence);
bool kvr_sequence_writable(const struct kvr_sequence *sequence);

/* Makes the tail hold `tokens` tokens. Errors: -ENOSPC, -EDQUOT; nothing has changed then. */
int kvr_sequence_grow(struct kvr_sequence *sequence, uint32_t tokens);

/* The id of a tail token, to read or to set. */
uint32_t *kvr_sequence_token(const struct kvr_sequence *sequence, uint32_t index);

/* Bytes of one block of the tail, with its token ids. */
size_t kvr_sequence_block_bytes(const struct kvr_sequence *sequence);

#endif
