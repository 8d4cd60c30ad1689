/* SPDX-License-Identifier: Apache-2.0 */
/* reads.c: cuts spans at slab boundaries and hands them to the tier. */
#include "daemon/reads.h"

#include <errno.h>
#include <stdlib.h>

#include "base/assert.h"
#include "daemon/directory.h"
#include "tiers/slab.h"

#define REAP_MAX 64u

int kvr_reads_open(struct kvr_reads *reads, struct kvr_tier *tier, struct kvr_arena *arena)
{
	struct kvr_tier_stat stat;

	*reads = (struct kvr_reads){.tier = tier, .arena = arena};
	kvr_list_init(&reads->free);
	kvr_list_init(&reads->unsent);
	kvr_list_init(&reads->waiters);
	if (!tier)
		return 0;
	kvr_tier_stat(tier, &stat);
	reads->alignment = stat.alignment;
	reads->entries = calloc(KVR_READS_MAX, sizeof(*reads->entries));
	if (!reads->entries)
		return -ENOMEM;
	for (uint32_t i = 0; i < KVR_READS_MAX; i++) {
		reads->entries[i].reads = reads;
		kvr_list_push(&reads->free, &reads->entries[i].link);
	}
	return 0;
}

void kvr_reads_close(struct kvr_reads *reads)
{
	KVR_ASSERT(reads->running == 0);
	free(reads->entries);
	*reads = (struct kvr_reads){0};
}

struct kvr_read *kvr_read_take(struct kvr_reads *reads, size_t bytes)
{
	struct kvr_list *node;
	struct kvr_read *read;
	uint8_t *buffer;

	if (kvr_list_empty(&reads->free))
		return NULL;
	bytes += reads->alignment;
	buffer = kvr_arena_alloc(reads->arena, bytes);
	if (!buffer)
		return NULL;
	node = kvr_list_pop(&reads->free);
	read = KVR_CONTAINER_OF(node, struct kvr_read, link);
	KVR_ASSERT(!read->buffer); /* E2 */
	read->buffer = buffer;
	read->buffer_bytes = bytes;
	read->used_bytes = (size_t)(-(uintptr_t)buffer & (reads->alignment - 1)); /* E1 */
	read->span_count = read->io_count = read->io_sent = read->io_done = 0;
	kvr_list_init(&read->waiter.link);
	reads->running++;
	return read;
}

size_t kvr_read_room(const struct kvr_reads *reads, uint32_t bytes)
{
	return ((size_t)bytes + reads->alignment - 1) & ~(size_t)(reads->alignment - 1);
}

/* Slabs that a span touches. */
static uint32_t parts_of(uint64_t at, uint32_t bytes)
{
	return (uint32_t)((at + bytes - 1) / KVR_SLAB_BODY_BYTES - at / KVR_SLAB_BODY_BYTES) + 1;
}

bool kvr_read_fits(const struct kvr_read *read, uint64_t at, uint32_t bytes)
{
	return read->span_count < KVR_READ_SPANS_MAX &&
	       read->io_count + parts_of(at, bytes) <= KVR_READ_IOS_MAX &&
	       bytes <= read->buffer_bytes - read->used_bytes;
}

uint8_t *kvr_read_add(
	struct kvr_read *read, const struct kvr_segment *segment, uint64_t at, uint32_t bytes)
{
	struct kvr_read_span *span = &read->spans[read->span_count];
	uint8_t *memory = read->buffer + read->used_bytes;

	KVR_ASSERT(kvr_read_fits(read, at, bytes));
	KVR_ASSERT(at % read->reads->alignment == 0); /* E1 */
	KVR_ASSERT(bytes % read->reads->alignment == 0);
	KVR_ASSERT(segment->stored == KVR_STORED_YES);
	*span = (struct kvr_read_span){segment, at, bytes, memory, 0};
	for (uint32_t done = 0; done < bytes;) {
		uint32_t offset, left;
		const uint32_t part = kvr_slab_part(at + done, &offset, &left);
		const uint32_t length = left < bytes - done ? left : bytes - done;

		read->span_of_io[read->io_count] = (uint8_t)read->span_count;
		read->ios[read->io_count++] = (struct kvr_tier_io){
			.op = KVR_TIER_READ,
			.place = {(uint64_t)segment->parts[part] * KVR_SLAB_BYTES + offset, length,
				0},
			.buffer = {memory + done, length},
			.owner = read,
		};
		done += length;
	}
	read->span_count++;
	read->used_bytes += bytes;
	return memory;
}

void *kvr_read_scratch(struct kvr_read *read, size_t bytes)
{
	const size_t at = (read->used_bytes + 63) & ~(size_t)63;

	if (at > read->buffer_bytes || bytes > read->buffer_bytes - at)
		return NULL;
	read->used_bytes = at + bytes;
	return read->buffer + at;
}

/* Hands over what the tier takes. Returns whether that was all. */
static bool send(struct kvr_read *read)
{
	const uint32_t left = read->io_count - read->io_sent;

	KVR_ASSERT(left > 0);
	read->io_sent += kvr_tier_submit(read->reads->tier, read->order + read->io_sent, left);
	return read->io_sent == read->io_count;
}

void kvr_read_submit(struct kvr_read *read, enum kvr_tier_priority priority, uint32_t flow,
	void (*done)(struct kvr_read *))
{
	KVR_ASSERT(read->io_count > 0);
	KVR_ASSERT(read->io_sent == 0);
	KVR_STATIC_ASSERT(KVR_READ_SPANS_MAX <= UINT8_MAX);
	KVR_ASSERT(done);
	read->done = done;
	for (uint32_t i = 0; i < read->io_count; i++) {
		read->ios[i].priority = priority;
		read->ios[i].flow = flow;
		read->order[i] = &read->ios[i];
	}
	/* Who waits already goes first. */
	if (!kvr_list_empty(&read->reads->unsent) || !send(read))
		kvr_list_push(&read->reads->unsent, &read->link);
}

void kvr_read_give(struct kvr_read *read)
{
	struct kvr_reads *reads = read->reads;

	KVR_ASSERT(read->io_done == read->io_sent); /* E2 */
	KVR_ASSERT(reads->running > 0);
	kvr_arena_free(reads->arena, read->buffer, read->buffer_bytes);
	read->buffer = NULL;
	reads->running--;
	kvr_list_push(reads->free.next, &read->link);
	kvr_waiters_wake(&reads->waiters);
}

static void send_more(struct kvr_reads *reads)
{
	while (!kvr_list_empty(&reads->unsent)) {
		struct kvr_read *read = KVR_CONTAINER_OF(reads->unsent.next, struct kvr_read, link);

		if (!send(read))
			return;
		kvr_list_remove(&read->link);
	}
}

void kvr_reads_reap(struct kvr_reads *reads)
{
	struct kvr_tier_io *ios[REAP_MAX];
	uint32_t count;

	if (!reads->tier)
		return;
	while ((count = kvr_tier_reap(reads->tier, ios, REAP_MAX)) > 0) {
		for (uint32_t i = 0; i < count; i++) {
			struct kvr_read *read = ios[i]->owner;
			const size_t io = (size_t)(ios[i] - read->ios);

			KVR_ASSERT(io < read->io_count);
			KVR_ASSERT(read->io_done < read->io_sent);
			if (ios[i]->status < 0)
				read->spans[read->span_of_io[io]].status = ios[i]->status;
			reads->read_count++;
			reads->read_bytes += ios[i]->place.bytes;
			if (++read->io_done == read->io_count)
				read->done(read);
		}
		send_more(reads);
	}
}
