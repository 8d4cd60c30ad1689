/* SPDX-License-Identifier: Apache-2.0 */
/* slab.c: the bytes of slabs.
 *
 * Goal: what is packed is unpacked as it was; any flipped bit is found; sizes and places are those
 * that tiers/slab.h describes; a summary that breaks S1 to S4 or S9 is not valid.
 *
 * Method: random headers, heads and geometries, against arithmetic done the slow way: a stream laid
 * out byte by byte, each unit behind the one before; every bit of a page flipped once; summaries
 * broken one number at a time. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>

#include "kernels/crc.h"
#include "tests/tiers/store_util.h"

enum {
	PAGE = KVR_SLAB_HEADER_BYTES,
	ROUNDS = 200,
};

static void fill(struct kvr_random *random, void *bytes, size_t count)
{
	uint8_t *to = bytes;

	for (size_t i = 0; i < count; i++)
		to[i] = (uint8_t)kvr_random_next(random);
}

static struct kvr_geometry any_geometry(struct kvr_random *random)
{
	struct kvr_geometry geometry = {
		.layer_count = kvr_random_range(random, 1, 8),
		.kv_heads = kvr_random_range(random, 1, 8),
		.key_dim = kvr_random_range(random, KVR_DIM_MIN, KVR_DIM_MAX),
		.value_dim = kvr_random_range(random, KVR_DIM_MIN, KVR_DIM_MAX),
		.dtype = (enum kvr_dtype)kvr_random_range(random, 1, 3),
		.segment_tokens = 64 * kvr_random_range(random, 1, 16),
		.cluster_tokens = kvr_random_range(random, 4, 64),
		.sink_tokens = kvr_random_range(random, 0, 16),
		.merged = kvr_random_range(random, 0, (1u << KVR_MERGED_SETS) - 1),
	};

	geometry.query_heads = geometry.kv_heads * kvr_random_range(random, 1, 4);
	fill(random, geometry.dense, sizeof(geometry.dense));
	assert_true(kvr_geometry_valid(&geometry));
	return geometry;
}

static struct kvr_slab_head any_head(struct kvr_random *random)
{
	struct kvr_slab_head head;

	memset(&head, 0, sizeof(head));
	head.segment = kvr_random_next(random) | 1;
	fill(random, head.hash, sizeof(head.hash));
	fill(random, head.parent, sizeof(head.parent));
	head.summary_crc = (uint32_t)kvr_random_next(random);
	fill(random, head.model.root, sizeof(head.model.root));
	fill(random, head.model.digest, sizeof(head.model.digest));
	head.model.rank = (uint32_t)kvr_random_next(random);
	memset(head.model.tenant, 't', kvr_random_range(random, 1, KVR_NAME_MAX - 1));
	memset(head.model.name, 'm', kvr_random_range(random, 0, KVR_NAME_MAX - 1));
	head.model.geometry = any_geometry(random);
	head.token_count = kvr_random_range(random, 1, head.model.geometry.segment_tokens);
	head.token_first = kvr_random_range(random, 0, KVR_SEQUENCE_TOKENS_MAX - head.token_count);
	return head;
}

static struct kvr_slab_header any_header(struct kvr_random *random)
{
	struct kvr_slab_header header;

	fill(random, header.store, sizeof(header.store));
	header.segment = kvr_random_next(random) | 1;
	header.part_count = kvr_random_range(random, 1, KVR_SLAB_PARTS_MAX);
	header.part = kvr_random_range(random, 0, header.part_count - 1);
	header.body_bytes = kvr_random_range(random, 1, KVR_SLAB_BODY_BYTES);
	return header;
}

/* ---- pages ----------------------------------------------------------------------------------- */

