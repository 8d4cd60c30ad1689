/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans_avx512bf16.c: the assignment of k-means with tiles of bf16 (AMX), beside AVX-512.
 *
 * A tile instruction multiplies 16 centroids by 16 tokens over 32 dimensions. bf16 alone would move
 * labels where one channel dwarfs the others, so a number travels as two, high and low part, and the
 * products high x high, low x high and high x low are summed in f32; what is left out is below 2^-16
 * of the result. Keys that are bf16 already are scaled by a power of two, which is exact, and have
 * no low part: two products instead of three.
 *
 *   panel: 16 tokens              [step of 32 dims] { high [16 pairs of dims][16 tokens] pairs,
 *                                                     low, unless keys are bf16 }
 *   work:  centroids as bf16      high [C][stride], then low [C][stride]; C rounded up to 32
 *
 * The inner loop holds 2 x 2 tiles of sums. Their rows are centroids and their columns tokens, so
 * that the running argmax goes lane by lane, as in kmeans_avx512.c.
 *
 * Source: Intel 64 and IA-32 Architectures Software Developer's Manual, volume 1, chapter 18. */
#include <immintrin.h>
#include <math.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "kernels/kmeans.h"
#include "kernels/widen.h"

#define LANES       16u
#define STEP        32u         /* dimensions of one tile instruction */
#define TILE        (16u * 16u) /* floats (or pairs of bf16) in a tile */
#define TILED       __attribute__((target("amx-tile,amx-bf16")))
#define WIDE_FLOATS KVR_KMEANS_ROUND(KVR_DIM_MAX)

KVR_STATIC_ASSERT(KVR_KMEANS_PAD == STEP);
KVR_STATIC_ASSERT(KVR_KMEANS_PANEL_MAX % (2 * LANES) == 0);

/* arch_prctl(2): lets the process use the tile registers; the numbers are the kernel's ABI. */
#define ARCH_REQ_XCOMP_PERM 0x1023
#define XFEATURE_XTILEDATA  18

bool kvr_kmeans_tiles_usable(void)
{
	/* 0 unknown, 1 usable, 2 not. Threads that ask at once find the same. */
	static _Atomic int known;
	int now = atomic_load_explicit(&known, memory_order_relaxed);

	if (now == 0) {
		unsigned a = 0, b = 0, c = 0, d = 0;
		const unsigned all = 7u << 22; /* CPUID 7.0 EDX: AMX-BF16, AMX-TILE, AMX-INT8 */

		__asm__("cpuid" : "=a"(a), "=b"(b), "=c"(c), "=d"(d) : "a"(7), "c"(0));
		now = 2;
		if ((d & all) == all && __builtin_cpu_supports("avx512bf16") &&
			syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0)
			now = 1;
		atomic_store_explicit(&known, now, memory_order_relaxed);
	}
	return now == 1;
}

/* Tiles of a panel per step: one, or two with the low parts. */
static size_t parts_of(const struct kvr_kmeans_rows *keys)
{
	return keys->dtype == KVR_DTYPE_BF16 ? 1 : 2;
}

/* 32 floats as bf16, rounded to nearest even. */
static __m512 high_part(const float *from)
{
	return _mm512_castsi512_ps(
		(__m512i)_mm512_cvtne2ps_pbh(_mm512_load_ps(from + LANES), _mm512_load_ps(from)));
}

/* What 32 floats have below their high parts, as bf16. */
static __m512 low_part(const float *from, __m512 high)
{
	const __m512i bits = _mm512_castps_si512(high);
	const __m512i first = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(bits));
	const __m512i second = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(bits, 1));
	const __m512 low[2] = {_mm512_sub_ps(_mm512_load_ps(from),
				       _mm512_castsi512_ps(_mm512_slli_epi32(first, 16))),
		_mm512_sub_ps(_mm512_load_ps(from + LANES),
			_mm512_castsi512_ps(_mm512_slli_epi32(second, 16)))};

	return _mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(low[1], low[0]));
}

