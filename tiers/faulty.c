/* SPDX-License-Identifier: Apache-2.0 */
/* faulty.c: lets every call through to the tier below, and spoils the ones it was told to.
 *
 *   submit: note in held[] ─► (spoilt: op or length changed) ─► below
 *   reap:   below ─► find in held[] ─► op and length restored, status and buffer spoilt ─► caller
 *
 * Invariants:
 *   F1  held[0 .. held_count - 1] are the ios in flight below, in the order of their submission.
 *   F2  What the submitter set in an io is there again when the io is reaped.
 *
 * Threads: the tier's owner. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/faulty.h"

#define FAULTY_HELD_MAX 1024u /* more than the tiers below queue: they say when it is full */
#define SPOILT_BYTE     0xdb  /* what a failing read leaves in the buffer */

struct held_io {
	struct kvr_tier_io *io;
	enum kvr_tier_op op; /* as submitted */
	uint32_t bytes;
	int status;   /* forced, or 0 */
	uint64_t due; /* number of the reap call that may return it */
};

struct tier_faulty {
	struct kvr_tier tier;
	struct kvr_tier *below; /* owned */
	struct kvr_tier_faults faults;
	uint64_t reap_count; /* calls so far */
	uint64_t error_count;
	uint32_t held_count;
	struct held_io held[FAULTY_HELD_MAX]; /* F1 */
};

static struct tier_faulty *faulty_of(const struct kvr_tier *tier)
{
	return KVR_CONTAINER_OF(tier, struct tier_faulty, tier);
}

/* Counts one call down; true for the one that is to fail. */
static bool strikes(uint64_t *at)
{
	if (*at == 0)
		return false;
	(*at)--;
	return *at == 0;
}

static int faulty_reserve(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes,
	uint32_t count, struct kvr_place *ret_places)
{
	struct tier_faulty *faulty = faulty_of(tier);

	if (strikes(&faulty->faults.reserve_at)) {
		faulty->error_count++;
		return -ENOSPC;
	}
	return kvr_tier_reserve(faulty->below, group, bytes, count, ret_places);
}

static void faulty_release(
	struct kvr_tier *tier, uint32_t group, const struct kvr_place *places, uint32_t count)
{
	kvr_tier_release(faulty_of(tier)->below, group, places, count);
}

static uint8_t *faulty_address(struct kvr_tier *tier, struct kvr_place place)
{
	return kvr_tier_address(faulty_of(tier)->below, place);
}

/* The status that an io is to end with: 0, or the error of the fault that it runs into. */
static int fault_for(struct kvr_tier_faults *faults, enum kvr_tier_op op)
{
	bool error;
	bool full;

	if (op == KVR_TIER_READ)
		return strikes(&faults->read_error_at) ? -EIO : 0;
	if (op == KVR_TIER_SYNC)
		return strikes(&faults->sync_error_at) ? -EIO : 0;
	error = strikes(&faults->write_error_at);
	full = strikes(&faults->write_full_at);
	if (error)
		return -EIO;
	return full ? -ENOSPC : 0;
}

/* Changes a write that is to fail: to half of it, or to a sync, which writes nothing. */
static void spoil_write(const struct tier_faulty *faulty, struct kvr_tier_io *io, int status)
{
	struct kvr_tier_stat stat;
	uint32_t half;

	kvr_tier_stat(faulty->below, &stat);
	half = io->place.bytes / 2 / stat.alignment * stat.alignment;
	if (status == -ENOSPC || half == 0) {
		io->op = KVR_TIER_SYNC;
		return;
	}
	io->place.bytes = half;
	io->buffer.bytes = half;
}

static void restore(struct kvr_tier_io *io, const struct held_io *held)
{
	io->op = held->op; /* F2 */
	if (held->op == KVR_TIER_SYNC)
		return;
	io->place.bytes = held->bytes;
	io->buffer.bytes = held->bytes;
}

