/* SPDX-License-Identifier: Apache-2.0 */
/* kvrecall.h: the client library of kvrecalld.
 *
 * An engine attaches, registers its model's geometry, opens sequences by their token ids, appends keys
 * and values as it computes them, and recalls, with query vectors, the rows that these need.
 *
 *   kvr_connect ─► kvr_model_register ─► kvr_open ─► kvr_append ... kvr_recall ... ─► kvr_close
 *
 * Memory. Keys, values, queries and rows travel through the region: memory that client and daemon
 * both map (kvr_region). The engine lays it out as it likes and chooses, once, where replies land.
 * Pointers into the region given to a call belong to the daemon until the call returns, or until a
 * submitted request is polled.
 *
 * Threads. A client and everything made from it is used by one thread at a time; different clients
 * are independent. The library has no global state of its own. It must not be carried over fork().
 *
 * Errors. Every function that can fail returns 0 (or a count) on success, -errno on failure; kvr_error
 * then says what was refused, on what, and the remedy. Results (ret_) are written only on success.
 *   -ETIMEDOUT   the deadline passed; the request may still take effect
 *   -ECONNRESET  the daemon went away during the call
 *   -ENOTCONN    the daemon is not there; the next call tries again
 *   -ESTALE      the sequence belongs to a daemon that is gone: open it again
 *   -EFAULT      memory is not inside the region
 *   -EINVAL      an argument; kvr_error names it
 * Others stand at the functions. Codes and errnos are listed in docs/PROTOCOL.md.
 *
 * A daemon that restarts. The call in flight fails with -ECONNRESET. The next call that needs no
 * sequence attaches again, by itself, within its deadline; the region is mapped at the same
 * address, zeroed; models are registered again; kvr_generation has grown by one. Calls on old sequences fail
 * with -ESTALE, at once and before as after; such sequences are good for kvr_close alone.
 *
 * Axes: L layers, H query heads, K kv heads, Dk key dim, Dv value dim. Tensors are dense, row-major,
 * little-endian. */
#ifndef KVRECALL_H
#define KVRECALL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define KVR_VERSION "0.1.0"
#define KVR_API     __attribute__((visibility("default")))

struct kvr_client;
struct kvr_model;
struct kvr_sequence;

/* ---- connection ------------------------------------------------------------------------------ */

struct kvr_client_config {
	const char *attach_path; /* NULL: $KVRECALL_SOCKET, else /run/kvrecall/attach.sock */
	uint64_t region_bytes;   /* 0: 64 MiB */
	uint32_t timeout_ms;     /* deadline of every call; 0: 10,000 */
	const char *name;        /* shown in `kvrecall status`; NULL: the program's name */
};

/* Attaches to the daemon. `config` may be NULL. Blocks up to the timeout.
 * Errors: -ENOENT, -ECONNREFUSED (no daemon there: not waited for), -ECONNRESET (it ended meanwhile),
 * -EACCES (no tenant admits this uid), -E2BIG (region_bytes is more than a client may have), -ENOSPC
 * (more than is left), -EPROTONOSUPPORT (version), -EPROTO (no daemon of ours), -EINVAL (region_bytes
 * above 64 GiB, timeout_ms above 600,000), -ENOMEM, -ETIMEDOUT. No client means no kvr_error: use
 * strerror. */
KVR_API int kvr_connect(const struct kvr_client_config *config, struct kvr_client **ret_client);

/* Ends the session: its sequences, leases and region go. Frees every handle made from the client.
 * Takes NULL. Returns NULL. */
KVR_API struct kvr_client *kvr_disconnect(struct kvr_client *client);

/* The region and its size in bytes, page-aligned. Borrowed; the address holds for the client's life. */
KVR_API void *kvr_region(const struct kvr_client *client, size_t *ret_bytes);

/* How often the client has attached: 1 after kvr_connect, one more after every restart it noticed. */
KVR_API uint32_t kvr_generation(const struct kvr_client *client);

/* A round trip that does nothing. */
KVR_API int kvr_ping(struct kvr_client *client);

struct kvr_error {
	uint32_t code;       /* docs/PROTOCOL.md; 0 if the library itself refused */
	int error;           /* the errno, positive */
	const char *name;    /* of the code, like "REGION" */
	const char *subject; /* what was refused, on what */
	const char *remedy;
};

