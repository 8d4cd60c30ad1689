/* SPDX-License-Identifier: Apache-2.0 */
/* recall_avx512bf16.c: recall's dot products with tiles of bf16 (AMX), beside AVX-512.
 *
 * A tile instruction multiplies 16 means, as they lie in the summary, by 16 columns over 32
 * dimensions. The columns are 8 query heads, each split in two bf16, a high part and what is left of
 * the float: together 16 bits of the query, more than the means have, at no cost, because a group of
 * up to 8 heads leaves the columns free.
 *
 *   means [16][32]  x  query [32][8 high, 8 low]  ──►  sums [16][16]  ──►  dots = high + low
 *
 * Four tiles of means are multiplied side by side, because a tile product takes long to arrive. The
 * key dimension is a multiple of 32. Behind the last mean a tile reads copies of it, in a buffer.
 * Tiles: 0 to 3 the sums, 4 and 5 means, 6 the query.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. */

#include <immintrin.h>

#include "kernels/recall.h"

#define STEP  32u         /* dimensions of one tile instruction */
#define ROWS  16u         /* means of one tile */
#define SIDES 4u          /* tiles of means side by side */
#define GROUP 8u          /* heads of one tile */
#define TILE  (16u * 32u) /* bf16 of a tile */
#define TILED __attribute__((target("amx-tile,amx-bf16")))

#define FETCH_LINES 8u /* fetched at a time: half of what a tile product reads */

/* Palette 1, operand of LDTILECFG.
 *
 * OFFSET SIZE MEANING
 *      0    1 palette
 *      1    1 row to restart at
 *      2   14 reserved
 *     16   32 bytes per row of tiles 0 to 15 (16 bits each)
 *     48   16 rows of tiles 0 to 15 */
struct tile_config {
	uint8_t palette;
	uint8_t start_row;
	uint8_t reserved[14];
	uint16_t row_bytes[16];
	uint8_t rows[16];
};
KVR_STATIC_ASSERT(sizeof(struct tile_config) == 64);

static const struct tile_config config __attribute__((aligned(64))) = {
	.palette = 1,
	.row_bytes = {64, 64, 64, 64, 64, 64, 64},
	.rows = {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, STEP / 2},
};

/* The upper halves of 32 floats, side by side: 16 pairs of dimensions. */
static inline __attribute__((always_inline)) __m512i upper_halves(__m512i a, __m512i b)
{
	const __m256i low = _mm512_cvtepi32_epi16(_mm512_srli_epi32(a, 16));
	const __m256i high = _mm512_cvtepi32_epi16(_mm512_srli_epi32(b, 16));

	return _mm512_inserti64x4(_mm512_castsi256_si512(low), high, 1);
}

/* What 16 floats are more than their upper halves; half a unit is added, so that cutting it off rounds. */
static inline __attribute__((always_inline)) __m512i rest_of(__m512i bits)
{
	const __m512i high = _mm512_and_si512(bits, _mm512_set1_epi32((int)0xffff0000u));
	const __m512i rest = _mm512_castps_si512(
		_mm512_sub_ps(_mm512_castsi512_ps(bits), _mm512_castsi512_ps(high)));

	return _mm512_add_epi32(rest, _mm512_set1_epi32(0x8000));
}

/* Block: per group of 8 heads and step, [pair of dimensions][column][2]. The high part is cut off, not
 * rounded: the largest float stays finite. */
TILED static void prepare(uint8_t *block, const float *query, uint32_t heads, uint32_t dim)
{
	const uint32_t groups = (heads + GROUP - 1) / GROUP;
	const __m512i rows = _mm512_set_epi32(
		240, 224, 208, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 0);

	KVR_ASSERT(dim % STEP == 0);
	memset(block, 0, (size_t)groups * dim / STEP * TILE * sizeof(uint16_t));
	for (uint32_t h = 0; h < heads; h++) {
		uint32_t *to = (uint32_t *)(void *)block +
			       (size_t)(h / GROUP) * dim / STEP * TILE / 2 + h % GROUP;

		for (uint32_t i = 0; i < dim; i += STEP, query += STEP, to += TILE / 2) {
			const __m512i a = _mm512_loadu_si512(query);
			const __m512i b = _mm512_loadu_si512(query + 16);

			_mm512_i32scatter_epi32(to, rows, upper_halves(a, b), 4);
			_mm512_i32scatter_epi32(
				to + GROUP, rows, upper_halves(rest_of(a), rest_of(b)), 4);
		}
	}
	_tile_loadconfig(&config);
}

