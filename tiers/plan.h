/* SPDX-License-Identifier: Apache-2.0 */
/* plan.h: which spans to read for a set of pieces: a pure function.
 *
 * Pieces (clusters) are sorted by offset; neighbours that are no more than `gap_bytes` apart become one span,
 * up to span_bytes_max; spans are widened to the disk's alignment. A piece never straddles two spans: one
 * that is longer than span_bytes_max has a span of its own, as long as it needs.
 *
 *   pieces      [a]  [b][c]              [d]
 *   spans      [========]              [====]      the gap between a and b is read and thrown away
 *
 * Invariants:
 *   I1  Every byte of every piece lies in the span that lists it; spans ascend, and (as long as pieces do not
 *       overlap) share at most a sector with their neighbours.
 *   I2  Offsets and lengths of spans are multiples of the alignment.
 *
 * Threads: none of its own. */
#ifndef KVR_TIERS_PLAN_H
#define KVR_TIERS_PLAN_H

#include <stdint.h>

struct kvr_plan_piece {
	uint64_t offset; /* in the segment's stream (tiers/slab.h), or in any other space */
	uint32_t bytes;  /* 1 or more */
	uint32_t tag;    /* the caller's */
};

struct kvr_plan_span {
	uint64_t offset;
	uint32_t bytes;
	uint32_t piece_first, piece_count; /* of the sorted pieces */
};

/* What merging is worth: measured by bench/gap.c, figures in docs/DECISIONS.md. */
#define KVR_PLAN_GAP_BYTES  8192u
#define KVR_PLAN_SPAN_BYTES (256u << 10)

struct kvr_plan_rule {
	uint32_t alignment; /* a power of two, 1 to 4096 */
	uint32_t gap_bytes;
	uint32_t span_bytes_max; /* before widening */
	uint32_t piece_max;      /* of a span, 1 or more: what its reader can deal with at once */
};

/* Sorts `pieces` in place and writes the spans, at most `count` of them. Returns how many.
 * Cost: a sort of `count`, or one pass where they are sorted already. */
uint32_t kvr_plan(const struct kvr_plan_rule *rule, struct kvr_plan_piece *pieces, uint32_t count,
	struct kvr_plan_span *ret_spans);

#endif