/* Why the last failing call of this client failed. Borrowed until its next call. */
KVR_API const struct kvr_error *kvr_error(const struct kvr_client *client);

/* ---- models ---------------------------------------------------------------------------------- */

enum kvr_type {
	KVR_F32 = 1,
	KVR_F16 = 2,
	KVR_BF16 = 3,
};

struct kvr_model_config {
	const char *name;
	uint8_t digest
		[32]; /* of the weights and the RoPE configuration: equal means interchangeable */
	uint32_t layers;             /* L, 1 to 256 */
	uint32_t query_heads;        /* H, 1 to 256, a multiple of kv_heads */
	uint32_t kv_heads;           /* K, 1 to 128 */
	uint32_t key_dim;            /* Dk, 8 to 576 */
	uint32_t value_dim;          /* Dv, 8 to 576 */
	enum kvr_type type;          /* of keys, values and staged rows */
	uint32_t segment_tokens;     /* S, 64 to 8192, a multiple of 64; 0: 1024 */
	uint32_t cluster_tokens;     /* mean tokens per cluster, 4 to 1024; 0: 16 */
	int32_t sink_tokens;         /* 0 to 64; -1: 16 */
	uint32_t rank;               /* tensor-parallel rank */
	const uint32_t *dense_lanes; /* lanes (layer * K + kv head) recalled whole; may be NULL */
	uint32_t dense_count;
	uint32_t merged; /* merged sets to make of every segment: enum kvr_merged, or-ed; 0: none */
};

/* One row for 2, 4, 5 or 8 tokens: each set takes that part of the keys and values besides. */
enum kvr_merged {
	KVR_MERGED_2 = 1,
	KVR_MERGED_4 = 2,
	KVR_MERGED_5 = 4,
	KVR_MERGED_8 = 8,
};

/* Registers the model, or finds it. Everything is copied. Errors: -EINVAL (geometry), -ENOSPC. */
KVR_API int kvr_model_register(struct kvr_client *client, const struct kvr_model_config *config,
	struct kvr_model **ret_model);

struct kvr_model_info {
	char name[64];
	uint8_t digest[32];
	uint32_t model; /* the daemon's number for it, until it ends */
	uint32_t layers, query_heads, kv_heads, key_dim, value_dim;
	enum kvr_type type;
	uint32_t segment_tokens, cluster_tokens, sink_tokens, rank;
	uint32_t merged;
	uint32_t segment_count; /* sealed: in memory, on disk, or both */
	uint64_t stored_bytes;  /* their keys and values */
};

/* Writes up to `max` models of the caller's tenant, starting with the `first`-th: those that are registered, and
 * those of which something is stored. Returns how many. */
KVR_API int kvr_model_list(
	struct kvr_client *client, uint32_t first, struct kvr_model_info *ret_models, uint32_t max);

/* ---- sequences ------------------------------------------------------------------------------- */

/* Opens a sequence with the longest prefix of tokens[0 .. count - 1] that the daemon holds, and leases
 * it. The engine goes on with appending from position *ret_matched. At most 2^20 tokens; more than
 * 131,072 are carried through the region's last bytes, which are overwritten, unless they lie in
 * the region already. Errors: -ENOSPC, -E2BIG, -ECONNRESET (also: the region with the tokens in it was
 * renewed by this call). */
KVR_API int kvr_open(struct kvr_model *model, const uint32_t *tokens, uint32_t count,
	struct kvr_sequence **ret_sequence, uint32_t *ret_matched);

/* A second sequence with the same tokens: shares sealed segments, copies the open tail.
 * *ret_tokens: the tokens that every layer has. Errors: -ENOSPC. */
KVR_API int kvr_fork(
	struct kvr_sequence *sequence, struct kvr_sequence **ret_sequence, uint32_t *ret_tokens);

/* Ends the sequence. Its tail is sealed as a short segment in the background, so that a later turn of
 * the same chat matches all of it; with `discard` it is thrown away. The handle is freed, also when
 * this fails. Takes NULL. */
KVR_API int kvr_close(struct kvr_sequence *sequence, bool discard);