TILED static void release(void)
{
	_tile_release();
}

/* NaN to the bottom: maxps gives its second operand where the first is NaN. */
static inline __attribute__((always_inline)) __m512 hold(__m512 x)
{
	return _mm512_min_ps(_mm512_max_ps(x, _mm512_set1_ps(-KVR_RECALL_LOGIT_MAX)),
		_mm512_set1_ps(KVR_RECALL_LOGIT_MAX));
}

static inline __attribute__((always_inline)) __m512 interleave(__m512 a, __m512 b, bool upper)
{
	const __m512d x = _mm512_castps_pd(a), y = _mm512_castps_pd(b);

	return _mm512_castpd_ps(upper ? _mm512_unpackhi_pd(x, y) : _mm512_unpacklo_pd(x, y));
}

/* Rows i and i + 4 of the sums, high and low parts added: [2 rows][8 heads]. */
static inline __attribute__((always_inline)) __m512 add_parts(const float *sums)
{
	const float *other = sums + 4 * 16;
	const __m512 high = _mm512_insertf32x8(
		_mm512_castps256_ps512(_mm256_load_ps(sums)), _mm256_load_ps(other), 1);
	const __m512 low = _mm512_insertf32x8(_mm512_castps256_ps512(_mm256_load_ps(sums + GROUP)),
		_mm256_load_ps(other + GROUP), 1);

	return _mm512_add_ps(high, low);
}

/* Sums [16 means][8 high, 8 low] to dots [heads][16 means]: a transposition. */
static inline __attribute__((always_inline)) void put_dots(
	const float *sums, uint32_t heads, float *dots, size_t stride)
{
	__m512 quad[2][4]; /* [first or last 8 means][head, and 4 behind it]: lanes of 4 means */

#pragma GCC unroll 2
	for (uint32_t i = 0; i < 2; i++) {
		const __m512 a = add_parts(sums + (i * 8 + 0) * 16);
		const __m512 b = add_parts(sums + (i * 8 + 1) * 16);
		const __m512 c = add_parts(sums + (i * 8 + 2) * 16);
		const __m512 d = add_parts(sums + (i * 8 + 3) * 16);
		const __m512 ab = _mm512_unpacklo_ps(a, b), cd = _mm512_unpacklo_ps(c, d);
		const __m512 ef = _mm512_unpackhi_ps(a, b), gh = _mm512_unpackhi_ps(c, d);

		quad[i][0] = interleave(ab, cd, false);
		quad[i][1] = interleave(ab, cd, true);
		quad[i][2] = interleave(ef, gh, false);
		quad[i][3] = interleave(ef, gh, true);
	}
#pragma GCC unroll 4
	for (uint32_t h = 0; h < 4; h++) {
		if (h < heads)
			_mm512_storeu_ps(dots + h * stride,
				hold(_mm512_shuffle_f32x4(quad[0][h], quad[1][h], 0x88)));
		if (h + 4 < heads)
			_mm512_storeu_ps(dots + (h + 4) * stride,
				hold(_mm512_shuffle_f32x4(quad[0][h], quad[1][h], 0xdd)));
	}
}

/* Asks for some lines of what comes, and steps on. */
static inline __attribute__((always_inline)) void fetch(const char **coming)
{
	for (uint32_t i = 0; i < FETCH_LINES; i++)
		_mm_prefetch(*coming + i * 64, _MM_HINT_T0);
	*coming += (size_t)FETCH_LINES * 64;
}

