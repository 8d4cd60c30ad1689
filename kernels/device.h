/* SPDX-License-Identifier: Apache-2.0 */
/* device.h: the mathematics on keys and values, asynchronous, one table for every device.
 *
 * A device takes jobs. A job is one kind of operation over an array of items; items are independent
 * of each other, run in any order and in parallel, one lane (or layer) each. This file does not know
 * sequences, tiers or messages: it sees views (kernels/tail.h, kernels/segment.h) and pointers.
 *
 *          submit                      workers                     reap
 *   idle ─────────► queued (urgent? ──────────► running ──────► done ──────► idle
 *                   before the others)
 *
 * Invariants:
 *   D1  Between submit and reap the job, its items and all memory they name belong to the device;
 *       only the extents of segments may change meanwhile (segment.h, S5, S6).
 *   D2  A job is reaped exactly once, with `status` set; its results are valid from then on.
 *   D3  An item writes only the outputs its comment names, only inside the capacities it states.
 *   D4  Equal input gives equal output bits on the same device and instruction set, for any number
 *       of workers. Which clusters a recall takes does not depend on the extents.
 *
 * Threads: submit and reap are called by one thread, the device's owner. Workers are the device's own.
 * submit never blocks: a small job may run inside it (its fd is readable at once). A device's
 * functions never allocate after open, except for worker scratch that open has reserved.
 *
 * Source: ClusterKV, arXiv 2412.03213, sections 3.2 to 3.4. Deviations stand at each operation. */
#ifndef KVR_KERNELS_DEVICE_H
#define KVR_KERNELS_DEVICE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"
#include "base/list.h"
#include "kernels/segment.h"
#include "kernels/tail.h"

struct kvr_device; /* opaque; owned by whoever opened it */

enum kvr_job_kind {
	KVR_JOB_APPEND,  /* items: struct kvr_append_item */
	KVR_JOB_CLUSTER, /* items: struct kvr_cluster_item */
	KVR_JOB_PACK,    /* items: struct kvr_cluster_item */
	KVR_JOB_MERGE,   /* items: struct kvr_cluster_item */
	KVR_JOB_RECALL,  /* items: struct kvr_recall_item */
	KVR_JOB_FETCH,   /* items: struct kvr_fetch_item */
	KVR_JOB_COPY,    /* items: struct kvr_copy_item */
	KVR_JOB_FILL,    /* items: struct kvr_fill_item */
	KVR_JOB_ATTEND,  /* items: struct kvr_attend_item */
	KVR_JOB_KINDS,
};

struct kvr_job {
	/* Set by the submitter. */
	enum kvr_job_kind kind;
	bool urgent; /* runs before jobs that are not, as a rule: a recall overtakes sealing */
	void *items; /* array of the kind's item type */
	uint32_t item_count; /* 1 or more */
	void *owner;         /* the submitter's; the device leaves it alone */
	/* Set by the device before the job is reaped: 0, or the -errno of its first failing item. */
	int status;
	/* The device's own between submit and reap. */
	struct kvr_list link;
	uint32_t item_next;
	uint32_t item_done;
};

/* ---- append: from a client's region into the tail --------------------------------------------
 *
 * Copies keys [count][K][Dk] and values [count][K][Dv] (token order, dense) of one layer to the
 * tail's tokens first .. first + count - 1. Checks what it has copied, not what it read, so that a
 * client that scribbles meanwhile cannot slip anything past the check.
 * Fails with -EDOM if a key or value is NaN or infinite; the tail's rows are then unspecified. */
struct kvr_append_item {
	const uint8_t *keys;
	const uint8_t *values;
	const struct kvr_tail_view *tail;
	uint32_t layer;
	uint32_t first; /* index into the tail */
	uint32_t count;
	int status; /* out: 0 or -EDOM */
};

