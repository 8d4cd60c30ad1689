/* SPDX-License-Identifier: Apache-2.0 */
/* store_verify.c: damage is found, and the slabs alone are enough.
 *
 * Goal: verify finds every flipped bit in bytes that are in use, and a sound store has no damage; a
 * load or read never gives other bytes than were put; rebuild makes the catalog that there was, row
 * for row, and after damage one of all that is whole.
 *
 * Method: a store with segments of one and of several slabs; bits flipped in slabs.kvr at random places that the
 * layout says are in use; bits flipped in the catalog's file; headers, slabs and files cut, lost and left over. */
#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/slow_util.h"
#include "tests/tiers/store_util.h"

enum {
	SLABS = 24,
	SEGMENTS = 6,
	FLIPS = KVR_SLOW_THREAD ? 40 : 150,
	CATALOG_FLIPS = KVR_SLOW_THREAD ? 20 : 100,
	MERGED = 2 * 3, /* sets of a segment, in the lanes that are not dense */
};

struct stored {
	struct kvr_store_bed bed;
	struct kvr_store_sealed *segments[SEGMENTS]; /* a chain of four, and two beside it */
};

static void setup_stored(struct stored *stored)
{
	struct kvr_geometry *geometry = &stored->bed.model.geometry;

	kvr_store_bed_init(&stored->bed, SLABS, KVR_NVME_IO_THREADS);
	geometry->segment_tokens = 256;
	geometry->key_dim = 256;
	geometry->value_dim = 256; /* two slabs and a bit */
	kvr_store_test_reopen(&stored->bed);
	for (uint32_t i = 0; i < SEGMENTS; i++) {
		stored->segments[i] = kvr_store_sealed_any(
			&stored->bed, i > 0 && i < 4 ? stored->segments[i - 1] : NULL, i);
		assert_int_equal(stored->segments[i]->layout.part_count, 2);
		kvr_store_test_keep(&stored->bed, stored->segments[i]);
	}
	kvr_store_test_close(&stored->bed);
}

static void teardown_stored(struct stored *stored)
{
	for (uint32_t i = 0; i < SEGMENTS; i++)
		kvr_store_sealed_free(stored->segments[i]);
	kvr_store_bed_fini(&stored->bed);
}

/* Flips a bit of a file. */
static void flip(const struct kvr_store_bed *bed, const char *name, uint64_t at, uint32_t bit)
{
	char path[256];
	uint8_t byte;
	int fd;

	kvr_store_test_path(bed, name, path);
	fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	assert_int_equal(pread(fd, &byte, 1, (off_t)at), 1);
	byte = (uint8_t)(byte ^ (1u << bit));
	assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
	close(fd);
}

static uint64_t file_bytes(const struct kvr_store_bed *bed, const char *name)
{
	struct stat status;
	char path[256];

	kvr_store_test_path(bed, name, path);
	assert_int_equal(stat(path, &status), 0);
	return (uint64_t)status.st_size;
}

static void count_line(void *context, const char *line)
{
	assert_true(line[0] != 0);
	(*(uint32_t *)context)++;
}

static int verify(struct kvr_store_bed *bed, struct kvr_store_report *ret_report)
{
	uint32_t lines = 0;
	int rc = kvr_store_verify(&bed->config, count_line, &lines, ret_report, bed->text);

	if (rc == 0)
		assert_int_equal(lines > 0,
			ret_report->damaged_segment_count > 0 || ret_report->catalog_damaged);
	return rc;
}

static bool sound(const struct kvr_store_report *report)
{
	return report->damaged_segment_count == 0 && report->damaged_cluster_count == 0 &&
	       report->damaged_merged_count == 0 && !report->catalog_damaged;
}

static void assert_sound(struct stored *stored, uint32_t segments)
{
	struct kvr_store_report report;

	assert_int_equal(verify(&stored->bed, &report), 0);
	assert_true(sound(&report));
	assert_int_equal(report.segment_count, segments);
	assert_int_equal(report.slab_count, 2 * segments);
	assert_int_equal(report.merged_count, MERGED * segments);
}

/* ---- verify ---------------------------------------------------------------------------------- */