/* ---- append ---------------------------------------------------------------------------------- */

struct kvr_append_layer {
	uint32_t layer;
	const void *keys;   /* [count][K][Dk] after RoPE, in the region */
	const void *values; /* [count][K][Dv], in the region */
};

struct kvr_append {
	struct kvr_sequence *sequence;
	uint32_t first;         /* position of the first token: the next one of every layer named */
	uint32_t count;         /* tokens, 1 or more */
	const uint32_t *tokens; /* [count] ids, anywhere; NULL if an earlier append of another layer
	                           brought them. More than 131,072: in the region */
	const struct kvr_append_layer *layers;
	uint32_t layer_count;
};

struct kvr_appended {
	uint32_t token_count;   /* tokens that every layer has */
	uint32_t sealed_tokens; /* of these, in sealed segments */
};

/* Copies keys and values into the daemon. After it returns the memory is the caller's again.
 * Errors: -ERANGE (not the next position), -EILSEQ (token ids), -EDOM (NaN or infinity; nothing was
 * kept), -ENOSPC, -EDQUOT, -EAGAIN. `ret_appended` may be NULL. */
KVR_API int kvr_append(struct kvr_client *client, const struct kvr_append *append,
	struct kvr_appended *ret_appended);

/* ---- recall ---------------------------------------------------------------------------------- */

enum kvr_rank_by {
	KVR_BY_SHARE = 1, /* estimated share of attention per token, one choice per kv head */
	KVR_BY_INNER_PRODUCT =
		2, /* q . centroid, one choice per query head (ClusterKV as published) */
};

/* What a recall gives. */
enum kvr_recall_form {
	KVR_RECALL_CLUSTERS = 1, /* exact rows of the clusters that the query recalls */
	KVR_RECALL_MERGED = 2,   /* the merged set, whatever the query: see below */
	KVR_RECALL_MIXED = 3,    /* exact rows, and an estimate of everything else: see below */
};

/* MIXED. What is not recalled is estimated from centroids: folded, or as rows.
 *
 * Folded (centroid_rows 0): per query head one partial output and its log-sum-exp, to be merged as in split
 * attention. With o and l those of the attention over the rows (and over whatever the engine has itself):
 *   m = max(l, lse)      output = (exp(l - m) o + exp(lse - m) outputs) / (exp(l - m) + exp(lse - m))
 * lse is -INFINITY where nothing was left to estimate.
 *
 * Rows (centroid_rows > 0): the next best clusters, at most so many per head, as one row each, behind all
 * others: its centroid, the mean of its values, position -1. Its weight differs for each query head:
 * `weights` is [H][row_capacity] then, kv head k's G query heads one after the other.
 *
 * MERGED. Rows that stand for merged_divisor tokens on average, merged by the likeness of their keys when their segment was
 * sealed (Chelsea / CentroidKV, arXiv 2506.11418), with the log of that number as weight and position -1: an engine keeps
 * them instead of the tokens. The model must keep that set (kvr_model_config.merged). Covered are whole segments that end 64 tokens or more
 * before the last token; covered_tokens says where that is, and a later recall with `first` set to it
 * brings what has come since. `tail` stages what is behind it, exactly. Dense lanes are exact. */

/* What was staged for one head. */
struct kvr_rows {
	uint32_t row_count;
	uint32_t cluster_count;  /* clusters, or merged sets, that the rows come from */
	uint32_t centroid_count; /* of the rows, the last so many are centroids of MIXED */
	uint32_t
		missing_tokens; /* chosen, but not to be read from disk, or damaged there: left out */
	float mass; /* estimated share of the attention over all clusters that is exact, 0 to 1; of
	               MERGED, which nothing is estimated for, 1 */
};

/* The budget of one head. */
struct kvr_budget {
	uint32_t tokens; /* rows from clusters, at most */
	float mass;      /* 0: by tokens alone; else stop at this estimated share, in (0, 1] */
};

/* One layer of one sequence. "heads" is K, or H with KVR_BY_INNER_PRODUCT. All memory in the region;
 * queries may lie anywhere (outside it they are copied into the message: -E2BIG past 1 MiB).
 * Arrays of 32-bit numbers, and rows, are aligned to 4 bytes. */
