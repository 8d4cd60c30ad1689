/* SPDX-License-Identifier: Apache-2.0 */
/* attend.cu: exact attention over rows with log weights; see attend.h.
 *
 *   block (x, y, z): part x of the rows of item y, queries HEADS * z and on
 *
 *   team of 8, 16 or 32 threads ─► a row at a time: dot with each query, running maximum m, sum s, out
 *   block: its teams ─merge─► a part                        in shared memory
 *   the item's last block: all parts ─merge─► out, lse      through `work`; with one part, at once
 *
 * A thread of a team has the same pieces of 8 elements of every query, key, value and output, in registers.
 *
 * Invariants, for every query of a team, block or item:
 *   A1  m is the largest logit; s = sum exp(logit - m); out = sum exp(logit - m) v.
 *   A2  While every logit is -INFINITY, m is -INFINITY and s and out are 0.
 *   A3  Parts are merged in their order, never in that of arrival.
 *
 * Source: online softmax, Milakov and Gimelshein, arXiv 1805.02867, section 3; parts of rows merged as in
 * Flash-Decoding (Dao, Haziza, Massa, Sizov 2023). */
#include <float.h>
#include <math.h>

#include "kernels/cuda/attend.h"
#include "kernels/cuda/builtin.h"

#define THREADS 128u
#define PIECE   8u /* elements */
#define HEAD    2u /* floats of a part before its out: m, s */

/* TEAM threads of a row, PIECES of each, HEADS queries of a block, ROWS loaded before the first is used. */
template <uint32_t team, uint32_t pieces, uint32_t heads, uint32_t rows> struct shape {
	static constexpr uint32_t TEAM = team, PIECES = pieces, HEADS = heads, ROWS = rows;
	static constexpr uint32_t TEAMS = THREADS / TEAM, DIM_MAX = TEAM * PIECES * PIECE;
};
using narrow = shape<8, 2, 4, 2>;  /* dims up to 128 */
using middle = shape<16, 2, 4, 2>; /* 256 */
using wide = shape<32, 3, 2, 1>;   /* 768 */

static_assert(wide::DIM_MAX >= KVR_DIM_MAX, "every dim has a shape");
static_assert(narrow::TEAMS <= KVR_CUDA_ATTEND_SPLITS_MAX, "teams are merged like parts");

/* A thread's elements of a row. */
template <typename Shape> struct held {
	float x[Shape::PIECES][PIECE];
};

/* What a team knows of one query. */
template <typename Shape> struct running {
	struct held<Shape> query, out;
	float most, sum;
};

template <enum kvr_dtype DTYPE>
static __device__ __forceinline__ float element(const uint8_t *row, uint32_t i)
{
	if constexpr (DTYPE == KVR_DTYPE_F32)
		return reinterpret_cast<const float *>(row)[i];
	else if constexpr (DTYPE == KVR_DTYPE_BF16)
		return kvr_cuda_float_of_bf16(reinterpret_cast<const uint16_t *>(row)[i]);
	else
		return kvr_cuda_float_of_f16(reinterpret_cast<const uint16_t *>(row)[i]);
}

template <enum kvr_dtype DTYPE>
static __device__ __forceinline__ void widen_word(uint32_t word, float *to)
{
	if constexpr (DTYPE == KVR_DTYPE_BF16) {
		to[0] = __uint_as_float(word << 16);
		to[1] = __uint_as_float(word & 0xffff0000u);
	} else {
		to[0] = kvr_cuda_float_of_f16(static_cast<uint16_t>(word));
		to[1] = kvr_cuda_float_of_f16(static_cast<uint16_t>(word >> 16));
	}
}

/* Eight elements that lie at a multiple of 16 bytes. */
template <enum kvr_dtype DTYPE>
static __device__ __forceinline__ void load_piece(const uint8_t *from, float *to)
{
	const uint4 first = *reinterpret_cast<const uint4 *>(from);

	if constexpr (DTYPE == KVR_DTYPE_F32) {
		const uint4 second = *reinterpret_cast<const uint4 *>(from + 16);
		const uint32_t words[PIECE] = {
			first.x, first.y, first.z, first.w, second.x, second.y, second.z, second.w};

		KVR_CUDA_UNROLL
		for (uint32_t i = 0; i < PIECE; i++)
			to[i] = __uint_as_float(words[i]);
	} else {
		widen_word<DTYPE>(first.x, to);
		widen_word<DTYPE>(first.y, to + 2);
		widen_word<DTYPE>(first.z, to + 4);
		widen_word<DTYPE>(first.w, to + 6);
	}
}

/* A thread's elements of a row, zeros behind its end. `whole`: its pieces lie at multiples of 16 bytes, and the last
 * one is full. */