/* Where a byte of a segment's stream lies in slabs.kvr. */
static uint64_t file_place(const struct kvr_store_sealed *segment, uint64_t at)
{
	uint32_t offset, left;
	const uint32_t part = kvr_slab_part(at, &offset, &left);

	return (uint64_t)segment->parts[part] * KVR_SLAB_BYTES + offset;
}

/* A place in slabs.kvr that a checksum must cover: a header, or a byte of the stream that is no
 * padding. */
static uint64_t used_place(
	const struct stored *stored, struct kvr_random *random, uint32_t *ret_segment)
{
	const uint32_t i = kvr_random_range(random, 0, SEGMENTS - 1);
	const struct kvr_store_sealed *segment = stored->segments[i];
	const struct kvr_slab_layout *layout = &segment->layout;
	const uint64_t starts[4] = {
		0, layout->summary_at, layout->payload_at, layout->checksums_at};
	const uint64_t lengths[4] = {KVR_SLAB_HEADER_BYTES, layout->summary_bytes,
		layout->payload_bytes + layout->merged_bytes, layout->checksums_bytes};
	const uint32_t what = kvr_random_range(random, 0, 4);

	*ret_segment = i;
	if (what < 4)
		return file_place(segment, starts[what] + kvr_random_next(random) % lengths[what]);
	return (uint64_t)segment->parts[kvr_random_range(random, 0, layout->part_count - 1)] *
		       KVR_SLAB_BYTES +
	       kvr_random_range(random, 0, KVR_SLAB_HEADER_BYTES - 1);
}

static void test_every_flip_is_found(void **state)
{
	struct kvr_random random = kvr_random_start();
	struct kvr_store_report report;
	struct stored stored = {0};

	(void)state;
	setup_stored(&stored);
	assert_sound(&stored, SEGMENTS);
	for (uint32_t i = 0; i < FLIPS; i++) {
		const uint32_t bit = kvr_random_range(&random, 0, 7);
		uint32_t segment;
		const uint64_t at = used_place(&stored, &random, &segment);

		flip(&stored.bed, "slabs.kvr", at, bit);
		assert_int_equal(verify(&stored.bed, &report), 0);
		assert_int_equal(report.damaged_segment_count, 1);
		if (i % 4 == 0) { /* and no byte of it is served */
			kvr_store_test_reopen(&stored.bed);
			for (uint32_t k = 0; k < SEGMENTS; k++) {
				const int rc = kvr_store_test_load(&stored.bed, stored.segments[k]);

				if (k != segment)
					assert_int_equal(rc, 0);
				else
					assert_true(rc == 0 || rc == -EBADMSG);
			}
			kvr_store_test_close(&stored.bed);
		}
		flip(&stored.bed, "slabs.kvr", at, bit);
	}
	assert_sound(&stored, SEGMENTS);
	teardown_stored(&stored);
}

/* A bit of a merged set: that set is damaged, no cluster is, and the segment can still be read but for it. */
static void test_merged_flip(void **state)
{
	struct kvr_random random = kvr_random_start();
	struct kvr_store_report report;
	struct stored stored = {0};

	(void)state;
	setup_stored(&stored);
	for (uint32_t i = 0; i < SEGMENTS; i++) {
		const struct kvr_store_sealed *segment = stored.segments[i];
		const uint64_t at = file_place(
			segment, segment->layout.merged_at +
					 kvr_random_next(&random) % segment->layout.merged_bytes);

		flip(&stored.bed, "slabs.kvr", at, i);
		assert_int_equal(verify(&stored.bed, &report), 0);
		assert_true(report.damaged_merged_count == 1 && report.damaged_cluster_count == 0);
		kvr_store_test_reopen(&stored.bed);
		assert_int_equal(kvr_store_test_load(&stored.bed, segment), -EBADMSG);
		kvr_store_test_close(&stored.bed);
		flip(&stored.bed, "slabs.kvr", at, i);
	}
	assert_sound(&stored, SEGMENTS);
	teardown_stored(&stored);
}

/* The catalog's file: opened, it is refused or serves what was put; verify says more than nothing,
 * or the bit means nothing. */
