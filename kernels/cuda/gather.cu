/* SPDX-License-Identifier: Apache-2.0 */
/* gather.cu: rows of chosen clusters to the outputs of a recall; see gather.h.
 *
 *   block = 8 warps:   warp w ─► piece 8 * blockIdx.x + w, rows 64 * blockIdx.y and on
 *   warp:              K, then V:  head ─ 16 bytes a lane, four in flight ─ tail
 *
 * A piece of 16 rows of 128 bf16 is 4 KiB of K and as much of V: a warp's work. Longer ones (merged sets, dense
 * lanes) are cut over the second dimension of the grid. No shared memory and no barrier: the card hides
 * latency with many warps, each with four loads under way. */
#include "kernels/cuda/builtin.h"
#include "kernels/cuda/gather.h"

#define WARPS      8u
#define SLICE_ROWS 64u /* of a piece, a warp's */
#define IN_FLIGHT  4u  /* loads of a lane before the first is stored */

/* Copies `count` words, a lane's share of them. */
template <typename Word>
static __device__ __forceinline__ void copy_words(
	Word *__restrict__ to, const Word *__restrict__ from, uint32_t count, uint32_t lane)
{
	uint32_t at = lane;

	for (; at + (IN_FLIGHT - 1) * KVR_CUDA_WARP < count; at += IN_FLIGHT * KVR_CUDA_WARP) {
		Word held[IN_FLIGHT];

		KVR_CUDA_UNROLL
		for (uint32_t i = 0; i < IN_FLIGHT; i++)
			held[i] = from[at + i * KVR_CUDA_WARP];
		KVR_CUDA_UNROLL
		for (uint32_t i = 0; i < IN_FLIGHT; i++)
			to[at + i * KVR_CUDA_WARP] = held[i];
	}
	for (; at < count; at += KVR_CUDA_WARP)
		to[at] = from[at];
}

/* Copies bytes that lie alike towards sizeof(Word): single bytes up to the first whole word of the target, words,
 * single bytes. */
template <typename Word>
static __device__ __forceinline__ void copy_as(
	uint8_t *to, const uint8_t *from, uint32_t bytes, uint32_t lane)
{
	const uint32_t past = reinterpret_cast<uintptr_t>(to) % sizeof(Word);
	const uint32_t gap = past > 0 ? static_cast<uint32_t>(sizeof(Word)) - past : 0;
	const uint32_t head = gap < bytes ? gap : bytes;
	const uint32_t words = (bytes - head) / static_cast<uint32_t>(sizeof(Word));
	const uint32_t done = head + words * static_cast<uint32_t>(sizeof(Word));

	for (uint32_t at = lane; at < head; at += KVR_CUDA_WARP)
		to[at] = from[at];
	copy_words(reinterpret_cast<Word *>(to + head), reinterpret_cast<const Word *>(from + head),
		words, lane);
	for (uint32_t at = done + lane; at < bytes; at += KVR_CUDA_WARP)
		to[at] = from[at];
}

/* The widest words that both sides allow. */
static __device__ __forceinline__ void copy(
	uint8_t *to, const uint8_t *from, uint32_t bytes, uint32_t lane)
{
	const uint32_t apart = static_cast<uint32_t>(
		reinterpret_cast<uintptr_t>(to) ^ reinterpret_cast<uintptr_t>(from));

	if (apart % 16 == 0)
		copy_as<uint4>(to, from, bytes, lane);
	else if (apart % 4 == 0)
		copy_as<uint32_t>(to, from, bytes, lane);
	else if (apart % 2 == 0)
		copy_as<uint16_t>(to, from, bytes, lane);
	else
		copy_as<uint8_t>(to, from, bytes, lane);
}

__global__ void __launch_bounds__(WARPS *KVR_CUDA_WARP) gather_pieces(struct kvr_cuda_gather gather)
{
	const uint32_t lane = threadIdx.x % KVR_CUDA_WARP;
	const uint32_t index = blockIdx.x * WARPS + threadIdx.x / KVR_CUDA_WARP;
	const uint32_t first = blockIdx.y * SLICE_ROWS;
	struct kvr_cuda_piece piece;
	uint32_t rows;

	if (index >= gather.piece_count)
		return;
	piece = gather.pieces[index];
	if (!piece.keys || first >= piece.rows)
		return;
	rows = piece.rows - first < SLICE_ROWS ? piece.rows - first : SLICE_ROWS;
	copy(piece.to_keys + static_cast<size_t>(first) * gather.key_bytes,
		piece.keys + static_cast<size_t>(first) * gather.key_bytes, rows * gather.key_bytes,
		lane);
	copy(piece.to_values + static_cast<size_t>(first) * gather.value_bytes,
		piece.values + static_cast<size_t>(first) * gather.value_bytes,
		rows * gather.value_bytes, lane);
}

int kvr_cuda_gather(const struct kvr_cuda_gather *gather, struct CUstream_st *stream)
{
	const dim3 grid((gather->piece_count + WARPS - 1) / WARPS,
		(gather->rows_max + SLICE_ROWS - 1) / SLICE_ROWS);

	if (gather->piece_count == 0 || gather->piece_count > KVR_CUDA_GATHER_PIECES_MAX ||
		gather->rows_max == 0 || gather->rows_max > KVR_SEGMENT_TOKENS_MAX ||
		gather->key_bytes == 0 || gather->key_bytes > KVR_DIM_MAX * 4 ||
		gather->value_bytes == 0 || gather->value_bytes > KVR_DIM_MAX * 4)
		return -EINVAL;
	KVR_LAUNCH(gather_pieces, grid, dim3(WARPS * KVR_CUDA_WARP), 0, stream, *gather);
	return kvr_cuda_launched();
}
