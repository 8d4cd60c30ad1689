/* SPDX-License-Identifier: Apache-2.0 */
/* check_merge_util.c: MERGE against its oracle. */
#include "tests/kernels/check_merge_util.h"

#include <float.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#define CHUNK 256u /* device.h */
#define NONE  UINT32_MAX

/* A cosine may be off by 2^-15 (device.h), and by what floats lose where a mean is much smaller than its
 * members. */
#define COSINE_ERROR 3.1e-5
#define MEAN_ERROR   1e-6 /* in parts of the members: floats, three passes */

/* Rows between two passes, in double. */
struct state {
	uint32_t count;
	double *units;  /* [count][Dk] keys of length 1; zero ones stay */
	double *unsure; /* [count] how far the kernel's own key may be, in parts of this one */
	uint16_t *map;  /* [token] its row */
};

static void *need(size_t count, size_t bytes)
{
	void *memory = calloc(count + 1, bytes);

	assert_non_null(memory);
	return memory;
}

static uint32_t token_count(const struct check_merge *merge)
{
	return merge->view.token_count - merge->view.sink_count;
}

/* ---- which tokens went where ------------------------------------------------------------------ */

static void run_all(struct check_merge *merge, check_merge_run *run, void *owner)
{
	struct kvr_cluster_item item[CHECK_MERGE_LANES];
	const size_t lanes = kvr_geometry_lanes(&merge->geometry);

	memset(merge->rows.data, 0x5a, merge->rows.bytes);
	memset(merge->view.merged_tokens, 0x5a,
		lanes * merge->view.merged_max * sizeof(*merge->view.merged_tokens));
	for (uint32_t lane = 0; lane < lanes; lane++)
		item[lane] = (struct kvr_cluster_item){&merge->tail, &merge->view, lane};
	run(owner, item, (uint32_t)lanes);
	oracle_guard_check(&merge->rows);
	oracle_guard_check(&merge->summary);
}

static bool has_set(const struct check_merge *merge, uint32_t lane, uint32_t set)
{
	return (merge->geometry.merged >> set & 1) &&
	       !kvr_geometry_is_dense(&merge->geometry, lane) && token_count(merge) > 0;
}

/* The values of a set's rows. */
static const uint8_t *values_of(const struct check_merge *merge, uint32_t lane, uint32_t set,
	uint32_t *ret_rows, uint16_t **ret_tokens)
{
	const uint32_t unit = kvr_segment_merged_unit(&merge->view, lane, set, ret_tokens);

	*ret_rows = kvr_segment_unit_rows(&merge->view, lane, unit);
	return kvr_segment_extent(&merge->view, lane)[unit] +
	       *ret_rows * kvr_geometry_key_bytes(&merge->geometry);
}

/* Reads the rows of the tokens `base` and on, as many as values have dims, from their indicators. */
static void read_indicators(struct check_merge *merge, uint32_t lane, uint32_t set, uint32_t base)
{
	const struct kvr_geometry *g = &merge->geometry;
	uint32_t rows;
	uint16_t *tokens;
	const uint8_t *values = values_of(merge, lane, set, &rows, &tokens);

	for (uint32_t k = 0; k < g->value_dim; k++) {
		uint32_t found = NONE;

		for (uint32_t r = 0; r < rows; r++) {
			const double share =
				oracle_get(values + r * kvr_geometry_value_bytes(g), g->dtype, k);

			if (share == 0.0)
				continue;
			assert_int_equal(found, NONE); /* a token is in one row */
			assert_true(
				fabs(share * tokens[r] - 1.0) <= 0.005); /* 2^-8, rounded twice */
			found = r;
		}
		if (base + k >= token_count(merge)) {
			assert_int_equal(found, NONE);
			continue;
		}
		assert_true(found != NONE);
		merge->map[lane][set][base + k] = (uint16_t)found;
	}
}

