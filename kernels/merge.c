/* SPDX-License-Identifier: Apache-2.0 */
/* merge.c: the merged sets of one lane of one segment, by chunked soft matching.
 *
 * It does not know instruction sets (merge_*.c and kmeans_*.c do), and not what the sets are for.
 *
 *   tokens ──pass──► 1/2 ──pass──► 1/4 ──pass──► 1/8         a pass: match, keep, regroup, merge
 *                                   └────pass──► 1/5
 *
 *   places   0  1  2  3  4  5  ...          B the even ones, A the odd ones, of a chunk
 *            B  A  B  A  B  A               edge i is that of the A at place 2 i + 1
 *            ▲──┘  ▲────────┘
 *            0     1  2  4                  rows of the next state: Bs, and As that are not merged
 *
 * A state is rows of keys and values, and how many tokens each stands for. A pass that halves keeps
 * every edge, and chunks decide nothing together; only the last pass of 1/5 chooses among the edges
 * of all chunks, so only it looks at their cosines.
 *
 * Invariants:
 *   M1  As K1: the result depends on the lane's rows and the loops alone; one thread does all of it.
 *   M2  A chunk begins at an even place and has at least as many Bs as As: every A has a B, and the
 *       merges of a pass are at most half its rows, rounded down.
 *   M3  The tokens of a state sum to those of the lane without sinks (S9).
 *   M4  Every row is finite: a mean lies between its members, and what rounds up to infinity is cut.
 *
 * Threads: none; scratch is the caller's.
 *
 * Source: Chelsea / CentroidKV, arXiv 2506.11418: chunks, alternating partition, soft matching,
 * weighted means. Ours: how sets share passes. */
#include <string.h>

#include "base/assert.h"
#include "kernels/cpu.h"
#include "kernels/merge.h"

#define HALF_CHUNK (KVR_MERGE_CHUNK / 2)
#define NO_MATCH   UINT16_MAX

KVR_STATIC_ASSERT(KVR_MERGE_CHUNK % 2 == 0);                    /* M2 */
KVR_STATIC_ASSERT(KVR_SEGMENT_TOKENS_MAX < (uint32_t)NO_MATCH); /* a place fits 16 bits */

/* Rows between two passes. */
struct state {
	struct kvr_kmeans_rows keys, values; /* of equal count */
	uint16_t *tokens;                    /* [count] that a row stands for */
};

/* States with rows of their own; that of the tokens borrows the tail's. */
enum { STATE_TOKENS, STATE_HALF, STATE_QUARTER, STATE_COUNT };

struct run {
	const struct kvr_merge_ops *ops;
	const struct kvr_kmeans_ops *match;
	struct state state[STATE_COUNT];
	float *floats[STATE_COUNT][2]; /* keys and values of a state: [count][stride] */
	/* One pass. */
	uint16_t *best;    /* [edges] place of the B, or NO_MATCH */
	float *cosine;     /* [edges] where they are asked for */
	uint16_t *target;  /* [places] row of the next state */
	uint16_t *first;   /* [rows + 1] of the next state: first of its members */
	uint16_t *members; /* [places] in the order of `target`, then of places */
	float *weights;    /* [places] of the members, see merge.h */
	/* One chunk. */
	const uint8_t **row_a, **row_b; /* [HALF_CHUNK] keys */
	uint16_t *labels;
	float *panels, *units, *work;
};

/* Cuts `*at` bytes further into scratch; with base NULL it only adds up. */
static void *carve(uint8_t *base, size_t *at, size_t bytes)
{
	uint8_t *place = base ? base + *at : NULL;

	*at += (bytes + 63) & ~(size_t)63;
	return place;
}

/* Lays a run's arrays out in scratch and returns their bytes. */
static size_t layout(
	struct run *run, uint8_t *base, size_t tokens, size_t key_stride, size_t value_stride)
{
	const size_t padded = HALF_CHUNK + KVR_KMEANS_PANEL_MAX; /* loops write whole panels */
	size_t rows = tokens, at = 0;

