/* SPDX-License-Identifier: Apache-2.0 */
/* kmeans_plain.c: the inner loops of k-means in plain C; the oracle of the others, and what runs on a
 * processor without AVX2. It does not try to be fast.
 *
 * Panels are rows: [T][stride]. */
#include <math.h>
#include <string.h>

#include "kernels/cpu.h"
#include "kernels/kmeans.h"

static float dot(const float *a, const float *b, size_t count)
{
	float sum = 0.0f;

	for (size_t i = 0; i < count; i++)
		sum += a[i] * b[i];
	return sum;
}

static bool unit(float *vector, size_t count)
{
	const float square = dot(vector, vector, count);

	if (!(square >= KVR_KMEANS_SQUARE_MIN && square <= KVR_KMEANS_SQUARE_MAX))
		return false;
	for (size_t i = 0; i < count; i++)
		vector[i] *= 1.0f / sqrtf(square);
	return true;
}

static void pack(float *panels, const struct kvr_kmeans_rows *keys)
{
	for (size_t t = 0; t < keys->count; t++) {
		float *key = panels + t * keys->stride;

		kvr_floats_of(key, keys->row[t], keys->dtype, keys->dim);
		memset(key + keys->dim, 0, (keys->stride - keys->dim) * sizeof(*key));
		if (!unit(key, keys->stride))
			kvr_kmeans_unit_exactly(key, keys->stride);
	}
}

static void assign(uint16_t *labels, const float *panels, const struct kvr_kmeans_rows *keys,
	const float *units, size_t cluster_count, float *work)
{
	(void)work;
	for (size_t t = 0; t < keys->count; t++) {
		float best = -2.0f; /* below every product of two unit vectors */

		for (size_t c = 0; c < cluster_count; c++) {
			float product = dot(
				panels + t * keys->stride, units + c * keys->stride, keys->stride);

			if (product > best) {
				best = product;
				labels[t] = (uint16_t)c;
			}
		}
	}
}

static void add(float *sums, const struct kvr_kmeans_rows *rows, const uint16_t *labels)
{
	float wide[KVR_DIM_MAX];

	for (size_t t = 0; t < rows->count; t++) {
		float *sum = sums + (size_t)labels[t] * rows->stride;

		kvr_floats_of(wide, rows->row[t], rows->dtype, rows->dim);
		for (size_t i = 0; i < rows->dim; i++)
			sum[i] += wide[i];
	}
}

static float deviate(float *squares, const struct kvr_kmeans_rows *rows, const uint16_t *token,
	size_t count, size_t sinks, const float *mean)
{
	float wide[KVR_DIM_MAX], largest = 0.0f;

	memset(squares, 0, rows->dim * sizeof(*squares));
	for (size_t r = 0; r < count; r++) {
		kvr_floats_of(wide, rows->row[token[r] - sinks], rows->dtype, rows->dim);
		for (size_t i = 0; i < rows->dim; i++)
			squares[i] += (wide[i] - mean[i]) * (wide[i] - mean[i]);
	}
	for (size_t i = 0; i < rows->dim; i++)
		largest = squares[i] > largest ? squares[i] : largest;
	return largest;
}

static void narrow8(uint8_t *to, const float *from, float scale, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		const float steps = rintf(from[i] * scale);

		to[i] = (uint8_t)(steps < UINT8_MAX ? steps : UINT8_MAX);
	}
}

static void narrow(uint16_t *to, const float *from, float scale, size_t count)
{
	for (size_t i = 0; i < count; i++)
		to[i] = kvr_bf16_of_float(from[i] * scale);
}

const struct kvr_kmeans_ops kvr_kmeans_plain = {.pack = pack,
	.assign = assign,
	.add = add,
	.deviate = deviate,
	.narrow8 = narrow8,
	.unit = unit,
	.dot = dot,
	.narrow = narrow};