/* Scales a key to a length near 1; by a power of two where that is enough, which keeps bf16 exact. */
static void scale(float *key, const struct kvr_kmeans_rows *keys)
{
	const float square = kvr_kmeans_dot_avx512(key, key, keys->stride);
	__m512 power;

	if (!(square >= KVR_KMEANS_SQUARE_MIN && square <= KVR_KMEANS_SQUARE_MAX)) {
		kvr_kmeans_unit_exactly(key, keys->stride);
		return;
	}
	if (keys->dtype != KVR_DTYPE_BF16) {
		kvr_kmeans_unit_avx512(key, keys->stride);
		return;
	}
	power = _mm512_set1_ps(ldexpf(1.0f, -ilogbf(square) / 2));
	for (size_t k = 0; k < keys->stride; k += LANES)
		_mm512_store_ps(key + k, _mm512_mul_ps(_mm512_load_ps(key + k), power));
}

static void pack(float *panels, const struct kvr_kmeans_rows *keys)
{
	_Alignas(64) float wide[WIDE_FLOATS];
	_Alignas(64) float pairs[2][LANES][WIDE_FLOATS / 2];
	const size_t parts = parts_of(keys);
	const size_t padded = (keys->count + 2 * LANES - 1) / (2 * LANES) * (2 * LANES);

	for (size_t first = 0; first < padded; first += LANES) {
		for (size_t i = 0; i < LANES; i++) {
			memset(wide, 0, keys->stride * sizeof(float));
			if (first + i < keys->count) {
				kvr_widen(wide, keys->row[first + i], keys->dtype, keys->dim);
				scale(wide, keys);
			}
			for (size_t k = 0; k < keys->stride; k += STEP) {
				const __m512 high = high_part(wide + k);

				_mm512_store_ps(pairs[0][i] + k / 2, high);
				_mm512_store_ps(pairs[1][i] + k / 2, low_part(wide + k, high));
			}
		}
		for (size_t k = 0; k < keys->stride; k += STEP) {
			for (size_t part = 0; part < parts; part++, panels += TILE)
				kvr_transpose16(
					panels, LANES, pairs[part][0] + k / 2, WIDE_FLOATS / 2);
		}
	}
}

/* Units to bf16: high parts, then low parts; the rows behind the last are zero. */
static void pack_units(float *work, const float *units, size_t cluster_count, size_t stride)
{
	const size_t count = cluster_count * stride;
	const size_t padded = KVR_KMEANS_WORK(cluster_count) * stride;

	for (size_t i = 0; i < count; i += STEP) {
		const __m512 high = high_part(units + i);

		_mm512_store_ps(work + i / 2, high);
		_mm512_store_ps(work + (padded + i) / 2, low_part(units + i, high));
	}
	memset(work + count / 2, 0, (padded - count) * 2);
	memset(work + (padded + count) / 2, 0, (padded - count) * 2);
}

/* Sums of 32 centroids (`unit`: their high parts; the low ones are `low` floats behind) and 32
 * tokens in two panels, to sums[centroid / 16][token / 16]. */
TILED static void multiply(float sums[2][2][TILE], const float *unit, size_t low,
	const float *panel, size_t stride, size_t parts)
{
	const size_t row = stride * sizeof(uint16_t);
	const size_t next_units = stride * LANES / 2;
	const size_t next_panel = (size_t)stride / STEP * parts * TILE;

	_tile_zero(0);
	_tile_zero(1);
	_tile_zero(2);
	_tile_zero(3);
	for (size_t k = 0; k < stride; k += STEP, unit += STEP / 2, panel += parts * TILE) {
		_tile_loadd(6, panel, 64);
		_tile_loadd(7, panel + next_panel, 64);
		_tile_loadd(4, unit + low, row);
		_tile_loadd(5, unit + low + next_units, row);
		_tile_dpbf16ps(0, 4, 6);
		_tile_dpbf16ps(1, 4, 7);
		_tile_dpbf16ps(2, 5, 6);
		_tile_dpbf16ps(3, 5, 7);
		_tile_loadd(4, unit, row);
		_tile_loadd(5, unit + next_units, row);
		_tile_dpbf16ps(0, 4, 6);
		_tile_dpbf16ps(1, 4, 7);
		_tile_dpbf16ps(2, 5, 6);
		_tile_dpbf16ps(3, 5, 7);
		if (parts == 1)
			continue;
		_tile_loadd(6, panel + TILE, 64);
		_tile_loadd(7, panel + next_panel + TILE, 64);
		_tile_dpbf16ps(0, 4, 6);
		_tile_dpbf16ps(1, 4, 7);
		_tile_dpbf16ps(2, 5, 6);
		_tile_dpbf16ps(3, 5, 7);
	}
	_tile_stored(0, sums[0][0], 64);
	_tile_stored(1, sums[0][1], 64);
	_tile_stored(2, sums[1][0], 64);
	_tile_stored(3, sums[1][1], 64);
}

