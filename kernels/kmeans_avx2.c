/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans_avx2.c: the inner loops of k-means for AVX2 with FMA and F16C.
 *
 * As kmeans_avx512.c, with panels of 16 tokens in two registers and blocks of 6 centroids: 12 sums,
 * 2 keys and a broadcast fill 15 of the 16 registers. */
#include <immintrin.h>
#include <math.h>
#include <string.h>

#include "kernels/kmeans.h"
#include "kernels/widen.h"

#define LANES   8u
#define VECTORS 2u
#define PANEL   (VECTORS * LANES)
#define BLOCK   6u

KVR_STATIC_ASSERT(PANEL <= KVR_KMEANS_PANEL_MAX);
KVR_STATIC_ASSERT(KVR_KMEANS_PAD % (2 * LANES) == 0);

static float dot(const float *a, const float *b, size_t count)
{
	__m256 even = _mm256_setzero_ps();
	__m256 odd = _mm256_setzero_ps();
	__m128 four;

	for (size_t i = 0; i < count; i += 2 * LANES) {
		even = _mm256_fmadd_ps(_mm256_load_ps(a + i), _mm256_load_ps(b + i), even);
		odd = _mm256_fmadd_ps(
			_mm256_load_ps(a + i + LANES), _mm256_load_ps(b + i + LANES), odd);
	}
	even = _mm256_add_ps(even, odd);
	four = _mm_add_ps(_mm256_castps256_ps128(even), _mm256_extractf128_ps(even, 1));
	four = _mm_add_ps(four, _mm_movehl_ps(four, four));
	return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}

static bool unit(float *vector, size_t count)
{
	const float square = dot(vector, vector, count);
	__m256 scale;

	if (!(square >= KVR_KMEANS_SQUARE_MIN && square <= KVR_KMEANS_SQUARE_MAX))
		return false;
	scale = _mm256_set1_ps(1.0f / sqrtf(square));
	for (size_t i = 0; i < count; i += LANES)
		_mm256_store_ps(vector + i, _mm256_mul_ps(_mm256_load_ps(vector + i), scale));
	return true;
}

/* Writes 8 x 8 floats, transposed: column i of the rows goes to `to + i * PANEL`. */
static void transpose(float *to, const float *rows, size_t stride)
{
	__m256 in[8], pair[8], quad[8];
	KVR_UNROLL
	for (size_t i = 0; i < 8; i++)
		in[i] = _mm256_load_ps(rows + i * stride);
	KVR_UNROLL
	for (size_t i = 0; i < 8; i += 2) {
		pair[i] = _mm256_unpacklo_ps(in[i], in[i + 1]);
		pair[i + 1] = _mm256_unpackhi_ps(in[i], in[i + 1]);
	}
	/* quad[4 g + j]: in its 128-bit lane l, column 4 l + j of the rows 4 g to 4 g + 3. */
	KVR_UNROLL
	for (size_t i = 0; i < 8; i += 4) {
		quad[i] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0x44);
		quad[i + 1] = _mm256_shuffle_ps(pair[i], pair[i + 2], 0xee);
		quad[i + 2] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0x44);
		quad[i + 3] = _mm256_shuffle_ps(pair[i + 1], pair[i + 3], 0xee);
	}
	KVR_UNROLL
	for (size_t j = 0; j < 4; j++) {
		_mm256_store_ps(to + j * PANEL, _mm256_permute2f128_ps(quad[j], quad[4 + j], 0x20));
		_mm256_store_ps(
			to + (4 + j) * PANEL, _mm256_permute2f128_ps(quad[j], quad[4 + j], 0x31));
	}
}

static void pack(float *panels, const struct kvr_kmeans_rows *keys)
{
	_Alignas(64) float wide[LANES][KVR_KMEANS_ROUND(KVR_DIM_MAX)];
	const size_t stride = keys->stride;
	const size_t padded = (keys->count + PANEL - 1) / PANEL * PANEL;

	for (size_t first = 0; first < padded; first += LANES) {
		float *panel = panels + (size_t)(first / PANEL) * PANEL * stride + first % PANEL;

		for (size_t i = 0; i < LANES; i++) {
			memset(wide[i], 0, stride * sizeof(float));
			if (first + i >= keys->count)
				continue;
			kvr_widen(wide[i], keys->row[first + i], keys->dtype, keys->dim);
			if (!unit(wide[i], stride))
				kvr_kmeans_unit_exactly(wide[i], stride);
		}
		for (size_t k = 0; k < stride; k += LANES)
			transpose(panel + k * PANEL, wide[0] + k, KVR_KMEANS_ROUND(KVR_DIM_MAX));
	}
}

struct best {
	__m256 product[VECTORS];
	__m256i label[VECTORS];
};

