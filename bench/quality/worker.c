/* SPDX-License-Identifier: Apache-2.0 */
/* worker.c: see worker.h. */
#include "bench/quality/worker.h"

#include <math.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <string.h>

#include "bench/quality/memory.h"

#define WORKERS_MAX 16u

struct crew {
	void (*work)(struct quality_worker *worker, void *context, uint32_t index);
	void *context;
	uint32_t count;
	_Atomic uint32_t next; /* whoever adds to it has the index that was there */
	_Atomic uint32_t workers;
};

static void *work_thread(void *context)
{
	struct crew *crew = context;
	const struct kvr_device_cpu_config config = {.threads = 1, .inline_item_us = UINT32_MAX};
	struct quality_worker worker = {.index = atomic_fetch_add(&crew->workers, 1)};

	quality_must(kvr_device_open_cpu(&config, &worker.device), "kvr_device_open_cpu");
	for (;;) {
		const uint32_t index = atomic_fetch_add(&crew->next, 1);

		if (index >= crew->count)
			break;
		crew->work(&worker, crew->context, index);
	}
	kvr_device_close(worker.device);
	return NULL;
}

void quality_work(uint32_t count,
	void (*work)(struct quality_worker *worker, void *context, uint32_t index), void *context)
{
	struct crew crew = {.work = work, .context = context, .count = count};
	pthread_t threads[WORKERS_MAX];
	cpu_set_t allowed;
	uint32_t workers = 1;

	if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0)
		workers = (uint32_t)CPU_COUNT(&allowed);
	if (workers > WORKERS_MAX)
		workers = WORKERS_MAX;
	if (workers > count)
		workers = count;
	for (uint32_t i = 0; i < workers; i++)
		quality_must(-pthread_create(&threads[i], NULL, work_thread, &crew), "a thread");
	for (uint32_t i = 0; i < workers; i++)
		pthread_join(threads[i], NULL);
}

void quality_run_job(
	struct quality_worker *worker, enum kvr_job_kind kind, void *items, uint32_t count)
{
	struct kvr_job job = {.kind = kind, .items = items, .item_count = count};
	struct pollfd fd = {.fd = kvr_device_fd(worker->device), .events = POLLIN};
	struct kvr_job *done;

	quality_must(kvr_device_submit(worker->device, &job), "kvr_device_submit");
	while (kvr_device_reap(worker->device, &done, 1) == 0)
		poll(&fd, 1, -1);
	quality_must(job.status, "a job of the device");
}

void quality_attend(struct quality_worker *worker, const struct quality_question *question,
	const uint8_t *keys, const uint8_t *values, const float *weights, uint32_t row_count,
	struct quality_partial *ret_partial)
{
	const struct kvr_geometry *geometry = &question->rows->geometry;
	float out[QUALITY_GROUP_MAX * KVR_DIM_MAX];
	struct kvr_attend_item item = {.geometry = geometry,
		.query_count = question->group,
		.query = (const uint8_t *)question->queries,
		.query_dtype = KVR_DTYPE_F32,
		.scale = question->scale,
		.row_count = row_count,
		.keys = keys,
		.values = values,
		.weights = weights,
		.out = out,
		.lse = ret_partial->lse};

	quality_run_job(worker, KVR_JOB_ATTEND, &item, 1);
	for (uint32_t g = 0; g < question->group; g++)
		memcpy(ret_partial->out[g], out + (size_t)g * geometry->value_dim,
			geometry->value_dim * sizeof(float));
}
