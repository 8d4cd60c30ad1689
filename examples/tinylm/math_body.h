/* SPDX-License-Identifier: Apache-2.0 */
/* math_body.h: the loops of math.h, written once for every vector width.
 *
 * Included once by math.c, math_avx2.c and math_avx512.c, which define before:
 *
 *   LANES         floats in a vector: 4, 8 or 16
 *   TILE_TOKENS   tokens by TILE_PANELS panels are summed in registers
 *   TILE_PANELS
 *   FMA(a, b, c)  a * b + c
 *   SUM(a)        the sum of its lanes
 *   WIDEN(bf16)   vector of LANES bf16 at any alignment -> f32
 *   BODY_NAME     for struct tinylm_math
 *   BODY_TABLE    the table to define
 *
 * Source of the exponential: range reduction by ln 2 in two parts (Cody and Waite), then the Taylor
 * polynomial to degree 6 over |r| <= ln 2 / 2. */

#define VECTORS (TINYLM_PANEL / LANES)

typedef float vec __attribute__((vector_size(4 * LANES)));
typedef int32_t veci __attribute__((vector_size(4 * LANES)));

#if defined(__clang__)
#define UNROLL _Pragma("unroll")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif
#define INLINE static inline __attribute__((always_inline))

INLINE vec vec_load(const float *from)
{
	vec value;

	memcpy(&value, from, sizeof(value));
	return value;
}

INLINE void vec_store(float *to, vec value)
{
	memcpy(to, &value, sizeof(value));
}

INLINE vec vec_set(float value)
{
	return (vec){0} + value;
}

/* `tokens` and `panel_count` are constants wherever this is inlined, so `sum` stays in registers. */
INLINE void tile(float *out, size_t out_stride, const float *x, size_t x_stride,
	const float *panels, uint32_t inner, const uint32_t tokens, const uint32_t panel_count)
{
	vec sum[TILE_TOKENS][4 * VECTORS];

	UNROLL
	for (uint32_t t = 0; t < tokens; t++) {
		UNROLL
		for (uint32_t v = 0; v < panel_count * VECTORS; v++)
			sum[t][v] = vec_set(0);
	}
	for (uint32_t i = 0; i < inner; i++) {
		vec weight[4 * VECTORS];

		UNROLL
		for (uint32_t v = 0; v < panel_count * VECTORS; v++)
			weight[v] = vec_load(panels + (size_t)(v / VECTORS) * inner * TINYLM_PANEL +
					     (size_t)i * TINYLM_PANEL + v % VECTORS * LANES);
		UNROLL
		for (uint32_t t = 0; t < tokens; t++) {
			const vec value = vec_set(x[t * x_stride + i]);

			UNROLL
			for (uint32_t v = 0; v < panel_count * VECTORS; v++)
				sum[t][v] = FMA(value, weight[v], sum[t][v]);
		}
	}
	UNROLL
	for (uint32_t t = 0; t < tokens; t++) {
		UNROLL
		for (uint32_t v = 0; v < panel_count * VECTORS; v++)
			vec_store(out + t * out_stride + v * LANES, sum[t][v]);
	}
}

/* All tokens of some panels: the panels stay in the cache while the tokens pass. */
INLINE void tiles(float *out, size_t out_stride, const float *x, size_t x_stride,
	const float *panels, uint32_t tokens, uint32_t inner, const uint32_t panel_count)
{
	uint32_t t = 0;

	for (; panel_count <= TILE_PANELS && t + TILE_TOKENS <= tokens; t += TILE_TOKENS)
		tile(out + t * out_stride, out_stride, x + t * x_stride, x_stride, panels, inner,
			TILE_TOKENS, panel_count <= TILE_PANELS ? panel_count : 1);
	for (; t < tokens; t++)
		tile(out + t * out_stride, out_stride, x + t * x_stride, x_stride, panels, inner, 1,
			panel_count);
}

