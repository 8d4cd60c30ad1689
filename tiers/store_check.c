/* SPDX-License-Identifier: Apache-2.0 */
/* store_check.c: a whole segment read from its slabs, every byte of it against a checksum.
 *
 *   header, head of the first slab ─► layout ─► stream: head, ids, summary │ units    │ checksums
 *                                               └ CRC-32C in the head ──┘ └ one each ┘ └ its own
 *
 * Nothing of the catalog is used here but which slabs to read: verify compares the two, rebuild has
 * no other.
 *
 * Threads: the caller's, offline. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "kernels/crc.h"
#include "tiers/store_private.h"

#define FIRST_BYTES ((size_t)2 * KVR_SLAB_HEADER_BYTES) /* header and head of a first slab */

_Static_assert(KVR_STORE_PAGES_MAX *FIRST_BYTES <= KVR_STORE_SLOTS_MAX * (size_t)KVR_SLAB_BYTES,
	"they are read into the slots");

uint8_t *kvr_store_slots(const struct kvr_store *store)
{
	return store->memory.base + (size_t)KVR_STORE_IMAGES_MAX * KVR_SLAB_BYTES;
}

const uint8_t *kvr_store_read_pages(
	struct kvr_store *store, const uint32_t *slabs, uint32_t count, int *ret_statuses)
{
	struct kvr_store_transfer transfers[KVR_STORE_PAGES_MAX] = {0};
	uint8_t *memory = kvr_store_slots(store);

	KVR_ASSERT(count <= KVR_STORE_PAGES_MAX);
	for (uint32_t i = 0; i < count; i++)
		kvr_store_start(store->reader.tier, &transfers[i], KVR_TIER_READ, 0,
			(uint64_t)slabs[i] * KVR_SLAB_BYTES,
			(struct kvr_span){memory + i * FIRST_BYTES, FIRST_BYTES});
	for (uint32_t i = 0; i < count; i++)
		ret_statuses[i] = kvr_store_await(store->reader.tier, &transfers[i]);
	return memory;
}

/* Memory for what the head says there is. The slabs are there: so much is not invented. */
static int make_room(struct kvr_store_checked *checked)
{
	const uint64_t token_bytes = (uint64_t)checked->head.token_count * sizeof(uint32_t);
	const size_t memory_bytes = checked->layout.summary_bytes - token_bytes;
	const size_t crc_count = kvr_segment_extent_count(&checked->view);

	free(checked->memory);
	free(checked->tokens);
	free(checked->crcs);
	checked->memory = aligned_alloc(64, memory_bytes);
	checked->tokens = malloc(token_bytes);
	checked->crcs = calloc(crc_count, sizeof(*checked->crcs));
	if (!checked->memory || !checked->tokens || !checked->crcs)
		return -ENOMEM;
	kvr_segment_bind(&checked->view, checked->memory);
	return 0;
}

/* Reads the head alone, and from it the layout. */
static int read_head(struct kvr_store *store, struct kvr_store_checked *checked)
{
	struct kvr_slab_header header;
	const uint8_t *pages;
	int rc;

	pages = kvr_store_read_pages(store, checked->parts, 1, &rc);
	if (rc < 0)
		return rc;
	checked->bytes_read += FIRST_BYTES;
	if (kvr_slab_unpack_header(pages, &header) < 0 ||
		kvr_slab_unpack_head(pages + KVR_SLAB_HEADER_BYTES, &checked->head) < 0)
		return -EBADMSG;
	if (checked->head.segment != checked->id)
		return -EBADMSG;
	kvr_slab_layout(&checked->head.model.geometry, checked->head.token_first,
		checked->head.token_count, &checked->layout);
	if (checked->layout.part_count != checked->part_count)
		return -EBADMSG;
	kvr_segment_shape(&checked->view, &checked->head.model.geometry, checked->head.token_first,
		checked->head.token_count);
	return make_room(checked);
}

