/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_queue.c: three classes of round robins, with bounds. */
#include "base/assert.h"
#include "tiers/nvme_queue.h"

/* From the one that goes first. */
static const enum kvr_tier_priority order[KVR_TIER_PRIORITIES] = {
	KVR_TIER_URGENT,
	KVR_TIER_NORMAL,
	KVR_TIER_LATER,
};

KVR_STATIC_ASSERT((KVR_NVME_LANES & (KVR_NVME_LANES - 1)) == 0);

static uint32_t larger(uint32_t a, uint32_t b)
{
	return a > b ? a : b;
}

void kvr_nvme_queue_init(struct kvr_nvme_queue *queue, uint32_t depth, uint32_t batch)
{
	KVR_ASSERT(depth >= 1);
	KVR_ASSERT(batch >= 1);
	KVR_ASSERT(batch <= depth);
	*queue = (struct kvr_nvme_queue){.depth = depth, .batch = batch};
	kvr_list_init(&queue->syncs);
	for (uint32_t c = 0; c < KVR_TIER_PRIORITIES; c++) {
		struct kvr_nvme_class *class = &queue->classes[c];

		kvr_list_init(&class->turn);
		for (uint32_t i = 0; i < KVR_NVME_LANES; i++) {
			kvr_list_init(&class->lanes[i].ios);
			kvr_list_init(&class->lanes[i].link);
		}
	}
	queue->lower_max = depth - depth / 8;
	queue->later_max = larger(depth / 2, 1);
}

/* Consecutive flows, as counters give them, have lanes of their own; so have the channels' flows 0. */
static uint32_t lane_index(const struct kvr_tier_io *io)
{
	return (io->flow + io->channel * (KVR_NVME_LANES / 8)) % KVR_NVME_LANES;
}

void kvr_nvme_queue_push(struct kvr_nvme_queue *queue, struct kvr_tier_io *io)
{
	struct kvr_nvme_class *class;
	struct kvr_nvme_lane *lane;

	if (io->op == KVR_TIER_SYNC) {
		kvr_list_push(&queue->syncs, &io->link);
		return;
	}
	KVR_ASSERT(io->priority < KVR_TIER_PRIORITIES);
	class = &queue->classes[io->priority];
	lane = &class->lanes[lane_index(io)];
	if (kvr_list_empty(&class->turn))
		class->turn_left = queue->batch;
	if (kvr_list_empty(&lane->ios))
		kvr_list_push(&class->turn, &lane->link);
	kvr_list_push(&lane->ios, &io->link);
}

/* The io that a class would send next, or NULL. */
static const struct kvr_tier_io *class_head(const struct kvr_nvme_class *class)
{
	const struct kvr_nvme_lane *lane;

	if (kvr_list_empty(&class->turn))
		return NULL;
	lane = KVR_CONTAINER_OF(class->turn.next, const struct kvr_nvme_lane, link);
	KVR_ASSERT(!kvr_list_empty(&lane->ios));
	return KVR_CONTAINER_OF(lane->ios.next, const struct kvr_tier_io, link);
}

/* The head of the class, if its limits let it go. */
static const struct kvr_tier_io *class_ready(
	const struct kvr_nvme_queue *queue, enum kvr_tier_priority priority)
{
	const struct kvr_tier_io *io = class_head(&queue->classes[priority]);

	if (!io || priority == KVR_TIER_URGENT || queue->lower_running == 0)
		return io;
	if (queue->lower_running == queue->lower_max)
		return NULL;
	if (priority == KVR_TIER_LATER && queue->later_running == queue->later_max)
		return NULL;
	return queue->lower_bytes + io->place.bytes <= KVR_NVME_LOWER_BYTES ? io : NULL;
}

/* Whose turn it is; KVR_TIER_PRIORITIES where no class may go. */
static enum kvr_tier_priority choose(const struct kvr_nvme_queue *queue)
{
	enum kvr_tier_priority chosen = KVR_TIER_PRIORITIES;

