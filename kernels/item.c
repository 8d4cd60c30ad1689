/* SPDX-License-Identifier: Apache-2.0 */
/* item.c: from a job's kind to the operation on one of its items. How long one takes is in cost.c. */

#include "kernels/cpu.h"

void kvr_cpu_run(
	const struct kvr_job *job, uint32_t index, enum kvr_isa isa, struct kvr_span scratch)
{
	void *items = job->items;

	/* A failing item says so in its own status, which kvr_cpu_status collects. */
	switch (job->kind) {
	case KVR_JOB_APPEND:
		(void)kvr_cpu_append((struct kvr_append_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_CLUSTER:
		(void)kvr_cpu_cluster((struct kvr_cluster_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_PACK:
		(void)kvr_cpu_pack((struct kvr_cluster_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_MERGE:
		(void)kvr_cpu_merge((struct kvr_cluster_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_RECALL:
		(void)kvr_cpu_recall((struct kvr_recall_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_FETCH:
		(void)kvr_cpu_fetch((struct kvr_fetch_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_COPY:
		(void)kvr_cpu_copy((struct kvr_copy_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_FILL:
		(void)kvr_cpu_fill((struct kvr_fill_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_ATTEND:
		(void)kvr_cpu_attend((struct kvr_attend_item *)items + index, isa, scratch);
		break;
	case KVR_JOB_KINDS: break;
	}
}

int kvr_cpu_status(const struct kvr_job *job)
{
	int status = 0;

	if (job->kind != KVR_JOB_APPEND && job->kind != KVR_JOB_FETCH)
		return 0;
	for (uint32_t i = 0; i < job->item_count && status == 0; i++) {
		if (job->kind == KVR_JOB_APPEND)
			status = ((const struct kvr_append_item *)job->items)[i].status;
		else
			status = ((const struct kvr_fetch_item *)job->items)[i].status;
	}
	return status;
}