static int take_summary(struct kvr_store_stream *stream, struct kvr_store_checked *checked)
{
	const uint64_t token_bytes = (uint64_t)checked->head.token_count * sizeof(uint32_t);
	uint32_t crc = 0;
	int rc = kvr_store_stream_seek(stream, checked->layout.summary_at);

	if (rc == 0)
		rc = kvr_store_stream_take(stream, checked->tokens, token_bytes, &crc);
	if (rc == 0)
		rc = kvr_store_stream_take(
			stream, checked->memory, checked->layout.summary_bytes - token_bytes, &crc);
	if (rc < 0)
		return rc;
	if (crc != checked->head.summary_crc || !kvr_slab_summary_valid(&checked->view))
		return -EBADMSG;
	return kvr_store_stream_seek(stream, checked->layout.payload_at);
}

static int take_unit(struct kvr_store_stream *stream, struct kvr_store_checked *checked,
	uint32_t lane, uint32_t unit)
{
	const struct kvr_segment_view *view = &checked->view;
	uint32_t bytes;
	const uint64_t at = kvr_slab_unit_at(&checked->layout, view, lane, unit, &bytes);

	if (bytes == 0)
		return 0;
	KVR_ASSERT(at == stream->at);
	return kvr_store_stream_take(
		stream, NULL, bytes, &checked->crcs[(size_t)lane * view->unit_count + unit]);
}

/* The checksums of what the units' bytes are now, in the order of the stream. */
static int take_units(struct kvr_store_stream *stream, struct kvr_store_checked *checked)
{
	const struct kvr_segment_view *view = &checked->view;
	const uint32_t lanes = kvr_geometry_lanes(view->geometry);
	int rc = 0;

	for (uint32_t lane = 0; lane < lanes; lane++)
		for (uint32_t unit = 0; unit <= view->cluster_max && rc == 0; unit++)
			rc = take_unit(stream, checked, lane, unit);
	for (uint32_t unit = view->cluster_max + 1; unit < view->unit_count; unit++)
		for (uint32_t lane = 0; lane < lanes && rc == 0; lane++)
			rc = take_unit(stream, checked, lane, unit);
	return rc < 0 ? rc : kvr_store_stream_seek(stream, checked->layout.checksums_at);
}

/* The stored checksums: their own, and then each against the unit's. */
static int take_checksums(struct kvr_store_stream *stream, struct kvr_store_checked *checked)
{
	const size_t count = kvr_segment_extent_count(&checked->view);
	uint32_t own = 0;
	uint32_t value;
	int rc;

	for (size_t i = 0; i < count; i++) {
		rc = kvr_store_stream_take(stream, &value, sizeof(value), &own);
		if (rc < 0)
			return rc;
		if (value == checked->crcs[i])
			continue;
		if (i % checked->view.unit_count <= checked->view.cluster_max)
			checked->damaged_cluster_count++;
		else
			checked->damaged_merged_count++;
	}
	rc = kvr_store_stream_take(stream, &value, sizeof(value), NULL);
	if (rc < 0)
		return rc;
	return value == own ? 0 : -EBADMSG;
}

int kvr_store_check(struct kvr_store *store, struct kvr_store_checked *checked)
{
	struct kvr_store_stream *stream = &store->reader.stream;
	int rc;

	KVR_ASSERT(checked->part_count >= 1);
	checked->damaged_cluster_count = 0;
	checked->damaged_merged_count = 0;
	rc = read_head(store, checked);
	if (rc < 0)
		return rc;
	*stream = (struct kvr_store_stream){
		.tier = store->reader.tier,
		.memory = kvr_store_slots(store),
		.uuid = store->meta.uuid,
		.segment = checked->id,
		.parts = checked->parts,
		.part_count = checked->part_count,
		.stream_bytes = checked->layout.stream_bytes,
		.end = checked->layout.stream_bytes,
	};
	kvr_store_stream_start(stream);
	rc = take_summary(stream, checked);
	if (rc == 0)
		rc = take_units(stream, checked);
	if (rc == 0)
		rc = take_checksums(stream, checked);
	kvr_store_stream_stop(stream);
	checked->bytes_read += stream->bytes_read;
	return rc;
}

void kvr_store_check_fini(struct kvr_store_checked *checked)
{
	free(checked->memory);
	free(checked->tokens);
	free(checked->crcs);
	*checked = (struct kvr_store_checked){0};
}