	/* From the lowest up: the last one written is the highest; one that has waited enough ends it. */
	for (uint32_t i = KVR_TIER_PRIORITIES; i-- > 0;) {
		const struct kvr_tier_io *io = class_ready(queue, order[i]);

		if (!io)
			continue;
		chosen = order[i];
		if (queue->classes[chosen].passed_bytes >=
			(uint64_t)KVR_NVME_SHARE * io->place.bytes) /* U2 */
			break;
	}
	return chosen;
}

/* Books what goes: the classes below, if they wait, were passed over. */
static void pass(struct kvr_nvme_queue *queue, enum kvr_tier_priority chosen, uint32_t bytes)
{
	bool below = false;

	for (uint32_t i = 0; i < KVR_TIER_PRIORITIES; i++) {
		struct kvr_nvme_class *class = &queue->classes[order[i]];

		if (order[i] == chosen) {
			class->passed_bytes = 0;
			below = true;
		} else if (kvr_list_empty(&class->turn)) {
			class->passed_bytes = 0;
		} else if (below) {
			class->passed_bytes += bytes;
		}
	}
}

static struct kvr_tier_io *class_pop(struct kvr_nvme_class *class, uint32_t batch)
{
	struct kvr_nvme_lane *lane = KVR_CONTAINER_OF(class->turn.next, struct kvr_nvme_lane, link);
	struct kvr_list *node = kvr_list_pop(&lane->ios);

	KVR_ASSERT(node != NULL);
	KVR_ASSERT(class->turn_left > 0);
	class->turn_left--;
	if (class->turn_left == 0 || kvr_list_empty(&lane->ios)) {
		class->turn_left = batch;
		kvr_list_remove(&lane->link);
		if (!kvr_list_empty(&lane->ios))
			kvr_list_push(&class->turn, &lane->link);
	}
	return KVR_CONTAINER_OF(node, struct kvr_tier_io, link);
}

static struct kvr_tier_io *sync_pop(struct kvr_nvme_queue *queue)
{
	struct kvr_list *node = queue->sync_running ? NULL : kvr_list_pop(&queue->syncs);

	if (!node)
		return NULL;
	queue->sync_running = true;
	return KVR_CONTAINER_OF(node, struct kvr_tier_io, link);
}

bool kvr_nvme_queue_ready(const struct kvr_nvme_queue *queue)
{
	if (!queue->sync_running && !kvr_list_empty(&queue->syncs))
		return true;
	return queue->running < queue->depth && choose(queue) != KVR_TIER_PRIORITIES;
}

struct kvr_tier_io *kvr_nvme_queue_pop(struct kvr_nvme_queue *queue)
{
	struct kvr_tier_io *io = sync_pop(queue);
	enum kvr_tier_priority chosen;

	if (io || queue->running == queue->depth)
		return io;
	chosen = choose(queue);
	if (chosen == KVR_TIER_PRIORITIES)
		return NULL;
	io = class_pop(&queue->classes[chosen], queue->batch);
	KVR_ASSERT(io->priority == chosen);
	pass(queue, chosen, io->place.bytes);
	queue->running++;
	if (chosen != KVR_TIER_URGENT) {
		queue->lower_running++;
		queue->lower_bytes += io->place.bytes;
		queue->later_running += chosen == KVR_TIER_LATER;
	}
	KVR_ASSERT(queue->running <= queue->depth);           /* U1 */
	KVR_ASSERT(queue->lower_running <= queue->lower_max); /* U1 */
	KVR_ASSERT(queue->later_running <= queue->later_max); /* U1 */
	return io;
}

void kvr_nvme_queue_done(struct kvr_nvme_queue *queue, const struct kvr_tier_io *io)
{
	if (io->op == KVR_TIER_SYNC) {
		KVR_ASSERT(queue->sync_running);
		queue->sync_running = false;
		return;
	}
	KVR_ASSERT(queue->running > 0);
	queue->running--;
	if (io->priority == KVR_TIER_URGENT)
		return;
	KVR_ASSERT(queue->lower_running > 0);
	KVR_ASSERT(queue->lower_bytes >= io->place.bytes);
	queue->lower_running--;
	queue->lower_bytes -= io->place.bytes;
	if (io->priority == KVR_TIER_NORMAL)
		return;
	KVR_ASSERT(queue->later_running > 0);
	queue->later_running--;
}