template <typename Shape, enum kvr_dtype DTYPE>
static __device__ __forceinline__ void load_row(
	struct held<Shape> *to, const uint8_t *row, uint32_t dim, bool whole)
{
	KVR_CUDA_UNROLL
	for (uint32_t p = 0; p < Shape::PIECES; p++) {
		const uint32_t first = (p * Shape::TEAM + threadIdx.x % Shape::TEAM) * PIECE;

		if (whole && first < dim) {
			load_piece<DTYPE>(
				row + first * (DTYPE == KVR_DTYPE_F32 ? 4u : 2u), to->x[p]);
			continue;
		}
		KVR_CUDA_UNROLL
		for (uint32_t i = 0; i < PIECE; i++)
			to->x[p][i] = first + i < dim ? element<DTYPE>(row, first + i) : 0;
	}
}

template <typename Shape>
static __device__ __forceinline__ void load_query(struct running<Shape> *to,
	const struct kvr_cuda_attend *attend, const void *query, size_t at)
{
	const uint32_t dim = attend->key_dim;
	const uint8_t *row = static_cast<const uint8_t *>(query) +
			     at * (attend->query_dtype == KVR_DTYPE_F32 ? 4u : 2u);

	if (attend->query_dtype == KVR_DTYPE_F32)
		load_row<Shape, KVR_DTYPE_F32>(&to->query, row, dim, false);
	else if (attend->query_dtype == KVR_DTYPE_BF16)
		load_row<Shape, KVR_DTYPE_BF16>(&to->query, row, dim, false);
	else
		load_row<Shape, KVR_DTYPE_F16>(&to->query, row, dim, false);
	KVR_CUDA_UNROLL
	for (uint32_t p = 0; p < Shape::PIECES; p++) {
		KVR_CUDA_UNROLL
		for (uint32_t i = 0; i < PIECE; i++) {
			to->query.x[p][i] *= attend->scale;
			to->out.x[p][i] = 0;
		}
	}
	to->most = -INFINITY;
	to->sum = 0;
}

/* The dot of a query and a key, by a team; all of its threads get it. */
template <typename Shape>
static __device__ __forceinline__ float dot(
	const struct held<Shape> *query, const struct held<Shape> *key)
{
	const uint32_t lane = threadIdx.x % KVR_CUDA_WARP;
	const uint32_t team = (KVR_CUDA_ALL >> (KVR_CUDA_WARP - Shape::TEAM))
			      << (lane / Shape::TEAM * Shape::TEAM);
	float sum = 0;

	KVR_CUDA_UNROLL
	for (uint32_t p = 0; p < Shape::PIECES; p++) {
		KVR_CUDA_UNROLL
		for (uint32_t i = 0; i < PIECE; i++)
			sum += query->x[p][i] * key->x[p][i];
	}
	KVR_CUDA_UNROLL
	for (uint32_t step = Shape::TEAM / 2; step > 0; step /= 2)
		sum += __shfl_xor_sync(team, sum, step);
	return sum;
}

/* Takes ROWS rows into what is known of one query. A weight of -INFINITY stands for no row. (A1, A2) */
template <typename Shape>
static __device__ __forceinline__ void take_rows(struct running<Shape> *to,
	const struct held<Shape> *keys, const struct held<Shape> *values, const float *weights)
{
	float logits[Shape::ROWS], most = to->most, factor;

	KVR_CUDA_UNROLL
	for (uint32_t r = 0; r < Shape::ROWS; r++) {
		logits[r] = dot(&to->query, &keys[r]) + weights[r];
		most = fmaxf(most, logits[r]);
	}
	factor = to->most == most ? 1.0f : expf(to->most - most);
	to->most = most;
	to->sum *= factor;
	KVR_CUDA_UNROLL
	for (uint32_t r = 0; r < Shape::ROWS; r++) {
		logits[r] = logits[r] == -INFINITY ? 0.0f : expf(logits[r] - most);
		to->sum += logits[r];
	}
	KVR_CUDA_UNROLL
	for (uint32_t p = 0; p < Shape::PIECES; p++) {
		KVR_CUDA_UNROLL
		for (uint32_t i = 0; i < PIECE; i++) {
			float out = to->out.x[p][i] * factor;

			KVR_CUDA_UNROLL
			for (uint32_t r = 0; r < Shape::ROWS; r++)
				out += logits[r] * values[r].x[p][i];
			to->out.x[p][i] = out;
		}
	}
}

