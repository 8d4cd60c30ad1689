/* SPDX-License-Identifier: Apache-2.0 */
/* host.c: places are runs of the arena; a transfer is a memcpy, done at submit.
 *
 * A place's offset is that from the arena's base, so that a place means the same whatever the mapping's
 * address. READ and WRITE are for callers that move clusters between tiers; recall uses
 * kvr_tier_address and copies nothing here.
 *
 * Invariants:
 *   H1  done holds done_count ios, finished and not reaped, oldest first; at most HOST_DONE_MAX.
 *
 * Threads: the tier's owner. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/list.h"
#include "tiers/host.h"

#define HOST_DONE_MAX 256u /* finished transfers that wait for reap */

struct tier_host {
	struct kvr_tier tier;
	struct kvr_arena *arena; /* borrowed */
	uint8_t *base;           /* of the arena */
	size_t base_bytes;
	struct kvr_list done; /* H1 */
	uint32_t done_count;
	struct kvr_tier_stat stat;
};

static struct tier_host *host_of(const struct kvr_tier *tier)
{
	return KVR_CONTAINER_OF(tier, struct tier_host, tier);
}

static uint64_t arena_used(const struct kvr_arena *arena)
{
	struct kvr_arena_stat stat;

	kvr_arena_stat(arena, &stat);
	return stat.used_bytes;
}

static uint8_t *host_address(struct kvr_tier *tier, struct kvr_place place)
{
	struct tier_host *host = host_of(tier);

	KVR_ASSERT(place.reserved == 0);
	KVR_ASSERT(place.offset < host->base_bytes);
	KVR_ASSERT(place.bytes <= host->base_bytes - place.offset); /* T1 */
	return host->base + place.offset;
}

/* Gives `count` places back to the arena and takes them off the books. */
static void give_back(struct tier_host *host, const struct kvr_place *places, uint32_t count)
{
	const uint64_t used_before = arena_used(host->arena);

	for (uint32_t i = 0; i < count; i++) {
		KVR_ASSERT(host->stat.reserved_bytes >= places[i].bytes);
		kvr_arena_free(host->arena, host_address(&host->tier, places[i]), places[i].bytes);
		host->stat.reserved_bytes -= places[i].bytes;
	}
	host->stat.used_bytes -= used_before - arena_used(host->arena);
	host->stat.place_count -= count;
}

static int host_reserve(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes,
	uint32_t count, struct kvr_place *ret_places)
{
	struct tier_host *host = host_of(tier);
	const uint64_t used_before = arena_used(host->arena);
	uint32_t taken;

	(void)group;
	for (taken = 0; taken < count; taken++) {
		uint8_t *memory = kvr_arena_alloc(host->arena, bytes[taken]);

		if (!memory)
			break;
		ret_places[taken] = (struct kvr_place){
			.offset = (uint64_t)(memory - host->base),
			.bytes = bytes[taken],
		};
		host->stat.reserved_bytes += bytes[taken];
	}
	host->stat.used_bytes += arena_used(host->arena) - used_before;
	host->stat.place_count += taken;
	if (taken == count)
		return 0;
	give_back(host, ret_places, taken); /* T2 */
	return -ENOSPC;
}

/* T5: no finished and unreaped transfer names one of the places. As a rule `done` is empty. */
static void assert_idle(
	const struct tier_host *host, const struct kvr_place *places, uint32_t count)
{
	const struct kvr_list *node;

	KVR_LIST_EACH (node, &host->done) {
		const struct kvr_tier_io *io =
			KVR_CONTAINER_OF(node, const struct kvr_tier_io, link);

		for (uint32_t i = 0; io->op != KVR_TIER_SYNC && i < count; i++)
			KVR_ASSERT(io->place.offset != places[i].offset);
	}
}

static void host_release(
	struct kvr_tier *tier, uint32_t group, const struct kvr_place *places, uint32_t count)
{
	struct tier_host *host = host_of(tier);

	(void)group;
	KVR_ASSERT(host->stat.place_count >= count);
	assert_idle(host, places, count);
	give_back(host, places, count);
}

static void transfer(struct tier_host *host, struct kvr_tier_io *io)
{
	uint8_t *memory;

	io->status = 0;
	if (io->op == KVR_TIER_SYNC)
		return;
	memory = host_address(&host->tier, io->place);
	if (io->op == KVR_TIER_READ) {
		memcpy(io->buffer.data, memory, io->buffer.bytes);
		host->stat.read_count++;
		host->stat.read_bytes += io->buffer.bytes;
	} else {
		memcpy(memory, io->buffer.data, io->buffer.bytes);
		host->stat.write_count++;
		host->stat.write_bytes += io->buffer.bytes;
	}
}

static uint32_t host_submit(struct kvr_tier *tier, struct kvr_tier_io *const *ios, uint32_t count)
{
	struct tier_host *host = host_of(tier);
	uint32_t taken = 0;

	while (taken < count && host->done_count < HOST_DONE_MAX) {
		transfer(host, ios[taken]);
		kvr_list_push(&host->done, &ios[taken]->link); /* H1 */
		host->done_count++;
		taken++;
	}
	return taken;
}

static uint32_t host_reap(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max)
{
	struct tier_host *host = host_of(tier);
	uint32_t count = 0;

	while (count < max && host->done_count > 0) {
		struct kvr_list *node = kvr_list_pop(&host->done); /* H1 */

		ret_ios[count] = KVR_CONTAINER_OF(node, struct kvr_tier_io, link);
		host->done_count--;
		count++;
	}
	KVR_ASSERT((host->done_count == 0) == kvr_list_empty(&host->done));
	return count;
}

static int host_fd(const struct kvr_tier *tier)
{
	(void)tier;
	return -1;
}

static void host_stat(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat)
{
	*ret_stat = host_of(tier)->stat;
}

static void host_close(struct kvr_tier *tier)
{
	struct tier_host *host = host_of(tier);

	KVR_ASSERT(host->done_count == 0); /* T4 */
	free(host);
}

static const struct kvr_tier_ops host_ops = {
	.name = "host",
	.reserve = host_reserve,
	.release = host_release,
	.address = host_address,
	.submit = host_submit,
	.reap = host_reap,
	.fd = host_fd,
	.stat = host_stat,
	.close = host_close,
};

int kvr_tier_open_host(struct kvr_arena *arena, struct kvr_tier **ret_tier)
{
	struct tier_host *host = calloc(1, sizeof(*host));

	if (!host)
		return -ENOMEM;
	host->tier.ops = &host_ops;
	host->arena = arena;
	host->base = kvr_arena_base(arena, &host->base_bytes);
	kvr_list_init(&host->done);
	host->stat = (struct kvr_tier_stat){
		.capacity_bytes = host->base_bytes,
		.alignment = 1,
		.addressable = true,
	};
	*ret_tier = &host->tier;
	return 0;
}
