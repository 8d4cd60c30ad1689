/* SPDX-License-Identifier: Apache-2.0 */
/* score.cu: the clusters of a lane scored against its queries; see score.h.
 *
 *   block (x, y, z): segments 4 x and on of lane y, queries 16 z and on
 *
 *   queries ─► fixed point, in shared memory        a warp per query
 *   means ─dp4a─► dots                              a team of 8 threads per cluster, 16 bytes each
 *   dots ─► maximum, sum of the block's part        a warp per query
 *   the lane's last block: all parts ─► maximum, sum of each query ─► density of each cluster
 *
 * A query element q is 128 high + low with 8 bits each, so that dp4a multiplies both with the bytes of a
 * mean: the dot is 128 (high . mean) + low . mean, an exact integer below 2^31 (kernels/recall.h).
 *
 * Invariants:
 *   X1  Sums of floats are taken in an order that the shape alone fixes: never in that of arrival.
 *   X2  A block reads what others wrote only after all blocks of the lane have arrived, each behind a fence. */
#include <float.h>
#include <math.h>

#include "kernels/cuda/builtin.h"
#include "kernels/cuda/score.h"
#include "kernels/recall.h"

#define THREADS 256u
#define WARPS   (THREADS / KVR_CUDA_WARP)
#define TEAM    8u /* threads of a cluster */
#define TEAMS   (THREADS / TEAM)
#define HEADS   KVR_RECALL_HEADS
#define AT_ONCE 4u /* queries of a team, in registers */
#define PIECE   16u
#define PIECES  ((KVR_DIM_MAX + PIECE - 1) / PIECE)

KVR_STATIC_ASSERT(HEADS % AT_ONCE == 0);

/* What a block works on. */
struct part {
	struct kvr_cuda_score_lane lane;
	uint32_t segment_first, segment_end;
	uint32_t head_first, heads;
	uint32_t block, blocks; /* of the lane, with these queries */
};

/* NaN to the bottom. */
static __device__ __forceinline__ float hold(float x)
{
	if (!(x > -KVR_RECALL_LOGIT_MAX))
		return -KVR_RECALL_LOGIT_MAX;
	return x < KVR_RECALL_LOGIT_MAX ? x : KVR_RECALL_LOGIT_MAX;
}

static __device__ __forceinline__ float max_of_warp(float x)
{
	for (uint32_t step = KVR_CUDA_WARP / 2; step > 0; step /= 2)
		x = fmaxf(x, __shfl_xor_sync(KVR_CUDA_ALL, x, step));
	return x;
}

static __device__ __forceinline__ float sum_of_warp(float x)
{
	for (uint32_t step = KVR_CUDA_WARP / 2; step > 0; step /= 2)
		x += __shfl_xor_sync(KVR_CUDA_ALL, x, step);
	return x;
}

static __device__ __forceinline__ float element(const void *row, enum kvr_dtype dtype, size_t i)
{
	if (dtype == KVR_DTYPE_F32)
		return static_cast<const float *>(row)[i];
	if (dtype == KVR_DTYPE_BF16)
		return kvr_cuda_float_of_bf16(static_cast<const uint16_t *>(row)[i]);
	return kvr_cuda_float_of_f16(static_cast<const uint16_t *>(row)[i]);
}

/* One query to fixed point, by a warp: its bytes, high and low, zeros up to the last piece's end, and its step, or
 * NaN. Behind the last query everything is zero. */
