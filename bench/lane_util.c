/* SPDX-License-Identifier: Apache-2.0 */
/* lane_util.c: see lane_util.h. */
#include "bench/lane_util.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "kernels/cpu.h"

#define DIRECTIONS 48u

static uint64_t seed = 1;

static double uniform(void)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return (double)(seed >> 11) * 0x1p-53;
}

static float gauss(void)
{
	return (float)(sqrt(-2.0 * log(1.0 - uniform())) * cos(6.283185307179586 * uniform()));
}

void bench_lane_make(uint16_t *keys, uint16_t *values, uint32_t count, uint32_t dim)
{
	static float direction[DIRECTIONS][BENCH_LANE_DIM_MAX], drift[2][BENCH_LANE_DIM_MAX];

	KVR_ASSERT(dim <= BENCH_LANE_DIM_MAX);
	for (uint32_t k = 0; k < dim; k++) {
		const float large = k == 3 || k == dim - 5 ? 12.0f : 0.0f;

		for (uint32_t i = 0; i < DIRECTIONS; i++)
			direction[i][k] = gauss() + large;
		drift[0][k] = gauss();
		drift[1][k] = gauss();
	}
	for (uint32_t t = 0; t < count; t++) {
		const float *from = direction[(uint32_t)(uniform() * uniform() * DIRECTIONS)];
		const float angle = 6.2831853f * (float)t / (float)count;

		for (uint32_t k = 0; k < dim; k++, keys++)
			*keys = kvr_bf16_of_float(from[k] + 0.7f * gauss() +
						  0.6f * cosf(angle) * drift[0][k] +
						  0.6f * sinf(angle) * drift[1][k]);
		for (uint32_t k = 0; k < dim; k++, values++)
			*values = kvr_bf16_of_float(gauss());
	}
}

void *bench_lane_need(size_t bytes)
{
	void *memory = aligned_alloc(64, (bytes + 63) & ~(size_t)63);

	if (!memory) {
		fprintf(stderr, "no memory for %zu bytes\n", bytes);
		exit(1);
	}
	memset(memory, 0, bytes);
	return memory;
}
