/* SPDX-License-Identifier: Apache-2.0 */
/* device.c: the calls of device.h, passed on to a device's own table.
 *
 * It checks what every submitter guarantees, so that implementers need not. */

#include "kernels/device.h"

int kvr_device_submit(struct kvr_device *device, struct kvr_job *job)
{
	KVR_ASSERT(device);
	KVR_ASSERT(job->kind < KVR_JOB_KINDS);
	KVR_ASSERT(job->items);
	KVR_ASSERT(job->item_count >= 1);
	return device->ops->submit(device, job);
}

uint32_t kvr_device_reap(struct kvr_device *device, struct kvr_job **ret_jobs, uint32_t max)
{
	uint32_t count;

	KVR_ASSERT(device);
	KVR_ASSERT(ret_jobs);
	count = device->ops->reap(device, ret_jobs, max);
	KVR_ASSERT(count <= max);
	return count;
}

bool kvr_device_help(struct kvr_device *device)
{
	KVR_ASSERT(device);
	return device->ops->help(device);
}

int kvr_device_fd(const struct kvr_device *device)
{
	KVR_ASSERT(device);
	return device->ops->fd(device);
}

const char *kvr_device_name(const struct kvr_device *device)
{
	KVR_ASSERT(device);
	return device->ops->name(device);
}

struct kvr_device *kvr_device_close(struct kvr_device *device)
{
	if (device)
		device->ops->close(device);
	return NULL;
}
