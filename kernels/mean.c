/* SPDX-License-Identifier: Apache-2.0 */
/* mean.c: means of keys in fixed point: see mean.h. Plain C: a lane's means are written once. */

#include "kernels/mean.h"

#include <float.h>
#include <math.h>
#include <string.h>

/* What the high plane may leave out of the distance between means, as a square: a sixteenth. Logits are
 * then off by less than a tenth of what the keys of one cluster differ in, on every model looked at. */
#define LEFT_OUT_MAX (1.0 / 256)

double kvr_mean_write(const float *mean, size_t dim, int8_t *high, int8_t *low, float *ret_step)
{
	float largest = 0.0f, step;
	double left_out = 0.0;

	for (size_t i = 0; i < dim; i++)
		largest = fmaxf(largest, fabsf(mean[i]));
	step = largest / KVR_MEAN_STEPS;
	if (!(step >= FLT_MIN)) {
		memset(high, 0, dim);
		memset(low, 0, dim);
		*ret_step = 0.0f;
		return 0.0;
	}
	for (size_t i = 0; i < dim; i++) {
		/* Rounding may pass the largest by less than a half: never by a step. */
		const long steps = lrintf(mean[i] / step);
		const long upper = (steps + 128) >> 8;

		high[i] = (int8_t)upper;
		low[i] = (int8_t)(steps - upper * 256);
		left_out += (double)low[i] * low[i];
	}
	*ret_step = step;
	return left_out * (double)step * (double)step;
}

void kvr_mean_read(const int8_t *high, const int8_t *low, float step, size_t dim, float *ret_mean)
{
	/* Rounding may pass the largest number. */
	for (size_t i = 0; i < dim; i++)
		ret_mean[i] =
			fminf(fmaxf(step * (float)(256 * high[i] + low[i]), -FLT_MAX), FLT_MAX);
}

uint16_t kvr_mean_planes(
	const float *means, size_t count, size_t dim, size_t stride, double left_out)
{
	double spread = 0.0;

	for (size_t i = 0; i < dim; i++) {
		double sum = 0.0, squares = 0.0;

		for (size_t c = 0; c < count; c++) {
			const double x = (double)means[c * stride + i];

			sum += x;
			squares += x * x;
		}
		spread += count > 0 ? squares - sum * sum / (double)count : 0.0;
	}
	return left_out > LEFT_OUT_MAX * spread ? 2 : 1;
}

void kvr_mean_write_spread(const double *variance, size_t dim, uint8_t *spread, float *ret_step)
{
	double largest = 0.0, step;

	for (size_t i = 0; i < dim; i++)
		largest = fmax(largest, variance[i]);
	step = fmin(largest / UINT8_MAX, (double)FLT_MAX);
	if (!(step >= (double)FLT_MIN)) {
		memset(spread, 0, dim);
		*ret_step = 0.0f;
		return;
	}
	for (size_t i = 0; i < dim; i++)
		spread[i] = (uint8_t)fmin(nearbyint(variance[i] / step), UINT8_MAX);
	*ret_step = (float)step;
}