/* Merges with indicators for values until the row of every token is known; puts the values back. */
static void find_maps(struct check_merge *merge, check_merge_run *run, void *owner)
{
	const struct kvr_geometry *g = &merge->geometry;
	const uint32_t tokens = token_count(merge);
	const size_t bytes = kvr_geometry_value_bytes(g);
	uint8_t *saved = need((size_t)tokens * g->kv_heads, bytes);

	for (uint32_t i = 0; i < tokens * g->kv_heads; i++) {
		memcpy(saved + i * bytes, check_merge_value(merge, i / tokens, i % tokens), bytes);
		memset(check_merge_value(merge, i / tokens, i % tokens), 0, bytes);
	}
	for (uint32_t base = 0; base < tokens; base += g->value_dim) {
		const uint32_t end = base + g->value_dim < tokens ? base + g->value_dim : tokens;

		for (uint32_t i = 0; i < (end - base) * g->kv_heads; i++)
			oracle_put(
				check_merge_value(merge, i % g->kv_heads, base + i / g->kv_heads),
				g->dtype, i / g->kv_heads, 1.0);
		run_all(merge, run, owner);
		for (uint32_t i = 0; i < g->kv_heads * KVR_MERGED_SETS; i++) {
			if (has_set(merge, i / KVR_MERGED_SETS, i % KVR_MERGED_SETS))
				read_indicators(
					merge, i / KVR_MERGED_SETS, i % KVR_MERGED_SETS, base);
		}
		for (uint32_t i = 0; i < (end - base) * g->kv_heads; i++)
			memset(check_merge_value(merge, i % g->kv_heads, base + i / g->kv_heads), 0,
				bytes);
	}
	for (uint32_t i = 0; i < tokens * g->kv_heads; i++)
		memcpy(check_merge_value(merge, i / tokens, i % tokens), saved + i * bytes, bytes);
	free(saved);
}

/* ---- states and passes ------------------------------------------------------------------------ */

static double norm(const double *vector, uint32_t dim)
{
	double square = 0.0;

	for (uint32_t k = 0; k < dim; k++)
		square += vector[k] * vector[k];
	return sqrt(square);
}

/* The state that a map of the tokens makes; NULL: every token its own row. */
static struct state state_open(
	const struct check_merge *merge, uint32_t lane, const uint16_t *map, uint32_t count)
{
	const uint32_t dim = merge->geometry.key_dim, tokens = token_count(merge);
	struct state state = {.count = count};
	double *norms = need(count, sizeof(*norms)), *size = need(count, sizeof(*size));
	double key[KVR_DIM_MAX];

	state.units = need((size_t)count * dim, sizeof(*state.units));
	state.unsure = need(count, sizeof(*state.unsure));
	state.map = need(tokens, sizeof(*state.map));
	for (uint32_t t = 0; t < tokens; t++) {
		const uint32_t row = map ? map[t] : t;

		state.map[t] = (uint16_t)row;
		for (uint32_t k = 0; k < dim; k++) {
			key[k] = oracle_get(
				check_merge_key(merge, lane, t), merge->geometry.dtype, k);
			state.units[row * dim + k] += key[k];
		}
		norms[row] += norm(key, dim);
		size[row] += 1.0;
	}
	for (uint32_t r = 0; r < count; r++) {
		const double length = norm(state.units + r * dim, dim);

		assert_true(size[r] > 0.0); /* no row stands for nothing */
		for (uint32_t k = 0; length > 0.0 && k < dim; k++)
			state.units[r * dim + k] /= length;
		state.unsure[r] = size[r] == 1.0    ? 0.0
				  : norms[r] == 0.0 ? 0.0
						    : fmin(1.0, MEAN_ERROR * norms[r] / length);
	}
	free(norms);
	free(size);
	return state;
}

static void state_close(struct state *state)
{
	free(state->units);
	free(state->unsure);
	free(state->map);
}

static double cosine(const struct state *state, uint32_t a, uint32_t b, uint32_t dim)
{
	const double *left = state->units + a * dim, *right = state->units + b * dim;
	double product = 0.0;

	for (uint32_t k = 0; k < dim; k++)
		product += left[k] * right[k];
	return product;
}

