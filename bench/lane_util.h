/* SPDX-License-Identifier: Apache-2.0 */
/* lane_util.h: made-up keys and values of one lane, with traits of real ones, for benches of what sealing does: directions that
 * many tokens share, a slow drift along the text, two channels far larger than the rest. */
#ifndef KVR_BENCH_LANE_UTIL_H
#define KVR_BENCH_LANE_UTIL_H

#include <stddef.h>
#include <stdint.h>

#define BENCH_LANE_DIM_MAX 128u

/* Writes keys and values, [count][dim] bf16 each: other ones at every call, the same in every run. */
void bench_lane_make(uint16_t *keys, uint16_t *values, uint32_t count, uint32_t dim);

/* Memory of zeros, 64-byte aligned; ends the bench if there is none. */
void *bench_lane_need(size_t bytes);

#endif