static void test_catalog_flips(void **state)
{
	struct kvr_random random = kvr_random_start();
	struct kvr_store_report report;
	struct stored stored = {0};
	uint32_t found = 0;

	(void)state;
	setup_stored(&stored);
	kvr_store_test_copy(&stored.bed, "catalog", "saved");
	for (uint32_t i = 0; i < CATALOG_FLIPS; i++) {
		int rc;

		flip(&stored.bed, "catalog/data.mdb",
			kvr_random_next(&random) % file_bytes(&stored.bed, "catalog/data.mdb"),
			kvr_random_range(&random, 0, 7));
		rc = verify(&stored.bed, &report);
		assert_true(rc == 0 || rc == -EBADMSG || rc == -EPROTONOSUPPORT || rc == -EFBIG);
		found += rc < 0 || !sound(&report);
		rc = kvr_store_test_open(&stored.bed);
		for (uint32_t k = 0; rc == 0 && k < SEGMENTS; k++) {
			const int loaded = kvr_store_test_load(&stored.bed, stored.segments[k]);

			assert_true(loaded == 0 || loaded == -EBADMSG || loaded == -ENOENT);
		}
		kvr_store_test_close(&stored.bed);
		kvr_store_test_remove(&stored.bed, "catalog");
		kvr_store_test_copy(&stored.bed, "saved", "catalog");
	}
	print_message("%u of %u flips found\n", found, (unsigned)CATALOG_FLIPS);
	assert_true(found > 0);
	assert_sound(&stored, SEGMENTS);
	teardown_stored(&stored);
}

static void test_cut_slabs(void **state)
{
	struct kvr_store_report report;
	struct stored stored = {0};
	char path[256];

	(void)state;
	setup_stored(&stored);
	kvr_store_test_path(&stored.bed, "slabs.kvr", path);
	assert_int_equal(truncate(path, 5 * (off_t)KVR_SLAB_BYTES + 12345), 0);
	assert_int_equal(verify(&stored.bed, &report), 0);
	assert_in_range(report.damaged_segment_count, 3, 4);
	assert_int_equal(unlink(path), 0);
	assert_int_equal(verify(&stored.bed, &report), -ENOENT);
	assert_true(kvr_store_test_open(&stored.bed) < 0);
	assert_non_null(strstr(stored.bed.text, "slabs.kvr"));
	teardown_stored(&stored);
}

/* ---- rebuild --------------------------------------------------------------------------------- */

static void rebuild(struct kvr_store_bed *bed, struct kvr_store_report *ret_report)
{
	int rc = kvr_store_rebuild(&bed->config, NULL, NULL, ret_report, bed->text);

	if (rc < 0)
		print_message("%s\n", bed->text);
	assert_int_equal(rc, 0);
}

/* Rows that catalog and catalog.old do not have in common. */
static uint64_t differing(struct kvr_store_bed *bed)
{
	struct kvr_catalog *catalogs[2];
	struct kvr_catalog_meta metas[2];
	char paths[2][256];
	char first[200] = "";
	uint64_t count;

	kvr_store_test_path(bed, "catalog", paths[0]);
	kvr_store_test_path(bed, "catalog.old", paths[1]);
	for (uint32_t i = 0; i < 2; i++) {
		const struct kvr_catalog_config config = {paths[i], bed->config.catalog_bytes};

		memset(&metas[i], 0, sizeof(metas[i]));
		assert_int_equal(kvr_catalog_open(&config, &metas[i], &catalogs[i]), 0);
	}
	assert_int_equal(
		kvr_catalog_compare(catalogs[0], catalogs[1], &count, first, sizeof(first)), 0);
	if (count > 0)
		print_message("first difference: %s\n", first);
	kvr_catalog_close(catalogs[0]);
	kvr_catalog_close(catalogs[1]);
	return count;
}

