/* SPDX-License-Identifier: Apache-2.0 */
/* soft_match_util.c: see soft_match_util.h. */
#include "bench/soft_match_util.h"

#include <math.h>
#include <stddef.h>
#include <string.h>

#define DIM   SOFT_MATCH_DIM
#define HALF  128u /* rows A, or B, of a chunk */
#define EDGES (SOFT_MATCH_TOKENS / 2)
#define FLAT  static inline __attribute__((always_inline))

struct state {
	uint32_t count;
	float keys[SOFT_MATCH_TOKENS][DIM], values[SOFT_MATCH_TOKENS][DIM];
	uint16_t tokens[SOFT_MATCH_TOKENS];
};

FLAT void widen(float *to, const uint16_t *from, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const uint32_t bits = (uint32_t)from[i] << 16;

		memcpy(&to[i], &bits, sizeof(bits));
	}
}

FLAT void narrow(uint16_t *to, const float *from, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		uint32_t bits;

		memcpy(&bits, &from[i], sizeof(bits));
		to[i] = (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
	}
}

FLAT float length(const float *key)
{
	float part[16] = {0}, square = 0.0f;

	for (size_t k = 0; k < DIM; k += 16) {
		for (size_t i = 0; i < 16; i++)
			part[i] += key[k + i] * key[k + i];
	}
	for (size_t i = 0; i < 16; i++)
		square += part[i];
	return sqrtf(square);
}

/* The best B of each A of a chunk of `rows` rows, and the cosine. */
FLAT void match(const float (*keys)[DIM], uint32_t rows, uint16_t *best, float *cosine)
{
	static float b[DIM][HALF]; /* one dimension of all Bs, side by side */
	const uint32_t count_a = rows / 2, count_b = rows - count_a;

	memset(b, 0, sizeof(b));
	for (uint32_t j = 0; j < count_b; j++) {
		const float scale = 1.0f / length(keys[(size_t)2 * j]);

		for (size_t k = 0; k < DIM; k++)
			b[k][j] = keys[(size_t)2 * j][k] * scale;
	}
	for (uint32_t i = 0; i < count_a; i++) {
		const float *a = keys[(size_t)2 * i + 1];
		float sum[HALF] = {0};

		for (size_t k = 0; k < DIM; k++) {
			for (size_t j = 0; j < HALF; j++)
				sum[j] += a[k] * b[k][j];
		}
		best[i] = 0;
		for (uint32_t j = 1; j < count_b; j++)
			best[i] = sum[j] > sum[best[i]] ? (uint16_t)j : best[i];
		cosine[i] = sum[best[i]] / length(a);
	}
}

/* Marks the `merges` best edges, ties to the earlier. */
FLAT void keep(bool *kept, const float *cosine, uint32_t count, uint32_t merges)
{
	for (uint32_t i = 0; i < count; i++) {
		uint32_t before = 0;

		for (uint32_t j = 0; j < count; j++)
			before += cosine[j] > cosine[i] || (cosine[j] == cosine[i] && j < i);
		kept[i] = before < merges;
	}
}

FLAT void pass(struct state *to, const struct state *from, uint32_t rows)
{
	static uint16_t best[EDGES], target[SOFT_MATCH_TOKENS];
	static float cosine[EDGES];
	static bool kept[EDGES];
	const uint32_t merges = from->count - rows;

	for (uint32_t base = 0; base < from->count; base += 2 * HALF) {
		const uint32_t left = from->count - base;

		match(from->keys + base, left < 2 * HALF ? left : 2 * HALF, best + base / 2,
			cosine + base / 2);
	}
	memset(kept, 1, sizeof(kept));
	if (merges < from->count / 2)
		keep(kept, cosine, from->count / 2, merges);
	to->count = 0;
	for (uint32_t p = 0; p < from->count; p++) {
		if (p % 2 == 0 || !kept[p / 2])
			target[p] = (uint16_t)to->count++;
	}
	for (uint32_t p = 1; p < from->count; p += 2) {
		if (kept[p / 2])
			target[p] = target[p / (2 * HALF) * (2 * HALF) + 2u * best[p / 2]];
	}
	memset(to->keys, 0, to->count * sizeof(to->keys[0]));
	memset(to->values, 0, to->count * sizeof(to->values[0]));
	memset(to->tokens, 0, to->count * sizeof(to->tokens[0]));
	for (uint32_t p = 0; p < from->count; p++) {
		float *key = to->keys[target[p]], *value = to->values[target[p]];
		const float weight = from->tokens[p];

		for (size_t k = 0; k < DIM; k++)
			key[k] += weight * from->keys[p][k];
		for (size_t k = 0; k < DIM; k++)
			value[k] += weight * from->values[p][k];
		to->tokens[target[p]] = (uint16_t)(to->tokens[target[p]] + from->tokens[p]);
	}
	for (uint32_t r = 0; r < to->count; r++) {
		const float scale = 1.0f / to->tokens[r];

		for (size_t k = 0; k < DIM; k++)
			to->keys[r][k] *= scale;
		for (size_t k = 0; k < DIM; k++)
			to->values[r][k] *= scale;
	}
}

FLAT void write_set(const struct soft_match *lane, uint32_t set, const struct state *state)
{
	narrow(lane->merged_keys[set], state->keys[0], (size_t)state->count * DIM);
	narrow(lane->merged_values[set], state->values[0], (size_t)state->count * DIM);
	memcpy(lane->tokens[set], state->tokens, state->count * sizeof(state->tokens[0]));
}

FLAT void merge(const struct soft_match *lane)
{
	static struct state all, half, quarter, fifth, eighth;

	all.count = SOFT_MATCH_TOKENS;
	widen(all.keys[0], lane->keys, (size_t)SOFT_MATCH_TOKENS * DIM);
	widen(all.values[0], lane->values, (size_t)SOFT_MATCH_TOKENS * DIM);
	for (uint32_t t = 0; t < SOFT_MATCH_TOKENS; t++)
		all.tokens[t] = 1;
	pass(&half, &all, SOFT_MATCH_TOKENS / 2);
	write_set(lane, 0, &half);
	pass(&quarter, &half, SOFT_MATCH_TOKENS / 4);
	write_set(lane, 1, &quarter);
	pass(&fifth, &quarter, (SOFT_MATCH_TOKENS + 4) / 5);
	write_set(lane, 2, &fifth);
	pass(&eighth, &quarter, SOFT_MATCH_TOKENS / 8);
	write_set(lane, 3, &eighth);
}

void soft_match_loop(const struct soft_match *lane)
{
	merge(lane);
}

__attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma"))) static void merge_wide(
	const struct soft_match *lane)
{
	merge(lane);
}

bool soft_match_loop_wide(const struct soft_match *lane)
{
	if (!__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl") ||
		!__builtin_cpu_supports("avx512dq"))
		return false;
	merge_wide(lane);
	return true;
}
