/* SPDX-License-Identifier: Apache-2.0 */
/* null.c: refuses every place; a sync of nothing is done at once. */
#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "base/list.h"
#include "tiers/null.h"

#define NULL_DONE_MAX 64u /* syncs that wait for reap */

struct tier_null {
	struct kvr_tier tier;
	struct kvr_list done;
	uint32_t done_count;
};

static struct tier_null *null_of(struct kvr_tier *tier)
{
	return KVR_CONTAINER_OF(tier, struct tier_null, tier);
}

static int null_reserve(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes,
	uint32_t count, struct kvr_place *ret_places)
{
	(void)tier;
	(void)group;
	(void)bytes;
	(void)count;
	(void)ret_places;
	return -ENOSPC;
}

/* No place was ever given out. */
static void null_release(
	struct kvr_tier *tier, uint32_t group, const struct kvr_place *places, uint32_t count)
{
	(void)tier;
	(void)group;
	(void)places;
	KVR_ASSERT(count == 0);
}

static uint8_t *null_address(struct kvr_tier *tier, struct kvr_place place)
{
	(void)tier;
	KVR_ASSERT(place.bytes == 0);
	return NULL;
}

static uint32_t null_submit(struct kvr_tier *tier, struct kvr_tier_io *const *ios, uint32_t count)
{
	struct tier_null *null = null_of(tier);
	uint32_t taken = 0;

	while (taken < count && null->done_count < NULL_DONE_MAX) {
		KVR_ASSERT(ios[taken]->op == KVR_TIER_SYNC);
		ios[taken]->status = 0;
		kvr_list_push(&null->done, &ios[taken]->link);
		null->done_count++;
		taken++;
	}
	return taken;
}

static uint32_t null_reap(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max)
{
	struct tier_null *null = null_of(tier);
	uint32_t count = 0;

	while (count < max && null->done_count > 0) {
		struct kvr_list *node = kvr_list_pop(&null->done);

		ret_ios[count] = KVR_CONTAINER_OF(node, struct kvr_tier_io, link);
		null->done_count--;
		count++;
	}
	return count;
}

static int null_fd(const struct kvr_tier *tier)
{
	(void)tier;
	return -1;
}

static void null_stat(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat)
{
	(void)tier;
	*ret_stat = (struct kvr_tier_stat){.alignment = 1};
}

static void null_close(struct kvr_tier *tier)
{
	struct tier_null *null = null_of(tier);

	KVR_ASSERT(null->done_count == 0); /* T4 */
	free(null);
}

static const struct kvr_tier_ops null_ops = {
	.name = "null",
	.reserve = null_reserve,
	.release = null_release,
	.address = null_address,
	.submit = null_submit,
	.reap = null_reap,
	.fd = null_fd,
	.stat = null_stat,
	.close = null_close,
};

int kvr_tier_open_null(struct kvr_tier **ret_tier)
{
	struct tier_null *null = calloc(1, sizeof(*null));

	if (!null)
		return -ENOMEM;
	null->tier.ops = &null_ops;
	kvr_list_init(&null->done);
	*ret_tier = &null->tier;
	return 0;
}
