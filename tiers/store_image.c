/* SPDX-License-Identifier: Apache-2.0 */
/* store_image.c: a put's segment as slab images: each unit is copied once, checksummed while it
 * is in the cache, and on its way to the disk as soon as its slab is full.
 *
 *   view, tokens ──copy, CRC-32C──► image ──► image ──► image ...   a ring of them; they are
 *                                     └─WRITE─┴─WRITE─┘             written while others are filled
 *
 * It does not wait for writes but for a free image; kvr_store_image_settle does, at the end of a
 * group.
 *
 * Invariants:
 *   M1  An image has an entry from its first byte until its write is back.
 *   M2  What is written behind the body's end is nothing: a slab's last write ends at the page that
 *       has its last byte, and the rest of that page is zeros.
 *
 * Threads: the writer's. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "kernels/crc.h"
#include "tiers/store_private.h"

/* Where the stream of one put stands. */
struct stream {
	struct kvr_store_writer *writer;
	struct kvr_store_entry *entry;
	struct kvr_store_image *image; /* being filled; NULL: between two slabs */
	uint64_t at;
};

/* Waits for an image's write, if there is one, and frees it. */
static void settle(struct kvr_store_writer *writer, struct kvr_store_image *image)
{
	const int status = kvr_store_await(writer->tier, &image->transfer);

	if (image->entry && status < 0 && image->entry->status == 0)
		image->entry->status = status;
	image->entry = NULL; /* M1 */
}

/* The next image of the ring, for the slab that `at` lies in. */
static void begin_slab(struct stream *stream)
{
	struct kvr_store_writer *writer = stream->writer;
	struct kvr_store_image *image = &writer->images[writer->image_next];

	KVR_ASSERT(stream->at % KVR_SLAB_BODY_BYTES == 0);
	settle(writer, image);
	writer->image_next = (writer->image_next + 1) % KVR_STORE_IMAGES_MAX;
	image->entry = stream->entry; /* M1 */
	stream->image = image;
}

/* Writes the header of the slab that ends at `at`, and starts its write. */
static void end_slab(struct stream *stream)
{
	struct kvr_store_writer *writer = stream->writer;
	const struct kvr_store_entry *entry = stream->entry;
	const uint32_t part = (uint32_t)((stream->at - 1) / KVR_SLAB_BODY_BYTES);
	struct kvr_slab_header header = {
		.segment = entry->id,
		.part = part,
		.part_count = entry->layout.part_count,
		.body_bytes = (uint32_t)(stream->at - (uint64_t)part * KVR_SLAB_BODY_BYTES),
	};

	KVR_ASSERT(stream->at % KVR_SLAB_HEADER_BYTES == 0); /* M2 */
	memcpy(header.store, writer->store->meta.uuid, KVR_SLAB_UUID_BYTES);
	kvr_slab_pack_header(&header, stream->image->memory);
	kvr_store_start(writer->tier, &stream->image->transfer, KVR_TIER_WRITE, 0,
		(uint64_t)entry->job->put.parts[part] * KVR_SLAB_BYTES,
		(struct kvr_span){
			stream->image->memory, KVR_SLAB_HEADER_BYTES + header.body_bytes});
	stream->image = NULL;
}

/* The image's memory at `at`, and how much of it there is. */
static uint8_t *room(struct stream *stream, uint32_t *ret_bytes)
{
	uint32_t offset;

	(void)kvr_slab_part(stream->at, &offset, ret_bytes);
	if (!stream->image)
		begin_slab(stream);
	return stream->image->memory + offset;
}

/* Appends bytes, or zeros where `data` is NULL. */
static void append(struct stream *stream, const uint8_t *data, uint64_t bytes)
{
	while (bytes > 0) {
		uint32_t left;
		uint8_t *to = room(stream, &left);
		const uint32_t some = bytes < left ? (uint32_t)bytes : left;

		if (data) {
			memcpy(to, data, some);
			data += some;
		} else {
			memset(to, 0, some);
		}
		stream->at += some;
		bytes -= some;
		if (some == left)
			end_slab(stream);
	}
}

