/* SPDX-License-Identifier: Apache-2.0 */
/* worker.h: threads that share out numbered work, each with a device of its own.
 *
 * A worker's device runs its jobs inside submit: what the bench does in parallel are its lanes and runs.
 *
 * Threads: see each function. */
#ifndef QUALITY_WORKER_H
#define QUALITY_WORKER_H

#include "bench/quality/answer.h"
#include "kernels/device.h"

struct quality_worker {
	struct kvr_device *device;
	uint32_t index; /* of the worker */
};

/* Calls work(worker, context, i) for i = 0 .. count - 1, on as many threads as there are CPUs, one at a
 * time on each, and returns when all are done. */
void quality_work(uint32_t count,
	void (*work)(struct quality_worker *worker, void *context, uint32_t index), void *context);

/* Runs a job to its end. Fails with the job. */
void quality_run_job(
	struct quality_worker *worker, enum kvr_job_kind kind, void *items, uint32_t count);

/* Exact attention over rows that lie one behind the other, by the device. */
void quality_attend(struct quality_worker *worker, const struct quality_question *question,
	const uint8_t *keys, const uint8_t *values, const float *weights, uint32_t row_count,
	struct quality_partial *ret_partial);

#endif
