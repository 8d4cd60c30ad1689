/* SPDX-License-Identifier: Apache-2.0 */
/* nvme_channel.c: one thread's way to the file: a struct kvr_tier over the queue all channels share.
 *
 *   submit ─► work.queue ─► mover ─► kvr_nvme_finish ─► done, eventfd ─► reap
 *
 * Invariants:
 *   C1  The eventfd is readable only if `done` is not empty; both change under the channel's lock.
 *   C2  At most CHANNEL_IOS_MAX ios of a channel are submitted and not reaped.
 *   C3  It is readable once `done` has had TELL_BYTES more, or all that is submitted is finished: who waits for many
 *       small reads is not woken for each, and nobody waits for ever.
 *
 * Threads: the channel's own; finish is called by the mover's. */
#include <errno.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/nvme_state.h"

#define CHANNEL_IOS_MAX 1024u          /* C2 */
#define TELL_BYTES      (128ull << 10) /* C3: a tenth of a millisecond of a disk's work */

static struct kvr_nvme_channel *channel_of(const struct kvr_tier *tier)
{
	return KVR_CONTAINER_OF(tier, struct kvr_nvme_channel, tier);
}

static int channel_reserve(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes,
	uint32_t count, struct kvr_place *ret_places)
{
	(void)group;
	return kvr_nvme_reserve(channel_of(tier)->nvme, bytes, count, ret_places);
}

static void channel_release(
	struct kvr_tier *tier, uint32_t group, const struct kvr_place *places, uint32_t count)
{
	(void)group;
	kvr_nvme_release(channel_of(tier)->nvme, places, count);
}

static uint8_t *channel_address(struct kvr_tier *tier, struct kvr_place place)
{
	(void)tier;
	(void)place;
	return NULL;
}

/* Counts an io in (1) or out (-1) of the slabs that it touches. */
static void count_slabs(struct kvr_nvme *nvme, const struct kvr_tier_io *io, int change)
{
	const uint64_t first = io->place.offset / KVR_SLAB_BYTES;
	const uint64_t last = (io->place.offset + io->place.bytes - 1) / KVR_SLAB_BYTES;

	if (io->op == KVR_TIER_SYNC)
		return;
	for (uint64_t i = first; i <= last; i++) {
		KVR_ASSERT(io->op == KVR_TIER_READ || nvme->slabs[i].bytes > 0); /* N4 */
		__atomic_fetch_add(&nvme->slabs[i].in_flight, (uint32_t)change, __ATOMIC_RELAXED);
	}
}

static uint32_t channel_submit(
	struct kvr_tier *tier, struct kvr_tier_io *const *ios, uint32_t count)
{
	struct kvr_nvme_channel *channel = channel_of(tier);
	struct kvr_nvme *nvme = channel->nvme;
	struct kvr_nvme_work *work = &nvme->work;
	bool wake;

	KVR_ASSERT(channel->in_flight <= CHANNEL_IOS_MAX); /* C2 */
	if (count > CHANNEL_IOS_MAX - channel->in_flight)
		count = CHANNEL_IOS_MAX - channel->in_flight;
	for (uint32_t i = 0; i < count; i++) {
		ios[i]->channel = channel->index;
		ios[i]->done_bytes = 0;
		if (ios[i]->op != KVR_TIER_SYNC)
			kvr_nvme_check(
				work, ios[i]); /* N3: here, where the caller is on the stack */
		count_slabs(nvme, ios[i], 1);
	}
	if (count == 0)
		return 0;
	channel->in_flight += count;
	__atomic_fetch_add(&channel->running, count, __ATOMIC_RELAXED);
	pthread_mutex_lock(&work->lock);
	for (uint32_t i = 0; i < count; i++)
		kvr_nvme_queue_push(&work->queue, ios[i]);
	wake = work->idle;
	work->idle = false; /* M1 */
	pthread_mutex_unlock(&work->lock);
	if (wake)
		nvme->mover->ops->wake(nvme->mover, count);
	return count;
}

/* Books a transfer that ended. */
static void count_io(struct kvr_tier_stat *stat, const struct kvr_tier_io *io)
{
	if (io->status < 0) {
		stat->error_count++;
	} else if (io->op == KVR_TIER_READ) {
		stat->read_count++;
		stat->read_bytes += io->place.bytes;
	} else if (io->op == KVR_TIER_WRITE) {
		stat->write_count++;
		stat->write_bytes += io->place.bytes;
	}
}

static uint32_t channel_reap(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max)
{
	struct kvr_nvme_channel *channel = channel_of(tier);
	uint32_t count = 0;
	eventfd_t value;

	if (channel->in_flight == 0 || max == 0)
		return 0;
	pthread_mutex_lock(&channel->lock);
	while (count < max && !kvr_list_empty(&channel->done)) {
		ret_ios[count] =
			KVR_CONTAINER_OF(kvr_list_pop(&channel->done), struct kvr_tier_io, link);
		count++;
	}
	if (channel->told && kvr_list_empty(&channel->done)) {
		eventfd_read(channel->fd, &value); /* C1 */
		channel->told = false;
	}
	pthread_mutex_unlock(&channel->lock);
	KVR_ASSERT(count <= channel->in_flight); /* T4 */
	channel->in_flight -= count;
	for (uint32_t i = 0; i < count; i++) {
		count_slabs(channel->nvme, ret_ios[i], -1);
		count_io(&channel->stat, ret_ios[i]);
	}
	return count;
}

