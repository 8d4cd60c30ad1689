/* SPDX-License-Identifier: Apache-2.0 */
/* recall_tiles_avx512.c: recall's dot products with tiles of 8 bits (AMX), beside AVX-512.
 *
 * A tile instruction multiplies 16 means, as they lie in the summary, by 16 columns over 64
 * dimensions, in integers. The columns are 8 query heads, each split in two parts of 8 bits: together 15
 * bits of the query at no cost, because a group of up to 8 heads leaves the columns free.
 *
 *   means [16][64]  x  query [64][8 high, 8 low]  ──►  sums [16][16]  ──►  dots = 128 high + low
 *
 * Four tiles of means are multiplied side by side, because a tile product takes long to arrive. Where the
 * key dimension is no multiple of 64, a tile reads into the next mean and multiplies it by zeros (S8).
 * Behind the last mean a tile reads copies of it, in a buffer. Tiles: 0 to 3 the sums, 4 and 5 means,
 * 6 the query.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. */

#include <immintrin.h>

#include "kernels/recall.h"
#include "kernels/widen.h"

#define STEP  64u         /* dimensions of one tile instruction */
#define ROWS  16u         /* means of one tile */
#define SIDES 4u          /* tiles of means side by side */
#define GROUP 8u          /* heads of one tile */
#define TILE  (16u * 64u) /* bytes of a tile */
#define PART  7           /* bits of the low part of a query's element */
#define TILED __attribute__((target("amx-tile,amx-int8")))

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

static size_t steps_of(uint32_t dim)
{
	return (dim + STEP - 1) / STEP;
}

static const struct tile_config config __attribute__((aligned(64))) = {
	.palette = 1,
	.row_bytes = {64, 64, 64, 64, 64, 64, 64},
	.rows = {ROWS, ROWS, ROWS, ROWS, ROWS, ROWS, STEP / 4},
};

/* The high and low parts of 64 elements. */
static inline __attribute__((always_inline)) void split(
	const int16_t *query, __m512i *ret_high, __m512i *ret_low)
{
	__m256i high[2], low[2];

	KVR_UNROLL
	for (int i = 0; i < 2; i++) {
		const __m512i q = _mm512_loadu_si512(query + i * 32);
		const __m512i upper = _mm512_srai_epi16(
			_mm512_add_epi16(q, _mm512_set1_epi16(1 << (PART - 1))), PART);

		high[i] = _mm512_cvtepi16_epi8(upper);
		low[i] = _mm512_cvtepi16_epi8(_mm512_sub_epi16(q, _mm512_slli_epi16(upper, PART)));
	}
	*ret_high = _mm512_inserti64x4(_mm512_castsi256_si512(high[0]), high[1], 1);
	*ret_low = _mm512_inserti64x4(_mm512_castsi256_si512(low[0]), low[1], 1);
}

