/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_record.c: rows as bytes.
 *
 * Goal: what is packed is unpacked as it was; nothing else is accepted: no other table, key or
 * length, no flipped bit, no number out of range under a right checksum; keys as bytes are in the
 * order of what they say.
 *
 * Method: random rows of every table there and back; then every bit of key and value is flipped,
 * lengths are changed, and the row is offered to every other table. Numbers out of range are sealed
 * by the packing functions where these do not assert. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <cmocka.h>

#include "tests/tiers/catalog_util.h"
#include "tiers/catalog_record.h"

struct row {
	enum kvr_catalog_table table;
	struct kvr_catalog_key key;
	uint32_t bytes;
	uint8_t value[KVR_CATALOG_SEGMENT_BYTES];
};

static struct kvr_books books;

static struct row *small(struct row *row, enum kvr_catalog_table table, struct kvr_catalog_key key,
	struct kvr_catalog_value value)
{
	row->table = table;
	row->key = key;
	row->bytes = value.bytes;
	memcpy(row->value, value.data, value.bytes);
	return row;
}

static int unpack(struct row *row)
{
	return kvr_catalog_unpack(row->table, (struct kvr_span){row->key.data, row->key.bytes},
		(struct kvr_span){row->value, row->bytes});
}

/* A valid row of a table. */
static struct row *draw(struct kvr_random *random, uint32_t table)
{
	static struct row row;
	struct kvr_books_segment *one = NULL;
	struct kvr_catalog_meta meta = {
		.version = KVR_CATALOG_VERSION, .boot = 1 + kvr_random_next(random) % 1000};
	const struct kvr_catalog_counts counts = {7, 3};
	struct kvr_catalog_unit_row unit = {
		.id = 1 + kvr_random_next(random) % 1000, .lane = 3, .number = 2, .lane_count = 4};
	struct kvr_catalog_key key;

	while (!one)
		one = kvr_books_draw(&books, random);
	memset(&row, 0, sizeof(row));
	switch ((enum kvr_catalog_table)table) {
	case KVR_CATALOG_META:
		key = kvr_catalog_key_text("store");
		return small(&row, KVR_CATALOG_META, key, kvr_catalog_pack_meta(&key, &meta));
	case KVR_CATALOG_TENANT:
		key = kvr_catalog_key_text("somebody");
		return small(&row, KVR_CATALOG_TENANT, key,
			kvr_catalog_pack_tenant(&key, 1 + kvr_random_next(random) % 99));
	case KVR_CATALOG_MODEL:
		row.table = KVR_CATALOG_MODEL;
		row.key = kvr_catalog_key_hash(books.models[one->model].root);
		row.bytes = KVR_CATALOG_MODEL_BYTES;
		kvr_catalog_pack_model(&books.models[one->model], row.value);
		return &row;
	case KVR_CATALOG_SEGMENT:
		row.table = KVR_CATALOG_SEGMENT;
		row.key = kvr_catalog_key_hash(one->segment.hash);
		row.bytes = kvr_catalog_pack_segment(&one->segment, counts, row.value);
		return &row;
	case KVR_CATALOG_CHILD:
		key = kvr_catalog_key_child(one->segment.parent, one->segment.token_count, 9);
		return small(&row, KVR_CATALOG_CHILD, key,
			kvr_catalog_pack_child(&key, one->segment.hash));
	case KVR_CATALOG_CLUSTER:
	case KVR_CATALOG_MERGED:
		for (uint32_t i = 0; unit.at.rows == 0; i++)
			unit.at = one->units[i];
		key = kvr_catalog_key_unit(unit.id, unit.lane, unit.number);
		return small(&row, (enum kvr_catalog_table)table, key,
			kvr_catalog_pack_unit((enum kvr_catalog_table)table, &key, &unit));
	case KVR_CATALOG_SLAB:
		key = kvr_catalog_key_slab((uint32_t)kvr_random_next(random));
		return small(&row, KVR_CATALOG_SLAB, key, kvr_catalog_pack_slab(&key, 77));
	case KVR_CATALOG_STATE:
		key = kvr_catalog_key_state(one->state.id);
		return small(
			&row, KVR_CATALOG_STATE, key, kvr_catalog_pack_state(&key, &one->state));
	case KVR_CATALOG_USE: break;
	}
	key = kvr_catalog_key_use(kvr_random_next(random), 3);
	return small(&row, KVR_CATALOG_USE, key, kvr_catalog_pack_use(&key));
}