static void test_round_trip(void **state)
{
	struct kvr_random random = kvr_random_start();
	uint8_t page[PAGE];
	uint8_t again[PAGE];

	(void)state;
	for (uint32_t i = 0; i < ROUNDS; i++) {
		const struct kvr_slab_header header = any_header(&random);
		const struct kvr_slab_head head = any_head(&random);
		struct kvr_slab_header header_back = {0};
		struct kvr_slab_head head_back;

		fill(&random, page, PAGE);
		kvr_slab_pack_header(&header, page);
		assert_int_equal(kvr_slab_unpack_header(page, &header_back), 0);
		assert_memory_equal(header.store, header_back.store, sizeof(header.store));
		assert_int_equal(header.segment, header_back.segment);
		assert_int_equal(header.part, header_back.part);
		assert_int_equal(header.part_count, header_back.part_count);
		assert_int_equal(header.body_bytes, header_back.body_bytes);
		assert_int_equal(kvr_slab_unpack_head(page, &head_back), -ENOENT);
		fill(&random, page, PAGE);
		kvr_slab_pack_head(&head, page);
		assert_int_equal(kvr_slab_unpack_head(page, &head_back), 0);
		kvr_slab_pack_head(&head_back, again);
		assert_memory_equal(page, again, PAGE);
		assert_string_equal(head.model.tenant, head_back.model.tenant);
		assert_string_equal(head.model.name, head_back.model.name);
		assert_memory_equal(head.model.root, head_back.model.root, KVR_HASH_BYTES);
		assert_memory_equal(head.model.digest, head_back.model.digest, KVR_HASH_BYTES);
		assert_int_equal(head.model.rank, head_back.model.rank);
		assert_int_equal(
			head.model.geometry.sink_tokens, head_back.model.geometry.sink_tokens);
		assert_int_equal(head.model.geometry.merged, head_back.model.geometry.merged);
		assert_memory_equal(head.model.geometry.dense, head_back.model.geometry.dense,
			sizeof(head.model.geometry.dense));
		assert_memory_equal(head.hash, head_back.hash, KVR_HASH_BYTES);
		assert_memory_equal(head.parent, head_back.parent, KVR_HASH_BYTES);
		assert_int_equal(head.segment, head_back.segment);
		assert_int_equal(head.token_first, head_back.token_first);
		assert_int_equal(head.token_count, head_back.token_count);
		assert_int_equal(head.summary_crc, head_back.summary_crc);
		assert_int_equal(kvr_slab_unpack_header(page, &header_back), -ENOENT);
	}
	memset(page, 0, PAGE);
	assert_int_equal(kvr_slab_unpack_header(page, &(struct kvr_slab_header){0}), -ENOENT);
}

static void test_every_bit_counts(void **state)
{
	struct kvr_random random = kvr_random_start();
	const struct kvr_slab_header header = any_header(&random);
	const struct kvr_slab_head head = any_head(&random);
	uint8_t pages[2][PAGE];

	(void)state;
	kvr_slab_pack_header(&header, pages[0]);
	kvr_slab_pack_head(&head, pages[1]);
	for (uint32_t bit = 0; bit < 8 * PAGE; bit++) {
		struct kvr_slab_header header_back;
		struct kvr_slab_head head_back;
		const int expected = bit < 8 * 8 ? -ENOENT : -EBADMSG;

		for (uint32_t i = 0; i < 2; i++)
			pages[i][bit / 8] = (uint8_t)(pages[i][bit / 8] ^ (1u << bit % 8));
		assert_int_equal(kvr_slab_unpack_header(pages[0], &header_back), expected);
		assert_int_equal(kvr_slab_unpack_head(pages[1], &head_back), expected);
		for (uint32_t i = 0; i < 2; i++)
			pages[i][bit / 8] = (uint8_t)(pages[i][bit / 8] ^ (1u << bit % 8));
	}
}

/* Gives a page the checksum of what is in it now, as a newer version or an attacker would. */
static void seal(uint8_t page[PAGE])
{
	uint32_t crc;

	memset(page + 12, 0, 4);
	crc = kvr_crc32c(0, page, PAGE);
	for (uint32_t i = 0; i < 4; i++)
		page[12 + i] = (uint8_t)(crc >> 8 * i);
}