	for (int i = STATE_TOKENS; i < STATE_COUNT; i++, rows = (rows + 1) / 2) {
		struct state *state = &run->state[i];

		state->keys.row = carve(base, &at, rows * sizeof(*state->keys.row));
		state->values.row = carve(base, &at, rows * sizeof(*state->values.row));
		state->tokens = carve(base, &at, rows * sizeof(*state->tokens));
		if (i == STATE_TOKENS)
			continue;
		run->floats[i][0] = carve(base, &at, rows * key_stride * sizeof(float));
		run->floats[i][1] = carve(base, &at, rows * value_stride * sizeof(float));
	}
	run->best = carve(base, &at, tokens / 2 * sizeof(*run->best));
	run->cosine = carve(base, &at, tokens / 2 * sizeof(*run->cosine));
	run->target = carve(base, &at, tokens * sizeof(*run->target));
	run->first = carve(base, &at, (tokens + 1) * sizeof(*run->first));
	run->members = carve(base, &at, tokens * sizeof(*run->members));
	run->weights = carve(base, &at, tokens * sizeof(*run->weights));
	run->row_a = carve(base, &at, HALF_CHUNK * sizeof(*run->row_a));
	run->row_b = carve(base, &at, HALF_CHUNK * sizeof(*run->row_b));
	run->labels = carve(base, &at, padded * sizeof(*run->labels));
	run->panels = carve(base, &at, padded * key_stride * sizeof(float));
	run->units = carve(base, &at, (size_t)HALF_CHUNK * key_stride * sizeof(float));
	run->work =
		carve(base, &at, KVR_KMEANS_WORK((size_t)HALF_CHUNK) * key_stride * sizeof(float));
	return at;
}

size_t kvr_cpu_merge_scratch(void)
{
	struct run run;

	return layout(&run, NULL, KVR_SEGMENT_TOKENS_MAX, KVR_KMEANS_ROUND(KVR_DIM_MAX),
		KVR_KMEANS_ROUND(KVR_DIM_MAX));
}

/* The key at `place`, as floats of length 1; a zero key stays zero. */
static void unit_of(
	const struct run *run, float *unit, const struct kvr_kmeans_rows *keys, size_t place)
{
	const uint16_t member = (uint16_t)place;
	const float one = 1.0f;

	run->ops->mean(unit, keys, &member, &one, 1);
	if (!run->match->unit(unit, keys->stride))
		kvr_kmeans_unit_exactly(unit, keys->stride);
}

/* Finds the best B of each A of the chunk that begins at place `base`. */
static void match_chunk(
	struct run *run, const struct kvr_kmeans_rows *keys, size_t base, bool with_cosine)
{
	const size_t left = keys->count - base;
	const size_t rows = left < KVR_MERGE_CHUNK ? left : KVR_MERGE_CHUNK;
	const size_t count_a = rows / 2, count_b = rows - count_a; /* M2 */
	const struct kvr_kmeans_rows keys_a = {
		run->row_a, count_a, keys->dim, keys->stride, keys->dtype};
	uint16_t *best = run->best + base / 2;

	if (count_a == 0)
		return;
	for (size_t i = 0; i < count_a; i++)
		run->row_a[i] = keys->row[base + 2 * i + 1];
	for (size_t i = 0; i < count_b; i++)
		unit_of(run, run->units + i * keys->stride, keys, base + 2 * i);
	run->match->pack(run->panels, &keys_a);
	run->match->assign(run->labels, run->panels, &keys_a, run->units, count_b, run->work);
	for (size_t i = 0; i < count_a; i++)
		best[i] = (uint16_t)(base + 2 * (size_t)run->labels[i]);
	for (size_t i = 0; with_cosine && i < count_a; i++) {
		unit_of(run, run->panels, keys, base + 2 * i + 1); /* nobody needs the panels now */
		run->cosine[base / 2 + i] = run->match->dot(run->panels,
			run->units + (size_t)run->labels[i] * keys->stride, keys->stride);
	}
}

/* A number that grows with a cosine; -0 and 0 have the same. */
static uint32_t order_of(float cosine)
{
	const uint32_t bits = kvr_bits_of_float(cosine + 0.0f);

	return bits >> 31 ? ~bits : bits | 0x80000000u;
}