/* Takes the largest of `count` rows of 16 sums into the running best. */
static void take_best(__m512 *best, __m512i *label, const float *sums, size_t first, size_t count)
{
	for (size_t c = 0; c < count; c++) {
		const __m512 sum = _mm512_load_ps(sums + c * LANES);
		const __mmask16 more = _mm512_cmp_ps_mask(sum, *best, _CMP_GT_OQ);

		*best = _mm512_mask_mov_ps(*best, more, sum);
		*label = _mm512_mask_mov_epi32(*label, more, _mm512_set1_epi32((int)(first + c)));
	}
}

TILED static void assign(uint16_t *labels, const float *panels, const struct kvr_kmeans_rows *keys,
	const float *units, size_t cluster_count, float *work)
{
	/* All 8 tiles: 16 rows of 64 bytes. OFFSET 0 palette, 16 bytes a row (u16 each), 48 rows. */
	static const _Alignas(64) uint8_t config[64] = {[0] = 1,
		[16] = 64,
		[18] = 64,
		[20] = 64,
		[22] = 64,
		[24] = 64,
		[26] = 64,
		[28] = 64,
		[30] = 64,
		[48] = 16,
		16,
		16,
		16,
		16,
		16,
		16,
		16};
	_Alignas(64) float sums[2][2][TILE];
	const size_t stride = keys->stride;
	const size_t parts = parts_of(keys);
	const size_t low = KVR_KMEANS_WORK(cluster_count) * stride / 2;
	const size_t panel_floats = (size_t)stride / STEP * parts * TILE;

	pack_units(work, units, cluster_count, stride);
	_tile_loadconfig(config);
	for (size_t first = 0; first < keys->count; first += 2 * LANES) {
		const float *panel = panels + first / LANES * panel_floats;
		__m512 best[2] = {_mm512_set1_ps(-INFINITY), _mm512_set1_ps(-INFINITY)};
		__m512i label[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};

		for (size_t c = 0; c < cluster_count; c += 2 * LANES) {
			const size_t left = cluster_count - c;
			const size_t count[2] = {left < LANES ? left : LANES, left < LANES ? 0
									      : left < 2 * LANES
										      ? left - LANES
										      : LANES};

			multiply(sums, work + c * stride / 2, low, panel, stride, parts);
			for (size_t half = 0; half < 2; half++) {
				for (size_t v = 0; v < 2; v++)
					take_best(&best[v], &label[v], sums[half][v],
						c + half * LANES, count[half]);
			}
		}
		for (size_t v = 0; v < 2; v++)
			_mm256_storeu_si256((__m256i *)(void *)(labels + first + v * LANES),
				_mm512_cvtepi32_epi16(label[v]));
	}
	_tile_release();
}

const struct kvr_kmeans_ops kvr_kmeans_tiles = {.pack = pack,
	.assign = assign,
	.add = kvr_kmeans_add_avx512,
	.deviate = kvr_kmeans_deviate_avx512,
	.narrow8 = kvr_kmeans_narrow8_avx512,
	.unit = kvr_kmeans_unit_avx512,
	.dot = kvr_kmeans_dot_avx512,
	.narrow = kvr_kmeans_narrow_avx512};
