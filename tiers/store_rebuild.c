/* SPDX-License-Identifier: Apache-2.0 */
/* store_rebuild.c: a new catalog from the slabs alone.
 *
 *   every header ─► slabs by (segment, part) ─► whole ones by id ─► each read, checked ─► rows
 *   catalog.new complete ─► exchanged with catalog ─► the old one is catalog.old
 *
 * Ids ascend from parents to children, since a parent is put first; so one pass in their order is
 * enough, and whose parent is not there is left out. Two whole segments may have one name: a crash
 * came between the slabs and the commit, and later the segment was put again. The one with the
 * higher id is then the one that was committed.
 *
 * Threads: the caller's, offline. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/store_private.h"

#define UUIDS_MAX    16u /* stores whose headers are told apart; more are none's */
#define COMMIT_EVERY 64u /* segments */

/* A slab with a header. */
struct slab {
	uint64_t id;
	uint32_t part, part_count;
	uint32_t slab;
	uint32_t uuid; /* which one */
};

/* A segment whose slabs are all there. */
struct whole {
	uint64_t id;
	uint8_t hash[KVR_HASH_BYTES];
	size_t first; /* of its slabs */
};

struct rebuild {
	struct kvr_store *store;
	kvr_store_say *say;
	void *say_context;
	struct kvr_store_report report;
	struct slab *slabs;
	size_t slab_count;
	uint8_t uuids[UUIDS_MAX][KVR_SLAB_UUID_BYTES];
	uint64_t uuid_slabs[UUIDS_MAX];
	uint32_t uuid_count;
	uint32_t *parts;      /* [slab_count], the numbers of `slabs` in order */
	struct whole *wholes; /* by id */
	struct whole *names;  /* the same, by hash, then id */
	size_t whole_count;
	struct kvr_store_checked checked;
	uint64_t used;    /* what all get as their last use */
	uint32_t version; /* of a header that is not of this one */
};

__attribute__((format(printf, 2, 3))) static void say(
	struct rebuild *rebuild, const char *format, ...)
{
	char line[KVR_STORE_TEXT_MAX];
	va_list arguments;

	if (!rebuild->say)
		return;
	va_start(arguments, format);
	(void)vsnprintf(line, sizeof(line), format, arguments);
	va_end(arguments);
	rebuild->say(rebuild->say_context, line);
}

/* ---- what is there --------------------------------------------------------------------------- */

/* Which store's header it is; UUIDS_MAX where there are too many. */
static uint32_t uuid_of(struct rebuild *rebuild, const uint8_t uuid[KVR_SLAB_UUID_BYTES])
{
	uint32_t i;

	for (i = 0; i < rebuild->uuid_count; i++) {
		if (memcmp(rebuild->uuids[i], uuid, KVR_SLAB_UUID_BYTES) == 0)
			return i;
	}
	if (i == UUIDS_MAX)
		return UUIDS_MAX;
	memcpy(rebuild->uuids[i], uuid, KVR_SLAB_UUID_BYTES);
	rebuild->uuid_count++;
	return i;
}

static int add_slab(struct rebuild *rebuild, uint32_t slab, const uint8_t *page)
{
	struct kvr_slab_header header;
	const int rc = kvr_slab_unpack_header(page, &header);
	uint32_t uuid;

	if (rc == -EPROTONOSUPPORT) {
		rebuild->version = kvr_slab_version(page);
		return rc;
	}
	if (rc == -EBADMSG)
		say(rebuild, "slab %" PRIu32 ": its header is damaged", slab);
	if (rc < 0)
		return 0;
	uuid = uuid_of(rebuild, header.store);
	if (uuid == UUIDS_MAX)
		return 0;
	rebuild->uuid_slabs[uuid]++;
	rebuild->slabs[rebuild->slab_count++] =
		(struct slab){header.segment, header.part, header.part_count, slab, uuid};
	return 0;
}

