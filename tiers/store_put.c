/* SPDX-License-Identifier: Apache-2.0 */
/* store_put.c: one put before its images and after: may it be, where does it go, what are its rows.
 *
 *   name free? ─► parent there? ─► today's budget? ─► tenant's bound: evict its own
 *   ─► slabs: evict ─► id, hold
 *
 * Threads: the writer's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "tiers/store_private.h"

#define EVICT_TRIES 8u
#define DAY_NS      ((uint64_t)86400 * 1000000000u)

/* What is spent comes back at the day's rate, up to a day's worth. It is not kept over a
 * restart. */
/* Takes the bound that was set last. A new one starts with a whole day of it, a lower one cuts what is left. */
static void take_bound(struct kvr_store_writer *writer)
{
	const uint64_t day = __atomic_load_n(&writer->store->budget_wanted, __ATOMIC_RELAXED);
	uint64_t *now = &writer->store->write_bytes_per_day;

	if (*now == day)
		return;
	if (*now == 0 || writer->budget_bytes > day)
		writer->budget_bytes = day;
	*now = day;
}

void kvr_store_put_refill(struct kvr_store_writer *writer)
{
	const uint64_t now = kvr_clock_ns();
	uint64_t day;
	double back;

	take_bound(writer);
	day = writer->store->write_bytes_per_day;
	if (day == 0)
		return;
	back = (double)day * ((double)(now - writer->budget_ns) / (double)DAY_NS);
	writer->budget_ns = now;
	writer->budget_bytes = back >= (double)(day - writer->budget_bytes)
				       ? day
				       : writer->budget_bytes + (uint64_t)back;
	KVR_ASSERT(writer->budget_bytes <= day);
}

/* The parent: the root, an entry of this group, or in the catalog, where it is held meanwhile. */
static int find_parent(struct kvr_store_writer *writer, struct kvr_store_entry *entry)
{
	const struct kvr_store_put *put = &entry->job->put;
	struct kvr_catalog_segment parent = {0};
	bool held;
	int rc;

	if (memcmp(put->parent, put->model->root, KVR_HASH_BYTES) == 0)
		return 0;
	for (uint32_t i = 0; i < writer->group_count; i++) {
		const struct kvr_store_entry *other = &writer->group[i];

		if (other->status == 0 &&
			memcmp(other->job->put.hash, put->parent, KVR_HASH_BYTES) == 0)
			return 0;
	}
	rc = kvr_catalog_find(writer->reader, put->parent, NULL, 0, &parent);
	if (rc < 0)
		return rc;
	pthread_mutex_lock(&writer->store->mutex);
	held = kvr_store_holds_add(&writer->store->holds, parent.id);
	pthread_mutex_unlock(&writer->store->mutex);
	if (!held)
		return -ENOENT;
	entry->parent = parent.id; /* W1 */
	return 0;
}

/* There is a segment of this name: one to be used, which gets a hold; one that is damaged and in the way; or one that is
 * leaving. */
static int exists_as(struct kvr_store_writer *writer, struct kvr_store_put *put, uint64_t id)
{
	struct kvr_catalog_state state = {0};
	const int rc = kvr_catalog_state(writer->reader, id, &state);
	bool held;

	if (rc < 0)
		return rc == -ENOENT ? -EBADMSG : rc;
	if (state.flags & KVR_CATALOG_QUARANTINED)
		return -ESTALE;
	pthread_mutex_lock(&writer->store->mutex);
	held = kvr_store_holds_add(&writer->store->holds, id);
	pthread_mutex_unlock(&writer->store->mutex);
	if (!held)
		return -EBUSY;
	put->id = id;
	return -EEXIST;
}

static int find_names(struct kvr_store_writer *writer, struct kvr_store_entry *entry)
{
	struct kvr_store_put *put = &entry->job->put;
	struct kvr_catalog_segment same = {0};
	int rc;

	for (uint32_t i = 0; i < writer->group_count; i++) {
		const struct kvr_store_entry *other = &writer->group[i];

		if (other->status == 0 &&
			memcmp(other->job->put.hash, put->hash, KVR_HASH_BYTES) == 0)
			return -EBUSY; /* in this very group: its id is there with the commit */
	}
	rc = kvr_catalog_read_begin(writer->reader);
	if (rc < 0)
		return rc;
	rc = kvr_catalog_find(writer->reader, put->hash, NULL, 0, &same);
	if (rc == 0)
		rc = exists_as(writer, put, same.id);
	else if (rc == -ENOENT)
		rc = find_parent(writer, entry);
	kvr_catalog_read_end(writer->reader); /* W2 */
	return rc;
}

/* Slabs of a tenant: those in the catalog, and this group's. */
static int tenant_slabs(struct kvr_store_writer *writer, const char *tenant, uint64_t *ret_count)
{
	int rc = kvr_catalog_read_begin(writer->reader);

	if (rc < 0)
		return rc;
	rc = kvr_catalog_tenant(writer->reader, tenant, ret_count);
	kvr_catalog_read_end(writer->reader);
	if (rc == -ENOENT)
		*ret_count = 0;
	else if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < writer->group_count; i++) {
		const struct kvr_store_entry *other = &writer->group[i];

		if (other->reserved && strcmp(other->job->put.model->tenant, tenant) == 0)
			*ret_count += other->layout.part_count;
	}
	return 0;
}

