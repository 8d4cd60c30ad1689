/* SPDX-License-Identifier: Apache-2.0 */
/* remote.h: a source over libkvrecall: the only file of the engine that talks to kvrecalld.
 *
 * A store is the connection: the client, the registered model, and the region, laid out once:
 *
 *   append and fetch   keys [L][batch][K][D], values [L][batch][K][D]
 *   recall, per layer  keys [K][rows][D], values [K][rows][D], weights [K][rows], table [K],
 *                      partial [H][D], lse [H]
 *
 * A remote is one sequence on it. Appends are sent and not waited for: the next call that needs the
 * append area takes the reply. A daemon that is out of room for the moment (-EAGAIN: it is still
 * sealing) is asked again for a while.
 *
 * What a recall gives is set for the store: clusters, clusters with an estimate of the rest, or the merged set. That one stays in
 * the region, and is asked for again only when more has been sealed; one remote at a time may recall so.
 *
 * Threads: a store and its remotes belong to one thread. */
#ifndef TINYLM_REMOTE_H
#define TINYLM_REMOTE_H

#include <stdbool.h>
#include <stdint.h>

#include "examples/tinylm/model.h"
#include "examples/tinylm/source.h"

struct tinylm_store;

#define TINYLM_MERGED_DIVISOR 4u /* tokens for each merged row */

enum tinylm_form {
	TINYLM_CLUSTERS,
	TINYLM_MIXED,
	TINYLM_MERGED,
};

struct tinylm_store_config {
	const char *socket; /* the daemon's attach socket; NULL: the library's default */
	const struct tinylm_model *model; /* kept */
	uint32_t segment_tokens;          /* 0: the daemon's default */
	uint32_t row_capacity; /* largest budget, or merged set with what is not merged yet */
	uint32_t batch;        /* tokens of one append or fetch at most */
};

/* Attaches and registers the model. Errors: those of kvr_connect and kvr_model_register. */
int tinylm_store_open(const struct tinylm_store_config *config, struct tinylm_store **ret_store);
struct tinylm_store *tinylm_store_close(struct tinylm_store *store);

/* Rows per kv head of the recalls that follow; up to row_capacity. */
void tinylm_store_budget(struct tinylm_store *store, uint32_t budget_tokens);

/* What the recalls that follow give; clusters at first. */
void tinylm_store_form(struct tinylm_store *store, enum tinylm_form form);

/* A metric of the daemon; 0 if there is none of this name. */
double tinylm_store_metric(struct tinylm_store *store, const char *name);

/* Why the last call failed, for people; empty if the daemon did not say. Borrowed until the next. */
const char *tinylm_store_error(const struct tinylm_store *store);

/* Opens a sequence with the stored prefix of tokens [count]. */
int tinylm_remote_open(struct tinylm_store *store, const uint32_t *tokens, uint32_t count,
	struct tinylm_source **ret_source, uint32_t *ret_matched);

/* A second sequence with the same tokens. */
int tinylm_remote_fork(
	struct tinylm_source *source, struct tinylm_source **ret_source, uint32_t *ret_tokens);

/* Ends the sequence. Takes NULL. Returns NULL. */
struct tinylm_source *tinylm_remote_close(struct tinylm_source *source, bool discard);

/* Seals everything that was appended, and waits for it. */
int tinylm_remote_sync(struct tinylm_source *source, uint32_t *ret_sealed_tokens);

/* Reads tokens back: keys and values [L][count][K][D]; count up to batch. */
int tinylm_remote_fetch(struct tinylm_source *source, uint32_t first, uint32_t count,
	uint16_t *ret_keys, uint16_t *ret_values);

#endif