struct kvr_recall_item {
	struct kvr_sequence *sequence;
	uint32_t layer;
	const void *query;     /* [H][Dk] of query_type, after RoPE, unscaled; MERGED: not read */
	void *keys;            /* out [heads][row_capacity][Dk] of the model's type */
	void *values;          /* out [heads][row_capacity][Dv] */
	float *weights;        /* out [heads][row_capacity] log weights (0 for a token), or NULL */
	int32_t *positions;    /* out [heads][row_capacity], or NULL */
	struct kvr_rows *rows; /* out [heads] */
	float *outputs;        /* out [H][Dv], of MIXED folded; else not looked at */
	float *lse;            /* out [H], likewise */
	const struct kvr_budget *budgets; /* [heads], anywhere, instead of the recall's; or NULL */
	uint32_t first; /* of MERGED: position to start from; 0, or a covered_tokens */
	/* Out, written when the request is done. */
	uint32_t token_count; /* tokens that the layer has */
	uint32_t
		covered_tokens; /* of these, in sealed segments. The rows were chosen among them; the
	                            caller attends over its own tokens from here on (or asks for `tail`) */
};

struct kvr_recall {
	struct kvr_recall_item *items; /* all layers and sequences wanted at once: one round trip */
	uint32_t item_count;           /* 1 to 1024; weights and positions: all items or none */
	enum kvr_rank_by rank;         /* 0: KVR_BY_SHARE */
	enum kvr_type query_type;
	float scale;            /* of the logits; 0: 1/sqrt(Dk) */
	uint32_t budget_tokens; /* rows per head from clusters, at most */
	float budget_mass; /* 0: by tokens alone; else stop at this estimated share, in (0, 1] */
	uint32_t row_capacity;     /* rows per head that the outputs hold: budget + sinks + tail +
	                          centroid_rows. Of MERGED: tokens / merged_divisor + segments +
	                          sinks, with `tail` also what is not merged yet; one per token
	                          where the layer has a dense lane */
	bool sinks;                /* stage the first tokens of the sequence too */
	bool tail;                 /* stage the tokens after covered_tokens too */
	bool background;           /* layers that are not needed yet: yields to other recalls, and
	                          their reads to others' on the disk */
	enum kvr_recall_form form; /* 0: KVR_RECALL_CLUSTERS */
	uint32_t centroid_rows;    /* of MIXED: rows of centroids per head, at most; 0: folded */
	uint32_t merged_divisor;   /* of MERGED: 2, 4, 5 or 8 */
};

/* Stages the rows of the clusters that the queries recall. Attention over them is
 * softmax(scale * q.K + weights) V. What cannot be read is no error: rows are left out, and counted as
 * missing_tokens. Errors: -ENOBUFS (row_capacity too small), -ESTALE, -EFAULT, -EINVAL (MERGED: a set
 * that the model does not keep, or `first` where no segment begins). */
KVR_API int kvr_recall(struct kvr_client *client, struct kvr_recall *recall);

/* ---- the same without waiting ---------------------------------------------------------------- */

struct kvr_completion {
	uint64_t ticket;
	int status;                   /* 0 or -errno */
	struct kvr_appended appended; /* of an append */
};

/* Send and return. The structs, arrays and region memory they name must stay until the completion.
 * Errors: -EAGAIN (all credits are in use: poll first), and those above that the library finds. */
KVR_API int kvr_append_submit(
	struct kvr_client *client, const struct kvr_append *append, uint64_t *ret_ticket);
KVR_API int kvr_recall_submit(
	struct kvr_client *client, struct kvr_recall *recall, uint64_t *ret_ticket);

/* Readable when kvr_poll may have something. For poll and epoll, level-triggered. Borrowed, for the
 * client's life. */
KVR_API int kvr_fd(const struct kvr_client *client);

/* Takes up to `max` completions, in no order; does not block. Also sends requests again and ends
 * those whose deadline has passed. Returns how many. kvr_error is of the last one that failed. */
KVR_API int kvr_poll(
	struct kvr_client *client, struct kvr_completion *ret_completions, uint32_t max);