/* Moves what has finished to `done`, and tells the owner if it is time to. */
static void finish_channel(struct kvr_nvme_channel *channel, struct kvr_list *finished)
{
	struct kvr_list *node;
	uint32_t count = 0;

	pthread_mutex_lock(&channel->lock);
	while ((node = kvr_list_pop(finished)) != NULL) {
		channel->untold_bytes +=
			KVR_CONTAINER_OF(node, struct kvr_tier_io, link)->place.bytes;
		kvr_list_push(&channel->done, node);
		count++;
	}
	/* C3: ios that are submitted meanwhile are counted here or finish later. */
	if (__atomic_sub_fetch(&channel->running, count, __ATOMIC_RELAXED) == 0 ||
		channel->untold_bytes >= TELL_BYTES) {
		channel->untold_bytes = 0;
		if (!channel->told)
			eventfd_write(channel->fd, 1);
		channel->told = true;
	}
	pthread_mutex_unlock(&channel->lock);
}

void kvr_nvme_finish(struct kvr_nvme_work *work, struct kvr_list *finished)
{
	struct kvr_nvme *nvme = KVR_CONTAINER_OF(work, struct kvr_nvme, work);
	struct kvr_list lists[KVR_NVME_CHANNELS_MAX];
	struct kvr_list *node;

	for (uint32_t c = 0; c < KVR_NVME_CHANNELS_MAX; c++)
		kvr_list_init(&lists[c]);
	while ((node = kvr_list_pop(finished)) != NULL) {
		const uint32_t c = KVR_CONTAINER_OF(node, struct kvr_tier_io, link)->channel;

		KVR_ASSERT(c < KVR_NVME_CHANNELS_MAX);
		kvr_list_push(&lists[c], node);
	}
	for (uint32_t c = 0; c < KVR_NVME_CHANNELS_MAX; c++) {
		struct kvr_nvme_channel *channel;

		if (kvr_list_empty(&lists[c]))
			continue;
		/* A channel with an io in flight stays; its entry was written before the io was submitted. Those of others
		 * may change meanwhile. */
		channel = nvme->channels[c];
		KVR_ASSERT(channel != NULL);
		finish_channel(channel, &lists[c]);
	}
}

static int channel_fd(const struct kvr_tier *tier)
{
	return channel_of(tier)->fd;
}

static void channel_stat(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat)
{
	const struct kvr_nvme_channel *channel = channel_of(tier);
	struct kvr_nvme *nvme = channel->nvme;

	*ret_stat = channel->stat;
	pthread_mutex_lock(&nvme->map_lock);
	ret_stat->capacity_bytes = (uint64_t)nvme->slab_count * KVR_SLAB_BYTES;
	ret_stat->used_bytes = (uint64_t)nvme->used_count * KVR_SLAB_BYTES;
	ret_stat->reserved_bytes = nvme->reserved_bytes;
	ret_stat->place_count = nvme->used_count;
	pthread_mutex_unlock(&nvme->map_lock);
	ret_stat->alignment = nvme->work.alignment;
	ret_stat->durable = true;
}

static void channel_close(struct kvr_tier *tier)
{
	struct kvr_nvme_channel *channel = channel_of(tier);
	struct kvr_nvme *nvme = channel->nvme;

	KVR_ASSERT(channel->in_flight == 0); /* T4 */
	if (nvme->channels[channel->index] == channel)
		nvme->channels[channel->index] = NULL;
	if (channel->fd >= 0)
		close(channel->fd);
	pthread_mutex_destroy(&channel->lock);
	free(channel);
}

static const struct kvr_tier_ops channel_ops = {
	.name = "nvme",
	.reserve = channel_reserve,
	.release = channel_release,
	.address = channel_address,
	.submit = channel_submit,
	.reap = channel_reap,
	.fd = channel_fd,
	.stat = channel_stat,
	.close = channel_close,
};

int kvr_tier_open_nvme(struct kvr_nvme *nvme, struct kvr_tier **ret_tier)
{
	struct kvr_nvme_channel *channel;
	uint32_t index = 0;
	int rc;

	while (index < KVR_NVME_CHANNELS_MAX && nvme->channels[index])
		index++;
	if (index == KVR_NVME_CHANNELS_MAX)
		return -EMFILE;
	channel = calloc(1, sizeof(*channel));
	if (!channel)
		return -ENOMEM;
	channel->tier.ops = &channel_ops;
	channel->nvme = nvme;
	channel->index = index;
	pthread_mutex_init(&channel->lock, NULL);
	kvr_list_init(&channel->done);
	channel->fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	rc = channel->fd < 0 ? -errno : 0;
	if (rc < 0) {
		channel_close(&channel->tier);
		return rc;
	}
	nvme->channels[index] = channel;
	*ret_tier = &channel->tier;
	return 0;
}