/* `count` centroids, a constant where it is called, against one panel. */
static inline __attribute__((always_inline)) void block(struct best *best, const float *panel,
	const float *units, size_t dim, size_t stride, size_t first, const size_t count)
{
	__m256 sum[BLOCK][VECTORS];
	KVR_UNROLL
	for (size_t c = 0; c < count; c++) {
		KVR_UNROLL
		for (size_t v = 0; v < VECTORS; v++)
			sum[c][v] = _mm256_setzero_ps();
	}
	for (size_t k = 0; k < dim; k++) {
		__m256 key[VECTORS];
		KVR_UNROLL
		for (size_t v = 0; v < VECTORS; v++)
			key[v] = _mm256_load_ps(panel + k * PANEL + v * LANES);
		KVR_UNROLL
		for (size_t c = 0; c < count; c++) {
			const __m256 value = _mm256_broadcast_ss(units + c * stride + k);
			KVR_UNROLL
			for (size_t v = 0; v < VECTORS; v++)
				sum[c][v] = _mm256_fmadd_ps(key[v], value, sum[c][v]);
		}
	}
	KVR_UNROLL
	for (size_t c = 0; c < count; c++) {
		const __m256i label = _mm256_set1_epi32((int)(first + c));
		KVR_UNROLL
		for (size_t v = 0; v < VECTORS; v++) {
			const __m256 more = _mm256_cmp_ps(sum[c][v], best->product[v], _CMP_GT_OQ);

			best->product[v] = _mm256_blendv_ps(best->product[v], sum[c][v], more);
			best->label[v] = _mm256_blendv_epi8(
				best->label[v], label, _mm256_castps_si256(more));
		}
	}
}

static void assign(uint16_t *labels, const float *panels, const struct kvr_kmeans_rows *keys,
	const float *units, size_t cluster_count, float *work)
{
	const size_t stride = keys->stride;
	const size_t dim = keys->dim;

	(void)work;
	for (size_t first = 0; first < keys->count; first += PANEL) {
		const float *panel = panels + first * stride;
		struct best best;
		__m256i labels16;
		size_t c = 0;

		for (size_t v = 0; v < VECTORS; v++) {
			best.product[v] = _mm256_set1_ps(-2.0f);
			best.label[v] = _mm256_setzero_si256();
		}
		for (; c + BLOCK <= cluster_count; c += BLOCK)
			block(&best, panel, units + c * stride, dim, stride, c, BLOCK);
		for (; c + 2 <= cluster_count; c += 2)
			block(&best, panel, units + c * stride, dim, stride, c, 2);
		if (c < cluster_count)
			block(&best, panel, units + c * stride, dim, stride, c, 1);
		labels16 = _mm256_packus_epi32(best.label[0], best.label[1]);
		_mm256_storeu_si256((__m256i *)(void *)(labels + first),
			_mm256_permute4x64_epi64(labels16, 0xd8));
	}
}

static void add(float *sums, const struct kvr_kmeans_rows *rows, const uint16_t *labels)
{
	_Alignas(64) float wide[KVR_KMEANS_ROUND(KVR_DIM_MAX)] = {0};

	for (size_t t = 0; t < rows->count; t++) {
		float *sum = sums + (size_t)labels[t] * rows->stride;

		kvr_widen(wide, rows->row[t], rows->dtype, rows->dim);
		for (size_t i = 0; i < rows->dim; i += LANES)
			_mm256_store_ps(sum + i,
				_mm256_add_ps(_mm256_load_ps(sum + i), _mm256_load_ps(wide + i)));
	}
}

static float deviate(float *squares, const struct kvr_kmeans_rows *rows, const uint16_t *token,
	size_t count, size_t sinks, const float *mean)
{
	_Alignas(64) float wide[KVR_KMEANS_ROUND(KVR_DIM_MAX)] = {0};
	float largest = 0.0f;

	memset(squares, 0, rows->stride * sizeof(*squares));
	for (size_t r = 0; r < count; r++) {
		kvr_widen(wide, rows->row[token[r] - sinks], rows->dtype, rows->dim);
		for (size_t i = 0; i < rows->dim; i += LANES) {
			const __m256 apart =
				_mm256_sub_ps(_mm256_load_ps(wide + i), _mm256_load_ps(mean + i));

			_mm256_store_ps(squares + i,
				_mm256_fmadd_ps(apart, apart, _mm256_load_ps(squares + i)));
		}
	}
	for (size_t i = 0; i < rows->dim; i++)
		largest = squares[i] > largest ? squares[i] : largest;
	return largest;
}

/* In plain C: bytes are few. */
static void narrow8(uint8_t *to, const float *from, float scale, size_t count)
{
	kvr_kmeans_plain.narrow8(to, from, scale, count);
}

static void narrow(uint16_t *to, const float *from, float scale, size_t count)
{
	size_t i = 0;

	for (; i + LANES <= count; i += LANES) {
		const __m256i bits = _mm256_castps_si256(
			_mm256_mul_ps(_mm256_load_ps(from + i), _mm256_set1_ps(scale)));
		const __m256i odd =
			_mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
		const __m256i nearest = _mm256_srli_epi32(
			_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))),
			16);

		_mm_storeu_si128((__m128i *)(void *)(to + i),
			_mm_packus_epi32(_mm256_castsi256_si128(nearest),
				_mm256_extracti128_si256(nearest, 1)));
	}
	for (; i < count; i++)
		to[i] = kvr_bf16_of_float(from[i] * scale);
}

const struct kvr_kmeans_ops kvr_kmeans_avx2 = {.pack = pack,
	.assign = assign,
	.add = add,
	.deviate = deviate,
	.narrow8 = narrow8,
	.unit = unit,
	.dot = dot,
	.narrow = narrow};