static void test_bits(void **state)
{
	struct kvr_random *random = *state;

	kvr_books_init(&books, random);
	for (uint32_t i = 0; i < 20 * KVR_CATALOG_TABLES; i++) {
		struct row *row = draw(random, i % KVR_CATALOG_TABLES);
		const enum kvr_catalog_table table = row->table;

		assert_int_equal(unpack(row), 0);
		for (uint32_t bit = 0; bit < 8 * row->key.bytes; bit++) {
			row->key.data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
			assert_int_equal(unpack(row), -EBADMSG);
			row->key.data[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		}
		for (uint32_t bit = 0; bit < 8 * row->bytes; bit++) {
			row->value[bit / 8] ^= (uint8_t)(1u << (bit % 8));
			assert_int_equal(unpack(row), -EBADMSG);
			row->value[bit / 8] ^= (uint8_t)(1u << (bit % 8));
		}
		for (uint32_t other = 0; other < KVR_CATALOG_TABLES; other++) {
			row->table = (enum kvr_catalog_table)other;
			assert_int_equal(unpack(row), other == table ? 0 : -EBADMSG);
		}
		row->table = table;
		for (uint32_t bytes = 0; bytes < row->bytes; bytes++) {
			const uint32_t whole = row->bytes;

			row->bytes = bytes;
			assert_int_equal(unpack(row), -EBADMSG);
			row->bytes = whole;
		}
		row->bytes++;
		assert_int_equal(unpack(row), -EBADMSG);
		row->bytes--;
		assert_int_equal(unpack(row), 0);
	}
}

static int compare_keys(const struct kvr_catalog_key *a, const struct kvr_catalog_key *b)
{
	assert_int_equal(a->bytes, b->bytes);
	return memcmp(a->data, b->data, a->bytes);
}

static int sign_of(uint64_t a, uint64_t b)
{
	return a < b ? -1 : a > b;
}

/* A number of few bits somewhere in 64, so that every byte decides at times. */
static uint64_t draw_number(struct kvr_random *random)
{
	return (uint64_t)kvr_random_range(random, 0, 3) << kvr_random_range(random, 0, 62);
}

/* R3 */
static void test_order(void **state)
{
	struct kvr_random *random = *state;

	for (uint32_t i = 0; i < 20000; i++) {
		const uint64_t one = draw_number(random);
		const uint64_t other = draw_number(random);
		const uint64_t low[2] = {draw_number(random), draw_number(random)};
		const struct kvr_catalog_key use[2] = {
			kvr_catalog_key_use(one, low[0]), kvr_catalog_key_use(other, low[1])};
		const struct kvr_catalog_key slab[2] = {
			kvr_catalog_key_slab((uint32_t)one), kvr_catalog_key_slab((uint32_t)other)};
		const struct kvr_catalog_key cluster[2] = {
			kvr_catalog_key_unit(one, (uint32_t)low[0] % KVR_LANES_MAX, 1),
			kvr_catalog_key_unit(other, (uint32_t)low[1] % KVR_LANES_MAX, 1)};
		const int order = sign_of(one, other);
		int got = compare_keys(&use[0], &use[1]);

		assert_int_equal(sign_of((uint64_t)(got + 256), 256),
			order ? order : sign_of(low[0], low[1]));
		got = compare_keys(&slab[0], &slab[1]);
		assert_int_equal(sign_of((uint64_t)(got + 256), 256),
			sign_of((uint32_t)one, (uint32_t)other));
		got = compare_keys(&cluster[0], &cluster[1]);
		assert_int_equal(sign_of((uint64_t)(got + 256), 256),
			order ? order
			      : sign_of((uint32_t)low[0] % KVR_LANES_MAX,
					(uint32_t)low[1] % KVR_LANES_MAX));
	}
}

/* Numbers that no store writes, under a right checksum. */
static void test_ranges(void **state)
{
	struct kvr_catalog_unit_row row = {.id = 5, .lane_count = 1};
	struct kvr_catalog_unit_row got;
	struct kvr_catalog_key key = kvr_catalog_key_unit(5, 0, 0);
	struct kvr_catalog_value value;
	const struct {
		uint32_t offset, bytes, rows, lane_count;
		int error;
	} cases[] = {
		{KVR_SLAB_HEADER_BYTES, 1, 1, 1, 0},
		{KVR_SLAB_BYTES - 1, 1, 1, 1, 0},
		{KVR_SLAB_HEADER_BYTES - 1, 1, 1, 1, -EBADMSG},
		{KVR_SLAB_BYTES, 1, 1, 1, -EBADMSG},
		{KVR_SLAB_HEADER_BYTES, 0, 1, 1, -EBADMSG},
		{KVR_SLAB_HEADER_BYTES, 1, 1, 0, -EBADMSG},
		{KVR_SLAB_HEADER_BYTES, 1, KVR_SEGMENT_TOKENS_MAX, KVR_CLUSTERS_MAX + 1, 0},
	};

	(void)state;
	for (uint32_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		row.lane_count = cases[i].lane_count;
		row.at = (struct kvr_catalog_unit){
			.offset = cases[i].offset, .bytes = cases[i].bytes, .rows = cases[i].rows};
		value = kvr_catalog_pack_unit(KVR_CATALOG_CLUSTER, &key, &row);
		assert_int_equal(kvr_catalog_unpack_unit(KVR_CATALOG_CLUSTER,
					 (struct kvr_span){key.data, key.bytes},
					 (struct kvr_span){value.data, value.bytes}, &got),
			cases[i].error);
	}
	/* What a lane may have of clusters is too much of sets. */
	for (uint32_t number = 0; number < 2 * KVR_MERGED_SETS; number++) {
		row.lane_count = 1;
		key = kvr_catalog_key_unit(5, 0, number);
		value = kvr_catalog_pack_unit(KVR_CATALOG_MERGED, &key, &row);
		assert_int_equal(kvr_catalog_unpack_unit(KVR_CATALOG_MERGED,
					 (struct kvr_span){key.data, key.bytes},
					 (struct kvr_span){value.data, value.bytes}, &got),
			number < KVR_MERGED_SETS ? 0 : -EBADMSG);
	}
	key = kvr_catalog_key_unit(0, 0, 0);
	row.lane_count = 1;
	value = kvr_catalog_pack_unit(KVR_CATALOG_CLUSTER, &key, &row);
	assert_int_equal(
		kvr_catalog_unpack_unit(KVR_CATALOG_CLUSTER, (struct kvr_span){key.data, key.bytes},
			(struct kvr_span){value.data, value.bytes}, &got),
		-EBADMSG);
}

int main(void)
{
	struct kvr_random random = kvr_random_start();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(test_bits, &random),
		cmocka_unit_test_prestate(test_order, &random),
		cmocka_unit_test(test_ranges),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