static __device__ void prepare(const struct kvr_cuda_score *score, const struct part *part,
	uint32_t head, uint4 *high, uint4 *low, float *to_step)
{
	const uint32_t lane = threadIdx.x % KVR_CUDA_WARP;
	const uint32_t dim = head < part->heads ? score->key_dim : 0;
	const size_t at = static_cast<size_t>(part->head_first + head) * score->key_dim;
	const void *query = part->lane.query;
	float largest = 0, factor = 0;
	bool infinite = false;

	for (uint32_t i = lane; i < dim; i += KVR_CUDA_WARP) {
		const float x = fabsf(element(query, score->query_dtype, at + i));

		infinite = infinite || !(x <= FLT_MAX);
		largest = fmaxf(largest, x);
	}
	infinite = __any_sync(KVR_CUDA_ALL, infinite);
	largest = max_of_warp(largest);
	if (!infinite && largest >= KVR_RECALL_QUERY_MIN)
		factor = KVR_RECALL_STEPS / largest;
	for (uint32_t i = lane; i < PIECES * PIECE; i += KVR_CUDA_WARP) {
		int32_t steps = 0, rest;

		if (i < dim && factor > 0)
			steps = static_cast<int32_t>(
				lrintf(element(query, score->query_dtype, at + i) * factor));
		rest = ((steps + 64) & 127) - 64;
		reinterpret_cast<int8_t *>(high)[i] = static_cast<int8_t>((steps - rest) / 128);
		reinterpret_cast<int8_t *>(low)[i] = static_cast<int8_t>(rest);
	}
	if (lane > 0)
		return;
	*to_step = infinite ? NAN : largest / KVR_RECALL_STEPS;
	if (part->block == 0 && head < part->heads)
		part->lane.steps[part->head_first + head] = *to_step;
}

/* 16 elements of a mean, zeros behind its end. */
template <bool WHOLE>
static __device__ __forceinline__ uint4 piece_of(const int8_t *mean, uint32_t piece, uint32_t dim)
{
	if constexpr (WHOLE) {
		return reinterpret_cast<const uint4 *>(mean)[piece];
	} else {
		uint32_t words[PIECE / 4] = {0, 0, 0, 0};

		for (uint32_t i = 0; i < PIECE && piece * PIECE + i < dim; i++)
			words[i / 4] |=
				static_cast<uint32_t>(static_cast<uint8_t>(mean[piece * PIECE + i]))
				<< (i % 4 * 8);
		return {words[0], words[1], words[2], words[3]};
	}
}

static __device__ __forceinline__ int32_t dot16(uint4 a, uint4 b, int32_t sum)
{
	sum = __dp4a(static_cast<int32_t>(a.x), static_cast<int32_t>(b.x), sum);
	sum = __dp4a(static_cast<int32_t>(a.y), static_cast<int32_t>(b.y), sum);
	sum = __dp4a(static_cast<int32_t>(a.z), static_cast<int32_t>(b.z), sum);
	return __dp4a(static_cast<int32_t>(a.w), static_cast<int32_t>(b.w), sum);
}

/* A team's integer dots of one mean with AT_ONCE queries, which follow each other in high and low. */
template <bool WHOLE>
static __device__ __forceinline__ void dot_mean(
	int32_t *sums, const int8_t *mean, uint32_t dim, const uint4 *high, const uint4 *low)
{
	const uint32_t member = threadIdx.x % TEAM;
	const uint32_t team = 0xffu << (threadIdx.x % KVR_CUDA_WARP / TEAM * TEAM);
	int32_t rest[AT_ONCE] = {0, 0, 0, 0};

	KVR_CUDA_UNROLL
	for (uint32_t h = 0; h < AT_ONCE; h++)
		sums[h] = 0;
	for (uint32_t p = member; p * PIECE < dim; p += TEAM) {
		const uint4 piece = piece_of<WHOLE>(mean, p, dim);

		KVR_CUDA_UNROLL
		for (uint32_t h = 0; h < AT_ONCE; h++) {
			sums[h] = dot16(high[h * PIECES + p], piece, sums[h]);
			rest[h] = dot16(low[h * PIECES + p], piece, rest[h]);
		}
	}
	KVR_CUDA_UNROLL
	for (uint32_t h = 0; h < AT_ONCE; h++) {
		sums[h] = 128 * sums[h] + rest[h];
		for (uint32_t step = TEAM / 2; step > 0; step /= 2)
			sums[h] += __shfl_xor_sync(team, sums[h], step);
	}
}