/* Keeps the `merges` best of `count` edges, ties to the earlier. */
static void keep(struct run *run, size_t count, size_t merges)
{
	uint32_t bound = 0; /* the largest that `merges` edges reach, found bit by bit */
	size_t above = 0, equal;

	KVR_ASSERT(merges <= count);
	for (uint32_t bit = 1u << 31; bit != 0; bit >>= 1) {
		size_t reached = 0;

		for (size_t i = 0; i < count; i++)
			reached += order_of(run->cosine[i]) >= (bound | bit);
		if (reached >= merges)
			bound |= bit;
	}
	for (size_t i = 0; i < count; i++)
		above += order_of(run->cosine[i]) > bound;
	KVR_ASSERT(above <= merges);
	equal = merges - above;
	for (size_t i = 0; i < count; i++) {
		const uint32_t order = order_of(run->cosine[i]);

		if (order < bound || (order == bound && equal == 0))
			run->best[i] = NO_MATCH;
		else if (order == bound)
			equal--;
	}
}

/* Who becomes which row of the next state, and with which weight. Returns the rows. */
static size_t regroup(struct run *run, const struct state *from, struct state *to)
{
	const size_t places = from->keys.count;
	size_t rows = 0, at = 0;

	for (size_t p = 0; p < places; p++) {
		if (p % 2 == 0 || run->best[p / 2] == NO_MATCH)
			run->target[p] = (uint16_t)rows++;
	}
	for (size_t p = 1; p < places; p += 2) {
		if (run->best[p / 2] != NO_MATCH)
			run->target[p] = run->target[run->best[p / 2]];
	}
	memset(to->tokens, 0, rows * sizeof(*to->tokens));
	memset(run->first, 0, (rows + 1) * sizeof(*run->first));
	for (size_t p = 0; p < places; p++)
		run->first[run->target[p]]++; /* first the sizes, then where each begins */
	for (size_t r = 0; r <= rows; r++) {
		const size_t size = run->first[r];

		run->first[r] = (uint16_t)at;
		at += size;
	}
	for (size_t p = 0; p < places; p++) {
		const size_t row = run->target[p];
		const size_t slot = run->first[row]++;

		run->members[slot] = (uint16_t)p;
		to->tokens[row] = (uint16_t)(to->tokens[row] + from->tokens[p]);
		run->weights[slot] = (float)from->tokens[p] / (float)to->tokens[row];
	}
	memmove(run->first + 1, run->first,
		rows * sizeof(*run->first)); /* each is the next one's */
	run->first[0] = 0;
	return rows;
}

/* One pass, to `rows` rows. */
static void pass(struct run *run, int from_index, int to_index, size_t rows)
{
	const struct state *from = &run->state[from_index];
	struct state *to = &run->state[to_index];
	const size_t places = from->keys.count, merges = places - rows;
	const bool halves = merges == places / 2;

	KVR_ASSERT(rows <= places);
	KVR_ASSERT(merges <= places / 2); /* M2 */
	for (size_t base = 0; base < places; base += KVR_MERGE_CHUNK)
		match_chunk(run, &from->keys, base, !halves);
	if (!halves)
		keep(run, places / 2, merges);
	to->keys.count = to->values.count = regroup(run, from, to);
	KVR_ASSERT(to->keys.count == rows);
	for (size_t r = 0; r < rows; r++) {
		const size_t first = run->first[r], count = run->first[r + 1] - first;
		float *key = run->floats[to_index][0] + r * to->keys.stride;
		float *value = run->floats[to_index][1] + r * to->values.stride;

		run->ops->mean(key, &from->keys, run->members + first, run->weights + first, count);
		run->ops->mean(
			value, &from->values, run->members + first, run->weights + first, count);
		to->keys.row[r] = (const uint8_t *)key;
		to->values.row[r] = (const uint8_t *)value;
	}
}

/* Writes a state as merged set `set`. */
static void write_set(const struct run *run, const struct kvr_cluster_item *item, uint32_t set,
	const struct state *state)
{
	const struct kvr_segment_view *view = item->segment;
	const struct kvr_geometry *geometry = view->geometry;
	const size_t key_bytes = kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(geometry);
	const size_t rows = state->keys.count;
	uint32_t unit, sum = 0;
	uint16_t *tokens;
	uint8_t *extent;

	unit = kvr_segment_merged_unit(view, item->lane, set, &tokens);
	extent = kvr_segment_get_extent(view, item->lane, unit);
	KVR_ASSERT(rows == kvr_segment_merged_rows(set, view->token_count - view->sink_count));
	KVR_ASSERT(extent);
	for (size_t r = 0; r < rows; r++) {
		run->ops->narrow(extent + r * key_bytes,
			(const float *)(const void *)state->keys.row[r], geometry->dtype,
			geometry->key_dim);
		run->ops->narrow(extent + rows * key_bytes + r * value_bytes,
			(const float *)(const void *)state->values.row[r], geometry->dtype,
			geometry->value_dim);
		tokens[r] = state->tokens[r];
		sum += tokens[r];
	}
	KVR_ASSERT(sum == view->token_count - view->sink_count); /* S9, M3 */
}