static int read_headers(struct rebuild *rebuild, uint32_t all)
{
	uint32_t slabs[KVR_STORE_PAGES_MAX];
	int statuses[KVR_STORE_PAGES_MAX];

	for (uint32_t first = 0; first < all; first += KVR_STORE_PAGES_MAX) {
		const uint32_t left = all - first;
		const uint32_t count = left < KVR_STORE_PAGES_MAX ? left : KVR_STORE_PAGES_MAX;
		const uint8_t *pages;

		for (uint32_t i = 0; i < count; i++)
			slabs[i] = first + i;
		pages = kvr_store_read_pages(rebuild->store, slabs, count, statuses);
		for (uint32_t i = 0; i < count; i++) {
			const size_t at = (size_t)i * 2 * KVR_SLAB_HEADER_BYTES;
			int rc = 0;

			if (statuses[i] < 0) {
				/* A segment may be lost with it: nobody is to take this for complete. */
				rebuild->report.damaged_segment_count++;
				say(rebuild, "slab %" PRIu32 ": the disk does not give its header",
					slabs[i]);
			} else {
				rc = add_slab(rebuild, slabs[i], pages + at);
			}
			if (rc < 0)
				return rc;
		}
		rebuild->report.bytes_read += (uint64_t)count * 2 * KVR_SLAB_HEADER_BYTES;
	}
	return 0;
}

static int compare_slabs(const void *one, const void *other)
{
	const struct slab *a = one;
	const struct slab *b = other;

	if (a->id != b->id)
		return a->id < b->id ? -1 : 1;
	if (a->part != b->part)
		return a->part < b->part ? -1 : 1;
	return a->slab < b->slab ? -1 : a->slab > b->slab;
}

static int compare_names(const void *one, const void *other)
{
	const struct whole *a = one;
	const struct whole *b = other;
	const int order = memcmp(a->hash, b->hash, KVR_HASH_BYTES);

	if (order != 0)
		return order;
	return a->id < b->id ? -1 : a->id > b->id;
}

/* The store is the one that most headers name; the others' are left alone. */
static void keep_one_store(struct rebuild *rebuild)
{
	uint32_t best = 0;
	size_t kept = 0;

	if (rebuild->uuid_count == 0)
		return; /* nothing was ever stored */
	for (uint32_t i = 1; i < rebuild->uuid_count; i++) {
		if (rebuild->uuid_slabs[i] > rebuild->uuid_slabs[best])
			best = i;
	}
	for (size_t i = 0; i < rebuild->slab_count; i++) {
		if (rebuild->slabs[i].uuid == best)
			rebuild->slabs[kept++] = rebuild->slabs[i];
	}
	if (kept < rebuild->slab_count)
		say(rebuild, "%zu slabs are of other stores", rebuild->slab_count - kept);
	rebuild->slab_count = kept;
	memcpy(rebuild->store->meta.uuid, rebuild->uuids[best], KVR_SLAB_UUID_BYTES);
}

/* How many slabs the run of one id that starts at `first` has. */
static size_t run_length(const struct rebuild *rebuild, size_t first)
{
	size_t count = 1;

	while (first + count < rebuild->slab_count &&
		rebuild->slabs[first + count].id == rebuild->slabs[first].id)
		count++;
	return count;
}

static bool is_whole(const struct rebuild *rebuild, size_t first, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		if (rebuild->slabs[first + i].part != i ||
			rebuild->slabs[first + i].part_count != count)
			return false;
	}
	return true;
}

/* Names of whole segments, from their heads. */
static void find_wholes(struct rebuild *rebuild)
{
	size_t first = 0;

	while (first < rebuild->slab_count) {
		const size_t count = run_length(rebuild, first);
		struct whole *whole = &rebuild->wholes[rebuild->whole_count];
		struct kvr_slab_head head;
		const uint8_t *pages;
		int status;

		whole->id = rebuild->slabs[first].id;
		whole->first = first;
		if (is_whole(rebuild, first, count)) {
			pages = kvr_store_read_pages(
				rebuild->store, &rebuild->parts[first], 1, &status);
			if (status == 0 &&
				kvr_slab_unpack_head(pages + KVR_SLAB_HEADER_BYTES, &head) == 0) {
				memcpy(whole->hash, head.hash, KVR_HASH_BYTES);
				rebuild->whole_count++;
			} else {
				say(rebuild, "segment %" PRIu64 ": its head is damaged", whole->id);
				rebuild->report.damaged_segment_count++;
			}
		} else {
			rebuild->report.stale_slab_count += count;
		}
		first += count;
	}
}