/* ---- cluster and pack: sealing ---------------------------------------------------------------
 *
 * CLUSTER groups the tail's tokens 0 .. segment->token_count - 1 of one lane (token 0 of the tail is
 * token 0 of the segment) by k-means and fills in the lane's means and spreads, key_planes, row_first,
 * row_token and cluster_count (S1 to S4); it does not touch the extents.
 *
 *   k-means (ClusterKV 3.2): distance 1 - cos(key, centroid); assignment by the largest product of
 *   normalised key and normalised centroid, ties to the lower cluster; a centroid is the mean of the
 *   raw keys. Initial centroids: cluster_max keys spread evenly over the segment. At most 10
 *   iterations, fewer when no label changes; a last assignment; empty clusters are removed. Means
 *   are then taken over the final members; those of values are rounded to bf16, those of keys to 16
 *   bits below the largest element (KVR_MEAN_STEPS). The
 *   spread is the variance of each channel over the members, in 8 bits (kernels/mean.h). A zero key goes to cluster 0.
 *   Clusters are numbered so that similar ones lie near each other (STORE ORDER in kmeans.c).
 *   A dense lane is not clustered: runs of cluster_tokens in token order.
 *
 * PACK copies the rows into the extents, which the owner has set meanwhile to places of
 * n * (Dk + Dv) elements each. Reads no more than CLUSTER left.
 * Cost: CLUSTER 2 * 11 * T * C * Dk flops per lane, PACK one copy. Neither fails. */
struct kvr_cluster_item {
	const struct kvr_tail_view *tail;
	struct kvr_segment_view *segment;
	uint32_t lane;
};

/* ---- merge: chunked soft matching ------------------------------------------------------------
 *
 * Makes the merged sets of one lane, those that the geometry names, from the tail's tokens behind the
 * sinks: K and V into the extents of their units, which the owner has set to places of n * (Dk + Dv) elements
 * each (n = kvr_segment_unit_rows), any alignment; and merged_tokens (S9). In a dense lane there are no sets, and
 * merged_tokens are 0.
 *
 *   Chelsea / CentroidKV (arXiv 2506.11418): the rows are cut into chunks of 256; in a chunk those at odd
 *   places, A, and those at even places, B, counted from 0, are matched by the cosine of their keys, one edge
 *   from each A to its best B, ties to the lower B. Of the edges of all chunks the best are kept, as many as the
 *   pass is to merge, ties to the earlier A; a B and its As become one row, their K and V means weighted by the tokens
 *   that each stands for, in the place of the B; an A that is left keeps its place. A zero key has the cosine 0
 *   with all. A cosine may be off by 2^-15; those of equal keys are equal.
 *   Passes: 1/2 is one from the tokens, 1/4 one from 1/2, 1/8 one from 1/4; each keeps all edges. 1/5 is one
 *   from 1/4 that keeps the best edges only, as many as it has rows too many: passes halve while that leaves rows
 *   enough, then the last one merges the rest. (The paper does not say how a ratio is cut into passes.)
 *   Means are floats between the passes, rounded to the dtype at the end. Rows stay in the order of their places.
 *
 * Reads the tail alone: it may run beside CLUSTER and PACK. Does not fail. Cost: 256 * T * Dk flops per lane,
 * and T * (Dk + Dv) floats written. */