/* How far the kernel's cosine of two rows may be from ours. */
static double unsure(const struct state *state, uint32_t a, uint32_t b)
{
	return COSINE_ERROR + 2.0 * (state->unsure[a] + state->unsure[b]);
}

/* Which row of `next` each row of `from` went to: all of its tokens to the same. */
static uint32_t *rows_to_rows(const struct state *from, const struct state *next, uint32_t tokens)
{
	uint32_t *to = need(from->count, sizeof(*to));

	for (uint32_t r = 0; r < from->count; r++)
		to[r] = NONE;
	for (uint32_t t = 0; t < tokens; t++) {
		uint32_t *row = &to[from->map[t]];

		assert_true(*row == NONE || *row == next->map[t]);
		*row = next->map[t];
	}
	return to;
}

/* The B that an A has been merged into, NONE if it has not. The rows of the next state are the Bs and
 * the As that were left, in the order of their places: so `stays` is the row that p would be. */
static uint32_t partner(const uint32_t *to, uint32_t place, uint32_t count, uint32_t stays)
{
	const uint32_t base = place / CHUNK * CHUNK;
	uint32_t found = NONE;

	for (uint32_t b = base; b < count && b < base + CHUNK; b += 2) {
		if (to[b] == to[place]) {
			assert_int_equal(found, NONE); /* Bs are not merged with each other */
			found = b;
		}
	}
	if (found == NONE)
		assert_int_equal(to[place], stays);
	return found;
}

/* One pass, from the rows of `from` to those of `next`. */
static void check_pass(
	const struct check_merge *merge, const struct state *from, const struct state *next)
{
	const uint32_t dim = merge->geometry.key_dim;
	uint32_t *to = rows_to_rows(from, next, token_count(merge));
	double worst_kept = 2.0, best_left = -2.0; /* with their doubt */
	uint32_t stays = 0, merged = 0;

	for (uint32_t p = 0; p < from->count; p++) {
		const uint32_t base = p / CHUNK * CHUNK;
		double best = -2.0, least = -2.0;
		uint32_t b;

		if (p % 2 == 0) {
			assert_int_equal(to[p], stays++);
			continue;
		}
		b = partner(to, p, from->count, stays);
		for (uint32_t other = base; other < from->count && other < base + CHUNK;
			other += 2) {
			const double found = cosine(from, p, other, dim);

			best = fmax(best, found + unsure(from, p, other));
			least = fmax(least, found - unsure(from, p, other));
		}
		if (b == NONE) {
			stays++;
			best_left = fmax(best_left, least);
			continue;
		}
		merged++;
		assert_true(cosine(from, p, b, dim) + unsure(from, p, b) >= least);
		worst_kept = fmin(worst_kept, best);
	}
	assert_int_equal(stays, next->count);
	assert_int_equal(merged, from->count - next->count);
	assert_true(worst_kept >= best_left); /* of all chunks the best edges */
	free(to);
}

/* ---- a set ------------------------------------------------------------------------------------ */

/* Element of a mean, `bound` the mean of the magnitudes. */
static void check_element(enum kvr_dtype dtype, double found, double expected, double bound)
{
	const double step = dtype == KVR_DTYPE_F32   ? 0x1p-24
			    : dtype == KVR_DTYPE_F16 ? 0x1p-11
						     : 0x1p-8;
	const double least = dtype == KVR_DTYPE_F16 ? 0x1p-25 : 0x1p-134; /* of subnormals */

	assert_true(fabs(found - expected) <= MEAN_ERROR * bound + step * fabs(expected) + least);
}

