/* SPDX-License-Identifier: Apache-2.0 */
/* emulate.h: runs the sources of kernels/cuda/ on a CPU, so that tests and sanitizers see them.
 *
 * The same `.cu` files are compiled as C++ by gcc and clang. This file supplies the built-ins that they use;
 * emulate.c runs their blocks and threads. It is no part of any library and makes nothing fast. It does not
 * model caches, banks, the order in which memory becomes visible to other blocks, or streams: a launch is over
 * when it returns.
 *
 *   launch ─► blocks, one after the other ─► threads, each a fiber of its own
 *                                              runs ──__syncthreads──► waits for the block ─┐
 *                                               ▲  ──shuffle, vote───► waits for its mask ──┤
 *                                               └───────────────── all of them are there ───┘
 *
 * What a launch does not get away with:
 *   N1  A barrier is met by all threads of the block at the same line, a shuffle or vote by all lanes of its
 *       mask; a thread that stays away, or has returned, is a fault.
 *   N2  A shuffle reads only lanes of its mask.
 *   N3  Each shared array is an allocation of its own, exactly as long as it is declared, new for each
 *       block and filled with noise: AddressSanitizer sees a byte beyond it, and so does, for writes nearby, a canary in
 *       every build.
 *   N4  Grids, blocks and shared arrays keep to the limits that every device has.
 *   N5  Who runs first is the caller's choice: blocks and threads in rising, falling or random order. Of the
 *       threads that can go on the first in that order does, until it waits: a warp runs ahead of the others as far
 *       as barriers let it. So of two accesses by two warps without a barrier between them each comes first in one of two
 *       orders: a missing barrier gives other results in another order. Tests run every launch in all
 *       orders and compare the bits.
 *
 * What goes unnoticed: since blocks do not overlap, a barrier or fence that is missing before a block tells others that
 * it is done.
 *
 * Threads: none; one thread launches at a time. */
#ifndef KVR_KERNELS_CUDA_EMULATE_H
#define KVR_KERNELS_CUDA_EMULATE_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- for tests ------------------------------------------------------------------------------- */

enum kvr_emulate_order {
	KVR_EMULATE_RISING,
	KVR_EMULATE_FALLING,
	KVR_EMULATE_RANDOM,
	KVR_EMULATE_ORDERS,
};

/* Forgets faults; says in which order blocks and threads run from now on. The seed also makes the noise in
 * shared arrays. */
void kvr_emulate_begin(enum kvr_emulate_order order, uint64_t seed);

/* What the first faulty launch since then did, as a sentence, or NULL. Borrowed. */
const char *kvr_emulate_fault(void);

/* ---- for what stands below ------------------------------------------------------------------- */

#define KVR_EMULATE_WARP          32u
#define KVR_EMULATE_THREADS_MAX   1024u
#define KVR_EMULATE_SHARED_MAX    (48u * 1024) /* bytes of a block, without asking for more */
#define KVR_EMULATE_SHARED_ARRAYS 16u

struct kvr_emulate_dim {
	uint32_t x, y, z;
};

/* Where the running thread stands. */
struct kvr_emulate_place {
	struct kvr_emulate_dim thread, block, threads, blocks;
};
extern struct kvr_emulate_place kvr_emulate_place;

/* A place in the source. */
struct kvr_emulate_site {
	const char *file;
	int line;
};

struct kvr_emulate_reply {
	uint64_t value; /* the source lane's */
	uint32_t votes; /* the lanes whose value is not 0 */
};

void kvr_emulate_launch(struct kvr_emulate_dim blocks, struct kvr_emulate_dim threads,
	size_t dynamic_bytes, void (*body)(void *argument), void *argument);
void kvr_emulate_barrier(struct kvr_emulate_site site);
struct kvr_emulate_reply kvr_emulate_exchange(
	uint32_t mask, uint32_t source, uint64_t value, struct kvr_emulate_site site);
/* The block's array that is declared here; bytes 0: the one that the launch has asked for. */
void *kvr_emulate_shared(size_t bytes, struct kvr_emulate_site site);

#ifdef __cplusplus
}

#include <math.h>
#include <string.h>