/* The dots of one cluster with AT_ONCE queries from `head` on; `heads` of them are there. */
template <bool WHOLE>
static __device__ __forceinline__ void score_cluster(const struct kvr_cuda_score_segment &segment,
	uint32_t cluster, uint32_t dim, const uint4 *high, const uint4 *low, float *dots,
	size_t stride, uint32_t heads)
{
	const size_t at = static_cast<size_t>(cluster) * dim;
	const float step = segment.key_step[cluster];
	int32_t sums[AT_ONCE], low_sums[AT_ONCE] = {0, 0, 0, 0};

	dot_mean<WHOLE>(sums, segment.key_high + at, dim, high, low);
	if (segment.both)
		dot_mean<WHOLE>(low_sums, segment.key_low + at, dim, high, low);
	if (threadIdx.x % TEAM != 0)
		return;
	KVR_CUDA_UNROLL
	for (uint32_t h = 0; h < AT_ONCE; h++) {
		float dot = hold(__fmul_rn(static_cast<float>(sums[h]), 256 * step));

		if (segment.both)
			dot = __fadd_rn(
				dot, hold(__fmul_rn(static_cast<float>(low_sums[h]), step)));
		if (h < heads)
			dots[h * stride + cluster] = dot;
	}
}

template <bool WHOLE>
static __device__ void score_part(const struct kvr_cuda_score *score, const struct part *part,
	const uint4 *high, const uint4 *low)
{
	const size_t stride = part->lane.clusters;

	for (uint32_t s = part->segment_first; s < part->segment_end; s++) {
		const struct kvr_cuda_score_segment segment = part->lane.segments[s];
		float *dots = part->lane.dots + part->head_first * stride + segment.first;

		for (uint32_t c = threadIdx.x / TEAM; c < segment.clusters; c += TEAMS)
			for (uint32_t h = 0; h < part->heads; h += AT_ONCE)
				score_cluster<WHOLE>(segment, c, score->key_dim, high + h * PIECES,
					low + h * PIECES, dots + h * stride, stride,
					part->heads - h);
	}
}

/* Maximum and sum of one query over the part, by a warp, to `to`. */
static __device__ void measure(const struct part *part, uint32_t head, float scale, float *to)
{
	const float *dots = part->lane.dots +
			    static_cast<size_t>(part->head_first + head) * part->lane.clusters;
	const uint32_t lane = threadIdx.x % KVR_CUDA_WARP;
	float most = -KVR_RECALL_LOGIT_MAX, sum = 0;

	for (uint32_t s = part->segment_first; s < part->segment_end; s++) {
		const struct kvr_cuda_score_segment *segment = &part->lane.segments[s];

		for (uint32_t c = lane; c < segment->clusters; c += KVR_CUDA_WARP)
			most = fmaxf(most, hold(dots[segment->first + c] * scale));
	}
	most = max_of_warp(most);
	for (uint32_t s = part->segment_first; s < part->segment_end; s++) {
		const struct kvr_cuda_score_segment *segment = &part->lane.segments[s];
		const uint16_t *first = segment->row_first;

		for (uint32_t c = lane; c < segment->clusters; c += KVR_CUDA_WARP)
			sum += static_cast<float>(first[c + 1] - first[c]) *
			       expf(hold(dots[segment->first + c] * scale) - most);
	}
	sum = sum_of_warp(sum); /* X1 */
	if (lane == 0) {
		to[0] = most;
		to[1] = sum;
	}
}

/* Maximum and sum of one query over all parts, by a warp: `to` has the maximum, and what a term is multiplied
 * with. */
static __device__ void combine(const float *work, uint32_t blocks, uint32_t query_count, float *to)
{
	const uint32_t lane = threadIdx.x % KVR_CUDA_WARP;
	float most = -KVR_RECALL_LOGIT_MAX, sum = 0;

	for (uint32_t b = lane; b < blocks; b += KVR_CUDA_WARP)
		most = fmaxf(most, work[static_cast<size_t>(b) * query_count * 2]);
	most = max_of_warp(most);
	for (uint32_t b = lane; b < blocks; b += KVR_CUDA_WARP) {
		const float *part = work + static_cast<size_t>(b) * query_count * 2;

		sum += part[1] * expf(part[0] - most);
	}
	sum = sum_of_warp(sum); /* X1 */
	if (lane == 0) {
		to[0] = most;
		to[1] = sum > 0 ? 1.0f / static_cast<float>(query_count) / sum : 0;
	}
}