/* Rows, tokens and means against the map. */
static void check_rows(const struct check_merge *merge, uint32_t lane, uint32_t set)
{
	const struct kvr_geometry *g = &merge->geometry;
	const uint32_t count = token_count(merge), dims = g->key_dim + g->value_dim;
	uint32_t rows, sum = 0;
	uint16_t *tokens;
	const uint8_t *values = values_of(merge, lane, set, &rows, &tokens);
	const uint8_t *keys = values - rows * kvr_geometry_key_bytes(g);
	double *mean = need((size_t)rows * dims, sizeof(*mean));
	double *bound = need((size_t)rows * dims, sizeof(*bound));
	uint32_t *size = need(rows, sizeof(*size));

	assert_int_equal(rows, (count + kvr_merged_divisors[set] - 1) / kvr_merged_divisors[set]);
	for (uint32_t t = 0; t < count; t++)
		size[merge->map[lane][set][t]]++;
	for (uint32_t i = 0; i < count * dims; i++) {
		const uint32_t t = i / dims, k = i % dims, row = merge->map[lane][set][t];
		const double element =
			k < g->key_dim ? oracle_get(check_merge_key(merge, lane, t), g->dtype, k)
				       : oracle_get(check_merge_value(merge, lane, t), g->dtype,
						 k - g->key_dim);

		mean[row * dims + k] += element / size[row];
		bound[row * dims + k] += fabs(element) / size[row];
	}
	for (uint32_t r = 0; r < rows; r++) {
		assert_int_equal(tokens[r], size[r]);
		sum += tokens[r];
		for (uint32_t k = 0; k < dims; k++)
			check_element(g->dtype,
				k < g->key_dim
					? oracle_get(
						  keys + r * kvr_geometry_key_bytes(g), g->dtype, k)
					: oracle_get(values + r * kvr_geometry_value_bytes(g),
						  g->dtype, k - g->key_dim),
				mean[r * dims + k], bound[r * dims + k]);
	}
	assert_int_equal(sum, count); /* S9 */
	free(mean);
	free(bound);
	free(size);
}

/* The passes of one lane. A set's origin is the next larger power of two; where that is not
 * kept its rows are not known, and only where they are the pass is held against its words. */
static void check_lane(const struct check_merge *merge, uint32_t lane)
{
	static const int origin[KVR_MERGED_SETS] = {-1, 0, 1, 1};
	const uint32_t count = token_count(merge);

	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++) {
		const int of = origin[set];
		struct state from, next;

		if (!has_set(merge, lane, set))
			continue;
		check_rows(merge, lane, set);
		if (of >= 0 && !has_set(merge, lane, (uint32_t)of))
			continue;
		from = of < 0 ? state_open(merge, lane, NULL, count)
			      : state_open(merge, lane, merge->map[lane][of],
					kvr_segment_merged_rows((uint32_t)of, count));
		next = state_open(
			merge, lane, merge->map[lane][set], kvr_segment_merged_rows(set, count));
		check_pass(merge, &from, &next);
		state_close(&from);
		state_close(&next);
	}
}

void check_merge_hold(struct check_merge *merge, check_merge_run *run, void *owner)
{
	const size_t lanes = kvr_geometry_lanes(&merge->geometry);
	const size_t token_bytes = merge->view.merged_max * sizeof(*merge->view.merged_tokens);
	uint8_t *rows = need(merge->rows.bytes, 1);
	uint8_t *tokens = need(lanes, token_bytes);

	run_all(merge, run, owner);
	memcpy(rows, merge->rows.data, merge->rows.bytes);
	memcpy(tokens, merge->view.merged_tokens, lanes * token_bytes);
	find_maps(merge, run, owner);
	assert_memory_equal(tokens, merge->view.merged_tokens, lanes * token_bytes);
	run_all(merge, run, owner);
	assert_memory_equal(tokens, merge->view.merged_tokens, lanes * token_bytes); /* D4 */
	assert_memory_equal(rows, merge->rows.data, merge->rows.bytes);
	for (uint32_t lane = 0; lane < lanes; lane++) {
		check_lane(merge, lane);
		for (uint32_t i = 0; i < merge->view.merged_max; i++)
			assert_true(kvr_geometry_is_dense(&merge->geometry, lane) ==
				    (merge->view.merged_tokens[lane * merge->view.merged_max + i] ==
					    0));
	}
	free(rows);
	free(tokens);
}
