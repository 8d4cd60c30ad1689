/* SPDX-License-Identifier: Apache-2.0 */
/* store_io.c: transfers over a channel by a thread that may block, and segments' streams read in
 * order.
 *
 * It knows slabs and their headers, and not what is in a stream.
 *
 *   slots   [part 8][part 1][part 2] ... [part 7]   part p in slot p % KVR_STORE_SLOTS_MAX;
 *                      ▲ at                          those behind it are being read
 *
 * Invariants:
 *   R1  Parts [part of `at`, started) are in their slots or on their way.
 *   R2  No slot is in flight when stop returns.
 *
 * Threads: a channel's own. */
#include <errno.h>
#include <poll.h>
#include <string.h>

#include "base/assert.h"
#include "kernels/crc.h"
#include "tiers/store_private.h"

#define REAP_MAX 32u
#define WIPE_MAX 32u /* headers in flight */

/* Takes what has come back. Returns how many. */
static uint32_t reap(struct kvr_tier *tier)
{
	struct kvr_tier_io *ios[REAP_MAX];
	const uint32_t count = kvr_tier_reap(tier, ios, REAP_MAX);

	for (uint32_t i = 0; i < count; i++) {
		struct kvr_store_transfer *transfer = ios[i]->owner;

		KVR_ASSERT(transfer->flying);
		transfer->flying = false;
		transfer->status = ios[i]->status < 0 ? -EIO : 0;
	}
	return count;
}

/* Takes something that has come back; blocks until there is something. */
static void reap_some(struct kvr_tier *tier)
{
	struct pollfd ready = {.fd = kvr_tier_fd(tier), .events = POLLIN};

	while (reap(tier) == 0) {
		if (ready.fd >= 0)
			(void)poll(&ready, 1, -1);
	}
}

/* Submits; a full tier becomes less full by reaping. */
static void submit(struct kvr_tier *tier, struct kvr_store_transfer *transfer)
{
	struct kvr_tier_io *io = &transfer->io;

	KVR_ASSERT(!transfer->flying);
	io->owner = transfer;
	transfer->flying = true;
	transfer->status = 0;
	while (kvr_tier_submit(tier, &io, 1) == 0)
		reap_some(tier);
}

void kvr_store_start(struct kvr_tier *tier, struct kvr_store_transfer *transfer,
	enum kvr_tier_op op, uint32_t flow, uint64_t offset, struct kvr_span buffer)
{
	KVR_ASSERT(op != KVR_TIER_SYNC);
	KVR_ASSERT(offset % KVR_SLAB_HEADER_BYTES == 0);
	KVR_ASSERT(buffer.bytes % KVR_SLAB_HEADER_BYTES == 0);
	KVR_ASSERT(buffer.bytes <= KVR_SLAB_BYTES);
	transfer->io = (struct kvr_tier_io){
		.op = op,
		.priority = KVR_TIER_NORMAL,
		.flow = flow,
		.place = {.offset = offset, .bytes = (uint32_t)buffer.bytes},
		.buffer = buffer,
	};
	submit(tier, transfer);
}

int kvr_store_await(struct kvr_tier *tier, struct kvr_store_transfer *transfer)
{
	while (transfer->flying)
		reap_some(tier);
	return transfer->status;
}

int kvr_store_sync(struct kvr_tier *tier)
{
	struct kvr_store_transfer transfer = {.io = {.op = KVR_TIER_SYNC}};

	submit(tier, &transfer);
	return kvr_store_await(tier, &transfer);
}

int kvr_store_wipe(struct kvr_tier *tier, uint8_t *zeros, const uint32_t *slabs, uint32_t count,
	bool *ret_failed)
{
	struct kvr_store_transfer transfers[WIPE_MAX];
	int error = 0;

	for (uint32_t first = 0; first < count; first += WIPE_MAX) {
		const uint32_t some = count - first < WIPE_MAX ? count - first : WIPE_MAX;

		memset(transfers, 0, sizeof(transfers));
		for (uint32_t i = 0; i < some; i++)
			kvr_store_start(tier, &transfers[i], KVR_TIER_WRITE, 0,
				(uint64_t)slabs[first + i] * KVR_SLAB_BYTES,
				(struct kvr_span){zeros, KVR_SLAB_HEADER_BYTES});
		for (uint32_t i = 0; i < some; i++) {
			const int rc = kvr_store_await(tier, &transfers[i]);

			if (ret_failed)
				ret_failed[first + i] = rc < 0;
			if (error == 0)
				error = rc;
		}
	}
	return error;
}

