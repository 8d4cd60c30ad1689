/* SPDX-License-Identifier: Apache-2.0 */
/* naive_util.c: see naive_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/naive_util.h"

#include <string.h>

#include "daemon/crypt.h"
#include "tests/daemon/process_util.h"
#include "tiers/host.h"

struct naive naive;

void naive_open(enum kvr_policy_kind policy)
{
	static const struct kvr_geometry geometry = {.layer_count = 1,
		.query_heads = 2,
		.kv_heads = 2,
		.key_dim = 128,
		.value_dim = 96,
		.dtype = KVR_DTYPE_F32,
		.segment_tokens = 64,
		.cluster_tokens = 4,
		.sink_tokens = 3};

	memset(&naive, 0, sizeof(naive));
	assert_int_equal(kvr_crypt_init(), 0);
	assert_int_equal(kvr_arena_open(4 << 20, &naive.arena), 0);
	assert_int_equal(kvr_tier_open_host(naive.arena, &naive.host), 0);
	assert_int_equal(
		kvr_cache_open(&naive.cache, policy, false, naive.arena, naive.host, &naive.works),
		0);
	assert_int_equal(
		kvr_directory_open(&naive.directory, policy, naive.arena, &naive.cache, NULL, NULL),
		0);
	naive.tenants[0].quota_bytes = 1 << 19;
	naive.tenants[1].quota_bytes = UINT64_MAX;
	for (uint32_t i = 0; i < 2; i++)
		kvr_crypt_random(naive.tenants[i].salt, sizeof(naive.tenants[i].salt));
	for (uint32_t i = 0; i < 3; i++) {
		naive.models[i] = (struct kvr_model){.number = i + 1,
			.tenant = &naive.tenants[i > 0],
			.geometry = geometry,
			.child_first = KVR_SEGMENT_NONE};
		naive.models[i].geometry.merged = 5 * i; /* none; two sets; two, and a dense lane */
		naive.models[i].geometry.dense[0] = i & 2;
		naive.models[i].identity[0] = (uint8_t)i;
		naive.models[i].root[0] = (uint8_t)i;
	}
}

void naive_close(void)
{
	struct kvr_arena_stat stat;

	for (uint32_t i = 0; i < NAIVE_ALLOCS_MAX; i++)
		kvr_directory_free(&naive.directory, naive.held[i].tenant, naive.held[i].memory,
			naive.held[i].bytes);
	for (uint32_t i = 0; i < naive.record_count; i++) {
		for (; naive.records[i].alive && naive.records[i].leases; naive.records[i].leases--)
			kvr_directory_unlease(&naive.directory, naive.records[i].segment);
		if (naive.records[i].alive)
			kvr_directory_pin(&naive.directory, naive.records[i].segment, false);
	}
	for (uint32_t i = 0; i < 3; i++) {
		struct kvr_dropped_count dropped = {0};

		kvr_directory_drop_model(&naive.directory, &naive.models[i], &dropped);
		assert_int_equal(dropped.kept_count, 0);
		assert_int_equal(naive.models[i].users, 0);
		assert_int_equal(naive.models[i].stored_bytes, 0);
	}
	kvr_arena_stat(naive.arena, &stat);
	assert_int_equal(stat.used_bytes, 0);
	assert_int_equal(naive.tenants[0].held_bytes, 0);
	assert_int_equal(naive.tenants[1].held_bytes, 0);
	assert_int_equal(naive.directory.ready_count, 0);
	kvr_directory_close(&naive.directory);
	kvr_cache_close(&naive.cache);
	naive.host = kvr_tier_close(naive.host);
	naive.arena = kvr_arena_close(naive.arena);
}

static bool has_child(uint32_t record)
{
	for (uint32_t i = 0; i < naive.record_count; i++) {
		if (naive.records[i].alive && naive.records[i].parent == record)
			return true;
	}
	return false;
}

bool naive_may_go(uint32_t record)
{
	return naive.records[record].leases == 0 && !naive.records[record].pinned &&
	       !has_child(record);
}

uint32_t naive_random(void)
{
	for (uint32_t tries = 0; naive.record_count && tries < 200; tries++) {
		uint32_t i = process_random(0, naive.record_count - 1);

		if (naive.records[i].alive)
			return i;
	}
	return NAIVE_NONE;
}

