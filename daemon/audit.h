/* SPDX-License-Identifier: Apache-2.0 */
/* audit.h: what recalls are worth, measured: for one recall in N, exact attention over all its tokens.
 *
 * Quality is measured, not assumed. The daemon is its own client for that: it opens a sequence on the
 * same chain, repeats the recall of one layer, and reads all its tokens back, piece by piece, with the lowest priority there is.
 * Nobody waits for it: it copies the query before the reply is sent, and works after that. One audit runs at a time; if
 * anything it needs is not to be had at once, or its tenant drops segments, it is given up and counted.
 *
 *   offer ──► RECALL ──► ROWS ──► TOKENS ──► PIECE ──► MERGE ──► all read: recorded ──► IDLE
 *   IDLE      repeated   ATTEND   FETCH      ATTEND    o*, l*
 *                        o, l       ▲____________________┘ more
 *
 * Recorded, per query head and for sealed tokens alone, which are what a recall chooses among:
 *   mass    exp(l - l*), the share of exact attention that falls on rows staged exactly (sinks included)
 *   error   |o - o*| / |o*|, with what a mixed reply estimates taken in
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_AUDIT_H
#define KVR_DAEMON_AUDIT_H

#include <stdbool.h>
#include <stdint.h>

#include "base/list.h"
#include "daemon/call.h"
#include "daemon/session.h"

struct kvr_daemon;
struct kvr_model;
struct kvr_wire_metric;

#define KVR_AUDIT_MODELS_MAX 16u         /* with records; a new one takes the place of the oldest */
#define KVR_AUDIT_BYTES      (64u << 20) /* address space of an audit; touched while one runs */
#define KVR_AUDIT_BINS       10u

/* One layer's records. */
struct kvr_audit_layer {
	uint32_t count;
	double mass_sum, error_sum;
	uint32_t mass[KVR_AUDIT_BINS];  /* by kvr_audit_mass_edges */
	uint32_t error[KVR_AUDIT_BINS]; /* by kvr_audit_error_edges */
};

struct kvr_audit_model {
	uint32_t number; /* of the model; 0: free */
	uint32_t layer_count;
	uint64_t age;
	const struct kvr_tenant *tenant;
	struct kvr_audit_layer *layers;
};

enum kvr_audit_state {
	KVR_AUDIT_IDLE,
	KVR_AUDIT_RECALL,
	KVR_AUDIT_ROWS,
	KVR_AUDIT_TOKENS,
	KVR_AUDIT_PIECE,
	KVR_AUDIT_MERGE,
};

struct kvr_audit {
	struct kvr_daemon *daemon;
	struct kvr_session session; /* the daemon's own: not in the table, has no socket */
	struct kvr_audit_model models[KVR_AUDIT_MODELS_MAX];
	uint64_t seen_count, done_count, abandoned_count;
	/* The one that runs. */
	enum kvr_audit_state state;
	bool waiting;            /* for a call or a work; else step goes on */
	bool failed;             /* what it waited for did not succeed */
	bool stopping;           /* the daemon ends */
	bool yielding;           /* who waits wants what it holds */
	struct kvr_list waiters; /* calls */
	struct kvr_sequence *sequence;
	struct kvr_request request;
	struct kvr_wire_recall_item item;
	struct kvr_wire_budget budgets[KVR_QUERY_HEADS_MAX];
	struct kvr_wire_layer layer;
	enum kvr_dtype query_dtype;
	float scale;
	bool mixed;
	uint32_t row_capacity;
	uint32_t heads, group; /* that rows were chosen for; query heads of each */
	uint32_t next_token, piece_tokens;
	/* Parts of the session's region. */
	uint8_t *query, *keys, *values, *piece_keys, *piece_values;
	float *weights;
	float *rows_out, *rows_lse;   /* [H][Dv], [H]: over rows staged exactly */
	float *rest_out, *rest_lse;   /* what the reply estimates */
	float *all_out, *all_lse;     /* over the tokens so far */
	float *piece_out, *piece_lse; /* over this piece */
};

/* Errors: -ENOMEM. */
int kvr_audit_open(struct kvr_audit *audit, struct kvr_daemon *daemon);

/* Begins no audit any more; step ends the one that runs. */
void kvr_audit_stop(struct kvr_audit *audit);

/* No audit runs. */
void kvr_audit_close(struct kvr_audit *audit);

/* A recall is done and about to be answered: audits it if its turn has come. */
void kvr_audit_offer(struct kvr_audit *audit, const struct kvr_call *call);

/* Whether an audit holds segments of the tenant's, so that they cannot be dropped. Then it is given up; wait on
 * audit->waiters, which are woken when it holds none. */
bool kvr_audit_yield(struct kvr_audit *audit, const struct kvr_tenant *tenant);

/* Goes on with the audit that runs. To be called once in a round of the loop. */
void kvr_audit_step(struct kvr_audit *audit);

/* Metrics of the tenant's models, from the index-th on. False: there are no more. */
bool kvr_audit_metric(const struct kvr_audit *audit, const struct kvr_tenant *tenant,
	uint32_t index, struct kvr_wire_metric *ret_metric);

#endif
