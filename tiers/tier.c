/* SPDX-License-Identifier: Apache-2.0 */
/* tier.c: checks what callers and tiers promise each other, and dispatches. */
#include <errno.h>

#include "base/assert.h"
#include "tiers/tier.h"

#define ADDRESS_ALIGNMENT \
	64u /* of a place in an addressable tier: a vector register, a cache line */

int kvr_tier_reserve(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes, uint32_t count,
	struct kvr_place *ret_places)
{
	int rc;

	KVR_ASSERT(count >= 1);
	for (uint32_t i = 0; i < count; i++)
		KVR_ASSERT(bytes[i] >= 1);
	rc = tier->ops->reserve(tier, group, bytes, count, ret_places);
	KVR_ASSERT(rc == 0 || rc == -ENOSPC);
	for (uint32_t i = 0; rc == 0 && i < count; i++)
		KVR_ASSERT(ret_places[i].bytes == bytes[i]);
	return rc;
}

void kvr_tier_release(
	struct kvr_tier *tier, uint32_t group, const struct kvr_place *places, uint32_t count)
{
	KVR_ASSERT(count >= 1);
	for (uint32_t i = 0; i < count; i++)
		KVR_ASSERT(places[i].bytes >= 1);
	tier->ops->release(tier, group, places, count);
}

uint8_t *kvr_tier_address(struct kvr_tier *tier, struct kvr_place place)
{
	uint8_t *memory;

	KVR_ASSERT(place.bytes >= 1);
	memory = tier->ops->address(tier, place);
	KVR_ASSERT((uintptr_t)memory % ADDRESS_ALIGNMENT == 0);
	return memory;
}

uint32_t kvr_tier_submit(struct kvr_tier *tier, struct kvr_tier_io *const *ios, uint32_t count)
{
	uint32_t taken;

	for (uint32_t i = 0; i < count; i++) {
		const struct kvr_tier_io *io = ios[i];

		KVR_ASSERT(io->op <= KVR_TIER_SYNC);
		if (io->op == KVR_TIER_SYNC)
			continue;
		KVR_ASSERT(io->place.bytes >= 1);
		KVR_ASSERT(io->buffer.data != NULL);
		KVR_ASSERT(io->buffer.bytes == io->place.bytes);
	}
	taken = tier->ops->submit(tier, ios, count);
	KVR_ASSERT(taken <= count);
	return taken;
}

uint32_t kvr_tier_reap(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max)
{
	uint32_t count = tier->ops->reap(tier, ret_ios, max);

	KVR_ASSERT(count <= max);
	for (uint32_t i = 0; i < count; i++)
		KVR_ASSERT(ret_ios[i]->status <= 0);
	return count;
}

int kvr_tier_fd(const struct kvr_tier *tier)
{
	int fd = tier->ops->fd(tier);

	KVR_ASSERT(fd >= -1);
	return fd;
}

void kvr_tier_stat(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat)
{
	tier->ops->stat(tier, ret_stat);
	KVR_ASSERT(ret_stat->used_bytes <= ret_stat->capacity_bytes); /* T1 */
	KVR_ASSERT(ret_stat->reserved_bytes <= ret_stat->used_bytes);
	KVR_ASSERT(ret_stat->alignment >= 1);
}

struct kvr_tier *kvr_tier_close(struct kvr_tier *tier)
{
	if (tier)
		tier->ops->close(tier);
	return NULL;
}
