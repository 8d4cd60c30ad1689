/* SPDX-License-Identifier: Apache-2.0 */
/* crash_check_util.c: a store after a crash, looked at from all sides. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/crash_util.h"

#define NOBODY UINT32_MAX

/* What LIST says: which segments are there. */
struct present {
	bool there[KVR_CRASH_SEGMENTS];
	struct kvr_store_segment entries[KVR_CRASH_SEGMENTS];
	uint32_t count, slabs;
};

__attribute__((format(printf, 2, 3))) static bool wrong(
	struct kvr_crash_world *world, const char *format, ...)
{
	va_list arguments;

	va_start(arguments, format);
	(void)vsnprintf(world->why, sizeof(world->why), format, arguments);
	va_end(arguments);
	return false;
}

static char letter(uint32_t segment)
{
	return (char)('A' + segment);
}

static uint32_t find_segment(
	const struct kvr_crash_world *world, const uint8_t hash[KVR_HASH_BYTES])
{
	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		if (memcmp(world->segments[i]->hash, hash, KVR_HASH_BYTES) == 0)
			return i;
	}
	return NOBODY;
}

/* The parent of a segment, or NOBODY. */
static uint32_t parent_of(const struct kvr_crash_world *world, uint32_t segment)
{
	return find_segment(world, world->segments[segment]->parent);
}

static bool list(struct kvr_crash_world *world, struct present *present)
{
	struct kvr_store_job job = {.op = KVR_STORE_LIST};
	int rc;

	memset(present, 0, sizeof(*present));
	memcpy(job.list.root, world->bed.model.root, KVR_HASH_BYTES);
	rc = kvr_store_test_run(&world->bed, &job);
	if (rc < 0 || job.list.more)
		return wrong(world, "LIST: %d, %u entries", rc, job.list.count);
	for (uint32_t i = 0; i < job.list.count; i++) {
		const struct kvr_store_segment *entry = &job.list.entries[i];
		const uint32_t segment = find_segment(world, entry->hash);

		if (segment == NOBODY || present->there[segment])
			return wrong(world, "LIST: a segment that nobody put, or one twice");
		present->there[segment] = true;
		present->entries[segment] = *entry;
		present->count++;
		present->slabs += entry->part_count;
		world->segments[segment]->id = entry->id;
	}
	return true;
}

/* ---- against beliefs ------------------------------------------------------------------------- */

static bool agrees(const struct kvr_crash_belief *belief, const struct kvr_store_segment *entry)
{
	const uint64_t used = belief->flags & KVR_CATALOG_QUARANTINED ? 0 : belief->used;

	if (belief->there == KVR_CRASH_ABSENT)
		return false;
	if (belief->unmarked)
		return true;
	return entry->flags == belief->flags && (belief->used == 0 || entry->used == used);
}

/* Everything acknowledged is there, nothing else is, nothing half. */
static bool compare(struct kvr_crash_world *world, const struct present *present,
	const struct kvr_crash_beliefs *before, const struct kvr_crash_beliefs *after, bool atomic)
{
	uint32_t changed = 0;
	uint32_t differing = 0;

	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		const struct kvr_crash_belief *was = &before->segments[i];
		const struct kvr_crash_belief *will = &after->segments[i];
		const bool there = present->there[i];
		const uint32_t parent = parent_of(world, i);

		if (was->there == will->there && was->there != KVR_CRASH_EITHER &&
			there != (was->there == KVR_CRASH_PRESENT))
			return wrong(world, "%c, which %s, is %s", letter(i),
				there ? "was never put or has gone" : "was acknowledged",
				there ? "there" : "lost");
		if (there && !agrees(was, &present->entries[i]) &&
			!agrees(will, &present->entries[i]))
			return wrong(world, "%c: flags %u, last use %llu", letter(i),
				present->entries[i].flags,
				(unsigned long long)present->entries[i].used);
		if (there && parent != NOBODY && !present->there[parent])
			return wrong(world, "%c is there without the one before it", letter(i));
		differing += was->there != will->there;
		changed += was->there != will->there && there == (will->there == KVR_CRASH_PRESENT);
	}
	if (atomic && changed != 0 && changed != differing)
		return wrong(world, "%u of the %u changes of one commit", changed, differing);
	return true;
}

/* After a rebuild: all that the catalog had; maybe what was evicted or put without being acknowledged; never what was dropped. */
static bool compare_rebuilt(struct kvr_crash_world *world, const struct present *present,
	const struct present *rebuilt, const struct kvr_crash_beliefs *before,
	const struct kvr_crash_beliefs *after)
{
	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		if (present->there[i] && !rebuilt->there[i])
			return wrong(world, "%c is lost by a rebuild", letter(i));
		if (present->there[i] && rebuilt->entries[i].id != present->entries[i].id)
			return wrong(world, "%c has another id after a rebuild", letter(i));
		if (rebuilt->there[i] && !present->there[i] && before->segments[i].dropped &&
			after->segments[i].dropped)
			return wrong(world, "%c was dropped, and a rebuild finds it", letter(i));
	}
	return true;
}

/* ---- every byte ------------------------------------------------------------------------------ */

static bool match(struct kvr_crash_world *world, const struct present *present, uint32_t segment)
{
	uint32_t tokens[2048];
	uint32_t chain[KVR_CRASH_SEGMENTS];
	uint32_t depth = 0;
	uint32_t count = 0;
	uint32_t expected = 0;
	uint32_t found;

	for (uint32_t i = segment; i != NOBODY; i = parent_of(world, i))
		chain[depth++] = i;
	for (uint32_t i = depth; i-- > 0;) {
		const struct kvr_store_sealed *one = world->segments[chain[i]];

		assert_true(count + one->view.token_count <= 2048);
		memcpy(tokens + count, one->tokens, one->view.token_count * sizeof(*tokens));
		count += one->view.token_count;
		if (expected == depth - 1 - i && present->there[chain[i]] &&
			!(present->entries[chain[i]].flags & KVR_CATALOG_QUARANTINED))
			expected++;
	}
	found = kvr_store_test_match(&world->bed, tokens, count, NULL);
	if (found != expected)
		return wrong(world, "%c: MATCH finds %u of %u", letter(segment), found, expected);
	return true;
}