/* ---- recall: score, choose, gather -----------------------------------------------------------
 *
 * One lane of one sequence. Rank SHARE (ours): query_count = G queries share one selection;
 *   share_c = mean over g of softmax_c(log n_c + scale * q_g . mean_c), taken over all clusters;
 * clusters are taken in the order of share per token, share_c / n_c. mean_c has 8 bits, the high plane,
 * or where that is too coarse 16 (segment.h, S7). Rank INNER_PRODUCT (ClusterKV 3.3, equation 5, as
 * published): query_count = 1, clusters in the order of q . mean_c, with all 16 bits; its share is
 * estimated all the same, for `mass`. A query has 15 bits below its largest element. Ties go to the earlier cluster. Then, in that order:
 *   tokens:        until budget_tokens rows are taken; the last cluster is trimmed to its first rows;
 *   mass p > 0:    as above, but stops after the cluster with which the shares sum to p or more.
 * Taken clusters are staged in memory order (segment, then cluster), after the sinks (if `sinks`)
 * and before the tail's tokens (0 .. tail_count - 1); sinks and tail do not count against the
 * budget. In a dense lane all clusters are taken, whatever the budget.
 * Rows that are not here count against the budget all the same: what is taken does not depend on it.
 * `chosen` NULL: a taken cluster whose extent is NULL or LOST is left out and adds to token_missing.
 * `chosen` set: what is taken, sinks included, is listed there in the order of staging. A cluster whose
 * extent is NULL leaves a gap: its rows have their places, positions and weights, but K and V of these
 * places are not written; FILL does that when they are read. A LOST one is left out, of the list
 * too, and adds to token_missing.
 *
 * MIXED. What is not taken, and the rest of a trimmed cluster, is estimated from the centroids: n_c rows not
 * staged count as one of the key mean_c and the value mean of the cluster, with the log weight
 *   w_gc = log n_c + log cosh sigma_gc,     sigma_gc^2 = scale^2 sum_j q_gj^2 spread_cj,
 * because exp grows faster for the keys beyond the mean than it falls for those before it (first_order leaves sigma out).
 *   folded (fold_out is set):   out[g] = softmax_c(scale * q_g . mean_c + w_gc) . value_mean_c and
 *                       lse[g] = log sum_c exp(scale * q_g . mean_c + w_gc), as ATTEND gives them; out 0 and lse
 *                       -INFINITY where nothing is left or the query is not finite;
 *   rows (centroid_max > 0):   centroid_max clusters at most, the next in the order of choosing, behind the
 *                       tail, in memory order: mean_c (with all 16 bits) and value mean rounded to the dtype, position
 *                       -1, and per query head a weight, log n_c where that head is not finite: `weights` is
 *                       [query_count][row_capacity] then, equal for all heads where a row is a token's.
 * With both, what is given as rows is not folded. Rows that are missing are not estimated: token_missing tells. The
 * estimate, like the choice, does not depend on the extents. Where no cluster is taken, budget_tokens being 0, mass is 0.
 * Cost: the fold reads 1 byte of spread and 2 of value mean per channel and cluster; with more than 16 heads the means are
 * scored twice.
 *
 * MERGED. Nothing is scored. Of the first merged_segments segments the rows of merged set merged_set
 * are staged, with the log of their merged_tokens as weights and position -1, or in a dense lane all clusters; of the others all
 * clusters. A merged set is taken, listed and missing like a cluster: its unit is its number, and its rows
 * count as so many missing tokens as they stand for. budget and query are not looked at; mass is 1.
 *
 * A query that is not finite counts as if all its shares (or products) were 0. Where scores could
 * change nothing (dense lane, or a budget by tokens alone that covers all clusters) none are computed
 * and mass is the part of the rows that was staged; 1 without clusters.
 *
 * row_capacity must hold every row that can be staged: budget_tokens (or, if dense, all tokens of
 * the segments) + sinks + tail_count + centroid_max. chosen_max must hold all that can be listed: as many clusters as
 * the budget has tokens, at most all (if dense, all) + the segments with sinks, if they are asked
 * for. The owner checks that; the device asserts it. */
struct kvr_chosen {
	uint16_t segment; /* index into `segments` */
	uint16_t cluster; /* of the segment's lane: a unit's number (kernels/segment.h) */
	uint16_t rows;    /* staged, or the size of the gap: the first so many of the cluster */
	uint16_t absent;  /* 1: a gap; else 0 */
	uint32_t row;     /* of the output, the first */
	float share; /* estimated share of attention of these rows; 0 where nothing was scored */
};
KVR_STATIC_ASSERT(sizeof(struct kvr_chosen) == 16);
KVR_STATIC_ASSERT(KVR_SEQUENCE_SEGMENTS_MAX <= UINT16_MAX);
KVR_STATIC_ASSERT(KVR_CLUSTERS_MAX + KVR_MERGED_SETS < UINT16_MAX);
KVR_STATIC_ASSERT(KVR_SEGMENT_TOKENS_MAX <= UINT16_MAX);

