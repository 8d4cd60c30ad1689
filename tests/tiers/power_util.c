/* SPDX-License-Identifier: Apache-2.0 */
/* power_util.c: remembers what was there before each write that no sync has covered. */
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "tests/tiers/power_util.h"

#define SECTOR 512u

struct kvr_power_write {
	const struct kvr_tier_io *io; /* in flight; NULL: reaped */
	bool covered;                 /* by the SYNC that is in flight */
	uint64_t offset;
	uint32_t bytes;
	uint8_t *before;
};

struct power_tier {
	struct kvr_tier tier;
	struct kvr_tier *below;
	struct kvr_power *power;
	struct kvr_tier_io *refused; /* ended here: one at a time */
};

static struct power_tier *tier_of(const struct kvr_tier *tier)
{
	return KVR_CONTAINER_OF(tier, struct power_tier, tier);
}

/* Puts the old bytes of sector `at` back. */
static void put_back(
	const struct kvr_power *power, const struct kvr_power_write *write, uint32_t at)
{
	const uint32_t bytes = write->bytes - at < SECTOR ? write->bytes - at : SECTOR;

	KVR_ASSERT(pwrite(power->fd, write->before + at, bytes, (off_t)(write->offset + at)) ==
		   (ssize_t)bytes);
}

/* From the newest on, so that of two writes to one place the older one's old bytes win. */
void kvr_power_cut(struct kvr_power *power)
{
	while (power->write_count > 0) {
		struct kvr_power_write *write = &power->writes[--power->write_count];
		const uint32_t fate = kvr_random_range(&power->random, 0, 2);

		KVR_ASSERT(write->io == NULL);
		for (uint32_t at = 0; fate > 0 && at < write->bytes; at += SECTOR)
			if (fate == 1 || kvr_random_range(&power->random, 0, 1) == 0)
				put_back(power, write, at);
		power->kept_count += fate == 0;
		power->lost_count += fate == 1;
		power->torn_count += fate == 2;
		free(write->before);
	}
	fdatasync(power->fd);
	power->dead = true;
	if (power->gone)
		power->gone(power->context);
}

static void remember(struct kvr_power *power, const struct kvr_tier_io *io)
{
	struct kvr_power_write *write = &power->writes[power->write_count++];

	KVR_ASSERT(power->write_count <= KVR_POWER_WRITES_MAX);
	*write = (struct kvr_power_write){
		.io = io,
		.offset = io->place.offset,
		.bytes = io->place.bytes,
		.before = malloc(io->place.bytes),
	};
	KVR_ASSERT(write->before != NULL);
	KVR_ASSERT(pread(power->fd, write->before, write->bytes, (off_t)write->offset) ==
		   (ssize_t)write->bytes);
}

/* A SYNC starts: it covers what was reaped before. */
static void cover(struct kvr_power *power)
{
	for (uint32_t i = 0; i < power->write_count; i++)
		power->writes[i].covered = power->writes[i].io == NULL;
}

/* A SYNC succeeded: what it covers is durable. */
static void forget(struct kvr_power *power)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < power->write_count; i++) {
		if (power->writes[i].covered)
			free(power->writes[i].before);
		else
			power->writes[kept++] = power->writes[i];
	}
	power->write_count = kept;
}

static uint32_t power_submit(struct kvr_tier *tier, struct kvr_tier_io *const *ios, uint32_t count)
{
	struct power_tier *own = tier_of(tier);
	struct kvr_power *power = own->power;
	uint32_t taken = 0;

	while (taken < count && !own->refused) {
		struct kvr_tier_io *io = ios[taken];

		if (io->op == KVR_TIER_SYNC && !power->dead) {
			power->sync_count++;
			if (power->cut_at > 0 && --power->cut_at == 0)
				kvr_power_cut(power);
			cover(power);
		}
		if (power->dead && io->op != KVR_TIER_READ) {
			own->refused = io;
			taken++;
			break;
		}
		if (io->op == KVR_TIER_WRITE)
			remember(power, io);
		if (kvr_tier_submit(own->below, &io, 1) == 0) {
			if (io->op == KVR_TIER_WRITE)
				free(power->writes[--power->write_count].before);
			break;
		}
		taken++;
	}
	return taken;
}

static uint32_t power_reap(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max)
{
	struct power_tier *own = tier_of(tier);
	struct kvr_power *power = own->power;
	uint32_t count;

	if (own->refused && max > 0) {
		ret_ios[0] = own->refused;
		ret_ios[0]->status = -EIO;
		own->refused = NULL;
		return 1;
	}
	count = kvr_tier_reap(own->below, ret_ios, max);
	for (uint32_t i = 0; i < count; i++) {
		if (ret_ios[i]->op == KVR_TIER_SYNC && ret_ios[i]->status == 0)
			forget(power);
		for (uint32_t w = 0; w < power->write_count; w++)
			if (power->writes[w].io == ret_ios[i])
				power->writes[w].io = NULL;
	}
	return count;
}

static int power_reserve(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes,
	uint32_t count, struct kvr_place *ret_places)
{
	return kvr_tier_reserve(tier_of(tier)->below, group, bytes, count, ret_places);
}

static void power_release(
	struct kvr_tier *tier, uint32_t group, const struct kvr_place *places, uint32_t count)
{
	kvr_tier_release(tier_of(tier)->below, group, places, count);
}

static uint8_t *power_address(struct kvr_tier *tier, struct kvr_place place)
{
	return kvr_tier_address(tier_of(tier)->below, place);
}

/* Readable at once while an io that ended here waits: any file is. */
static int power_fd(const struct kvr_tier *tier)
{
	const struct power_tier *own = tier_of(tier);

	return own->refused ? own->power->fd : kvr_tier_fd(own->below);
}

static void power_stat(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat)
{
	kvr_tier_stat(tier_of(tier)->below, ret_stat);
}

static void power_close(struct kvr_tier *tier)
{
	struct power_tier *own = tier_of(tier);

	KVR_ASSERT(own->refused == NULL);
	cover(own->power);
	forget(own->power);
	free(own->power->writes);
	close(own->power->fd);
	kvr_tier_close(own->below);
	free(own);
}

static const struct kvr_tier_ops power_ops = {
	.name = "power",
	.reserve = power_reserve,
	.release = power_release,
	.address = power_address,
	.submit = power_submit,
	.reap = power_reap,
	.fd = power_fd,
	.stat = power_stat,
	.close = power_close,
};

struct kvr_tier *kvr_power_wrap(
	struct kvr_power *power, const char *path, uint64_t seed, struct kvr_tier *below)
{
	struct power_tier *own = calloc(1, sizeof(*own));

	KVR_ASSERT(own != NULL);
	*power = (struct kvr_power){.random = {seed}, .fd = open(path, O_RDWR | O_CLOEXEC)};
	KVR_ASSERT(power->fd >= 0);
	power->writes = calloc(KVR_POWER_WRITES_MAX, sizeof(*power->writes));
	KVR_ASSERT(power->writes != NULL);
	own->tier.ops = &power_ops;
	own->below = below;
	own->power = power;
	return &own->tier;
}