static bool load_all(struct kvr_crash_world *world, const struct present *present)
{
	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		int rc;

		if (!match(world, present, i))
			return false;
		if (!present->there[i])
			continue;
		rc = kvr_store_test_load(&world->bed, world->segments[i]);
		if (rc < 0)
			return wrong(world, "%c does not load: %d", letter(i), rc);
	}
	return true;
}

/* No slab is lost, and none has two owners: those that are free can be filled, and then no more, and nothing else changes. */
static bool fill(struct kvr_crash_world *world, const struct present *present)
{
	uint32_t count = 0;
	int rc = 0;

	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		if (present->there[i])
			assert_true(kvr_store_hold(world->bed.store, present->entries[i].id));
	}
	while (rc == 0 && count < KVR_CRASH_SLABS) {
		rc = kvr_store_test_put(&world->bed, world->fillers[count]);
		count += rc == 0;
	}
	if (count != KVR_CRASH_SLABS - present->slabs || (rc != -ENOSPC && rc != 0))
		return wrong(
			world, "%u slabs taken, room for %u more: %d", present->slabs, count, rc);
	for (uint32_t i = 0; i < count; i++) {
		if (kvr_store_test_load(&world->bed, world->fillers[i]) < 0)
			return wrong(world, "what was put behind the crash does not load");
	}
	if (!load_all(world, present))
		return false;
	for (uint32_t i = 0; i < count; i++)
		kvr_store_unhold(world->bed.store, world->fillers[i]->id);
	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		if (present->there[i])
			kvr_store_unhold(world->bed.store, present->entries[i].id);
	}
	return true;
}

/* ---- all of it ------------------------------------------------------------------------------- */

static void keep_line(void *context, const char *line)
{
	struct kvr_crash_world *world = context;

	(void)wrong(world, "%.200s", line);
}

/* The store is closed. */
static bool verify(struct kvr_crash_world *world, uint32_t count)
{
	struct kvr_store_report report;
	char line[sizeof(world->why)];
	int rc = kvr_store_verify(&world->bed.config, keep_line, world, &report, world->bed.text);

	if (rc < 0)
		return wrong(world, "verify: %d: %.200s", rc, world->bed.text);
	memcpy(line, world->why, sizeof(line));
	if (report.damaged_segment_count > 0 || report.damaged_cluster_count > 0 ||
		report.damaged_merged_count > 0 || report.catalog_damaged)
		return wrong(world, "verify: %.200s", line);
	if (report.segment_count != count)
		return wrong(world, "verify: %u segments of %u", (unsigned int)report.segment_count,
			count);
	return true;
}

static bool open_store(struct kvr_crash_world *world)
{
	const int rc = kvr_store_test_open(&world->bed);

	return rc == 0 || wrong(world, "open: %d: %.200s", rc, world->bed.text);
}

/* With the store open; closes it. */
static bool look(struct kvr_crash_world *world, struct present *present,
	const struct kvr_crash_beliefs *before, const struct kvr_crash_beliefs *after, bool atomic,
	unsigned int also)
{
	struct kvr_store_stat stat;
	bool right = list(world, present) && compare(world, present, before, after, atomic) &&
		     load_all(world, present);

	kvr_store_stat(world->bed.store, &stat);
	if (right && stat.used_bytes != (uint64_t)present->slabs * KVR_SLAB_BYTES)
		right = wrong(world, "%u slabs are taken, %u are segments'",
			(unsigned int)(stat.used_bytes / KVR_SLAB_BYTES), present->slabs);
	if (right && before->store &&
		memcmp(kvr_store_secret(world->bed.store), before->secret,
			sizeof(before->secret)) != 0)
		right = wrong(world, "another secret");
	if (right && (also & KVR_CRASH_FILL))
		right = fill(world, present);
	kvr_store_test_close(&world->bed);
	return right;
}

static bool rebuild(struct kvr_crash_world *world, const struct present *present,
	const struct kvr_crash_beliefs *before, const struct kvr_crash_beliefs *after)
{
	struct kvr_store_report report;
	struct present rebuilt;
	bool right;
	int rc = kvr_store_rebuild(&world->bed.config, NULL, NULL, &report, world->bed.text);

	if (rc < 0)
		return wrong(world, "rebuild: %d: %.200s", rc, world->bed.text);
	if (!open_store(world))
		return false;
	right = list(world, &rebuilt) && compare_rebuilt(world, present, &rebuilt, before, after) &&
		load_all(world, &rebuilt);
	kvr_store_test_close(&world->bed);
	return right && verify(world, rebuilt.count);
}

bool kvr_crash_check(struct kvr_crash_world *world, const struct kvr_crash_beliefs *before,
	const struct kvr_crash_beliefs *after, bool atomic, unsigned int also)
{
	struct present present;
	uint32_t count;

	if (!open_store(world) || !look(world, &present, before, after, atomic, also))
		return false;
	count = present.count;
	if (also & KVR_CRASH_FILL)
		count += KVR_CRASH_SLABS - present.slabs;
	if (!verify(world, count))
		return false;
	return !(also & KVR_CRASH_REBUILD) || rebuild(world, &present, before, after);
}