/* One number of the page is set, at its place in the table, and the page sealed. */
static int header_with(uint32_t at, uint32_t value)
{
	struct kvr_random random = {1};
	const struct kvr_slab_header header = any_header(&random);
	struct kvr_slab_header back;
	uint8_t page[PAGE];

	kvr_slab_pack_header(&header, page);
	for (uint32_t i = 0; i < 4; i++)
		page[at + i] = (uint8_t)(value >> 8 * i);
	seal(page);
	if (at == 8)
		assert_int_equal(kvr_slab_version(page), value);
	return kvr_slab_unpack_header(page, &back);
}

static int head_with(uint32_t at, uint32_t value)
{
	struct kvr_random random = {1};
	const struct kvr_slab_head head = any_head(&random);
	struct kvr_slab_head back;
	uint8_t page[PAGE];

	kvr_slab_pack_head(&head, page);
	for (uint32_t i = 0; i < 4; i++)
		page[at + i] = (uint8_t)(value >> 8 * i);
	seal(page);
	return kvr_slab_unpack_head(page, &back);
}

static void test_numbers_out_of_range(void **state)
{
	(void)state;
	assert_int_equal(header_with(8, KVR_SLAB_VERSION), 0);
	assert_int_equal(header_with(8, KVR_SLAB_VERSION + 1), -EPROTONOSUPPORT);
	assert_int_equal(header_with(8, KVR_SLAB_VERSION - 1), -EPROTONOSUPPORT);
	assert_int_equal(header_with(40, KVR_SLAB_PARTS_MAX), -EBADMSG);     /* part */
	assert_int_equal(header_with(44, 0), -EBADMSG);                      /* part count */
	assert_int_equal(header_with(44, KVR_SLAB_PARTS_MAX + 1), -EBADMSG); /* part count */
	assert_int_equal(header_with(48, 0), -EBADMSG);                      /* body bytes */
	assert_int_equal(header_with(48, KVR_SLAB_BODY_BYTES + 1), -EBADMSG);
	assert_int_equal(head_with(8, KVR_SLAB_VERSION), 0);
	assert_int_equal(head_with(8, KVR_SLAB_VERSION + 1), -EPROTONOSUPPORT);
	assert_int_equal(head_with(8, KVR_SLAB_VERSION - 1), -EPROTONOSUPPORT);
	assert_int_equal(head_with(88, KVR_SEQUENCE_TOKENS_MAX), -EBADMSG);     /* first token */
	assert_int_equal(head_with(92, 0), -EBADMSG);                           /* token count */
	assert_int_equal(head_with(92, KVR_SEGMENT_TOKENS_MAX + 1), -EBADMSG);  /* token count */
	assert_int_equal(head_with(136, 0), -EBADMSG);                          /* tenant */
	assert_int_equal(head_with(136 + KVR_NAME_MAX - 4, ~0u), -EBADMSG);     /* its end */
	assert_int_equal(head_with(296, 0), -EBADMSG);                          /* layers */
	assert_int_equal(head_with(296, KVR_LAYERS_MAX + 1), -EBADMSG);         /* layers */
	assert_int_equal(head_with(308, KVR_DIM_MAX + 1), -EBADMSG);            /* key dim */
	assert_int_equal(head_with(320, KVR_SEGMENT_TOKENS_MAX * 2), -EBADMSG); /* segment tokens */
	assert_int_equal(head_with(316, 4), -EBADMSG);                          /* dtype */
	assert_int_equal(head_with(332, 1u << KVR_MERGED_SETS), -EBADMSG);      /* merged */
}

/* ---- places ---------------------------------------------------------------------------------- */

static uint64_t padded(uint64_t bytes)
{
	while (bytes % PAGE != 0)
		bytes++;
	return bytes;
}

