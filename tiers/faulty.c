/* SPDX-License-Identifier: Apache-2.0 */
/* faulty.c: lets every call through to the tier below, and spoils the ones it was told to.
 *
 *   submit: note in held[] ─┬─► (half a write: length changed) ─► below
 *                           └─► nothing for it to do below: stays here
 *   reap:   below ─► find in held[] ─► length restored, status and buffer spoilt ─► caller
 *           here, if due ─► status and buffer spoilt ────────────────────────────┘
 *
 * The descriptor is an epoll over that of the tier below and an eventfd for what stays here.
 *
 * Invariants:
 *   F1  held[0 .. held_count - 1] are the ios submitted and not reaped, in that order; here_count of them stay here.
 *   F2  What the submitter set in an io is there again when the io is reaped.
 *   F3  The eventfd is readable if and only if here_count > 0.
 *
 * Threads: the tier's owner. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/faulty.h"

#define FAULTY_HELD_MAX 1024u /* as many as any tier below queues: they say when it is full */
#define SPOILT_BYTE     0xdb  /* what a failing read leaves in the buffer */
#define MILLION         1000000u

enum spoilt {
	SPOILT_NOT,
	SPOILT_ERROR, /* -EIO; of a write, half is written */
	SPOILT_SHORT,
	SPOILT_FLIP,
	SPOILT_FULL,
	SPOILT_LOST,
};

struct held_io {
	struct kvr_tier_io *io;
	enum spoilt spoilt;
	bool here;      /* never went below */
	uint32_t bytes; /* as submitted */
	uint64_t due;   /* number of the reap call that may return it */
};

struct tier_faulty {
	struct kvr_tier tier;
	struct kvr_tier *below; /* owned */
	struct kvr_tier_faults faults;
	uint64_t reap_count; /* calls so far */
	uint64_t error_count;
	int poll_fd;  /* -1 where the tier below has none */
	int event_fd; /* F3 */
	uint32_t here_count;
	uint32_t held_count;
	struct held_io held[FAULTY_HELD_MAX]; /* F1 */
};

static struct tier_faulty *faulty_of(const struct kvr_tier *tier)
{
	return KVR_CONTAINER_OF(tier, struct tier_faulty, tier);
}

/* splitmix64 (Steele et al., OOPSLA 2014). */
static uint64_t draw(struct kvr_tier_faults *faults)
{
	uint64_t z = faults->seed += 0x9e3779b97f4a7c15u;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
	return z ^ (z >> 31);
}

/* Counts one call down; true if it is to fail, for either reason. */
static bool strikes(struct kvr_tier_faults *faults, uint64_t *at, uint32_t ppm)
{
	bool struck = false;

	if (*at > 0) {
		(*at)--;
		struck = *at == 0;
	}
	if (ppm > 0 && draw(faults) % MILLION < ppm)
		struck = true;
	return struck;
}