static uint32_t faulty_submit(struct kvr_tier *tier, struct kvr_tier_io *const *ios, uint32_t count)
{
	struct tier_faulty *faulty = faulty_of(tier);
	uint32_t taken = 0;

	while (taken < count && faulty->held_count < FAULTY_HELD_MAX) {
		struct kvr_tier_io *io = ios[taken];
		struct kvr_tier_faults faults = faulty->faults;
		struct held_io held = {
			.io = io,
			.op = io->op,
			.bytes = io->place.bytes,
			.status = fault_for(&faults, io->op),
			.due = faulty->reap_count + faults.delay_reaps + 1,
		};

		if (held.status < 0 && held.op == KVR_TIER_WRITE)
			spoil_write(faulty, io, held.status);
		if (kvr_tier_submit(faulty->below, &io, 1) == 0) {
			restore(io, &held);
			break;
		}
		faulty->faults = faults; /* counted down only by an io that was taken */
		faulty->held[faulty->held_count] = held; /* F1 */
		faulty->held_count++;
		taken++;
	}
	return taken;
}

static uint32_t held_find(const struct tier_faulty *faulty, const struct kvr_tier_io *io)
{
	uint32_t i = 0;

	while (i < faulty->held_count && faulty->held[i].io != io)
		i++;
	KVR_ASSERT(i < faulty->held_count); /* F1 */
	return i;
}

/* How many ios, from the oldest on, may be reaped by now. */
static uint32_t due_count(const struct tier_faulty *faulty, uint32_t max)
{
	uint32_t count = 0;

	while (count < max && count < faulty->held_count &&
		faulty->held[count].due <= faulty->reap_count)
		count++;
	return count;
}

static uint32_t faulty_reap(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max)
{
	struct tier_faulty *faulty = faulty_of(tier);
	uint32_t count;

	faulty->reap_count++;
	count = kvr_tier_reap(faulty->below, ret_ios, due_count(faulty, max));
	for (uint32_t i = 0; i < count; i++) {
		struct kvr_tier_io *io = ret_ios[i];
		uint32_t index = held_find(faulty, io);
		struct held_io held = faulty->held[index];

		faulty->held_count--;
		memmove(&faulty->held[index], &faulty->held[index + 1],
			(faulty->held_count - index) * sizeof(held)); /* F1 */
		restore(io, &held);
		if (held.status == 0)
			continue;
		io->status = held.status;
		faulty->error_count++;
		if (io->op == KVR_TIER_READ)
			memset(io->buffer.data, SPOILT_BYTE, io->buffer.bytes);
	}
	return count;
}

static int faulty_fd(const struct kvr_tier *tier)
{
	return kvr_tier_fd(faulty_of(tier)->below);
}

static void faulty_stat(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat)
{
	const struct tier_faulty *faulty = faulty_of(tier);

	kvr_tier_stat(faulty->below, ret_stat);
	ret_stat->error_count += faulty->error_count;
}

static void faulty_close(struct kvr_tier *tier)
{
	struct tier_faulty *faulty = faulty_of(tier);

	KVR_ASSERT(faulty->held_count == 0); /* T4 */
	kvr_tier_close(faulty->below);
	free(faulty);
}

static const struct kvr_tier_ops faulty_ops = {
	.name = "faulty",
	.reserve = faulty_reserve,
	.release = faulty_release,
	.address = faulty_address,
	.submit = faulty_submit,
	.reap = faulty_reap,
	.fd = faulty_fd,
	.stat = faulty_stat,
	.close = faulty_close,
};

int kvr_tier_open_faulty(struct kvr_tier *below, struct kvr_tier **ret_tier)
{
	struct tier_faulty *faulty = calloc(1, sizeof(*faulty));

	if (!faulty)
		return -ENOMEM;
	faulty->tier.ops = &faulty_ops;
	faulty->below = below;
	*ret_tier = &faulty->tier;
	return 0;
}

void kvr_tier_faulty_arm(struct kvr_tier *tier, const struct kvr_tier_faults *faults)
{
	KVR_ASSERT(tier->ops == &faulty_ops);
	faulty_of(tier)->faults = *faults;
}