/* The last block of a lane: densities from all parts. */
static __device__ void share(
	const struct kvr_cuda_score *score, const struct part *part, const float *work)
{
	KVR_SHARED(float, factors, KVR_GROUP_MAX * 2);
	const uint32_t count = score->query_count;
	const size_t stride = part->lane.clusters;

	for (uint32_t h = threadIdx.x / KVR_CUDA_WARP; h < count; h += WARPS)
		combine(work + h * 2, part->blocks, count, factors + h * 2);
	__syncthreads();
	for (uint32_t c = threadIdx.x; c < stride; c += THREADS) {
		float density = 0;

		for (uint32_t h = 0; h < count; h++) {
			const float step = part->lane.steps[h];
			const float logit =
				hold(part->lane.dots[h * stride + c] * (score->scale * step));

			if (!isnan(step)) /* R3 */
				density += expf(fmaxf(logit - factors[h * 2], -KVR_RECALL_DEPTH)) *
					   factors[h * 2 + 1];
		}
		part->lane.density[c] = density;
	}
}

template <bool WHOLE>
__global__ void __launch_bounds__(THREADS) score_lanes(struct kvr_cuda_score score)
{
	KVR_SHARED(uint4, high, HEADS * PIECES);
	KVR_SHARED(uint4, low, HEADS * PIECES);
	KVR_SHARED(float, steps, HEADS);
	const uint32_t warp = threadIdx.x / KVR_CUDA_WARP;
	struct part part;
	float *work;

	part.lane = score.lanes[blockIdx.y];
	part.segment_first = blockIdx.x * KVR_CUDA_SCORE_SEGMENTS;
	if (part.segment_first >= part.lane.segment_count)
		return;
	part.segment_end = part.lane.segment_count - part.segment_first < KVR_CUDA_SCORE_SEGMENTS
				   ? part.lane.segment_count
				   : part.segment_first + KVR_CUDA_SCORE_SEGMENTS;
	part.head_first = blockIdx.z * HEADS;
	part.heads = score.query_count - part.head_first < HEADS
			     ? score.query_count - part.head_first
			     : HEADS;
	part.block = blockIdx.x;
	part.blocks =
		(part.lane.segment_count + KVR_CUDA_SCORE_SEGMENTS - 1) / KVR_CUDA_SCORE_SEGMENTS;
	work = score.work + static_cast<size_t>(blockIdx.y) * gridDim.x * score.query_count * 2;
	for (uint32_t h = warp; h < HEADS; h += WARPS)
		prepare(&score, &part, h, high + h * PIECES, low + h * PIECES, steps + h);
	__syncthreads();
	score_part<WHOLE>(&score, &part, high, low);
	__syncthreads();
	for (uint32_t h = warp; h < part.heads; h += WARPS)
		measure(&part, h, score.scale * steps[h],
			work + (static_cast<size_t>(part.block) * score.query_count +
				       part.head_first + h) *
					2);
	if (kvr_cuda_arrive_last(score.arrived + blockIdx.y, part.blocks * gridDim.z))
		share(&score, &part, work);
}

int kvr_cuda_score(const struct kvr_cuda_score *score, struct CUstream_st *stream)
{
	const dim3 grid(
		(score->segments_max + KVR_CUDA_SCORE_SEGMENTS - 1) / KVR_CUDA_SCORE_SEGMENTS,
		score->lane_count, (score->query_count + HEADS - 1) / HEADS);
	const auto kernel = score->key_dim % PIECE == 0 ? score_lanes<true> : score_lanes<false>;

	if (score->lane_count == 0 || score->lane_count > KVR_CUDA_SCORE_LANES_MAX ||
		score->segments_max == 0 || score->segments_max > KVR_SEQUENCE_SEGMENTS_MAX ||
		score->query_count == 0 || score->query_count > KVR_GROUP_MAX ||
		score->key_dim < KVR_DIM_MIN || score->key_dim > KVR_DIM_MAX ||
		score->query_dtype < KVR_DTYPE_F32 || score->query_dtype > KVR_DTYPE_BF16 ||
		!(fabsf(score->scale) <= FLT_MAX))
		return -EINVAL;
	KVR_LAUNCH(kernel, grid, dim3(THREADS), 0, stream, *score);
	return kvr_cuda_launched();
}