static void append_head(struct stream *stream, uint32_t summary_crc)
{
	const struct kvr_store_put *put = &stream->entry->job->put;
	struct kvr_slab_head head = {
		.segment = stream->entry->id,
		.token_first = put->view->token_first,
		.token_count = put->view->token_count,
		.summary_crc = summary_crc,
		.model = *put->model,
	};
	uint32_t left;

	KVR_ASSERT(stream->at == 0);
	memcpy(head.hash, put->hash, KVR_HASH_BYTES);
	memcpy(head.parent, put->parent, KVR_HASH_BYTES);
	kvr_slab_pack_head(&head, room(stream, &left));
	KVR_ASSERT(left > KVR_SLAB_HEADER_BYTES);
	stream->at += KVR_SLAB_HEADER_BYTES;
}

static void append_summary(struct stream *stream)
{
	const struct kvr_store_put *put = &stream->entry->job->put;
	const uint64_t token_bytes = (uint64_t)put->view->token_count * sizeof(*put->tokens);
	const uint64_t bytes = stream->entry->layout.summary_bytes - token_bytes;
	const uint8_t *tokens = (const uint8_t *)put->tokens;

	append_head(
		stream, kvr_crc32c(kvr_crc32c(0, tokens, token_bytes), put->view->memory, bytes));
	append(stream, tokens, token_bytes);
	append(stream, put->view->memory, bytes);
	append(stream, NULL, stream->entry->layout.payload_at - stream->at);
}

static void append_unit(struct stream *stream, uint32_t lane, uint32_t unit)
{
	const struct kvr_store_put *put = &stream->entry->job->put;
	const struct kvr_segment_view *view = put->view;
	const uint8_t *from;
	uint32_t bytes;
	const uint64_t at = kvr_slab_unit_at(&stream->entry->layout, view, lane, unit, &bytes);
	uint32_t *crc = put->crcs + (size_t)lane * view->unit_count + unit;

	*crc = 0;
	if (bytes == 0)
		return;
	from = kvr_segment_get_extent(view, lane, unit);
	KVR_ASSERT(from && from != KVR_EXTENT_LOST);
	KVR_ASSERT(at == stream->at);
	/* The copy waits for memory with more loads at once than the checksum, which then
	 * finds the rows in the cache. */
	append(stream, from, bytes);
	*crc = kvr_crc32c(0, from, bytes);
}

/* In the order of the stream: clusters lane by lane, merged sets set by set. */
static void append_units(struct stream *stream)
{
	const struct kvr_store_entry *entry = stream->entry;
	const struct kvr_segment_view *view = entry->job->put.view;
	const uint32_t lanes = kvr_geometry_lanes(view->geometry);

	for (uint32_t lane = 0; lane < lanes && entry->status == 0; lane++)
		for (uint32_t unit = 0; unit <= view->cluster_max; unit++)
			append_unit(stream, lane, unit);
	for (uint32_t unit = view->cluster_max + 1; unit < view->unit_count; unit++)
		for (uint32_t lane = 0; lane < lanes && entry->status == 0; lane++)
			append_unit(stream, lane, unit);
}

static void append_checksums(struct stream *stream)
{
	const struct kvr_store_put *put = &stream->entry->job->put;
	const size_t bytes = kvr_segment_extent_count(put->view) * sizeof(*put->crcs);
	const uint32_t crc = kvr_crc32c(0, put->crcs, bytes);

	append(stream, NULL, stream->entry->layout.checksums_at - stream->at);
	append(stream, (const uint8_t *)put->crcs, bytes);
	append(stream, (const uint8_t *)&crc, sizeof(crc));
	append(stream, NULL, stream->entry->layout.stream_bytes - stream->at);
	if (stream->image)
		end_slab(stream);
}

void kvr_store_image_put(struct kvr_store_writer *writer, struct kvr_store_entry *entry)
{
	struct stream stream = {.writer = writer, .entry = entry};

	KVR_ASSERT(entry->reserved);
	KVR_ASSERT(entry->status == 0);
	append_summary(&stream);
	append_units(&stream);
	if (entry->status == 0)
		append_checksums(&stream);
	else if (stream.image)
		stream.image->entry = NULL; /* a write has failed: the rest need not be tried */
}

void kvr_store_image_settle(struct kvr_store_writer *writer)
{
	for (uint32_t i = 0; i < KVR_STORE_IMAGES_MAX; i++)
		settle(writer, &writer->images[i]);
}