/* ---- streams --------------------------------------------------------------------------------- */

/* Bytes of the stream that lie in a part, up to `end`. */
static uint32_t body_bytes(uint64_t end, uint32_t part)
{
	const uint64_t left = end - (uint64_t)part * KVR_SLAB_BODY_BYTES;

	return left < KVR_SLAB_BODY_BYTES ? (uint32_t)left : KVR_SLAB_BODY_BYTES;
}

static uint8_t *slot_memory(const struct kvr_store_stream *stream, uint32_t part)
{
	return stream->memory + (size_t)(part % KVR_STORE_SLOTS_MAX) * KVR_SLAB_BYTES;
}

/* Starts the reads of the parts that have a slot now (R1). */
static void read_ahead(struct kvr_store_stream *stream, uint32_t part)
{
	while (stream->started < part + KVR_STORE_SLOTS_MAX &&
		(uint64_t)stream->started * KVR_SLAB_BODY_BYTES < stream->end) {
		const uint32_t bytes =
			KVR_SLAB_HEADER_BYTES + body_bytes(stream->end, stream->started);

		kvr_store_start(stream->tier, &stream->slots[stream->started % KVR_STORE_SLOTS_MAX],
			KVR_TIER_READ, (uint32_t)stream->segment,
			(uint64_t)stream->parts[stream->started] * KVR_SLAB_BYTES,
			(struct kvr_span){slot_memory(stream, stream->started), bytes});
		stream->bytes_read += bytes;
		stream->started++;
	}
}

/* Waits for a part and checks that it is this one of this segment. */
static int enter_part(struct kvr_store_stream *stream, uint32_t part)
{
	struct kvr_slab_header header;
	int rc = kvr_store_await(stream->tier, &stream->slots[part % KVR_STORE_SLOTS_MAX]);

	if (rc < 0)
		return rc;
	if (kvr_slab_unpack_header(slot_memory(stream, part), &header) < 0)
		return -EBADMSG;
	if (memcmp(header.store, stream->uuid, KVR_SLAB_UUID_BYTES) != 0 ||
		header.segment != stream->segment || header.part != part ||
		header.part_count != stream->part_count ||
		header.body_bytes != body_bytes(stream->stream_bytes, part))
		return -EBADMSG;
	return 0;
}

void kvr_store_stream_start(struct kvr_store_stream *stream)
{
	KVR_ASSERT(stream->end <= stream->stream_bytes);
	KVR_ASSERT(stream->end % KVR_SLAB_HEADER_BYTES == 0);
	KVR_ASSERT(stream->stream_bytes <= (uint64_t)stream->part_count * KVR_SLAB_BODY_BYTES);
	stream->at = 0;
	stream->started = 0;
	stream->bytes_read = 0;
	memset(stream->slots, 0, sizeof(stream->slots));
	read_ahead(stream, 0);
}

int kvr_store_stream_take(
	struct kvr_store_stream *stream, void *into, uint64_t bytes, uint32_t *crc)
{
	uint8_t *to = into;

	KVR_ASSERT(bytes <= stream->end - stream->at);
	while (bytes > 0) {
		uint32_t offset;
		uint32_t left;
		const uint32_t part = kvr_slab_part(stream->at, &offset, &left);
		const uint32_t some = bytes < left ? (uint32_t)bytes : left;
		const uint8_t *from = slot_memory(stream, part) + offset;

		if (left == KVR_SLAB_BODY_BYTES) {
			int rc = enter_part(stream, part);

			if (rc < 0)
				return rc;
		}
		if (crc)
			*crc = kvr_crc32c(*crc, from, some);
		if (to) {
			memcpy(to, from, some);
			to += some;
		}
		stream->at += some;
		bytes -= some;
		if (some == left)
			read_ahead(stream, part + 1);
	}
	return 0;
}

int kvr_store_stream_seek(struct kvr_store_stream *stream, uint64_t at)
{
	KVR_ASSERT(at >= stream->at);
	return kvr_store_stream_take(stream, NULL, at - stream->at, NULL);
}

void kvr_store_stream_stop(struct kvr_store_stream *stream)
{
	for (uint32_t i = 0; i < KVR_STORE_SLOTS_MAX; i++)
		(void)kvr_store_await(stream->tier, &stream->slots[i]); /* R2 */
}