/* ---- the built-ins --------------------------------------------------------------------------- */

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)

#define threadIdx (kvr_emulate_place.thread)
#define blockIdx  (kvr_emulate_place.block)
#define blockDim  (kvr_emulate_place.threads)
#define gridDim   (kvr_emulate_place.blocks)

#define KVR_HERE (kvr_emulate_site{__FILE__, __LINE__})

struct dim3 : kvr_emulate_dim {
	dim3(uint32_t width, uint32_t height = 1, uint32_t depth = 1)
	    : kvr_emulate_dim{width, height, depth}
	{
	}
};

struct alignas(16) uint4 {
	uint32_t x, y, z, w;
};

/* A declaration in a block's scope: `type` name[count], the same for all threads of the block. */
#define KVR_SHARED(type, name, count)           \
	type *const name = static_cast<type *>( \
		kvr_emulate_shared(sizeof(type) * (count), kvr_emulate_site{__FILE__, __LINE__}))
#define KVR_SHARED_DYNAMIC(type, name) \
	type *const name = static_cast<type *>(kvr_emulate_shared(0, KVR_HERE))

#define KVR_LAUNCH(kernel, grid, block, shared_bytes, stream, ...)        \
	do {                                                              \
		auto kvr_body = [&] { (kernel)(__VA_ARGS__); };           \
		(void)(stream);                                           \
		kvr_emulate_launch((grid), (block), (shared_bytes),       \
			kvr_emulate_call<decltype(kvr_body)>, &kvr_body); \
	} while (0)

template <typename Body> void kvr_emulate_call(void *body)
{
	(*static_cast<Body *>(body))();
}

/* Macros, so that a thread is known to wait where these stand. */
#define __syncthreads()  kvr_emulate_barrier(KVR_HERE)
#define __syncwarp(mask) ((void)kvr_emulate_exchange((mask), kvr_emulate_lane(), 0, KVR_HERE))
#define __any_sync(mask, vote) \
	(kvr_emulate_exchange((mask), kvr_emulate_lane(), (vote) != 0, KVR_HERE).votes != 0)
#define __shfl_sync(mask, value, source) \
	kvr_emulate_shuffle((mask), (value), (source) % KVR_EMULATE_WARP, KVR_HERE)
#define __shfl_xor_sync(mask, value, lanes) \
	kvr_emulate_shuffle((mask), (value), kvr_emulate_lane() ^ (lanes), KVR_HERE)

/* Blocks have one dimension where warps speak to each other. */
static inline uint32_t kvr_emulate_lane(void)
{
	return threadIdx.x % KVR_EMULATE_WARP;
}

/* Values of up to 8 bytes. */
template <typename Type>
static inline Type kvr_emulate_shuffle(
	uint32_t mask, Type value, uint32_t source, kvr_emulate_site site)
{
	uint64_t bits = 0;

	static_assert(sizeof(value) <= sizeof(bits), "a shuffle moves 8 bytes at most");
	memcpy(&bits, &value, sizeof(value));
	bits = kvr_emulate_exchange(mask, source, bits, site).value;
	memcpy(&value, &bits, sizeof(value));
	return value;
}

/* Threads run one at a time, until they wait: every access is atomic, and seen at once. */
static inline uint32_t atomicInc(uint32_t *at, uint32_t last)
{
	const uint32_t before = *at;

	*at = before >= last ? 0 : before + 1;
	return before;
}

static inline void __threadfence(void)
{
}

/* The product of four signed bytes with four others, added to `sum`. */
static inline int32_t __dp4a(int32_t a, int32_t b, int32_t sum)
{
	for (int shift = 0; shift < 32; shift += 8)
		sum += static_cast<int8_t>(a >> shift) * static_cast<int8_t>(b >> shift);
	return sum;
}

static inline float __fmul_rn(float a, float b)
{
	return a * b;
}

static inline float __fadd_rn(float a, float b)
{
	return a + b;
}

static inline float __uint_as_float(uint32_t bits)
{
	float value;

	memcpy(&value, &bits, sizeof(value));
	return value;
}

#endif /* __cplusplus */

#endif
