/* SPDX-License-Identifier: Apache-2.0 */
/* store_verify.c: does the catalog agree with itself, the slabs with their checksums, and both with
 * each other?
 *
 * Read: every page of the catalog, every slab that it says is in use, and the header of every other
 * slab. Damage is said, a line each, and counted; nothing is changed.
 *
 * Threads: the caller's, offline. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

struct verify {
	struct kvr_store *store;
	const struct kvr_store_config *config;
	kvr_store_say *say;
	void *say_context;
	struct kvr_store_report report;
	struct kvr_store_checked checked;
	struct kvr_catalog_unit *lane; /* [KVR_STORE_UNITS_MAX] */
	uint32_t *parts;               /* [KVR_SLAB_PARTS_MAX] */
	uint8_t *taken;                /* [slabs]: the catalog says that it is in use or freed */
	uint64_t slab_count, taken_count;
	uint8_t pages[2][KVR_SLAB_HEADER_BYTES];
};

__attribute__((format(printf, 2, 3))) static void say(
	struct verify *verify, const char *format, ...)
{
	char line[KVR_STORE_TEXT_MAX];
	va_list arguments;

	if (!verify->say)
		return;
	va_start(arguments, format);
	(void)vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	verify->say(verify->say_context, line);
}

/* ---- one segment ----------------------------------------------------------------------------- */

/* Whether the catalog's model is the one in the head: as bytes, since a head has no holes. */
static bool same_model(struct verify *verify, const struct kvr_slab_head *head)
{
	struct kvr_slab_head other = *head;

	if (kvr_catalog_model(verify->store->reader.reader, head->model.root, &other.model) < 0)
		return false;
	if (!kvr_geometry_valid(&other.model.geometry))
		return false;
	kvr_slab_pack_head(head, verify->pages[0]);
	kvr_slab_pack_head(&other, verify->pages[1]);
	return memcmp(verify->pages[0], verify->pages[1], KVR_SLAB_HEADER_BYTES) == 0;
}

static bool head_agrees(struct verify *verify, const struct kvr_catalog_segment *segment)
{
	const struct kvr_slab_head *head = &verify->checked.head;

	return memcmp(head->hash, segment->hash, KVR_HASH_BYTES) == 0 &&
	       memcmp(head->parent, segment->parent, KVR_HASH_BYTES) == 0 &&
	       memcmp(head->model.root, segment->root, KVR_HASH_BYTES) == 0 &&
	       head->token_first == segment->token_first &&
	       head->token_count == segment->token_count && same_model(verify, head);
}

/* Rows that do not say what is on the disk. */
struct differing {
	uint64_t clusters, merged;
};

static int compare_lane(struct verify *verify, const struct kvr_catalog_segment *segment,
	uint32_t lane, struct differing *differing)
{
	const struct kvr_segment_view *view = &verify->checked.view;
	const uint32_t *crcs = verify->checked.crcs + (size_t)lane * view->unit_count;
	int rc =
		kvr_store_lane(verify->store->reader.reader, view, segment->id, lane, verify->lane);

	for (uint32_t unit = 0; unit < view->unit_count && rc == 0; unit++) {
		const struct kvr_catalog_unit *row = &verify->lane[unit];
		uint32_t bytes;
		uint32_t offset;
		uint32_t left;
		const uint32_t part = kvr_slab_part(
			kvr_slab_unit_at(&verify->checked.layout, view, lane, unit, &bytes),
			&offset, &left);
		bool differs;

		if (bytes == 0)
			continue;
		differs = row->slab != segment->parts[part] || row->offset != offset ||
			  row->bytes != bytes || row->crc != crcs[unit];
		if (unit <= view->cluster_max) {
			verify->report.cluster_count++;
			differing->clusters += differs;
		} else {
			verify->report.merged_count++;
			differing->merged += differs;
		}
	}
	return rc;
}

static int compare_rows(struct verify *verify, const struct kvr_catalog_segment *segment,
	struct differing *differing)
{
	const uint32_t lanes = kvr_geometry_lanes(verify->checked.view.geometry);
	int rc = 0;

	for (uint32_t lane = 0; lane < lanes && rc == 0; lane++)
		rc = compare_lane(verify, segment, lane, differing);
	return rc;
}

static void damaged(
	struct verify *verify, const struct kvr_catalog_segment *segment, const char *why)
{
	verify->report.damaged_segment_count++;
	say(verify, "segment %" PRIu64 " (%02x%02x%02x%02x..): %s", segment->id, segment->hash[0],
		segment->hash[1], segment->hash[2], segment->hash[3], why);
}

/* Returns an error only where nothing more can be found out. */
static int verify_segment(struct verify *verify, const struct kvr_catalog_segment *segment)
{
	struct differing differing = {0};
	int rc = 0;

	verify->report.segment_count++;
	for (uint32_t i = 0; i < segment->part_count; i++) {
		if (segment->parts[i] >= verify->slab_count) {
			damaged(verify, segment, "it has slabs behind the end of slabs.kvr");
			return 0;
		}
	}
	if (segment->part_count == 0) {
		damaged(verify, segment, "it has no slabs");
		return 0;
	}
	verify->report.slab_count += segment->part_count;
	verify->checked.id = segment->id;
	verify->checked.parts = segment->parts;
	verify->checked.part_count = segment->part_count;
	rc = kvr_store_check(verify->store, &verify->checked);
	if (rc == -ENOMEM)
		return rc;
	if (rc < 0) {
		damaged(verify, segment,
			rc == -EIO ? "the disk does not give its bytes back"
				   : "header, head, summary or checksums are damaged");
		return 0;
	}
	if (!head_agrees(verify, segment)) {
		damaged(verify, segment, "the catalog does not say of it what its slabs say");
		return 0;
	}
	rc = compare_rows(verify, segment, &differing);
	if (rc < 0) {
		damaged(verify, segment, "the rows of its lanes cannot be read");
		return 0;
	}
	if (differing.clusters < verify->checked.damaged_cluster_count)
		differing.clusters = verify->checked.damaged_cluster_count;
	if (differing.merged < verify->checked.damaged_merged_count)
		differing.merged = verify->checked.damaged_merged_count;
	verify->report.damaged_cluster_count += differing.clusters;
	verify->report.damaged_merged_count += differing.merged;
	if (differing.clusters > 0)
		damaged(verify, segment, "clusters are not what was written");
	else if (differing.merged > 0)
		damaged(verify, segment, "merged sets are not what was written");
	return 0;
}