struct kvr_recall_item {
	const struct kvr_segment_view *const *segments; /* the sequence's chain, oldest first */
	uint32_t segment_count;
	const struct kvr_tail_view *tail; /* NULL if tail_count is 0 */
	uint32_t tail_first;              /* position of the tail's token 0 in the sequence */
	uint32_t tail_count;
	const struct kvr_geometry *geometry;
	uint32_t lane;
	bool sinks;
	enum kvr_form form; /* 0: CLUSTERS */
	enum kvr_rank rank;
	uint32_t query_count; /* G, or 1 */
	const uint8_t *query; /* [query_count][Dk] of query_dtype; any alignment */
	enum kvr_dtype query_dtype;
	float scale;            /* of the logits; 1/sqrt(Dk) as a rule */
	uint32_t budget_tokens; /* rows from clusters at most */
	float budget_mass;      /* 0: by tokens alone; else in (0, 1] */
	uint32_t centroid_max;  /* of MIXED: rows of centroids at most */
	bool first_order;       /* of MIXED: weights without the spread, for comparison */
	uint32_t merged_set, merged_segments; /* of MERGED */
	uint32_t row_capacity;
	uint8_t *keys;      /* out [row_capacity][Dk]; any alignment */
	uint8_t *values;    /* out [row_capacity][Dv] */
	float *weights;     /* out [row_capacity] log weights (0 for a token), or NULL; see MIXED */
	float *fold_out;    /* out [query_count][Dv], of MIXED, or NULL */
	float *fold_lse;    /* out [query_count]; NULL if and only if fold_out is */
	int32_t *positions; /* out [row_capacity] positions in the sequence, or NULL */
	struct kvr_chosen *chosen; /* out [chosen_max], or NULL */
	uint32_t chosen_max;
	/* Out. Gaps count as staged. */
	uint32_t row_count;
	uint32_t
		cluster_count; /* staged, whole or trimmed; without the sinks'; of MERGED, the units */
	uint32_t centroid_count; /* of row_count, the last so many */
	uint32_t token_missing;  /* rows left out */
	uint32_t chosen_count;   /* 0 if chosen is NULL */
	uint32_t absent_count;   /* of these, the gaps */
	float mass; /* estimated share of attention of the rows staged, over the clusters */
};

/* ---- fetch: token order, bit-identical -------------------------------------------------------
 *
 * One lane: rows of the sequence's tokens first .. first + count - 1 from segments and tail to
 * keys + i * key_stride and values + i * value_stride (bytes). Fails with -EIO if a token's extent
 * is NULL or LOST; the output is then unspecified. */
struct kvr_fetch_item {
	const struct kvr_segment_view *const *segments;
	uint32_t segment_count;
	const struct kvr_tail_view *tail; /* NULL where the range ends before it */
	uint32_t tail_first;
	const struct kvr_geometry *geometry;
	uint32_t lane;
	uint32_t first;
	uint32_t count;
	uint8_t *keys;
	uint8_t *values;
	size_t key_stride;
	size_t value_stride;
	int status; /* out: 0 or -EIO */
};

/* ---- copy: one run of bytes ------------------------------------------------------------------ */
struct kvr_copy_item {
	void *to;
	const void *from;
	size_t bytes;
};

/* ---- fill: a cluster that was read from below ------------------------------------------------
 *
 * Checks the payload of a cluster, K [row_count][Dk], then V [row_count][Dv], and only if it is what
 * was once written copies its first rows to a gap that RECALL has left, and the whole to where it is kept.
 * The job does not fail for an item: its status is 0, and each item's tells. With neither keys nor
 * copy it only checks.
 * Cost: reads the payload once from memory. */
struct kvr_fill_item {
	const uint8_t *payload; /* any alignment */
	const struct kvr_geometry *geometry;
	uint32_t row_count; /* up to KVR_SEGMENT_TOKENS_MAX */
	uint32_t crc;       /* CRC-32C of the whole payload (crc.h) */
	uint32_t rows;      /* of these, the first so many are staged */
	uint8_t *keys;      /* out [rows][Dk], any alignment; NULL: none are staged */
	uint8_t *values;    /* out [rows][Dv]; NULL if and only if keys is */
	uint8_t *copy;      /* out: the whole payload; or NULL */
	int status;         /* out: 0, or -EIO: the checksum differs, and nothing was written */
};