/* A team's rows of first .. end - 1. */
template <typename Shape, enum kvr_dtype DTYPE>
static __device__ __forceinline__ void walk(struct running<Shape> *to,
	const struct kvr_cuda_attend *attend, const struct kvr_cuda_attend_item *item,
	uint32_t first, uint32_t end)
{
	const bool whole_keys =
		(reinterpret_cast<uintptr_t>(item->keys) | item->key_stride) % 16 == 0 &&
		attend->key_dim % PIECE == 0;
	const bool whole_values =
		(reinterpret_cast<uintptr_t>(item->values) | item->value_stride) % 16 == 0 &&
		attend->value_dim % PIECE == 0;

	for (uint32_t row = first + threadIdx.x / Shape::TEAM; row < end;
		row += Shape::TEAMS * Shape::ROWS) {
		struct held<Shape> keys[Shape::ROWS], values[Shape::ROWS];
		float weights[Shape::ROWS];

		KVR_CUDA_UNROLL
		for (uint32_t r = 0; r < Shape::ROWS; r++) {
			const uint32_t at = row + r * Shape::TEAMS;
			const bool here = at < end; /* else the first row again, as no row */
			const size_t from = here ? at : row;

			load_row<Shape, DTYPE>(&keys[r], item->keys + from * item->key_stride,
				attend->key_dim, whole_keys);
			load_row<Shape, DTYPE>(&values[r], item->values + from * item->value_stride,
				attend->value_dim, whole_values);
			weights[r] = item->weights && here ? item->weights[at] : 0.0f;
			weights[r] = here ? weights[r] : -INFINITY;
		}
		KVR_CUDA_UNROLL
		for (uint32_t h = 0; h < Shape::HEADS; h++)
			take_rows(&to[h], keys, values, weights);
	}
}

/* A team's part of one query, as m, s, out. */
template <typename Shape>
static __device__ __forceinline__ void put_part(
	float *to, const struct running<Shape> *from, uint32_t value_dim)
{
	const uint32_t member = threadIdx.x % Shape::TEAM;

	if (member == 0) {
		to[0] = from->most;
		to[1] = from->sum;
	}
	KVR_CUDA_UNROLL
	for (uint32_t p = 0; p < Shape::PIECES; p++) {
		KVR_CUDA_UNROLL
		for (uint32_t i = 0; i < PIECE; i++) {
			const uint32_t at = (p * Shape::TEAM + member) * PIECE + i;

			if (at < value_dim)
				to[HEAD + at] = from->out.x[p][i];
		}
	}
}

/* Parts of some queries: part t of query h is at first + h * query_stride + t * part_stride. */
struct parts {
	const float *first;
	size_t query_stride, part_stride;
	uint32_t count;   /* 1 to KVR_CUDA_ATTEND_SPLITS_MAX */
	uint32_t queries; /* 1 to HEADS */
};

/* Merges parts, by a block: out [queries][value_dim] with lse [queries] or, where lse is NULL, parts again, `stride`
 * floats apart. (A1, A2, A3) */
static __device__ void merge(
	const struct parts *parts, uint32_t value_dim, float *out, size_t stride, float *lse)
{
	KVR_SHARED(float, factors, narrow::HEADS *KVR_CUDA_ATTEND_SPLITS_MAX);
	KVR_SHARED(float, sums, narrow::HEADS);
	const float *const first = parts->first;

	__syncthreads(); /* what is merged is there, and the arrays above are free */
	for (uint32_t h = threadIdx.x; h < parts->queries; h += THREADS) {
		float *factor = factors + h * KVR_CUDA_ATTEND_SPLITS_MAX;
		const float *part = first + h * parts->query_stride;
		float most = -INFINITY, sum = 0;

		for (uint32_t t = 0; t < parts->count; t++)
			most = fmaxf(most, part[t * parts->part_stride]);
		for (uint32_t t = 0; t < parts->count; t++) {
			const float m = part[t * parts->part_stride];

			factor[t] = m == -INFINITY ? 0.0f : expf(m - most);
			sum += part[t * parts->part_stride + 1] * factor[t];
		}
		sums[h] = lse && sum > 0 ? 1.0f / sum : 1.0f;
		if (lse) {
			lse[h] = sum > 0 ? most + logf(sum) : -INFINITY;
		} else {
			out[h * stride] = most;
			out[h * stride + 1] = sum;
		}
	}
	__syncthreads();
	for (uint32_t i = threadIdx.x; i < parts->queries * value_dim; i += THREADS) {
		const uint32_t h = i / value_dim, at = i % value_dim;
		const float *factor = factors + h * KVR_CUDA_ATTEND_SPLITS_MAX;
		const float *part = first + h * parts->query_stride + HEAD + at;
		float sum = 0;

		for (uint32_t t = 0; t < parts->count; t++)
			sum += part[t * parts->part_stride] * factor[t];
		out[h * stride + (lse ? 0 : HEAD) + at] = sum * sums[h];
	}
}