static void matmul(float *out, size_t out_stride, const float *x, size_t x_stride,
	const float *panels, uint32_t tokens, uint32_t outputs, uint32_t inner)
{
	const uint32_t count = outputs / TINYLM_PANEL;
	const size_t panel = (size_t)inner * TINYLM_PANEL;
	uint32_t p = 0;

	/* One token is bound by memory: four streams at once keep it busy. */
	for (; tokens < TILE_TOKENS && p + 4 <= count; p += 4)
		tiles(out + p * TINYLM_PANEL, out_stride, x, x_stride, panels + p * panel, tokens,
			inner, 4);
	for (; p + TILE_PANELS <= count; p += TILE_PANELS)
		tiles(out + p * TINYLM_PANEL, out_stride, x, x_stride, panels + p * panel, tokens,
			inner, TILE_PANELS);
	for (; p < count; p++)
		tiles(out + p * TINYLM_PANEL, out_stride, x, x_stride, panels + p * panel, tokens,
			inner, 1);
}

static void score(float *out, size_t out_stride, const float *q, uint32_t group,
	const uint16_t *keys, uint32_t rows, uint32_t dim)
{
	for (uint32_t r = 0; r < rows; r++) {
		const uint16_t *key = keys + (size_t)r * dim;

		for (uint32_t g = 0; g < group; g++) {
			vec sum = vec_set(0);

			for (uint32_t d = 0; d < dim; d += LANES)
				sum = FMA(WIDEN(key + d), vec_load(q + (size_t)g * dim + d), sum);
			out[g * out_stride + r] = SUM(sum);
		}
	}
}

/* `width` panels of one query head; a constant where this is inlined. */
INLINE void mix_columns(float *out, const float *share, const uint16_t *values, uint32_t rows,
	uint32_t dim, const uint32_t width)
{
	vec sum[4 * VECTORS];

	UNROLL
	for (uint32_t v = 0; v < width * VECTORS; v++)
		sum[v] = vec_load(out + v * LANES);
	for (uint32_t r = 0; r < rows; r++)
		UNROLL
	for (uint32_t v = 0; v < width * VECTORS; v++)
		sum[v] =
			FMA(vec_set(share[r]), WIDEN(values + (size_t)r * dim + v * LANES), sum[v]);
	UNROLL
	for (uint32_t v = 0; v < width * VECTORS; v++)
		vec_store(out + v * LANES, sum[v]);
}

static void mix(float *out, const float *share, size_t share_stride, uint32_t group,
	const uint16_t *values, uint32_t rows, uint32_t dim)
{
	for (uint32_t g = 0; g < group; g++) {
		uint32_t d = 0;

		for (; d + 4 * TINYLM_PANEL <= dim; d += 4 * TINYLM_PANEL)
			mix_columns(out + (size_t)g * dim + d, share + g * share_stride, values + d,
				rows, dim, 4);
		for (; d < dim; d += TINYLM_PANEL)
			mix_columns(out + (size_t)g * dim + d, share + g * share_stride, values + d,
				rows, dim, 1);
	}
}

INLINE vec vec_exp(vec x)
{
	/* Below this the result is no normal number; it also takes the place of -infinity. */
	const vec lowest = vec_set(-87.0f);
	const veci below = x < lowest;
	/* Adding and subtracting 1.5 * 2^23 rounds to an integer, which the low bits then hold. */
	const vec shift = vec_set(12582912.0f);
	vec z, r, p;

	x = (vec)(((veci)lowest & below) | ((veci)x & ~below));
	z = x * 1.44269504088896341f + shift;
	r = FMA(z - shift, vec_set(-0.693359375f), x);
	r = FMA(z - shift, vec_set(2.12194440e-4f), r);
	p = FMA(r, vec_set(1.0f / 720), vec_set(1.0f / 120));
	p = FMA(p, r, vec_set(1.0f / 24));
	p = FMA(p, r, vec_set(1.0f / 6));
	p = FMA(p, r, vec_set(0.5f));
	p = FMA(p, r, vec_set(1.0f));
	p = FMA(p, r, vec_set(1.0f));
	return p * (vec)(((veci)z - (veci)shift + 127) << 23);
}

static float exponentials(float *x, uint32_t count, float max)
{
	vec sum = vec_set(0);

	for (uint32_t i = 0; i < count; i += LANES) {
		const vec value = vec_exp(vec_load(x + i) - max);

		vec_store(x + i, value);
		sum += value;
	}
	return SUM(sum);
}

const struct tinylm_math BODY_TABLE = {BODY_NAME, matmul, score, mix, exponentials};
