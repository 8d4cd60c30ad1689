/* SPDX-License-Identifier: Apache-2.0 */
/* math.c: the loops for any processor (four lanes, as SSE2 and NEON have), and the choice. */
#include "examples/tinylm/math.h"

#define LANES        4
#define TILE_TOKENS  2
#define TILE_PANELS  1
#define FMA(a, b, c) ((a) * (b) + (c))
#define WIDEN(bf16)  widen(bf16)
#define SUM(a)       ((a[0] + a[1]) + (a[2] + a[3]))
#define BODY_NAME    "plain"
#define BODY_TABLE   tinylm_math_plain

typedef float vec4 __attribute__((vector_size(16)));

static inline vec4 widen(const uint16_t *from)
{
	typedef uint16_t half4 __attribute__((vector_size(8)));
	typedef uint32_t word4 __attribute__((vector_size(16)));
	half4 half;

	memcpy(&half, from, sizeof(half));
	return (vec4)(__builtin_convertvector(half, word4) << 16);
}

#include "examples/tinylm/math_body.h"

const struct tinylm_math *tinylm_math_choose(void)
{
#if defined(__x86_64__)
	__builtin_cpu_init();
	if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
		__builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
		return &tinylm_math_avx512;
	if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
		return &tinylm_math_avx2;
#endif
	return &tinylm_math_plain;
}