/* From the teams' parts of a block to the item's results, by its last block. */
static __device__ void finish(const struct kvr_cuda_attend *attend,
	const struct kvr_cuda_attend_item *item, const struct parts *teams, uint32_t query)
{
	const size_t part = attend->value_dim + HEAD, splits = attend->split_count;
	float *const out = item->out + static_cast<size_t>(query) * attend->value_dim;
	float *work =
		attend->work +
		(static_cast<size_t>(blockIdx.y) * attend->query_count + query) * splits * part;
	struct parts all = {work, splits * part, part, attend->split_count, teams->queries};

	if (attend->split_count == 1) {
		merge(teams, attend->value_dim, out, attend->value_dim, item->lse + query);
		return;
	}
	merge(teams, attend->value_dim, work + blockIdx.x * part, splits * part, nullptr);
	if (kvr_cuda_arrive_last(attend->arrived + blockIdx.y * attend->query_count + query,
		    attend->split_count))
		merge(&all, attend->value_dim, out, attend->value_dim, item->lse + query);
}

template <typename Shape, enum kvr_dtype DTYPE>
__global__ void __launch_bounds__(THREADS) attend_items(struct kvr_cuda_attend attend)
{
	KVR_SHARED_DYNAMIC(float, shared);
	const struct kvr_cuda_attend_item item = attend.items[blockIdx.y];
	const uint32_t query = blockIdx.z * Shape::HEADS;
	const uint32_t left = attend.query_count - query;
	const uint32_t queries = left < Shape::HEADS ? left : Shape::HEADS;
	const uint32_t split = (item.row_count + attend.split_count - 1) / attend.split_count;
	const uint32_t begin = split * blockIdx.x;
	const uint32_t first = begin < item.row_count ? begin : item.row_count;
	const uint32_t end = item.row_count - first < split ? item.row_count : first + split;
	const size_t part = attend.value_dim + HEAD;
	const struct parts teams = {shared, Shape::TEAMS * part, part, Shape::TEAMS, queries};
	struct running<Shape> running[Shape::HEADS];

	KVR_CUDA_UNROLL
	for (uint32_t h = 0; h < Shape::HEADS; h++) {
		const uint32_t at = query + (h < queries ? h : 0); /* the first one again */

		load_query(
			&running[h], &attend, item.query, static_cast<size_t>(at) * attend.key_dim);
	}
	walk<Shape, DTYPE>(running, &attend, &item, first, end);
	KVR_CUDA_UNROLL
	for (uint32_t h = 0; h < Shape::HEADS; h++)
		if (h < queries)
			put_part(shared + (h * Shape::TEAMS + threadIdx.x / Shape::TEAM) * part,
				&running[h], attend.value_dim);
	finish(&attend, &item, &teams, query);
}

template <typename Shape>
static int launch(const struct kvr_cuda_attend *attend, struct CUstream_st *stream)
{
	const dim3 grid(attend->split_count, attend->item_count,
		(attend->query_count + Shape::HEADS - 1) / Shape::HEADS);
	const uint32_t queries =
		attend->query_count < Shape::HEADS ? attend->query_count : Shape::HEADS;
	const size_t bytes = queries * Shape::TEAMS * (attend->value_dim + HEAD) * sizeof(float);
	auto kernel = attend_items<Shape, KVR_DTYPE_F32>;

	if (attend->dtype == KVR_DTYPE_F16)
		kernel = attend_items<Shape, KVR_DTYPE_F16>;
	else if (attend->dtype == KVR_DTYPE_BF16)
		kernel = attend_items<Shape, KVR_DTYPE_BF16>;
	KVR_LAUNCH(kernel, grid, dim3(THREADS), bytes, stream, *attend);
	return kvr_cuda_launched();
}

int kvr_cuda_attend(const struct kvr_cuda_attend *attend, struct CUstream_st *stream)
{
	const uint32_t dim =
		attend->key_dim > attend->value_dim ? attend->key_dim : attend->value_dim;

	if (attend->item_count == 0 || attend->item_count > KVR_CUDA_ATTEND_ITEMS_MAX ||
		attend->query_count == 0 || attend->query_count > KVR_GROUP_MAX ||
		attend->key_dim < KVR_DIM_MIN || attend->value_dim < KVR_DIM_MIN ||
		dim > KVR_DIM_MAX || attend->dtype < KVR_DTYPE_F32 ||
		attend->dtype > KVR_DTYPE_BF16 || attend->query_dtype < KVR_DTYPE_F32 ||
		attend->query_dtype > KVR_DTYPE_BF16 || !(fabsf(attend->scale) <= FLT_MAX) ||
		attend->split_count == 0 || attend->split_count > KVR_CUDA_ATTEND_SPLITS_MAX)
		return -EINVAL;
	if (dim <= narrow::DIM_MAX)
		return launch<narrow>(attend, stream);
	if (dim <= middle::DIM_MAX)
		return launch<middle>(attend, stream);
	return launch<wide>(attend, stream);
}
