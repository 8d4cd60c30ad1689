/* SPDX-License-Identifier: Apache-2.0 */
/* soft_match_util.h: chunked soft matching as a plain C loop, the reference of bench/soft_match.c.
 *
 * What somebody would write who reads device.h and trusts the compiler: no intrinsics, loops over
 * independent sums that a compiler vectorises. It knows nothing of kernels/. Compiled -O3 (Makefile). */
#ifndef KVR_BENCH_SOFT_MATCH_H
#define KVR_BENCH_SOFT_MATCH_H

#include <stdbool.h>
#include <stdint.h>

#define SOFT_MATCH_TOKENS 1024u
#define SOFT_MATCH_DIM    128u
#define SOFT_MATCH_SETS   4u

/* One lane: bf16 rows in token order, and its merged sets at 1/2, 1/4, 1/5 and 1/8. */
struct soft_match {
	const uint16_t *keys, *values; /* [SOFT_MATCH_TOKENS][SOFT_MATCH_DIM] */
	uint16_t *merged_keys[SOFT_MATCH_SETS], *merged_values[SOFT_MATCH_SETS];
	uint16_t *tokens[SOFT_MATCH_SETS]; /* that a row stands for */
};

/* For any processor of the architecture. */
void soft_match_loop(const struct soft_match *lane);

/* The same text, where the compiler may use what this processor has. Returns false, and does
 * nothing, where that is no more than AVX2. */
bool soft_match_loop_wide(const struct soft_match *lane);

#endif