/* Four times 16 means with up to 8 heads. Fetches half of what comes; the other half is left for the
 * sums, which take as long, so that memory is at work all the time. */
TILED static inline __attribute__((always_inline)) void multiply(float (*sums)[ROWS * 16],
	const uint16_t *query, uint32_t dim, const uint16_t *const *mean, const char **coming)
{
	const size_t row = dim * sizeof(uint16_t);

	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
	for (uint32_t i = 0; i < dim; i += STEP, query += TILE) {
		_tile_loadd(6, query, 64);
		_tile_loadd(4, mean[0] + i, row);
		_tile_dpbf16ps(0, 4, 6);
		fetch(coming);
		_tile_loadd(5, mean[1] + i, row);
		_tile_dpbf16ps(1, 5, 6);
		fetch(coming);
		_tile_loadd(4, mean[2] + i, row);
		_tile_dpbf16ps(2, 4, 6);
		fetch(coming);
		_tile_loadd(5, mean[3] + i, row);
		_tile_dpbf16ps(3, 5, 6);
		fetch(coming);
	}
	_tile_stored(0, sums[0], 64);
	_tile_stored(1, sums[1], 64);
	_tile_stored(2, sums[2], 64);
	_tile_stored(3, sums[3], 64);
}

TILED static void dots(const uint8_t *block, uint32_t heads, uint32_t dim, const uint16_t *mean,
	uint32_t count, const uint16_t *next, float *out, size_t stride)
{
	uint16_t last[ROWS * KVR_DIM_MAX] __attribute__((aligned(64)));
	float sums[SIDES][ROWS * 16] __attribute__((aligned(64)));
	const uint16_t *from[SIDES];

	for (uint32_t c = 0; c < count; c += SIDES * ROWS) {
		const uint32_t sides =
			count - c < SIDES * ROWS ? (count - c + ROWS - 1) / ROWS : SIDES;

		/* What lacks a mean of its own repeats the last one. */
		for (uint32_t i = 0; i < SIDES; i++)
			from[i] = mean + (size_t)(c + (i < sides ? i : 0) * ROWS) * dim;
		if (c + sides * ROWS > count) {
			const uint32_t first = c + (sides - 1) * ROWS;

			for (uint32_t i = 0; i < ROWS; i++)
				memcpy(last + (size_t)i * dim,
					mean + (size_t)(first + i < count ? first + i : count - 1) *
							dim,
					dim * sizeof(*mean));
			for (uint32_t i = 0; i < SIDES; i++)
				from[i] = i + 1 < sides ? from[i] : last;
		}
		for (uint32_t h = 0; h < heads; h += GROUP) {
			const char *coming = (const char *)(next + (size_t)c * dim);

			multiply(sums,
				(const uint16_t *)(const void *)block +
					(size_t)(h / GROUP) * dim / STEP * TILE,
				dim, from, &coming);
			for (uint32_t i = 0; i < sides; i++) {
				for (uint32_t k = 0; k < dim; k += STEP)
					fetch(&coming);
				put_dots(sums[i], heads - h < GROUP ? heads - h : GROUP,
					out + h * stride + c + i * ROWS, stride);
			}
		}
	}
}

static void spread(float *dots_in_out, const float *tokens, uint32_t count, float scale, float part,
	float *density)
{
	kvr_recall_avx512.spread(dots_in_out, tokens, count, scale, part, density);
}

static void widths(float *tokens, const uint16_t *first, uint32_t count)
{
	kvr_recall_avx512.widths(tokens, first, count);
}

static uint32_t rows_from(const uint32_t *key, const float *tokens, uint32_t count, uint32_t low)
{
	return kvr_recall_avx512.rows_from(key, tokens, count, low);
}

static uint32_t find(
	const uint32_t *key, uint32_t count, uint32_t low, uint32_t high, uint32_t *list)
{
	return kvr_recall_avx512.find(key, count, low, high, list);
}

const struct kvr_recall_ops kvr_recall_tiles = {
	prepare, dots, release, spread, widths, rows_from, find};
