/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c: sorts pieces, and draws spans around those that lie close together. */
#include <stdbool.h>
#include <stdlib.h>

#include "base/assert.h"
#include "tiers/plan.h"

static int by_offset(const void *left, const void *right)
{
	const struct kvr_plan_piece *a = left;
	const struct kvr_plan_piece *b = right;

	return (a->offset > b->offset) - (a->offset < b->offset);
}

static bool is_sorted(const struct kvr_plan_piece *pieces, uint32_t count)
{
	for (uint32_t i = 1; i < count; i++)
		if (pieces[i - 1].offset > pieces[i].offset)
			return false;
	return true;
}

/* Widens [start, end) to the alignment. */
static struct kvr_plan_span widen(uint64_t start, uint64_t end, uint32_t alignment)
{
	const uint64_t mask = alignment - 1;
	struct kvr_plan_span span;

	span.offset = start & ~mask;
	end = (end + mask) & ~mask;
	KVR_ASSERT(end - span.offset <= UINT32_MAX);
	span.bytes = (uint32_t)(end - span.offset); /* I2 */
	return span;
}

uint32_t kvr_plan(const struct kvr_plan_rule *rule, struct kvr_plan_piece *pieces, uint32_t count,
	struct kvr_plan_span *ret_spans)
{
	uint32_t spans = 0;
	uint32_t i = 0;

	KVR_ASSERT(rule->piece_max >= 1);
	KVR_ASSERT(rule->alignment >= 1);
	KVR_ASSERT(rule->alignment <= 4096);
	KVR_ASSERT((rule->alignment & (rule->alignment - 1)) == 0);
	if (!is_sorted(pieces, count))
		qsort(pieces, count, sizeof(*pieces), by_offset);
	while (i < count) {
		const uint32_t first = i;
		const uint64_t start = pieces[first].offset;
		uint64_t end = start + pieces[first].bytes;

		KVR_ASSERT(pieces[first].bytes >= 1);
		for (i++; i < count && i - first < rule->piece_max; i++) {
			const uint64_t piece_end = pieces[i].offset + pieces[i].bytes;

			/* Written so that no sum can wrap: offsets ascend. */
			if (pieces[i].offset > end && pieces[i].offset - end > rule->gap_bytes)
				break;
			if (piece_end > end && piece_end - start > rule->span_bytes_max)
				break;
			if (piece_end > end)
				end = piece_end;
		}
		ret_spans[spans] = widen(start, end, rule->alignment);
		ret_spans[spans].piece_first = first;
		ret_spans[spans].piece_count = i - first;
		KVR_ASSERT(ret_spans[spans].offset <= start); /* I1 */
		spans++;
	}
	KVR_ASSERT(spans <= count);
	return spans;
}