static void test_rebuild_equals(void **state)
{
	struct kvr_store_report report;
	struct stored stored = {0};
	uint32_t tokens[4 * 256];
	char path[256];
	char gone[256];

	(void)state;
	setup_stored(&stored);
	for (uint32_t round = 0; round < 2; round++) {
		rebuild(&stored.bed, &report);
		assert_int_equal(report.segment_count, SEGMENTS);
		assert_int_equal(report.damaged_segment_count, 0);
		assert_int_equal(report.merged_count, MERGED * SEGMENTS);
		assert_int_equal(differing(&stored.bed), 0);
	}
	/* Also where there is no catalog at all. */
	kvr_store_test_path(&stored.bed, "catalog", path);
	kvr_store_test_path(&stored.bed, "elsewhere", gone);
	assert_int_equal(rename(path, gone), 0);
	rebuild(&stored.bed, &report);
	assert_sound(&stored, SEGMENTS);
	kvr_store_test_reopen(&stored.bed);
	for (uint32_t i = 0; i < SEGMENTS; i++) {
		assert_int_equal(kvr_store_test_load(&stored.bed, stored.segments[i]), 0);
		if (i < 4)
			memcpy(tokens + i * 256, stored.segments[i]->tokens, 256 * sizeof(*tokens));
	}
	assert_int_equal(kvr_store_test_match(&stored.bed, tokens, 4 * 256, NULL), 4);
	teardown_stored(&stored);
}

/* The second of the chain is damaged: it and what follows are left out; the rest is there, and can
 * be added to. */
static void test_rebuild_after_damage(void **state)
{
	struct kvr_store_sealed *fresh;
	struct kvr_store_sealed *late;
	struct kvr_store_report report;
	struct stored stored = {0};
	uint64_t last;

	(void)state;
	setup_stored(&stored);
	/* Boots that the new catalog will not have counted. */
	for (uint32_t i = 0; i < 5; i++)
		kvr_store_test_reopen(&stored.bed);
	late = kvr_store_sealed_any(&stored.bed, NULL, 78);
	kvr_store_test_keep(&stored.bed, late);
	last = late->id;
	kvr_store_test_close(&stored.bed);
	flip(&stored.bed, "slabs.kvr",
		(uint64_t)stored.segments[1]->parts[1] * KVR_SLAB_BYTES + 100000, 3);
	rebuild(&stored.bed, &report);
	assert_int_equal(report.segment_count, 4);
	assert_int_equal(report.damaged_cluster_count, 1);
	assert_sound(&stored, 4);
	kvr_store_test_reopen(&stored.bed);
	assert_int_equal(kvr_store_test_load(&stored.bed, stored.segments[0]), 0);
	assert_int_equal(kvr_store_test_load(&stored.bed, stored.segments[1]), -ENOENT);
	assert_int_equal(kvr_store_test_load(&stored.bed, stored.segments[4]), 0);
	fresh = kvr_store_sealed_any(&stored.bed, NULL, 77);
	kvr_store_test_keep(&stored.bed, fresh);
	assert_true(fresh->id > last); /* no id comes again */
	for (uint32_t i = 1; i < 4; i++)
		kvr_store_test_keep(&stored.bed, stored.segments[i]);
	kvr_store_test_close(&stored.bed);
	assert_sound(&stored, SEGMENTS + 2);
	rebuild(&stored.bed, &report);
	assert_int_equal(differing(&stored.bed), 0);
	kvr_store_sealed_free(late);
	kvr_store_sealed_free(fresh);
	teardown_stored(&stored);
}

/* What was dropped does not come back, and neither does what was never committed and then put
 * again. */
static void test_rebuild_leaves_the_dead(void **state)
{
	struct kvr_store_job job = {.op = KVR_STORE_DROP};
	struct kvr_store_report report;
	struct stored stored = {0};

	(void)state;
	setup_stored(&stored);
	kvr_store_test_reopen(&stored.bed);
	memcpy(job.drop.root, stored.bed.model.root, KVR_HASH_BYTES);
	memcpy(job.drop.hash, stored.segments[2]->hash, KVR_HASH_BYTES);
	assert_int_equal(kvr_store_test_run(&stored.bed, &job), 0);
	assert_int_equal(job.drop.segment_count, 2);
	kvr_store_test_close(&stored.bed);
	assert_sound(&stored, SEGMENTS - 2);
	rebuild(&stored.bed, &report);
	assert_int_equal(report.segment_count, SEGMENTS - 2);
	assert_int_equal(differing(&stored.bed), 0);
	teardown_stored(&stored);
}

