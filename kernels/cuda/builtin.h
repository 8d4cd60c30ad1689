/* SPDX-License-Identifier: Apache-2.0 */
/* builtin.h: what every `.cu` file begins with: CUDA's own built-ins under nvcc, ours (emulate.h) elsewhere, and
 * the few words that are the same for both. Internal to kernels/cuda/; it declares no operation.
 *
 *   KVR_SHARED(type, name, count)       an array of the block, 16-byte aligned
 *   KVR_SHARED_DYNAMIC(type, name)      the array whose bytes the launch states; one per kernel
 *   KVR_LAUNCH(kernel, grid, block, shared_bytes, stream, arguments...)
 *
 * Built-ins that emulate.h lacks are added there with the first kernel that needs them. */
#ifndef KVR_KERNELS_CUDA_BUILTIN_H
#define KVR_KERNELS_CUDA_BUILTIN_H

#ifdef __cplusplus

#include <errno.h>
#include <stddef.h>
#include <stdint.h>

#include "base/geometry.h"
#include "kernels/cuda/stream.h"

#if defined(__CUDACC__)

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#define KVR_SHARED(type, name, count)  __shared__ __align__(16) type name[count]
#define KVR_SHARED_DYNAMIC(type, name) extern __shared__ __align__(16) type name[]
#define KVR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...) \
	(kernel)<<<(grid), (block), (shared_bytes), (stream)>>>(__VA_ARGS__)

/* Whether the launch before it was taken: 0, or -EIO. It does not wait for it. */
static inline int kvr_cuda_launched(void)
{
	return cudaGetLastError() == cudaSuccess ? 0 : -EIO;
}

static __device__ __forceinline__ float kvr_cuda_float_of_f16(uint16_t bits)
{
	return __half2float(__ushort_as_half(bits));
}

#else

#include "kernels/cpu.h"
#include "kernels/cuda/emulate.h"

static inline int kvr_cuda_launched(void)
{
	return kvr_emulate_fault() ? -EIO : 0;
}

static inline float kvr_cuda_float_of_f16(uint16_t bits)
{
	return kvr_float_of_f16(bits);
}

#endif

/* Before a loop of constant length over registers. */
#if defined(__CUDACC__) || defined(__clang__)
#define KVR_CUDA_UNROLL _Pragma("unroll")
#else
#define KVR_CUDA_UNROLL _Pragma("GCC unroll 16")
#endif

#define KVR_CUDA_WARP 32u
#define KVR_CUDA_ALL  0xffffffffu /* lanes of a warp */

static __device__ __forceinline__ float kvr_cuda_float_of_bf16(uint16_t bits)
{
	return __uint_as_float(static_cast<uint32_t>(bits) << 16);
}

/* Whether this is the last of `blocks` blocks to arrive at a counter, for all threads of the block; what the others wrote before
 * is then seen. The counter is 0 before the first one and after the last: it serves the next launch as it is. */
static __device__ __forceinline__ bool kvr_cuda_arrive_last(uint32_t *counter, uint32_t blocks)
{
	KVR_SHARED(uint32_t, place, 1);

	__threadfence();
	__syncthreads();
	if (threadIdx.x == 0)
		place[0] = atomicInc(counter, blocks - 1);
	__syncthreads();
	__threadfence();
	return place[0] == blocks - 1;
}

#endif

#endif
