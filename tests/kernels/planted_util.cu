/* SPDX-License-Identifier: Apache-2.0 */
/* planted_util.cu: small kernels with the mistakes that the emulation must catch; see planted_util.h. */
#include "kernels/cuda/builtin.h"
#include "tests/kernels/planted_util.h"

#define WARPS (PLANTED_THREADS / KVR_CUDA_WARP)

static __device__ uint32_t sum_of_warp(uint32_t value, enum planted mistake)
{
	const uint32_t lane = threadIdx.x % KVR_CUDA_WARP;

	for (uint32_t step = KVR_CUDA_WARP / 2; step > 0; step /= 2) {
		if (mistake == PLANTED_LANE_MISSING && lane == 3)
			return value;
		value += __shfl_xor_sync(KVR_CUDA_ALL, value, step);
	}
	if (mistake == PLANTED_LANE_OUTSIDE)
		value += __shfl_sync(1u << lane, value, lane ^ 1);
	if (mistake == PLANTED_LANE_WRONG_MASK)
		__syncwarp(lane < 16 ? 0xffff0000u : 0x0000ffffu);
	return value;
}

/* The neighbour's value, through shared memory and inside a warp. */
static __device__ uint32_t neighbour(uint32_t value, enum planted mistake)
{
	KVR_SHARED(uint32_t, slot, PLANTED_THREADS);
	uint32_t other;

	slot[threadIdx.x] = value;
	if (mistake != PLANTED_NO_SYNCWARP)
		__syncwarp(KVR_CUDA_ALL);
	other = slot[threadIdx.x ^ 1];
	__syncwarp(KVR_CUDA_ALL);
	return other;
}

/* Barriers that are not met by all. */
static __device__ void stumble(enum planted mistake)
{
	if (mistake == PLANTED_BARRIER_MISSED && threadIdx.x < 40)
		__syncthreads();
	if (mistake == PLANTED_BARRIERS_CROSSED) {
		if (threadIdx.x < 64)
			__syncthreads();
		else
			__syncthreads();
	}
}

/* What lies beyond an array. */
static __device__ uint32_t trespass(enum planted mistake, uint32_t *array, uint32_t *dynamic)
{
	uint32_t behind =
		PLANTED_THREADS; /* not a constant to the compiler: sanitizers are to see it */

	if (threadIdx.x != 7)
		return 0;
	if (mistake == PLANTED_WRITE_BEHIND)
		array[behind] = 1;
	if (mistake == PLANTED_WRITE_BEFORE)
		array[-static_cast<int32_t>(threadIdx.x) + 6] = 1;
	if (mistake == PLANTED_WRITE_BEHIND_DYNAMIC)
		dynamic[WARPS] = 1;
	if (mistake == PLANTED_READ_BEHIND)
		return array[behind];
	if (mistake == PLANTED_MISALIGNED)
		return reinterpret_cast<const uint4 *>(array + 1)->x;
	return 0;
}

__global__ void reverse(enum planted mistake, const uint32_t *in, uint32_t *out, uint32_t *counter)
{
	const uint32_t at = blockIdx.x * PLANTED_THREADS + threadIdx.x;
	const uint32_t warp = threadIdx.x / KVR_CUDA_WARP;
	KVR_SHARED(uint32_t, row, PLANTED_THREADS);
	KVR_SHARED_DYNAMIC(uint32_t, sums);
	uint32_t sum = 0, mine;

	if (mistake == PLANTED_BARRIER_RETURNED && threadIdx.x == 95)
		return;
	stumble(mistake);
	row[threadIdx.x] = in[at];
	if (mistake == PLANTED_NO_BARRIER_BUT_WARPS) {
		__syncwarp(KVR_CUDA_ALL); /* not enough, however often */
		__syncwarp(KVR_CUDA_ALL);
	} else if (mistake != PLANTED_NO_BARRIER_BEFORE_READ) {
		__syncthreads();
	}
	mine = row[PLANTED_THREADS - 1 - threadIdx.x];
	if (mistake != PLANTED_NO_BARRIER_BEFORE_WRITE)
		__syncthreads();
	row[threadIdx.x] = mine;
	mine += neighbour(row[threadIdx.x], mistake);
	mine += trespass(mistake, row, sums);
	sum = sum_of_warp(mine, mistake);
	if (threadIdx.x % KVR_CUDA_WARP == 0 && !(mistake == PLANTED_UNWRITTEN && warp == 1))
		sums[warp] = sum;
	__syncthreads();
	for (uint32_t i = 0; i < WARPS; i++)
		mine += sums[i];
	out[at] = mine;
	if (mistake == PLANTED_BLOCKS_RACE && blockIdx.x > 0)
		out[at] += out[at - PLANTED_THREADS];
	if (threadIdx.x == 0)
		atomicInc(counter, PLANTED_BLOCKS - 1);
}

__global__ void hoard(uint32_t *out)
{
	KVR_SHARED(uint32_t, much, KVR_EMULATE_SHARED_MAX / 4);
	KVR_SHARED(uint32_t, more, 1);

	more[0] = much[threadIdx.x] = 1;
	out[threadIdx.x] = more[0];
}

int planted_launch(enum planted mistake, const uint32_t *in, uint32_t *out, uint32_t *counter)
{
	if (mistake == PLANTED_SHARED_TOO_LARGE)
		KVR_LAUNCH(hoard, dim3(1), dim3(1), 0, nullptr, out);
	else
		KVR_LAUNCH(reverse, dim3(PLANTED_BLOCKS),
			dim3(PLANTED_THREADS, mistake == PLANTED_BLOCK_TOO_LARGE ? 11 : 1),
			WARPS * sizeof(uint32_t), nullptr, mistake, in, out, counter);
	return kvr_cuda_launched();
}
