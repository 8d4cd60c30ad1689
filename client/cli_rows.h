/* SPDX-License-Identifier: Apache-2.0 */
/* cli_rows.h: what a recall stages: where it lies in the region, and which files it goes to.
 *
 * It asks the daemon for nothing. In the region a layer has, one after the other, each aligned to 64 bytes,
 *
 *   part        shape in the region   file                      only of
 *   query       [H][Dk]               -                         what has a query
 *   keys        [heads][R][Dk]        PREFIX_K.npy
 *   values      [heads][R][Dv]        PREFIX_V.npy
 *   weights     [weight heads][R]     PREFIX_weights.npy
 *   positions   [heads][R]            PREFIX_positions.npy
 *   outputs     [H][Dv]               PREFIX_outputs.npy        MIXED, folded
 *   lse         [H]                   PREFIX_lse.npy            MIXED, folded
 *   rows        [heads]               -
 *
 * with R rows of capacity per head. A file has the shape behind an axis for the layers. What a head has less
 * than R rows is zero, with weight -inf and position -1, so that softmax(q.K / sqrt(Dk) + weights) V needs no
 * other mask; rows that stand for several tokens have position -1, too.
 *
 * Threads: one. */
#ifndef KVR_CLIENT_CLI_ROWS_H
#define KVR_CLIENT_CLI_ROWS_H

#include "client/cli.h"
#include "client/cli_npy.h"
#include "client/cli_report.h"

enum kvr_rows_part {
	KVR_ROWS_QUERY,
	KVR_ROWS_KEYS, /* the first that has a file */
	KVR_ROWS_VALUES,
	KVR_ROWS_WEIGHTS,
	KVR_ROWS_POSITIONS,
	KVR_ROWS_OUTPUTS,
	KVR_ROWS_LSE, /* the last */
	KVR_ROWS_COUNTS,
	KVR_ROWS_PARTS,
};

struct kvr_cli_rows {
	/* Set by the caller. */
	const struct kvr_model_info *model; /* borrowed */
	enum kvr_type query_type;           /* 0: no query */
	uint32_t layer_count;
	uint32_t heads;        /* that rows are staged for: K or H */
	uint32_t weight_heads; /* heads, or H where each query head has weights of its own */
	uint32_t capacity;     /* R */
	bool folded;
	const char *prefix; /* of the files; NULL: none */
	/* Set by kvr_cli_rows_open. */
	size_t part_bytes[KVR_ROWS_PARTS];
	size_t part_at[KVR_ROWS_PARTS + 1]; /* offsets in a layer; the last is its size */
	struct kvr_rows *counts;            /* [layer_count][heads] */
	struct kvr_npy files[KVR_ROWS_PARTS];
};

/* Lays out a layer, checks that one fits `region_bytes`, makes the files. Errors are reported. */
int kvr_cli_rows_open(struct kvr_cli *cli, struct kvr_cli_rows *rows, size_t region_bytes);

/* Throws away files that were not committed. Takes zeroed memory. */
void kvr_cli_rows_close(struct kvr_cli_rows *rows);

/* Points an item at a layer's memory. */
void kvr_cli_rows_place(
	const struct kvr_cli_rows *rows, uint8_t *layer, struct kvr_recall_item *item);

/* Takes over what was staged of the index-th layer. */
void kvr_cli_rows_take(struct kvr_cli_rows *rows, uint32_t index, const uint8_t *layer);

/* Bytes that were staged. */
uint64_t kvr_cli_rows_staged(const struct kvr_cli_rows *rows);

/* Moves the files to their names. Errors are reported. */
int kvr_cli_rows_commit(struct kvr_cli *cli, struct kvr_cli_rows *rows);

/* Says which files there are, and of what shape; nothing if there are none. */
void kvr_cli_rows_report(const struct kvr_cli_rows *rows, struct kvr_report *report);

#endif