static int look(struct rebuild *rebuild)
{
	const uint64_t all = rebuild->store->meta.slabs_bytes / KVR_SLAB_BYTES;
	int rc;

	rebuild->slabs = calloc(all, sizeof(*rebuild->slabs));
	rebuild->parts = calloc(all, sizeof(*rebuild->parts));
	rebuild->wholes = calloc(all, sizeof(*rebuild->wholes));
	rebuild->names = calloc(all, sizeof(*rebuild->names));
	if (!rebuild->slabs || !rebuild->parts || !rebuild->wholes || !rebuild->names)
		return -ENOMEM;
	rc = read_headers(rebuild, (uint32_t)all);
	if (rc < 0)
		return rc;
	keep_one_store(rebuild);
	qsort(rebuild->slabs, rebuild->slab_count, sizeof(*rebuild->slabs), compare_slabs);
	for (size_t i = 0; i < rebuild->slab_count; i++)
		rebuild->parts[i] = rebuild->slabs[i].slab;
	find_wholes(rebuild);
	memcpy(rebuild->names, rebuild->wholes, rebuild->whole_count * sizeof(*rebuild->names));
	qsort(rebuild->names, rebuild->whole_count, sizeof(*rebuild->names), compare_names);
	return 0;
}

/* ---- the new catalog ------------------------------------------------------------------------- */

/* 0: every byte of it is right; 1: damaged. */
static int check(struct rebuild *rebuild, const struct whole *whole)
{
	struct kvr_store_checked *checked = &rebuild->checked;
	int rc;

	checked->id = whole->id;
	checked->parts = &rebuild->parts[whole->first];
	checked->part_count = rebuild->slabs[whole->first].part_count;
	rc = kvr_store_check(rebuild->store, checked);
	if (rc == -ENOMEM)
		return rc;
	return rc < 0 || checked->damaged_cluster_count > 0 || checked->damaged_merged_count > 0;
}

/* Whether a later segment of the same name is good. */
static int is_superseded(struct rebuild *rebuild, const struct whole *whole)
{
	const struct whole *name = bsearch(whole, rebuild->names, rebuild->whole_count,
		sizeof(*rebuild->names), compare_names);
	const struct whole *end = rebuild->names + rebuild->whole_count;

	KVR_ASSERT(name != NULL);
	for (name++; name < end && memcmp(name->hash, whole->hash, KVR_HASH_BYTES) == 0; name++) {
		const int rc = check(rebuild, name);

		if (rc <= 0)
			return rc < 0 ? rc : 1;
	}
	return 0;
}

static int put(struct rebuild *rebuild)
{
	struct kvr_store_checked *checked = &rebuild->checked;
	struct kvr_store_job job = {
		.op = KVR_STORE_PUT,
		.put = {.model = &checked->head.model,
			.view = &checked->view,
			.tokens = checked->tokens,
			.parts = (uint32_t *)(uintptr_t)checked->parts, /* not written */
			.crcs = checked->crcs},
	};
	struct kvr_store_entry entry = {.job = &job, .layout = checked->layout, .id = checked->id};

	memcpy(job.put.hash, checked->head.hash, KVR_HASH_BYTES);
	memcpy(job.put.parent, checked->head.parent, KVR_HASH_BYTES);
	return kvr_store_put_rows(&rebuild->store->writer, &entry, rebuild->used);
}

static void count_units(struct rebuild *rebuild)
{
	const struct kvr_segment_view *view = &rebuild->checked.view;

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry); lane++) {
		for (uint32_t unit = 0; unit < view->unit_count; unit++) {
			if (kvr_segment_unit_rows(view, lane, unit) == 0)
				continue;
			if (unit <= view->cluster_max)
				rebuild->report.cluster_count++;
			else
				rebuild->report.merged_count++;
		}
	}
}

/* One segment into the open transaction. 1: it is there now; 0: it is left out. */
static int add_segment(struct rebuild *rebuild, const struct whole *whole)
{
	int rc = is_superseded(rebuild, whole);

	if (rc == 1) {
		rebuild->report.stale_slab_count += rebuild->slabs[whole->first].part_count;
		return 0;
	}
	if (rc == 0)
		rc = check(rebuild, whole);
	if (rc == 1) {
		say(rebuild, "segment %" PRIu64 ": damaged, left out", whole->id);
		rebuild->report.damaged_segment_count++;
		rebuild->report.damaged_cluster_count += rebuild->checked.damaged_cluster_count;
		rebuild->report.damaged_merged_count += rebuild->checked.damaged_merged_count;
		return 0;
	}
	if (rc == 0)
		rc = put(rebuild);
	if (rc == -ENOENT || rc == -EEXIST) {
		say(rebuild, "segment %" PRIu64 ": %s, left out", whole->id,
			rc == -ENOENT ? "the one before it is not there" : "its name is taken");
		rebuild->report.damaged_segment_count += rc == -ENOENT;
		return 0;
	}
	if (rc < 0)
		return rc;
	rebuild->report.segment_count++;
	rebuild->report.slab_count += rebuild->checked.part_count;
	count_units(rebuild);
	return 1;
}