/* Blocks until this request is done. Others stay for kvr_poll. Returns 0 also if the request
 * failed: that is in the completion. Errors: -EINVAL (no such ticket, or taken already). */
KVR_API int kvr_wait(
	struct kvr_client *client, uint64_t ticket, struct kvr_completion *ret_completion);

/* ---- fetch, sync, pin, drop ------------------------------------------------------------------ */

struct kvr_fetch_layer {
	uint32_t layer;
	void *keys;   /* out [count][K][Dk], in the region */
	void *values; /* out [count][K][Dv], in the region */
};

struct kvr_fetch {
	struct kvr_sequence *sequence;
	uint32_t first; /* position */
	uint32_t count; /* tokens */
	const struct kvr_fetch_layer *layers;
	uint32_t layer_count;
};

/* Reads tokens back in token order, bit-identical to what was appended. Errors: -ERANGE; -EIO: some of
 * them cannot be read from disk, or are damaged there (code UNREADABLE): compute them again. The memory may
 * have been written in part. */
KVR_API int kvr_fetch(struct kvr_client *client, const struct kvr_fetch *fetch);

/* Waits until everything that is being sealed is sealed and, where the daemon has a store, durable: after
 * a crash of the daemon or the machine, kvr_open with these tokens finds them. With `seal_tail` the tokens that
 * every layer has are sealed first, as a short segment: then other sequences match all of them. What was
 * sealed and never synced is stored as well, some time later. Errors: -EDQUOT: what is sealed serves recalls, but is
 * in memory alone (code NOT_STORED; kvr_error says why: no room on disk, quota, write budget, a failing
 * disk); the daemon goes on trying. -ENOSPC, -EDQUOT with another code: not sealed, for want of memory. */
KVR_API int kvr_sync(struct kvr_sequence *sequence, bool seal_tail, uint32_t *ret_sealed_tokens);

/* Protects the sealed segments of a sequence from eviction, from memory and from disk, or no longer. Survives the
 * sequence, and a restart as soon as they are durable. */
KVR_API int kvr_pin(struct kvr_sequence *sequence, bool unpin, uint32_t *ret_segments);

/* The same by chain hash, for the segment and all before it, in memory or not. Errors: -ENOENT. */
KVR_API int kvr_pin_segment(
	struct kvr_client *client, const uint8_t hash[32], bool unpin, uint32_t *ret_segments);

struct kvr_dropped {
	uint32_t segment_count;
	uint64_t freed_bytes;
	uint32_t kept_count; /* leased or pinned */
};

/* Drops a segment and all that follow it. Errors: -ENOENT. */
KVR_API int kvr_drop_segment(
	struct kvr_client *client, const uint8_t hash[32], struct kvr_dropped *ret_dropped);

/* Drops every segment of a model, by the daemon's number (kvr_model_list). Errors: -ENODEV. */
KVR_API int kvr_drop_model(
	struct kvr_client *client, uint32_t model, struct kvr_dropped *ret_dropped);

/* ---- what is there --------------------------------------------------------------------------- */

struct kvr_segment_info {
	uint8_t hash[32];
	uint8_t parent[32]; /* all zero for a first segment */
	uint32_t model;
	uint32_t token_first, token_count;
	uint64_t stored_bytes;
	uint32_t leases, pins;
	uint64_t resident_bytes; /* of stored_bytes, those in host memory */
	bool durable;            /* on disk: found again after a restart */
	bool quarantined;        /* some of it could not be read: no prompt matches into it */
};

/* Writes up to `max` segments of the caller's tenant, from the `first`-th (of `model`; 0: of all).
 * Returns how many. */
KVR_API int kvr_segment_list(struct kvr_client *client, uint32_t model, uint32_t first,
	struct kvr_segment_info *ret_segments, uint32_t max);

struct kvr_metric {
	char name[64]; /* like "host.used_bytes"; docs/ARCHITECTURE.md lists them */
	double value;
	char text[160]; /* not empty where the metric is no number */
};

/* Writes up to `max` metrics from the `first`-th. Returns how many. */
KVR_API int kvr_stats(
	struct kvr_client *client, uint32_t first, struct kvr_metric *ret_metrics, uint32_t max);

#ifdef __cplusplus
}
#endif

#endif