static void run_init(struct run *run, const struct kvr_cluster_item *item, struct kvr_span scratch)
{
	const struct kvr_segment_view *view = item->segment;
	const struct kvr_geometry *geometry = view->geometry;
	const uint32_t count = view->token_count - view->sink_count;
	const size_t key_stride = KVR_KMEANS_ROUND(geometry->key_dim);
	const size_t value_stride = KVR_KMEANS_ROUND(geometry->value_dim);
	struct state *tokens = &run->state[STATE_TOKENS];
	size_t bytes;

	KVR_ASSERT((uintptr_t)scratch.data % 64 == 0);
	bytes = layout(run, scratch.data, count, key_stride, value_stride);
	KVR_ASSERT(bytes <= scratch.bytes);
	for (int i = STATE_TOKENS; i < STATE_COUNT; i++) {
		struct state *state = &run->state[i];
		const enum kvr_dtype dtype = i == STATE_TOKENS ? geometry->dtype : KVR_DTYPE_F32;

		state->keys = (struct kvr_kmeans_rows){
			state->keys.row, count, geometry->key_dim, key_stride, dtype};
		state->values = (struct kvr_kmeans_rows){
			state->values.row, count, geometry->value_dim, value_stride, dtype};
	}
	for (uint32_t t = 0; t < count; t++) {
		tokens->keys.row[t] = kvr_tail_key(item->tail, item->lane, view->sink_count + t);
		tokens->values.row[t] =
			kvr_tail_value(item->tail, item->lane, view->sink_count + t);
		tokens->tokens[t] = 1;
	}
}

/* Halves again and again. A set between two of these sizes, which 1/5 is, is one more pass from the
 * larger one; its state is overwritten by the next. */
void kvr_merge_lane(const struct kvr_cluster_item *item, const struct kvr_merge_ops *ops,
	const struct kvr_kmeans_ops *match, struct kvr_span scratch)
{
	static const int after[STATE_COUNT] = {STATE_HALF, STATE_QUARTER, STATE_HALF};
	const struct kvr_segment_view *view = item->segment;
	const uint32_t count = view->token_count - view->sink_count;
	const uint32_t merged = view->geometry->merged;
	struct run run = {.ops = ops, .match = match};
	int from = STATE_TOKENS;

	KVR_ASSERT(item->lane < kvr_geometry_lanes(view->geometry));
	if (kvr_geometry_is_dense(view->geometry, item->lane)) { /* no sets: see S9 */
		memset(view->merged_tokens + (size_t)item->lane * view->merged_max, 0,
			view->merged_max * sizeof(*view->merged_tokens));
		return;
	}
	if (count == 0)
		return;
	run_init(&run, item, scratch);
	for (uint32_t halved = 2, set = 0; merged >> set; halved *= 2, from = after[from]) {
		const int to = after[from];

		for (; set < KVR_MERGED_SETS && kvr_merged_divisors[set] < halved; set++) {
			if (!(merged >> set & 1))
				continue;
			pass(&run, from, to, kvr_segment_merged_rows(set, count));
			write_set(&run, item, set, &run.state[to]);
		}
		if (!(merged >> set))
			break;
		pass(&run, from, to, (run.state[from].keys.count + 1) / 2);
		if (kvr_merged_divisors[set] != halved)
			continue;
		if (merged >> set & 1)
			write_set(&run, item, set, &run.state[to]);
		set++;
	}
}

int kvr_cpu_merge(struct kvr_cluster_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	const struct kvr_kmeans_ops *match = kvr_kmeans_ops_of(isa);

	switch (isa) {
#if defined(__x86_64__)
	case KVR_ISA_AVX512: kvr_merge_lane(item, &kvr_merge_avx512, match, scratch); break;
	case KVR_ISA_AVX2: kvr_merge_lane(item, &kvr_merge_avx2, match, scratch); break;
#endif
	default: kvr_merge_lane(item, &kvr_merge_plain, match, scratch); break;
	}
	return 0;
}
