/* SPDX-License-Identifier: Apache-2.0 */
/* choose.c: which clusters fit a budget, without sorting all of them.
 *
 * The clusters taken are those whose key is at least some threshold: the largest key such that the
 * clusters from it up hold the budget. It is found by halving the range of keys; a step adds up the
 * rows from the middle up, a few instructions per vector of clusters. Every few steps only the
 * clusters still in the range are kept, so that later steps cost next to nothing:
 *
 *   all keys ──11 steps──► those in 1/2048 of the range ──11 steps──► ... ──► one key: in index order
 *
 * Only a limit by mass sorts, and only the clusters that fit the budget. Time is linear in the number
 * of clusters whatever the keys; the same keys give the same choice.
 *
 * Invariants:
 *   H1  The clusters with keys above `high` hold `above` rows, fewer than the budget; those from `low`
 *       up hold at least as many as the budget. */

#include "kernels/recall.h"

#define STEPS_PER_KEEP 11u /* halvings between two reductions to the clusters in the range */

#define DIGIT_BITS  11u
#define DIGIT_BINS  (1u << DIGIT_BITS)
#define DIGIT_COUNT 3u /* of 11, 11 and 10 bits */
KVR_STATIC_ASSERT(DIGIT_BITS *DIGIT_COUNT >= 32);

static const uint32_t digit_shift[DIGIT_COUNT] = {21, 10, 0};
static const uint32_t digit_mask[DIGIT_COUNT] = {0x7ff, 0x7ff, 0x3ff};

static uint32_t pad(uint32_t count)
{
	return (count + KVR_RECALL_PAD - 1) / KVR_RECALL_PAD * KVR_RECALL_PAD;
}

/* The threshold, and the rows above it. All clusters together hold at least the budget. */
static uint32_t threshold_of(const struct kvr_recall_ops *ops, const uint32_t *key,
	const float *tokens, uint32_t count, uint32_t budget, uint32_t *room, uint32_t *ret_above)
{
	uint32_t *list = room, *kept_key = room + pad(count) + KVR_RECALL_PAD;
	float *kept_tokens = (float *)(void *)(kept_key + pad(count));
	uint32_t low = 0, high = UINT32_MAX, above = 0, above_kept = 0;

	for (uint32_t step = 1; low < high; step++) {
		const uint32_t middle = high - (high - low) / 2;
		const uint32_t rows = above_kept + ops->rows_from(key, tokens, pad(count), middle);

		if (rows >= budget) { /* H1 */
			low = middle;
		} else {
			high = middle - 1;
			above = rows;
		}
		if (step % STEPS_PER_KEEP != 0)
			continue;
		count = ops->find(key, count, low, high, list);
		/* Also in place: an index is never less than its place on the list. */
		for (uint32_t i = 0; i < count; i++) {
			kept_key[i] = key[list[i]];
			kept_tokens[i] = tokens[list[i]];
		}
		for (uint32_t i = count; i < pad(count); i++)
			kept_tokens[i] = 0;
		key = kept_key;
		tokens = kept_tokens;
		above_kept = above;
	}
	*ret_above = above;
	return low;
}

/* Where the budget ends: among the clusters with the threshold as key, in index order. */
static struct kvr_choice choose_by_rows(const struct kvr_recall_ops *ops, const uint32_t *key,
	const float *tokens, uint32_t count, uint32_t budget, uint32_t *room)
{
	uint32_t above, equal;
	const uint32_t low = threshold_of(ops, key, tokens, count, budget, room, &above);

	KVR_ASSERT(above < budget); /* H1 */
	budget -= above;
	equal = ops->find(key, count, low, low, room);
	for (uint32_t i = 0;; i++) {
		KVR_ASSERT(i < equal); /* H1 */
		if ((uint32_t)tokens[room[i]] >= budget)
			return (struct kvr_choice){low, room[i], budget};
		budget -= (uint32_t)tokens[room[i]];
	}
}

/* Sorts entries (key << 32 | index) by key, largest first, equal keys as they stand. */
static uint64_t *sort_entries(uint64_t *entry, uint64_t *other, uint32_t count)
{
	for (uint32_t digit = DIGIT_COUNT; digit-- > 0;) {
		const uint32_t shift = 32 + digit_shift[digit], mask = digit_mask[digit];
		uint32_t first[DIGIT_BINS] = {0};
		uint32_t at = 0;
		uint64_t *swap = entry;

		for (uint32_t i = 0; i < count; i++)
			first[entry[i] >> shift & mask]++;
		for (uint32_t bin = mask + 1; bin-- > 0;) {
			const uint32_t size = first[bin];

			first[bin] = at;
			at += size;
		}
		for (uint32_t i = 0; i < count; i++)
			other[first[entry[i] >> shift & mask]++] = entry[i];
		entry = other;
		other = swap;
	}
	return entry;
}

/* Shortens a choice to where its shares reach `mass`. */
static struct kvr_choice choose_by_mass(struct kvr_choice choice, const uint32_t *key,
	const float *tokens, const float *density, uint32_t count, float mass, uint64_t *room)
{
	uint32_t taken = 0;
	double sum = 0;
	uint64_t *entry;

	for (uint32_t c = 0; c < count; c++) {
		room[taken] = (uint64_t)key[c] << 32 | c;
		taken += key[c] > choice.key || (key[c] == choice.key && c <= choice.index);
	}
	entry = sort_entries(room, room + count, taken);
	for (uint32_t i = 0; i < taken; i++) {
		const uint32_t c = (uint32_t)entry[i];

		sum += (double)tokens[c] * (double)density[c];
		if (sum >= (double)mass && c != choice.index)
			return (struct kvr_choice){key[c], c, (uint32_t)tokens[c]};
	}
	return choice;
}

struct kvr_choice kvr_choose(const struct kvr_recall_ops *ops, const uint32_t *key,
	const float *tokens, const float *density, uint32_t count, uint32_t budget, float mass,
	uint64_t *room)
{
	struct kvr_choice choice = {0, UINT32_MAX, 0};

	KVR_ASSERT(count >= 1);
	KVR_ASSERT(budget >= 1);
	if (ops->rows_from(key, tokens, pad(count), 0) > budget)
		choice = choose_by_rows(ops, key, tokens, count, budget, (uint32_t *)(void *)room);
	if (mass > 0)
		choice = choose_by_mass(choice, key, tokens, density, count, mass, room);
	return choice;
}