static int verify_segments(struct verify *verify)
{
	struct kvr_catalog_segment segment = {.parts = verify->parts};
	uint8_t hash[KVR_HASH_BYTES] = {0};
	int rc = 0;

	while (rc == 0) {
		segment.parts = verify->parts;
		rc = kvr_catalog_segment_next(verify->store->reader.reader, hash, verify->parts,
			KVR_SLAB_PARTS_MAX, &segment);
		if (rc == 0)
			rc = verify_segment(verify, &segment);
		if (rc == 0 && verify->config->progress)
			verify->config->progress(verify->config->progress_context,
				verify->report.slab_count * KVR_SLAB_BYTES,
				verify->taken_count * KVR_SLAB_BYTES);
	}
	return rc == -ENOENT ? 0 : rc;
}

/* ---- the rest -------------------------------------------------------------------------------- */

static void verify_catalog(struct verify *verify)
{
	char line[KVR_STORE_TEXT_MAX / 2] = "";
	uint64_t rows;

	if (kvr_catalog_verify(verify->store->catalog, &rows, line, sizeof(line)) == 0)
		return;
	verify->report.catalog_damaged = true;
	say(verify, "catalog: %s", line);
}

static int mark_taken(struct verify *verify)
{
	uint32_t slab = UINT32_MAX;
	uint64_t id;
	int rc;

	while ((rc = kvr_catalog_slab_next(verify->store->reader.reader, &slab, &id)) == 0) {
		if (slab < verify->slab_count)
			verify->taken[slab] = 1;
		verify->taken_count++;
	}
	return rc == -ENOENT ? 0 : rc;
}

/* Headers where the catalog has nothing. */
static void count_stale(struct verify *verify)
{
	uint32_t slabs[KVR_STORE_PAGES_MAX];
	int statuses[KVR_STORE_PAGES_MAX];
	uint32_t count = 0;

	for (uint64_t slab = 0; slab < verify->slab_count; slab++) {
		const uint8_t *pages;

		if (!verify->taken[slab])
			slabs[count++] = (uint32_t)slab;
		if (count == 0 || (count < KVR_STORE_PAGES_MAX && slab + 1 < verify->slab_count))
			continue;
		pages = kvr_store_read_pages(verify->store, slabs, count, statuses);
		for (uint32_t i = 0; i < count; i++) {
			struct kvr_slab_header header;
			const size_t at = (size_t)i * 2 * KVR_SLAB_HEADER_BYTES;

			if (statuses[i] == 0 && kvr_slab_unpack_header(pages + at, &header) == 0)
				verify->report.stale_slab_count++;
		}
		verify->report.bytes_read += (uint64_t)count * 2 * KVR_SLAB_HEADER_BYTES;
		count = 0;
	}
}

static int verify_all(struct verify *verify)
{
	int rc;

	verify->slab_count = verify->store->meta.slabs_bytes / KVR_SLAB_BYTES;
	verify->lane = calloc(KVR_STORE_UNITS_MAX, sizeof(*verify->lane));
	verify->parts = calloc(KVR_SLAB_PARTS_MAX, sizeof(*verify->parts));
	verify->taken = calloc(verify->slab_count, 1);
	if (!verify->lane || !verify->parts || !verify->taken)
		return -ENOMEM;
	verify_catalog(verify);
	rc = kvr_catalog_read_begin(verify->store->reader.reader);
	if (rc < 0)
		return rc;
	rc = mark_taken(verify);
	if (rc == 0)
		rc = verify_segments(verify);
	kvr_catalog_read_end(verify->store->reader.reader);
	verify->report.bytes_read += verify->checked.bytes_read;
	if (rc == -EBADMSG) {
		verify->report.catalog_damaged = true;
		say(verify, "catalog: it cannot be read to its end");
		rc = 0;
	}
	if (rc == 0)
		count_stale(verify);
	return rc;
}

int kvr_store_verify(const struct kvr_store_config *config, kvr_store_say *say_line,
	void *say_context, struct kvr_store_report *ret_report, char *ret_text)
{
	struct verify verify = {.config = config, .say = say_line, .say_context = say_context};
	int rc = kvr_store_open_mode(config, KVR_STORE_VERIFY, NULL, &verify.store, ret_text);

	if (rc < 0)
		return rc;
	rc = verify_all(&verify);
	if (rc < 0)
		(void)kvr_store_say_why(
			ret_text, rc, config->dir, "cannot be read (%s)", strerror(-rc));
	else
		*ret_report = verify.report;
	kvr_store_check_fini(&verify.checked);
	free(verify.lane);
	free(verify.parts);
	free(verify.taken);
	kvr_store_close(verify.store);
	return rc;
}