/* ---- crashes, as they leave the files -------------------------------------------------------- */

/* Images are durable, the commit is not: the segment is not there, its slabs are free, and it can
 * be put again; a rebuild then finds two whole ones, and takes the one that was committed. */
static void test_images_without_commit(void **state)
{
	struct kvr_store_sealed *lost;
	struct kvr_store_report report;
	struct kvr_store_stat stat;
	struct stored stored = {0};

	(void)state;
	setup_stored(&stored);
	kvr_store_test_copy(&stored.bed, "catalog", "before");
	kvr_store_test_reopen(&stored.bed);
	lost = kvr_store_sealed_any(&stored.bed, stored.segments[0], 50);
	kvr_store_test_keep(&stored.bed, lost);
	kvr_store_test_close(&stored.bed);
	/* Back to the catalog of before, but with the boots counted: that commit had been made. */
	kvr_store_test_remove(&stored.bed, "catalog");
	kvr_store_test_copy(&stored.bed, "before", "catalog");
	kvr_store_test_reopen(&stored.bed);
	kvr_store_test_reopen(&stored.bed);
	kvr_store_stat(stored.bed.store, &stat);
	assert_int_equal(stat.used_bytes, 2 * SEGMENTS * KVR_SLAB_BYTES);
	assert_false(kvr_store_test_stored(&stored.bed, lost));
	kvr_store_test_close(&stored.bed);
	assert_int_equal(verify(&stored.bed, &report), 0);
	assert_int_equal(report.stale_slab_count, 2);
	assert_true(sound(&report));
	kvr_store_test_reopen(&stored.bed);
	/* Elsewhere than before: the first free slabs go to another one. */
	stored.segments[5]->hash[0]++;
	kvr_store_test_keep(&stored.bed, stored.segments[5]);
	kvr_store_test_keep(&stored.bed, lost);
	assert_int_equal(kvr_store_test_load(&stored.bed, lost), 0);
	kvr_store_test_close(&stored.bed);
	rebuild(&stored.bed, &report);
	assert_int_equal(report.segment_count, SEGMENTS + 2);
	assert_int_equal(differing(&stored.bed), 0);
	kvr_store_sealed_free(lost);
	teardown_stored(&stored);
}

/* The rows are out, the headers not wiped: the next open finishes that, and a rebuild finds
 * nothing. */
static void test_wipes_are_finished(void **state)
{
	struct kvr_store_report report;
	struct kvr_store_stat stat;
	struct stored stored = {0};
	struct kvr_catalog_meta meta = {0};
	struct kvr_catalog_config config;
	struct kvr_catalog *catalog;
	char path[256];

	(void)state;
	setup_stored(&stored);
	kvr_store_test_path(&stored.bed, "catalog", path);
	config = (struct kvr_catalog_config){path, stored.bed.config.catalog_bytes};
	assert_int_equal(kvr_catalog_open(&config, &meta, &catalog), 0);
	assert_int_equal(kvr_catalog_begin(catalog), 0);
	assert_int_equal(kvr_catalog_remove(catalog, stored.segments[5]->hash), 0);
	assert_int_equal(kvr_catalog_commit(catalog), 0);
	kvr_catalog_close(catalog);
	kvr_store_test_reopen(&stored.bed);
	kvr_store_stat(stored.bed.store, &stat);
	assert_int_equal(stat.used_bytes, 2 * (SEGMENTS - 1) * KVR_SLAB_BYTES);
	kvr_store_test_close(&stored.bed);
	rebuild(&stored.bed, &report);
	assert_int_equal(report.segment_count, SEGMENTS - 1);
	assert_int_equal(differing(&stored.bed), 0);
	teardown_stored(&stored);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_every_flip_is_found),
		cmocka_unit_test(test_merged_flip),
		cmocka_unit_test(test_catalog_flips),
		cmocka_unit_test(test_cut_slabs),
		cmocka_unit_test(test_rebuild_equals),
		cmocka_unit_test(test_rebuild_after_damage),
		cmocka_unit_test(test_rebuild_leaves_the_dead),
		cmocka_unit_test(test_images_without_commit),
		cmocka_unit_test(test_wipes_are_finished),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