static int fill(struct rebuild *rebuild, const struct kvr_store_config *config)
{
	struct kvr_catalog *catalog = rebuild->store->catalog;
	uint32_t pending = 0;
	int rc = kvr_catalog_begin(catalog);

	for (size_t i = 0; i < rebuild->whole_count && rc == 0; i++) {
		rc = add_segment(rebuild, &rebuild->wholes[i]);
		if (rc < 0) {
			kvr_catalog_abort(catalog);
			return rc;
		}
		pending += (uint32_t)rc;
		rc = 0;
		if (config->progress)
			config->progress(config->progress_context,
				(uint64_t)rebuild->wholes[i].first * KVR_SLAB_BYTES,
				(uint64_t)rebuild->slab_count * KVR_SLAB_BYTES);
		if (pending == COMMIT_EVERY) {
			pending = 0;
			rc = kvr_catalog_commit(catalog);
			if (rc == 0)
				rc = kvr_catalog_begin(catalog);
		}
	}
	return rc < 0 ? rc : kvr_catalog_commit(catalog);
}

static int make_catalog(struct rebuild *rebuild, const struct kvr_store_config *config)
{
	struct kvr_store *store = rebuild->store;
	char path[KVR_STORE_PATH_MAX];
	const struct kvr_catalog_config catalog = {.dir = path, .bytes = config->catalog_bytes};
	struct timespec now;
	int rc = kvr_store_path(store->path, KVR_STORE_CATALOG_NEW, path);

	/* Ids go on behind all that are on the disk, also those of slabs that are left out. */
	if (rebuild->slab_count > 0)
		store->meta.boot =
			rebuild->slabs[rebuild->slab_count - 1].id >> KVR_STORE_BOOT_SHIFT;
	if (rc == 0)
		rc = kvr_catalog_open(&catalog, &store->meta, &store->catalog);
	if (rc < 0)
		return rc;
	clock_gettime(CLOCK_REALTIME, &now);
	rebuild->used = (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
	store->writer.store = store;
	rc = fill(rebuild, config);
	store->catalog = kvr_catalog_close(store->catalog);
	return rc;
}

static int run(struct rebuild *rebuild, const struct kvr_store_config *config, char *ret_text)
{
	int rc = look(rebuild);

	if (rc == -EPROTONOSUPPORT)
		return kvr_store_say_version(
			ret_text, config->dir, rebuild->version, KVR_SLAB_VERSION);
	if (rc == 0)
		rc = kvr_store_catalog_clear(config->dir);
	if (rc == 0)
		rc = make_catalog(rebuild, config);
	if (rc == -ENOSPC)
		return kvr_store_say_why(ret_text, rc, config->dir,
			"the new catalog is larger than its bound: raise that");
	if (rc == 0)
		rc = kvr_store_catalog_replace(config->dir);
	if (rc < 0)
		return kvr_store_say_why(
			ret_text, rc, config->dir, "cannot make a new catalog (%s)", strerror(-rc));
	return 0;
}

int kvr_store_rebuild(const struct kvr_store_config *config, kvr_store_say *say_line,
	void *say_context, struct kvr_store_report *ret_report, char *ret_text)
{
	struct rebuild rebuild = {.say = say_line, .say_context = say_context};
	int rc = kvr_store_open_mode(config, KVR_STORE_REBUILD, NULL, &rebuild.store, ret_text);

	if (rc < 0)
		return rc;
	rc = run(&rebuild, config, ret_text);
	rebuild.report.bytes_read += rebuild.checked.bytes_read;
	if (rc == 0)
		*ret_report = rebuild.report;
	kvr_store_check_fini(&rebuild.checked);
	free(rebuild.slabs);
	free(rebuild.parts);
	free(rebuild.wholes);
	free(rebuild.names);
	kvr_store_close(rebuild.store);
	return rc;
}