static uint32_t rows_of(const struct kvr_segment_view *view, uint32_t lane, uint32_t cluster)
{
	const uint16_t *row_first = kvr_segment_row_first(view, lane) + cluster;

	return cluster > view->cluster_count[lane] ? 0 : (uint32_t)(row_first[1] - row_first[0]);
}

/* Set after set, in each lane after lane but the dense ones; returns where they end. */
static uint64_t merged_end(
	const struct kvr_slab_layout *layout, const struct kvr_segment_view *view, uint64_t at)
{
	const struct kvr_geometry *geometry = view->geometry;
	const uint32_t all = view->token_count - view->sink_count;
	uint32_t unit = view->cluster_max + 1;

	for (uint32_t set = 0; set < KVR_MERGED_SETS; set++) {
		const uint32_t divisor = kvr_merged_divisors[set];

		if (!(geometry->merged >> set & 1))
			continue;
		for (uint32_t lane = 0; lane < kvr_geometry_lanes(geometry); lane++) {
			const uint64_t row_bytes =
				kvr_geometry_token_bytes(geometry) / kvr_geometry_lanes(geometry);
			const bool dense = kvr_geometry_is_dense(geometry, lane);
			const uint32_t rows = dense ? 0 : (all + divisor - 1) / divisor;
			uint32_t bytes;
			const uint64_t got = kvr_slab_unit_at(layout, view, lane, unit, &bytes);

			assert_int_equal(bytes, rows * row_bytes);
			if (bytes > 0)
				assert_int_equal(got, at);
			at += bytes;
		}
		unit++;
	}
	assert_int_equal(unit, view->unit_count);
	return at;
}

static void test_layout(void **state)
{
	struct kvr_random random = kvr_random_start();
	struct kvr_store_bed bed = {0};

	(void)state;
	for (uint32_t i = 0; i < ROUNDS / 4; i++) {
		struct kvr_slab_layout layout;
		struct kvr_segment_view *view;
		struct kvr_store_sealed *segment;
		uint32_t tokens[KVR_SEGMENT_TOKENS_MAX] = {0};
		uint64_t at;
		uint32_t count;

		bed.model.geometry = any_geometry(&random);
		count = kvr_random_range(&random, 1, bed.model.geometry.segment_tokens);
		segment = kvr_store_sealed_make(&bed, NULL, tokens, count);
		view = &segment->view;
		layout = segment->layout;
		assert_int_equal(layout.summary_at, PAGE);
		assert_int_equal(
			layout.summary_bytes, count * 4 + kvr_segment_bind(view, view->memory));
		at = padded(PAGE + layout.summary_bytes);
		assert_int_equal(layout.payload_at, at);
		for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry); lane++) {
			for (uint32_t c = 0; c <= view->cluster_max; c++) {
				uint32_t bytes;

				assert_int_equal(
					kvr_slab_unit_at(&layout, view, lane, c, &bytes), at);
				assert_int_equal(bytes > 0, rows_of(view, lane, c) > 0);
				at += bytes;
			}
		}
		assert_int_equal(layout.payload_at + layout.payload_bytes, at);
		assert_int_equal(layout.merged_at, at);
		at = merged_end(&layout, view, at);
		assert_int_equal(layout.merged_at + layout.merged_bytes, at);
		assert_int_equal(layout.checksums_at, padded(at));
		assert_int_equal(layout.checksums_bytes, 4 * (kvr_segment_extent_count(view) + 1));
		assert_int_equal(
			layout.stream_bytes, padded(layout.checksums_at + layout.checksums_bytes));
		assert_true(
			layout.stream_bytes <= (uint64_t)layout.part_count * KVR_SLAB_BODY_BYTES);
		assert_true(layout.stream_bytes >
			    (uint64_t)(layout.part_count - 1) * KVR_SLAB_BODY_BYTES);
		kvr_store_sealed_free(segment);
	}
}