uint32_t naive_find(
	const struct kvr_model *model, uint32_t parent, const uint32_t *tokens, uint32_t count)
{
	for (uint32_t i = 0; i < naive.record_count; i++) {
		if (naive.records[i].alive && naive.records[i].model == model &&
			naive.records[i].parent == parent && naive.records[i].count == count &&
			memcmp(naive.records[i].tokens, tokens, count * sizeof(*tokens)) == 0)
			return i;
	}
	return NAIVE_NONE;
}

bool naive_is_prefix(uint32_t record, const uint32_t *prompt, uint32_t count)
{
	for (; record != NAIVE_NONE; record = naive.records[record].parent) {
		const struct naive_record *it = &naive.records[record];

		if (it->first + it->count > count ||
			memcmp(prompt + it->first, it->tokens, it->count * sizeof(*prompt)) != 0)
			return false;
	}
	return true;
}

static uint8_t pattern(uint32_t record, uint32_t lane, uint32_t unit)
{
	return (uint8_t)(naive.records[record].hash[lane] + 31 * unit + record);
}

/* Clusters have their rows, merged sets a part of all but the sinks. */
static uint32_t unit_bytes(const struct kvr_segment_view *view, uint32_t lane, uint32_t unit)
{
	static const uint8_t divisors[2] = {2, 5}; /* of merged 5 and 10: bits 0 and 2, 1 and 3 */
	const uint16_t *first = kvr_segment_row_first(view, lane);
	const uint32_t row_bytes = (uint32_t)(kvr_geometry_key_bytes(view->geometry) +
					      kvr_geometry_value_bytes(view->geometry));
	const uint32_t all = view->token_count - view->sink_count;
	uint32_t divisor;

	if (unit <= view->cluster_count[lane])
		return (uint32_t)(first[unit + 1] - first[unit]) * row_bytes;
	if (unit <= view->cluster_max || (view->geometry->dense[0] >> lane & 1))
		return 0;
	divisor = divisors[unit - view->cluster_max - 1];
	if (view->geometry->merged == 10)
		divisor = divisor == 2 ? 4 : 8;
	return (all + divisor - 1) / divisor * row_bytes;
}

void naive_payload(uint32_t record, bool write)
{
	const struct kvr_segment *segment =
		&naive.directory.segments[naive.records[record].segment];
	const struct kvr_segment_view *view = &segment->view;
	uint64_t all = 0;

	for (uint32_t lane = 0; lane < 2; lane++) {
		for (uint32_t unit = 0; unit < view->unit_count; unit++) {
			const uint32_t bytes = unit_bytes(view, lane, unit);
			uint8_t *memory = kvr_segment_extent(view, lane)[unit];

			assert_true((bytes > 0) == (memory != NULL));
			if (write && bytes)
				memset(memory, pattern(record, lane, unit), bytes);
			for (uint32_t i = 0; !write && i < bytes; i += 61)
				assert_int_equal(memory[i], pattern(record, lane, unit));
			all += bytes;
		}
	}
	assert_int_equal(segment->payload_bytes, all);
}

void naive_settle(void)
{
	uint64_t bytes[2] = {0, 0};
	uint32_t ready = 0;
	bool gone;

	do { /* children first, so that their parents may go */
		gone = false;
		for (uint32_t i = 0; i < naive.record_count; i++) {
			struct naive_record *it = &naive.records[i];
			const struct kvr_segment *segment = &naive.directory.segments[it->segment];

			if (!it->alive || (segment->state == KVR_SEGMENT_READY &&
						  memcmp(segment->hash, it->hash, 32) == 0))
				continue;
			if (has_child(i))
				continue;
			assert_true(naive_may_go(i));
			it->alive = false;
			gone = true;
		}
	} while (gone);
	for (uint32_t i = 0; i < naive.record_count; i++) {
		if (!naive.records[i].alive)
			continue;
		assert_memory_equal(naive.directory.segments[naive.records[i].segment].hash,
			naive.records[i].hash, 32);
		bytes[naive.records[i].model->tenant == &naive.tenants[1]] +=
			naive.records[i].bytes;
		ready++;
	}
	for (uint32_t i = 0; i < NAIVE_ALLOCS_MAX; i++)
		bytes[naive.held[i].tenant == &naive.tenants[1]] += naive.held[i].bytes;
	assert_int_equal(naive.directory.ready_count, ready);
	assert_int_equal(naive.tenants[0].held_bytes, bytes[0]); /* G4 */
	assert_int_equal(naive.tenants[1].held_bytes, bytes[1]);
	assert_true(naive.tenants[0].held_bytes <= naive.tenants[0].quota_bytes);
}