/* Makes room within the tenant's bound: of its own, the least used go. */
static int meet_quota(struct kvr_store_writer *writer, const struct kvr_store_entry *entry)
{
	const struct kvr_store_put *put = &entry->job->put;
	const uint64_t bound = put->quota_bytes / KVR_SLAB_BYTES;
	uint64_t count;

	if (put->quota_bytes == UINT64_MAX)
		return 0;
	for (uint32_t try = 0; try < EVICT_TRIES && entry->layout.part_count <= bound; try++) {
		int rc = tenant_slabs(writer, put->model->tenant, &count);

		if (rc < 0)
			return rc;
		if (count + entry->layout.part_count <= bound)
			return 0;
		rc = kvr_store_evict(
			writer, put->model->tenant, count + entry->layout.part_count - bound);
		if (rc <= 0)
			return rc < 0 ? rc : -EDQUOT;
	}
	return -EDQUOT;
}

static int reserve(struct kvr_store_writer *writer, struct kvr_store_entry *entry)
{
	const uint32_t count = entry->layout.part_count;
	struct kvr_nvme_report report;
	int rc = -ENOSPC;

	for (uint32_t try = 0; try < EVICT_TRIES && rc == -ENOSPC; try++) {
		rc = kvr_tier_reserve(writer->tier, 0, writer->place_bytes, count, writer->places);
		if (rc == 0)
			break;
		kvr_nvme_report(writer->store->nvme, &report);
		if (count > report.slab_count)
			return -ENOSPC;
		rc = kvr_store_evict(
			writer, NULL, count > report.slab_free ? count - report.slab_free : 1);
		if (rc < 0)
			return rc;
		if (rc == 0)
			return -ENOSPC;
		rc = -ENOSPC;
	}
	if (rc < 0)
		return rc;
	for (uint32_t i = 0; i < count; i++) {
		KVR_ASSERT(writer->places[i].offset % KVR_SLAB_BYTES == 0);
		entry->job->put.parts[i] = (uint32_t)(writer->places[i].offset / KVR_SLAB_BYTES);
	}
	entry->reserved = true;
	return 0;
}

int kvr_store_put_prepare(struct kvr_store_writer *writer, struct kvr_store_entry *entry)
{
	const struct kvr_store_put *put = &entry->job->put;
	uint64_t bytes;
	int rc;

	kvr_slab_layout(put->view->geometry, put->view->token_first, put->view->token_count,
		&entry->layout);
	if (entry->layout.part_count > KVR_SLAB_PARTS_MAX)
		return -E2BIG;
	bytes = (uint64_t)entry->layout.part_count * KVR_SLAB_BYTES;
	rc = find_names(writer, entry);
	if (rc < 0)
		return rc;
	kvr_store_put_refill(writer);
	if (writer->store->write_bytes_per_day > 0 && bytes > writer->budget_bytes)
		return -EAGAIN;
	rc = meet_quota(writer, entry);
	if (rc == 0)
		rc = reserve(writer, entry);
	if (rc < 0)
		return rc;
	if (writer->store->write_bytes_per_day > 0)
		writer->budget_bytes -= bytes;
	entry->id = writer->id_next++;
	KVR_ASSERT(entry->id >> KVR_STORE_BOOT_SHIFT == writer->store->meta.boot);
	pthread_mutex_lock(&writer->store->mutex);
	entry->held = kvr_store_holds_add(&writer->store->holds, entry->id);
	pthread_mutex_unlock(&writer->store->mutex);
	return entry->held ? 0 : -ENOSPC;
}

/* The units of an entry, in the writer's scratch. */
static int make_rows(struct kvr_store_writer *writer, const struct kvr_store_entry *entry)
{
	const struct kvr_store_put *put = &entry->job->put;
	const struct kvr_segment_view *view = put->view;
	const size_t count = kvr_segment_extent_count(view);

	if (count > writer->unit_count) {
		free(writer->units);
		writer->units = calloc(count, sizeof(*writer->units));
		writer->unit_count = writer->units ? count : 0;
		if (!writer->units)
			return -ENOMEM;
	}
	memset(writer->units, 0, count * sizeof(*writer->units));
	for (size_t i = 0; i < count; i++) {
		const uint32_t lane = (uint32_t)(i / view->unit_count);
		const uint32_t unit = (uint32_t)(i % view->unit_count);
		struct kvr_catalog_unit *row = &writer->units[i];
		const uint32_t rows = kvr_segment_unit_rows(view, lane, unit);
		uint32_t left;

		if (rows == 0)
			continue;
		row->slab = put->parts[kvr_slab_part(
			kvr_slab_unit_at(&entry->layout, view, lane, unit, &row->bytes),
			&row->offset, &left)];
		row->rows = rows;
		row->crc = put->crcs[i];
	}
	return 0;
}

int kvr_store_put_rows(
	struct kvr_store_writer *writer, const struct kvr_store_entry *entry, uint64_t used)
{
	const struct kvr_store_put *put = &entry->job->put;
	struct kvr_catalog_segment segment = {
		.id = entry->id,
		.token_first = put->view->token_first,
		.token_count = put->view->token_count,
		.part_count = entry->layout.part_count,
		.parts = put->parts,
	};
	int rc = make_rows(writer, entry);

	if (rc < 0)
		return rc;
	memcpy(segment.hash, put->hash, KVR_HASH_BYTES);
	memcpy(segment.parent, put->parent, KVR_HASH_BYTES);
	memcpy(segment.root, put->model->root, KVR_HASH_BYTES);
	return kvr_catalog_put(writer->store->catalog, put->model, &segment, writer->units,
		put->view->cluster_max, used);
}