/* Block: per group of 8 heads and step, [four dimensions][column][4]. */
TILED static void prepare(uint8_t *block, float *steps, const uint8_t *query, enum kvr_dtype dtype,
	uint32_t heads, uint32_t dim)
{
	const uint32_t groups = (heads + GROUP - 1) / GROUP;
	const size_t group_bytes = steps_of(dim) * TILE;
	const __m512i rows = _mm512_set_epi32(
		240, 224, 208, 192, 176, 160, 144, 128, 112, 96, 80, 64, 48, 32, 16, 0);
	int16_t rounded[KVR_DIM_MAX + STEP];
	__m512i high, low;

	memset(block, 0, groups * group_bytes);
	for (uint32_t h = 0; h < heads; h++) {
		uint8_t *to = block + h / GROUP * group_bytes + h % GROUP * sizeof(uint32_t);

		memset(rounded + dim, 0, STEP * sizeof(*rounded));
		steps[h] = kvr_recall_round_avx512(
			rounded, query + h * dim * kvr_dtype_bytes(dtype), dtype, dim);
		for (uint32_t i = 0; i < dim; i += STEP, to += TILE) {
			split(rounded + i, &high, &low);
			_mm512_i32scatter_epi32(to, rows, high, 4);
			_mm512_i32scatter_epi32(to + GROUP * sizeof(uint32_t), rows, low, 4);
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

/* Rows i and i + 4 of the sums, high and low parts added: [2 rows][8 heads]. */
static inline __attribute__((always_inline)) __m512i add_parts(const int32_t *sums)
{
	const __m512i row = _mm512_load_si512(sums), other = _mm512_load_si512(sums + 4 * 16);
	const __m512i high = _mm512_shuffle_i32x4(row, other, 0x44);
	const __m512i low = _mm512_shuffle_i32x4(row, other, 0xee);

	return _mm512_add_epi32(_mm512_slli_epi32(high, PART), low);
}

/* Sums [16 means][8 high, 8 low] to dots [heads][16 means]: a transposition. */
static inline __attribute__((always_inline)) void put_dots(
	const int32_t *sums, uint32_t heads, __m512 step, float *dots, size_t stride)
{
	__m512i quad[2][4]; /* [first or last 8 means][head, and 4 behind it]: lanes of 4 means */

#pragma GCC unroll 2
	for (uint32_t i = 0; i < 2; i++) {
		const __m512i a = add_parts(sums + (i * 8 + 0) * 16);
		const __m512i b = add_parts(sums + (i * 8 + 1) * 16);
		const __m512i c = add_parts(sums + (i * 8 + 2) * 16);
		const __m512i d = add_parts(sums + (i * 8 + 3) * 16);
		const __m512i ab = _mm512_unpacklo_epi32(a, b), cd = _mm512_unpacklo_epi32(c, d);
		const __m512i ef = _mm512_unpackhi_epi32(a, b), gh = _mm512_unpackhi_epi32(c, d);

		quad[i][0] = _mm512_unpacklo_epi64(ab, cd);
		quad[i][1] = _mm512_unpackhi_epi64(ab, cd);
		quad[i][2] = _mm512_unpacklo_epi64(ef, gh);
		quad[i][3] = _mm512_unpackhi_epi64(ef, gh);
	}
#pragma GCC unroll 4
	for (uint32_t h = 0; h < 4; h++) {
		const __m512i first = _mm512_shuffle_i32x4(quad[0][h], quad[1][h], 0x88);
		const __m512i second = _mm512_shuffle_i32x4(quad[0][h], quad[1][h], 0xdd);

		if (h < heads)
			_mm512_storeu_ps(dots + h * stride,
				hold(_mm512_mul_ps(_mm512_cvtepi32_ps(first), step)));
		if (h + 4 < heads)
			_mm512_storeu_ps(dots + (h + 4) * stride,
				hold(_mm512_mul_ps(_mm512_cvtepi32_ps(second), step)));
	}
}

/* Asks for some lines of what comes, and steps on. For the second cache: it has more requests under way
 * than the first. */
static inline __attribute__((always_inline)) void fetch(const char **coming)
{
	for (uint32_t i = 0; i < FETCH_LINES; i++)
		_mm_prefetch(*coming + i * 64, _MM_HINT_T1);
	*coming += (size_t)FETCH_LINES * 64;
}

/* Four times 16 means with up to 8 heads. Fetches half of what comes; the other half is left for the
 * sums, which take as long, so that memory is at work all the time. */
TILED static inline __attribute__((always_inline)) void multiply(int32_t (*sums)[ROWS * 16],
	const uint8_t *query, uint32_t dim, const int8_t *const *mean, const char **coming)
{
	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
	for (uint32_t i = 0; i < dim; i += STEP, query += TILE) {
		_tile_loadd(6, query, 64);
		_tile_loadd(4, mean[0] + i, dim);
		_tile_dpbssd(0, 4, 6);
		fetch(coming);
		_tile_loadd(5, mean[1] + i, dim);
		_tile_dpbssd(1, 5, 6);
		fetch(coming);
		_tile_loadd(4, mean[2] + i, dim);
		_tile_dpbssd(2, 4, 6);
		fetch(coming);
		_tile_loadd(5, mean[3] + i, dim);
		_tile_dpbssd(3, 5, 6);
		fetch(coming);
	}
	_tile_stored(0, sums[0], 64);
	_tile_stored(1, sums[1], 64);
	_tile_stored(2, sums[2], 64);
	_tile_stored(3, sums[3], 64);
}

/* Copies the 16 means from `first` on, what lacks one repeating the last. */
static void copy_last(
	int8_t *to, const struct kvr_recall_means *means, uint32_t first, uint32_t dim)
{
	for (uint32_t i = 0; i < ROWS; i++) {
		const uint32_t c = first + i < means->count ? first + i : means->count - 1;

		memcpy(to + (size_t)i * dim, means->plane + (size_t)c * dim, dim);
	}
}

TILED static void dots(const uint8_t *block, uint32_t heads, uint32_t dim,
	const struct kvr_recall_means *means, float *out, size_t stride)
{
	int8_t last[ROWS * KVR_DIM_MAX + STEP] __attribute__((aligned(64)));
	int32_t sums[SIDES][ROWS * 16] __attribute__((aligned(64)));
	const __m512 factor = _mm512_set1_ps(means->factor);
	const uint32_t count = means->count;
	const int8_t *from[SIDES];

	for (uint32_t c = 0; c < count; c += SIDES * ROWS) {
		const uint32_t sides =
			count - c < SIDES * ROWS ? (count - c + ROWS - 1) / ROWS : SIDES;

		/* What lacks a mean of its own repeats the last one. */
		for (uint32_t i = 0; i < SIDES; i++)
			from[i] = means->plane + (size_t)(c + (i < sides ? i : 0) * ROWS) * dim;
		if (c + sides * ROWS > count) {
			copy_last(last, means, c + (sides - 1) * ROWS, dim);
			for (uint32_t i = 0; i < SIDES; i++)
				from[i] = i + 1 < sides ? from[i] : last;
		}
		for (uint32_t h = 0; h < heads; h += GROUP) {
			const char *coming = (const char *)(means->next + (size_t)c * dim);

			multiply(sums, block + (size_t)(h / GROUP) * steps_of(dim) * TILE, dim,
				from, &coming);
			for (uint32_t i = 0; i < sides; i++) {
				const uint32_t at = c + i * ROWS;
				const __m512 step = _mm512_maskz_loadu_ps(
					kvr_lanes16(count - at), means->step + at);

				for (uint32_t k = 0; k < dim; k += STEP)
					fetch(&coming);
				put_dots(sums[i], heads - h < GROUP ? heads - h : GROUP,
					_mm512_mul_ps(step, factor), out + h * stride + at, stride);
			}
		}
	}
}

static void spread(const float *from, float *work, const float *tokens, uint32_t count, float scale,
	float part, float *density)
{
	kvr_recall_avx512.spread(from, work, tokens, count, scale, part, density);
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