/* ---- attend: exact attention over rows -------------------------------------------------------
 *
 * out[g] = softmax_r(scale * q_g . k_r + w_r) . v, lse[g] = log sum_r exp(scale * q_g . k_r + w_r),
 * over the rows of one lane, dense or a stride apart. With row_count 0, out is 0 and lse -INFINITY. */
struct kvr_attend_item {
	const struct kvr_geometry *geometry;
	uint32_t query_count;
	const uint8_t *query; /* [query_count][Dk] of query_dtype */
	enum kvr_dtype query_dtype;
	float scale;
	uint32_t row_count;
	const uint8_t *keys;   /* [row_count][Dk] of the geometry's dtype */
	const uint8_t *values; /* [row_count][Dv] */
	size_t key_stride;     /* bytes from row to row; 0: dense */
	size_t value_stride;
	const float *weights; /* [row_count] log weights, or NULL for 0 */
	float *out;           /* [query_count][Dv] */
	float *lse;           /* [query_count] */
};

/* ---- the device ------------------------------------------------------------------------------ */

/* Queues a job. Returns 0, or -EAGAIN if KVR_DEVICE_JOBS_MAX are queued or running (nothing
 * changed: reap and try again). */
#define KVR_DEVICE_JOBS_MAX 4096u
int kvr_device_submit(struct kvr_device *device, struct kvr_job *job);

/* Takes up to `max` finished jobs, oldest first. Returns how many; never blocks. */
uint32_t kvr_device_reap(struct kvr_device *device, struct kvr_job **ret_jobs, uint32_t max);

/* Runs a part of a queued urgent job on the calling thread, the owner's: what it would otherwise sleep
 * through. Takes one item, or several that together are estimated to take 20 us, and none that is estimated to take longer than
 * KVR_DEVICE_HELP_US divided by the number of workers: beside a few, the owner's part counts; beside
 * many, that it is there for others does. Where the workers have all of it, waits for them, as long as an
 * idle worker spins. Returns whether something was done: false says that it is time to sleep. */
#define KVR_DEVICE_HELP_US 2000u
bool kvr_device_help(struct kvr_device *device);

/* Readable while reap has something to return. Borrowed. */
int kvr_device_fd(const struct kvr_device *device);

/* One line for people: "cpu, 2 threads, avx512". Borrowed. */
const char *kvr_device_name(const struct kvr_device *device);

/* Ends the device. No job may be queued or running. Takes NULL; returns NULL. */
struct kvr_device *kvr_device_close(struct kvr_device *device);

/* For implementers: a device is a struct that begins with its table. */
struct kvr_device_ops {
	int (*submit)(struct kvr_device *device, struct kvr_job *job);
	uint32_t (*reap)(struct kvr_device *device, struct kvr_job **ret_jobs, uint32_t max);
	bool (*help)(struct kvr_device *device);
	int (*fd)(const struct kvr_device *device);
	const char *(*name)(const struct kvr_device *device);
	void (*close)(struct kvr_device *device);
};

struct kvr_device {
	const struct kvr_device_ops *ops;
};

/* ---- the CPU device (kernels/cpu.c) ---------------------------------------------------------- */

enum kvr_isa {
	KVR_ISA_BEST,   /* the widest this processor has */
	KVR_ISA_PLAIN,  /* the oracles, plain C */
	KVR_ISA_AVX2,   /* with FMA and F16C */
	KVR_ISA_AVX512, /* F, BW, DQ, VL; bf16 products where the processor has them */
};

struct kvr_device_cpu_config {
	uint32_t
		threads; /* 1 to KVR_THREADS_MAX; 0: one per online CPU but one, for the owner, which helps */
	enum kvr_isa isa; /* -ENOTSUP from open if the processor lacks it */
	uint32_t spin_us; /* how long an idle worker spins for work before it sleeps */
	uint32_t
		inline_item_us; /* jobs estimated to take at most this long run inside submit; 0: none */
};

/* Starts the workers. Errors: -ENOTSUP, -ENOMEM, -EMFILE or -ENFILE (its fd), -EAGAIN (threads). */
int kvr_device_open_cpu(const struct kvr_device_cpu_config *config, struct kvr_device **ret_device);

#endif