static void test_parts(void **state)
{
	uint32_t offset;
	uint32_t left;

	(void)state;
	assert_int_equal(kvr_slab_part(0, &offset, &left), 0);
	assert_int_equal(offset, PAGE);
	assert_int_equal(left, KVR_SLAB_BODY_BYTES);
	assert_int_equal(kvr_slab_part(KVR_SLAB_BODY_BYTES - 1, &offset, &left), 0);
	assert_int_equal(offset, KVR_SLAB_BYTES - 1);
	assert_int_equal(left, 1);
	assert_int_equal(kvr_slab_part(3ull * KVR_SLAB_BODY_BYTES + 5, &offset, &left), 3);
	assert_int_equal(offset, PAGE + 5);
	assert_int_equal(left, KVR_SLAB_BODY_BYTES - 5);
}

/* ---- summaries ------------------------------------------------------------------------------- */

/* Breaks one number, expects that it is seen, and mends it. */
static void break_one(const struct kvr_segment_view *view, uint16_t *number, uint32_t value)
{
	const uint16_t before = *number;

	assert_int_not_equal(before, value);
	*number = (uint16_t)value;
	assert_false(kvr_slab_summary_valid(view));
	*number = before;
	assert_true(kvr_slab_summary_valid(view));
}

/* A row that stands for nothing, or for one token too many. */
static void break_merged(
	const struct kvr_segment_view *view, uint32_t lane, struct kvr_random *random)
{
	uint16_t *tokens = view->merged_tokens + (size_t)lane * view->merged_max +
			   kvr_random_range(random, 0, view->merged_max - 1);

	break_one(view, tokens, 0);
	break_one(view, tokens, *tokens + 1u);
	break_one(view, tokens, UINT16_MAX);
}

static void test_summaries(void **state)
{
	struct kvr_random random = kvr_random_start();
	uint32_t tokens[1024] = {0};

	(void)state;
	for (uint32_t i = 0; i < ROUNDS / 4; i++) {
		struct kvr_store_bed bed = {0};
		struct kvr_store_sealed *segment;
		struct kvr_segment_view *view;
		uint32_t lane;
		uint32_t row;

		bed.model.geometry = any_geometry(&random);
		bed.model.geometry.segment_tokens = 256;
		bed.model.geometry.cluster_tokens = 8;
		memset(bed.model.geometry.dense, i % 2 ? 0xff : 0,
			sizeof(bed.model.geometry.dense));
		segment = kvr_store_sealed_make(
			&bed, NULL, tokens, kvr_random_range(&random, 40, 256));
		view = &segment->view;
		assert_true(kvr_slab_summary_valid(view));
		lane = kvr_random_range(&random, 0, kvr_geometry_lanes(view->geometry) - 1);
		row = kvr_random_range(&random, 1, view->token_count - 1);
		break_one(view, &view->cluster_count[lane], view->cluster_max + 1);
		break_one(view, &view->cluster_count[lane], UINT16_MAX);
		break_one(view, kvr_segment_row_first(view, lane), 1);
		break_one(view, kvr_segment_row_first(view, lane) + view->cluster_count[lane] + 1,
			view->token_count + 1);
		break_one(view, kvr_segment_row_token(view, lane) + row, view->token_count);
		break_one(view, kvr_segment_row_token(view, lane) + row,
			kvr_segment_row_token(view, lane)[row - 1]);
		if (view->cluster_count[lane] > 1)
			break_one(view, kvr_segment_row_first(view, lane) + 1, 0);
		if (view->cluster_count[lane] < view->cluster_max)
			break_one(
				view, kvr_segment_row_first(view, lane) + view->cluster_max + 1, 0);
		if (view->merged_max > 0 && !kvr_geometry_is_dense(view->geometry, lane))
			break_merged(view, lane, &random);
		kvr_store_sealed_free(segment);
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_round_trip),
		cmocka_unit_test(test_every_bit_counts),
		cmocka_unit_test(test_numbers_out_of_range),
		cmocka_unit_test(test_layout),
		cmocka_unit_test(test_parts),
		cmocka_unit_test(test_summaries),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
