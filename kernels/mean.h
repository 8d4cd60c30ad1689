/* SPDX-License-Identifier: Apache-2.0 */
/* mean.h: means of keys in fixed point, two planes of 8 bits (kernels/segment.h). Internal to kernels/.
 *
 *   element = step * (256 high + low)      step = largest |element| / KVR_MEAN_STEPS
 *
 * and their variances, 8 bits below the largest. The high plane alone is the mean rounded to 8 bits: low is what that rounding left out. A product with
 * integers is exact in any order, so every instruction set finds the same. */
#ifndef KVR_KERNELS_MEAN_H
#define KVR_KERNELS_MEAN_H

#include <stddef.h>
#include <stdint.h>

#define KVR_MEAN_STEPS 32639 /* 256 * 127 + 127: the largest that leaves high within +-127 */

/* Writes a finite mean. A mean whose step would not be a normal number counts as zero. Returns the
 * square of what the high plane leaves out. */
double kvr_mean_write(const float *mean, size_t dim, int8_t *high, int8_t *low, float *ret_step);

/* Reads a mean with both planes. */
void kvr_mean_read(const int8_t *high, const int8_t *low, float step, size_t dim, float *ret_mean);

/* How many planes tell `count` means, `stride` floats apart, from each other, if their high planes leave
 * out `left_out`, the sum of squares (S7). */
uint16_t kvr_mean_planes(
	const float *means, size_t count, size_t dim, size_t stride, double left_out);

/* Writes the variances of a cluster's keys, finite and not negative: element = step * spread, rounded to
 * the nearest. All count as zero where the step would not be a normal number. */
void kvr_mean_write_spread(const double *variance, size_t dim, uint8_t *spread, float *ret_step);

#endif
