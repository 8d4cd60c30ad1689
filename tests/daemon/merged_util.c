/* SPDX-License-Identifier: Apache-2.0 */
/* merged_util.c: see merged_util.h. */
#include "tests/daemon/merged_util.h"

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <poll.h>

#include "kernels/device.h"

#define LANES_MAX 16u

void merged_make(struct kvr_segment_view *view, const struct kvr_tail_view *tail)
{
	const struct kvr_device_cpu_config config = {.threads = 1};
	const uint32_t lanes = kvr_geometry_lanes(view->geometry);
	struct kvr_cluster_item items[LANES_MAX];
	struct kvr_job job = {.kind = KVR_JOB_MERGE, .items = items, .item_count = lanes};
	struct kvr_job *done = NULL;
	struct kvr_device *device;
	struct pollfd ready = {.events = POLLIN};

	assert_true(lanes <= LANES_MAX);
	for (uint32_t lane = 0; lane < lanes; lane++)
		items[lane] = (struct kvr_cluster_item){tail, view, lane};
	assert_int_equal(kvr_device_open_cpu(&config, &device), 0);
	ready.fd = kvr_device_fd(device);
	assert_int_equal(kvr_device_submit(device, &job), 0);
	while (kvr_device_reap(device, &done, 1) == 0)
		assert_true(poll(&ready, 1, 10000) == 1);
	assert_ptr_equal(done, &job);
	assert_int_equal(job.status, 0);
	kvr_device_close(device);
}