static int faulty_reserve(struct kvr_tier *tier, uint32_t group, const uint32_t *bytes,
	uint32_t count, struct kvr_place *ret_places)
{
	struct tier_faulty *faulty = faulty_of(tier);

	if (strikes(&faulty->faults, &faulty->faults.reserve_at, faulty->faults.reserve_ppm)) {
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

/* The fault that an io runs into. Every kind counts it, and the gravest wins. */
static enum spoilt fault_for(struct kvr_tier_faults *f, enum kvr_tier_op op)
{
	enum spoilt spoilt = SPOILT_NOT;

	switch (op) {
	case KVR_TIER_READ:
		if (strikes(f, &f->read_flip_at, f->read_flip_ppm))
			spoilt = SPOILT_FLIP;
		if (strikes(f, &f->read_short_at, f->read_short_ppm))
			spoilt = SPOILT_SHORT;
		if (strikes(f, &f->read_error_at, f->read_error_ppm))
			spoilt = SPOILT_ERROR;
		break;
	case KVR_TIER_WRITE:
		if (strikes(f, &f->write_lost_at, f->write_lost_ppm))
			spoilt = SPOILT_LOST;
		if (strikes(f, &f->write_full_at, f->write_full_ppm))
			spoilt = SPOILT_FULL;
		if (strikes(f, &f->write_error_at, f->write_error_ppm))
			spoilt = SPOILT_ERROR;
		break;
	case KVR_TIER_SYNC:
		if (strikes(f, &f->sync_lost_at, f->sync_lost_ppm))
			spoilt = SPOILT_LOST;
		if (strikes(f, &f->sync_error_at, f->sync_error_ppm))
			spoilt = SPOILT_ERROR;
		break;
	}
	return spoilt;
}

/* Prepares a spoilt io. Returns whether it stays here. */
static bool spoil_before(
	const struct tier_faulty *faulty, struct kvr_tier_io *io, enum spoilt spoilt)
{
	struct kvr_tier_stat stat;
	uint32_t half;

	if (spoilt == SPOILT_NOT || spoilt == SPOILT_FLIP || spoilt == SPOILT_SHORT)
		return false;
	if (io->op != KVR_TIER_WRITE || spoilt != SPOILT_ERROR)
		return true;
	kvr_tier_stat(faulty->below, &stat);
	half = io->place.bytes / 2 / stat.alignment * stat.alignment;
	if (half == 0)
		return true;
	io->place.bytes = half;
	io->buffer.bytes = half;
	return false;
}

static void restore(struct kvr_tier_io *io, const struct held_io *held)
{
	if (io->op == KVR_TIER_SYNC)
		return;
	io->place.bytes = held->bytes; /* F2 */
	io->buffer.bytes = held->bytes;
}

static void set_here(struct tier_faulty *faulty, uint32_t count)
{
	const bool before = faulty->here_count > 0;
	eventfd_t value;

	faulty->here_count = count;
	if (faulty->event_fd < 0 || before == (count > 0))
		return;
	if (count > 0)
		eventfd_write(faulty->event_fd, 1); /* F3 */
	else
		eventfd_read(faulty->event_fd, &value); /* F3 */
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
			.spoilt = fault_for(&faults, io->op),
			.bytes = io->place.bytes,
			.due = faulty->reap_count + faults.delay_reaps + 1,
		};

		held.here = spoil_before(faulty, io, held.spoilt);
		if (held.here) {
			io->status = 0;
			set_here(faulty, faulty->here_count + 1);
		} else if (kvr_tier_submit(faulty->below, &io, 1) == 0) {
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

/* How many ios, from the oldest on, may be reaped by now; of them, those that went below. */
static uint32_t due_below(const struct tier_faulty *faulty, uint32_t max)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < faulty->held_count && count < max; i++) {
		if (faulty->held[i].due > faulty->reap_count)
			break;
		count += !faulty->held[i].here;
	}
	return count;
}

/* Takes an io off held[] and gives it the end that it was to have. */
static void end_io(struct tier_faulty *faulty, uint32_t index)
{
	const struct held_io held = faulty->held[index];
	struct kvr_tier_io *io = held.io;

	faulty->held_count--;
	memmove(&faulty->held[index], &faulty->held[index + 1],
		(faulty->held_count - index) * sizeof(held)); /* F1 */
	restore(io, &held);
	if (held.spoilt == SPOILT_ERROR || held.spoilt == SPOILT_SHORT)
		io->status = -EIO;
	if (held.spoilt == SPOILT_FULL)
		io->status = -ENOSPC;
	if (held.spoilt != SPOILT_NOT)
		faulty->error_count++;
	if (io->op != KVR_TIER_READ)
		return;
	if (held.spoilt == SPOILT_ERROR)
		memset(io->buffer.data, SPOILT_BYTE, io->buffer.bytes);
	if (held.spoilt == SPOILT_SHORT)
		memset(io->buffer.data + io->buffer.bytes / 2, SPOILT_BYTE,
			io->buffer.bytes - io->buffer.bytes / 2);
	if (held.spoilt == SPOILT_FLIP) {
		const uint64_t bit = draw(&faulty->faults) % (io->buffer.bytes * 8);

		io->buffer.data[bit / 8] ^= (uint8_t)(1u << bit % 8);
	}
}

static uint32_t faulty_reap(struct kvr_tier *tier, struct kvr_tier_io **ret_ios, uint32_t max)
{
	struct tier_faulty *faulty = faulty_of(tier);
	uint32_t count;

	faulty->reap_count++;
	count = kvr_tier_reap(faulty->below, ret_ios, due_below(faulty, max));
	for (uint32_t i = 0; i < count; i++)
		end_io(faulty, held_find(faulty, ret_ios[i]));
	for (uint32_t i = 0; faulty->here_count > 0 && i < faulty->held_count && count < max;) {
		const struct held_io held = faulty->held[i];

		if (held.due > faulty->reap_count)
			break;
		if (!held.here) {
			i++;
			continue;
		}
		end_io(faulty, i);
		set_here(faulty, faulty->here_count - 1);
		ret_ios[count] = held.io;
		count++;
	}
	return count;
}

static int faulty_fd(const struct kvr_tier *tier)
{
	return faulty_of(tier)->poll_fd;
}

static void faulty_stat(const struct kvr_tier *tier, struct kvr_tier_stat *ret_stat)
{
	const struct tier_faulty *faulty = faulty_of(tier);

	kvr_tier_stat(faulty->below, ret_stat);
	ret_stat->error_count += faulty->error_count;
}

static void faulty_free(struct tier_faulty *faulty)
{
	if (faulty->poll_fd >= 0)
		close(faulty->poll_fd);
	if (faulty->event_fd >= 0)
		close(faulty->event_fd);
	free(faulty);
}

static void faulty_close(struct kvr_tier *tier)
{
	struct tier_faulty *faulty = faulty_of(tier);

	KVR_ASSERT(faulty->held_count == 0); /* T4 */
	KVR_ASSERT(faulty->here_count == 0);
	kvr_tier_close(faulty->below);
	faulty_free(faulty);
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

/* Makes the descriptor, where the tier below has one. */
static int make_fd(struct tier_faulty *faulty)
{
	struct epoll_event event = {.events = EPOLLIN};
	const int below_fd = kvr_tier_fd(faulty->below);

	if (below_fd < 0)
		return 0;
	faulty->poll_fd = epoll_create1(EPOLL_CLOEXEC);
	faulty->event_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	if (faulty->poll_fd < 0 || faulty->event_fd < 0)
		return -errno;
	if (epoll_ctl(faulty->poll_fd, EPOLL_CTL_ADD, below_fd, &event) < 0 ||
		epoll_ctl(faulty->poll_fd, EPOLL_CTL_ADD, faulty->event_fd, &event) < 0)
		return -errno;
	return 0;
}

int kvr_tier_open_faulty(struct kvr_tier *below, struct kvr_tier **ret_tier)
{
	struct tier_faulty *faulty = calloc(1, sizeof(*faulty));
	int rc;

	if (!faulty)
		return -ENOMEM;
	faulty->tier.ops = &faulty_ops;
	faulty->below = below;
	faulty->poll_fd = -1;
	faulty->event_fd = -1;
	rc = make_fd(faulty);
	if (rc < 0) {
		faulty_free(faulty); /* the tier below stays the caller's */
		return rc;
	}
	*ret_tier = &faulty->tier;
	return 0;
}

void kvr_tier_faulty_arm(struct kvr_tier *tier, const struct kvr_tier_faults *faults)
{
	KVR_ASSERT(tier->ops == &faulty_ops);
	faulty_of(tier)->faults = *faults;
}
