/* SPDX-License-Identifier: Apache-2.0 */
/* store_load.c: LOAD: a segment's summary, its token ids, and where its units lie.
 *
 *   catalog: segment, slabs ─► disk: head, ids, summary ─► checked ─► catalog: rows of units,
 *                                                          lane by lane, against the summary
 *
 * What comes from the disk is used for nothing before its checksum was right, and what comes from
 * the catalog is compared with what the summary says must be there: offsets and lengths that
 * recalls use are computed, never read (H6).
 *
 * Threads: the reader's. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

/* The row of the catalog, with the slabs into the caller's memory. */
static int find_parts(struct kvr_store_reader *reader, struct kvr_store_load *load,
	const struct kvr_slab_layout *layout)
{
	struct kvr_catalog_segment segment = {.parts = load->parts};
	int rc = kvr_catalog_find(
		reader->reader, load->hash, load->parts, layout->part_count, &segment);

	if (rc < 0)
		return rc == -E2BIG ? -EBADMSG : rc;
	if (segment.id != load->id)
		return -ENOENT;
	if (segment.part_count != layout->part_count ||
		segment.token_first != load->view->token_first ||
		segment.token_count != load->view->token_count)
		return -EBADMSG;
	for (uint32_t i = 0; i < layout->part_count; i++) {
		if (load->parts[i] >= reader->store->meta.slabs_bytes / KVR_SLAB_BYTES)
			return -EBADMSG;
	}
	return 0;
}

/* Whether two geometries are the same in all that layouts depend on. */
static bool same_geometry(const struct kvr_geometry *one, const struct kvr_geometry *other)
{
	return one->layer_count == other->layer_count && one->query_heads == other->query_heads &&
	       one->kv_heads == other->kv_heads && one->key_dim == other->key_dim &&
	       one->value_dim == other->value_dim && one->dtype == other->dtype &&
	       one->segment_tokens == other->segment_tokens &&
	       one->cluster_tokens == other->cluster_tokens &&
	       one->sink_tokens == other->sink_tokens && one->merged == other->merged &&
	       memcmp(one->dense, other->dense, sizeof(one->dense)) == 0;
}

static bool head_fits(const struct kvr_slab_head *head, const struct kvr_store_load *load)
{
	return head->segment == load->id && memcmp(head->hash, load->hash, KVR_HASH_BYTES) == 0 &&
	       head->token_first == load->view->token_first &&
	       head->token_count == load->view->token_count &&
	       same_geometry(&head->model.geometry, load->view->geometry);
}

/* Head, ids and summary, through the stream. */
static int read_summary(struct kvr_store_reader *reader, struct kvr_store_load *load,
	const struct kvr_slab_layout *layout)
{
	struct kvr_store_stream *stream = &reader->stream;
	const uint64_t token_bytes = (uint64_t)load->view->token_count * sizeof(*load->tokens);
	struct kvr_slab_head head;
	uint32_t crc = 0;
	int rc = kvr_store_stream_take(stream, reader->page, KVR_SLAB_HEADER_BYTES, NULL);

	if (rc < 0)
		return rc;
	if (kvr_slab_unpack_head(reader->page, &head) < 0 || !head_fits(&head, load))
		return -EBADMSG;
	rc = kvr_store_stream_take(stream, load->tokens, token_bytes, &crc);
	if (rc == 0)
		rc = kvr_store_stream_take(
			stream, load->view->memory, layout->summary_bytes - token_bytes, &crc);
	if (rc < 0)
		return rc;
	return crc == head.summary_crc && kvr_slab_summary_valid(load->view) ? 0 : -EBADMSG;
}

int kvr_store_lane(struct kvr_catalog_reader *reader, const struct kvr_segment_view *view,
	uint64_t id, uint32_t lane, struct kvr_catalog_unit *ret_units)
{
	struct kvr_catalog_unit sets[KVR_MERGED_SETS] = {{0}};
	uint32_t unit = view->cluster_max + 1;
	int rc;

	memset(ret_units, 0, view->unit_count * sizeof(*ret_units));
	rc = kvr_catalog_lane(reader, id, lane, ret_units, unit);
	if ((rc < 0 && rc != -ENOENT) || view->merged_max == 0)
		return rc == -ENOENT ? 0 : rc;
	rc = kvr_catalog_merged(reader, id, lane, sets);
	if (rc < 0 && rc != -ENOENT)
		return rc;
	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++) {
		if (view->geometry->merged >> set & 1)
			ret_units[unit++] = sets[set];
		else if (sets[set].rows > 0)
			return -EBADMSG;
	}
	KVR_ASSERT(unit == view->unit_count);
	return 0;
}

/* One lane's rows against the summary; their checksums are what is new. */
static int check_lane(struct kvr_store_reader *reader, struct kvr_store_load *load,
	const struct kvr_slab_layout *layout, uint32_t lane)
{
	const struct kvr_segment_view *view = load->view;
	uint32_t *crcs = load->crcs + (size_t)lane * view->unit_count;
	int rc = kvr_store_lane(reader->reader, view, load->id, lane, reader->lane);

	if (rc < 0)
		return rc;
	for (uint32_t unit = 0; unit < view->unit_count; unit++) {
		const struct kvr_catalog_unit *row = &reader->lane[unit];
		uint32_t bytes;
		uint32_t offset;
		uint32_t left;
		const uint64_t at = kvr_slab_unit_at(layout, view, lane, unit, &bytes);

		crcs[unit] = 0;
		if (bytes == 0 && row->rows == 0)
			continue;
		if (bytes == 0 || row->bytes != bytes ||
			row->slab != load->parts[kvr_slab_part(at, &offset, &left)] ||
			row->offset != offset)
			return -EBADMSG;
		crcs[unit] = row->crc;
	}
	return 0;
}

static int check_rows(struct kvr_store_reader *reader, struct kvr_store_load *load,
	const struct kvr_slab_layout *layout)
{
	const uint32_t lanes = kvr_geometry_lanes(load->view->geometry);
	int rc = kvr_catalog_read_begin(reader->reader);

	if (rc < 0)
		return rc;
	for (uint32_t lane = 0; lane < lanes && rc == 0; lane++)
		rc = check_lane(reader, load, layout, lane);
	kvr_catalog_read_end(reader->reader);
	return rc;
}

int kvr_store_load_run(struct kvr_store_reader *reader, struct kvr_store_load *load)
{
	struct kvr_store *store = reader->store;
	struct kvr_slab_layout layout;
	int rc;

	kvr_slab_layout(
		load->view->geometry, load->view->token_first, load->view->token_count, &layout);
	KVR_ASSERT(layout.part_count <= KVR_SLAB_PARTS_MAX);
	rc = kvr_catalog_read_begin(reader->reader);
	if (rc < 0)
		return rc;
	rc = find_parts(reader, load, &layout);
	kvr_catalog_read_end(reader->reader);
	if (rc < 0)
		return rc;
	reader->stream = (struct kvr_store_stream){
		.tier = reader->tier,
		.memory = kvr_store_slots(store),
		.uuid = store->meta.uuid,
		.segment = load->id,
		.parts = load->parts,
		.part_count = layout.part_count,
		.stream_bytes = layout.stream_bytes,
		.end = layout.payload_at,
	};
	kvr_store_stream_start(&reader->stream);
	rc = read_summary(reader, load, &layout);
	kvr_store_stream_stop(&reader->stream);
	if (rc == 0)
		rc = check_rows(reader, load, &layout);
	kvr_store_count(store, &store->counters.load_count, 1);
	kvr_store_count(store, &store->counters.load_bytes, reader->stream.bytes_read);
	return rc;
}
