/* SPDX-License-Identifier: Apache-2.0 */
/* catalog.c: fuzzes what is read from the catalog's file.
 *
 * Goal: no bytes of a row, and no pages of the file, do more than be refused. A row that is
 * accepted is the one that packing gives (R1); a look at pages ends, and reads nothing beyond them.
 *
 * Method: the first byte is a table's number: the next one is the key's length, then come key and
 * value; the row gets the right checksum, or else the fuzzer would never come past it, is unpacked
 * and packed again. Any other first byte: the rest is a file of LMDB's. */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/catalog_bytes.h"
#include "tiers/catalog_tree.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define VALUE_MAX KVR_CATALOG_SEGMENT_BYTES

static uint8_t value[VALUE_MAX], again[VALUE_MAX];
static uint32_t parts[KVR_SLAB_PARTS_MAX];

static struct kvr_catalog_value pack_meta_again(
	const struct kvr_catalog_key *key, struct kvr_span from)
{
	const struct kvr_span named = {(uint8_t *)(uintptr_t)key->data, key->bytes};
	struct kvr_catalog_value none = {.bytes = 0};
	struct kvr_catalog_commit commit;
	struct kvr_catalog_meta meta;

	if (key->bytes == 5 && kvr_catalog_unpack_meta(named, from, &meta) == 0)
		return kvr_catalog_pack_meta(key, &meta);
	if (kvr_catalog_unpack_commit(named, from, &commit) == 0)
		return kvr_catalog_pack_commit(key, &commit);
	return none;
}

/* What packing makes of what was unpacked. */
static uint32_t pack_again(enum kvr_catalog_table table, struct kvr_span key, struct kvr_span from)
{
	struct kvr_catalog_key same = {.bytes = (uint32_t)key.bytes};
	struct kvr_catalog_value small = {.bytes = 0};
	struct kvr_catalog_unit_row unit;
	struct kvr_catalog_counts counts;
	struct kvr_catalog_segment segment;
	struct kvr_catalog_state state;
	struct kvr_slab_model model;
	uint8_t hashes[2][KVR_HASH_BYTES];
	char name[KVR_NAME_MAX];
	uint64_t numbers[2];
	uint32_t number;
	int error = 0;

	memcpy(same.data, key.data, key.bytes);
	switch (table) {
	case KVR_CATALOG_META: small = pack_meta_again(&same, from); break;
	case KVR_CATALOG_TENANT:
		error = kvr_catalog_unpack_tenant(key, from, name, &numbers[0]);
		same = kvr_catalog_key_text(name);
		small = kvr_catalog_pack_tenant(&same, numbers[0]);
		break;
	case KVR_CATALOG_MODEL:
		error = kvr_catalog_unpack_model(key, from, &model);
		KVR_ASSERT(error == 0);
		kvr_catalog_pack_model(&model, again);
		return KVR_CATALOG_MODEL_BYTES;
	case KVR_CATALOG_SEGMENT:
		error = kvr_catalog_unpack_segment(
			key, from, parts, KVR_SLAB_PARTS_MAX, &segment, &counts);
		KVR_ASSERT(error == 0);
		return kvr_catalog_pack_segment(&segment, counts, again);
	case KVR_CATALOG_CHILD:
		error = kvr_catalog_unpack_child(
			key, from, hashes[0], &number, &numbers[0], hashes[1]);
		same = kvr_catalog_key_child(hashes[0], number, numbers[0]);
		small = kvr_catalog_pack_child(&same, hashes[1]);
		break;
	case KVR_CATALOG_CLUSTER:
	case KVR_CATALOG_MERGED:
		error = kvr_catalog_unpack_unit(table, key, from, &unit);
		same = kvr_catalog_key_unit(unit.id, unit.lane, unit.number);
		small = kvr_catalog_pack_unit(table, &same, &unit);
		break;
	case KVR_CATALOG_SLAB:
		error = kvr_catalog_unpack_slab(key, from, &number, &numbers[0]);
		same = kvr_catalog_key_slab(number);
		small = kvr_catalog_pack_slab(&same, numbers[0]);
		break;
	case KVR_CATALOG_STATE:
		error = kvr_catalog_unpack_state(key, from, &state);
		same = kvr_catalog_key_state(state.id);
		small = kvr_catalog_pack_state(&same, &state);
		break;
	case KVR_CATALOG_USE:
		error = kvr_catalog_unpack_use(key, from, &numbers[0], &numbers[1]);
		same = kvr_catalog_key_use(numbers[0], numbers[1]);
		small = kvr_catalog_pack_use(&same);
		break;
	}
	KVR_ASSERT(error == 0 && same.bytes == key.bytes);
	KVR_ASSERT(memcmp(same.data, key.data, key.bytes) == 0);
	memcpy(again, small.data, small.bytes);
	return small.bytes;
}

static void check_row(enum kvr_catalog_table table, const uint8_t *data, size_t size)
{
	const size_t key_bytes = size > 0 ? data[0] : 0;
	struct kvr_catalog_key key = {.bytes = (uint32_t)key_bytes};
	struct kvr_span from = {value, 0};
	struct kvr_span named = {key.data, key_bytes};

	if (size < 1 + key_bytes || key_bytes > KVR_CATALOG_KEY_MAX)
		return;
	memcpy(key.data, data + 1, key_bytes);
	from.bytes = size - 1 - key_bytes;
	if (from.bytes > VALUE_MAX - KVR_CATALOG_CRC_BYTES)
		return;
	memcpy(value, data + 1 + key_bytes, from.bytes);
	(void)kvr_catalog_unpack(table, named, from); /* as it came */
	if (key_bytes == 0)
		return;
	kvr_row_seal(table, key.data, key_bytes, value, from.bytes);
	from.bytes += KVR_CATALOG_CRC_BYTES;
	if (kvr_catalog_unpack(table, named, from) < 0)
		return;
	KVR_ASSERT(pack_again(table, named, from) == from.bytes);
	KVR_ASSERT(memcmp(again, value, from.bytes) == 0);
}

static void check_file(const uint8_t *data, size_t size)
{
	static const char *const lazy[] = {"cluster", "merged", NULL};
	static uint8_t low[12];
	static uint8_t high[12] = {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff};
	struct kvr_catalog_tree_report report;
	uint64_t transaction;
	size_t bytes;
	int fd = memfd_create("fuzz", MFD_CLOEXEC);

	if (fd < 0)
		abort();
	if (write(fd, data, size) == (ssize_t)size) {
		(void)kvr_catalog_tree_check(fd, (uint64_t)64 << 20, NULL, &report);
		(void)kvr_catalog_tree_check(fd, (uint64_t)64 << 20, lazy, &report);
		(void)kvr_catalog_tree_range(fd, "cluster", (struct kvr_span){low, sizeof(low)},
			(struct kvr_span){high, sizeof(high)});
		(void)kvr_catalog_tree_value(fd, 0, "meta", (struct kvr_span){high, 4},
			(struct kvr_span){value, 64}, &bytes, &transaction);
	}
	close(fd);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	if (size < 1)
		return 0;
	if (data[0] < KVR_CATALOG_TABLES)
		check_row((enum kvr_catalog_table)data[0], data + 1, size - 1);
	else
		check_file(data + 1, size - 1);
	return 0;
}
