/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_record.c: the tables of the catalog, byte for byte.
 *
 * Keys are big-endian, so that the order of bytes is theirs; values are little-endian. Behind each
 * value follows crc, 4 bytes: CRC-32C over the number of the table (one byte), the key and the
 * value (R2).
 *
 *   meta     key "store"             OFFSET SIZE MEANING
 *                                         0    4 version of the catalog: KVR_CATALOG_VERSION
 *                                         4    4 version of the slabs
 *                                         8   16 uuid of the store
 *                                        24    8 bytes of slabs.kvr
 *                                        32    8 boots: 1 or more
 *            key "commit"                 0    8 LMDB's number of the transaction that wrote this
 *                                         8    8 rows of table cluster
 *                                        16    8 rows of table merged
 *   tenant   key name, 1 to 63 bytes      0    8 slabs of its segments: 1 or more
 *   model    key root, 32 bytes           0   64 tenant, padded with zeros
 *                                        64   64 name, likewise
 *                                       128   32 digest
 *                                       160    4 rank
 *                                       164   40 geometry: layer_count, query_heads, kv_heads,
 *                                                key_dim, value_dim, dtype, segment_tokens,
 *                                                cluster_tokens, sink_tokens, merged
 *                                       204 2048 geometry: dense, a bit per lane, in words of 64
 *   segment  key hash, 32 bytes           0    8 id
 *                                         8   32 parent
 *                                        40   32 root
 *                                        72    4 token_first
 *                                        76    4 token_count
 *                                        80    4 part_count
 *                                        84    4 rows of table cluster
 *                                        88    4 rows of table merged
 *                                        92   4n slab numbers
 *   child    key parent 32, tokens 4,     0   32 hash
 *            id 8
 *   cluster  key id 8, lane 2,            0    4 slab
 *            cluster 2                    4    4 offset in the slab
 *                                         8    4 bytes
 *                                        12    2 rows (tokens)
 *                                        14    2 how many clusters of this lane have rows
 *                                        16    4 CRC-32C of the payload
 *   merged   key id 8, lane 2, set 2           as cluster, with sets for clusters
 *   slab     key slab 4                   0    8 id, or 0
 *   state    key id 8                     0    8 last use
 *                                         8    4 flags
 *                                        12   32 hash
 *   use      key last use 8, id 8         0    0 (nothing) */
#include <errno.h>

#include "tiers/catalog_bytes.h"

#define META_BYTES   40u
#define COMMIT_BYTES 24u
#define UNIT_BYTES   20u
#define STATE_BYTES  44u
#define CHILD_KEY    (KVR_HASH_BYTES + 12u)
#define UNIT_KEY     12u
#define FLAGS_KNOWN  (KVR_CATALOG_PINNED | KVR_CATALOG_QUARANTINED)

KVR_STATIC_ASSERT(META_BYTES + KVR_CATALOG_CRC_BYTES <= KVR_CATALOG_VALUE_MAX);
KVR_STATIC_ASSERT(STATE_BYTES + KVR_CATALOG_CRC_BYTES <= KVR_CATALOG_VALUE_MAX);
KVR_STATIC_ASSERT(CHILD_KEY <= KVR_CATALOG_KEY_MAX);
KVR_STATIC_ASSERT(KVR_NAME_MAX == 64 && KVR_CATALOG_KEY_MAX == KVR_NAME_MAX - 1);
KVR_STATIC_ASSERT(KVR_LANES_MAX <= 65536 && KVR_CLUSTERS_MAX < 65536);
KVR_STATIC_ASSERT(KVR_SEGMENT_TOKENS_MAX < 65536);

/* The end of a small row. */
static void seal(enum kvr_catalog_table table, const struct kvr_catalog_key *key,
	struct kvr_catalog_value *value, uint32_t bytes)
{
	KVR_ASSERT(key->bytes >= 1);
	KVR_ASSERT(key->bytes <= KVR_CATALOG_KEY_MAX);
	KVR_ASSERT(bytes + KVR_CATALOG_CRC_BYTES <= KVR_CATALOG_VALUE_MAX);
	kvr_row_seal(table, key->data, key->bytes, value->data, bytes);
	value->bytes = bytes + KVR_CATALOG_CRC_BYTES;
}

/* ---- keys ------------------------------------------------------------------------------------ */

struct kvr_catalog_key kvr_catalog_key_text(const char *text)
{
	struct kvr_catalog_key key = {.bytes = (uint32_t)strnlen(text, KVR_NAME_MAX)};

	KVR_ASSERT(key.bytes >= 1);
	KVR_ASSERT(key.bytes <= KVR_CATALOG_KEY_MAX);
	memcpy(key.data, text, key.bytes);
	return key;
}

struct kvr_catalog_key kvr_catalog_key_hash(const uint8_t hash[KVR_HASH_BYTES])
{
	struct kvr_catalog_key key = {.bytes = KVR_HASH_BYTES};

	memcpy(key.data, hash, KVR_HASH_BYTES);
	return key;
}

struct kvr_catalog_key kvr_catalog_key_child(
	const uint8_t parent[KVR_HASH_BYTES], uint32_t tokens, uint64_t id)
{
	struct kvr_catalog_key key = {.bytes = CHILD_KEY};

	memcpy(key.data, parent, KVR_HASH_BYTES);
	kvr_put_big(key.data + KVR_HASH_BYTES, tokens, 4);
	kvr_put_big(key.data + KVR_HASH_BYTES + 4, id, 8);
	return key;
}

struct kvr_catalog_key kvr_catalog_key_unit(uint64_t id, uint32_t lane, uint32_t number)
{
	struct kvr_catalog_key key = {.bytes = UNIT_KEY};

	KVR_ASSERT(lane < KVR_LANES_MAX);
	KVR_ASSERT(number <= KVR_CLUSTERS_MAX);
	kvr_put_big(key.data, id, 8);
	kvr_put_big(key.data + 8, lane, 2);
	kvr_put_big(key.data + 10, number, 2);
	return key;
}

struct kvr_catalog_key kvr_catalog_key_slab(uint32_t slab)
{
	struct kvr_catalog_key key = {.bytes = 4};

	kvr_put_big(key.data, slab, 4);
	return key;
}

struct kvr_catalog_key kvr_catalog_key_state(uint64_t id)
{
	struct kvr_catalog_key key = {.bytes = 8};

	kvr_put_big(key.data, id, 8);
	return key;
}

struct kvr_catalog_key kvr_catalog_key_use(uint64_t used, uint64_t id)
{
	struct kvr_catalog_key key = {.bytes = 16};

	kvr_put_big(key.data, used, 8);
	kvr_put_big(key.data + 8, id, 8);
	return key;
}

/* ---- meta and tenant --------------------------------------------------------------------------- */

struct kvr_catalog_value kvr_catalog_pack_meta(
	const struct kvr_catalog_key *key, const struct kvr_catalog_meta *meta)
{
	struct kvr_catalog_value value;

	kvr_put_little(value.data, meta->version, 4);
	kvr_put_little(value.data + 4, meta->slab_version, 4);
	memcpy(value.data + 8, meta->uuid, KVR_SLAB_UUID_BYTES);
	kvr_put_little(value.data + 24, meta->slabs_bytes, 8);
	kvr_put_little(value.data + 32, meta->boot, 8);
	seal(KVR_CATALOG_META, key, &value, META_BYTES);
	return value;
}

int kvr_catalog_unpack_meta(
	struct kvr_span key, struct kvr_span value, struct kvr_catalog_meta *ret_meta)
{
	/* The checksum comes last in every version, so that "newer" is not taken for "damaged". */
	if (value.bytes < 8 + KVR_CATALOG_CRC_BYTES || value.bytes > KVR_CATALOG_VALUE_MAX ||
		!kvr_row_sealed(
			KVR_CATALOG_META, key, 5, value, value.bytes - KVR_CATALOG_CRC_BYTES) ||
		memcmp(key.data, "store", 5) != 0)
		return -EBADMSG;
	if (kvr_get32(value.data) != KVR_CATALOG_VERSION) {
		ret_meta->version = kvr_get32(value.data);
		return -EPROTONOSUPPORT;
	}
	if (value.bytes != META_BYTES + KVR_CATALOG_CRC_BYTES || kvr_get64(value.data + 32) == 0)
		return -EBADMSG;
	*ret_meta = (struct kvr_catalog_meta){
		.version = kvr_get32(value.data),
		.slab_version = kvr_get32(value.data + 4),
		.slabs_bytes = kvr_get64(value.data + 24),
		.boot = kvr_get64(value.data + 32),
	};
	memcpy(ret_meta->uuid, value.data + 8, KVR_SLAB_UUID_BYTES);
	return 0;
}

struct kvr_catalog_value kvr_catalog_pack_commit(
	const struct kvr_catalog_key *key, const struct kvr_catalog_commit *commit)
{
	struct kvr_catalog_value value;

	kvr_put_little(value.data, commit->transaction, 8);
	kvr_put_little(value.data + 8, commit->cluster_count, 8);
	kvr_put_little(value.data + 16, commit->merged_count, 8);
	seal(KVR_CATALOG_META, key, &value, COMMIT_BYTES);
	return value;
}

int kvr_catalog_unpack_commit(
	struct kvr_span key, struct kvr_span value, struct kvr_catalog_commit *ret_commit)
{
	if (!kvr_row_sealed(KVR_CATALOG_META, key, 6, value, COMMIT_BYTES) ||
		memcmp(key.data, "commit", 6) != 0)
		return -EBADMSG;
	ret_commit->transaction = kvr_get64(value.data);
	ret_commit->cluster_count = kvr_get64(value.data + 8);
	ret_commit->merged_count = kvr_get64(value.data + 16);
	return 0;
}

struct kvr_catalog_value kvr_catalog_pack_tenant(
	const struct kvr_catalog_key *key, uint64_t slab_count)
{
	struct kvr_catalog_value value;

	KVR_ASSERT(slab_count >= 1);
	kvr_put_little(value.data, slab_count, 8);
	seal(KVR_CATALOG_TENANT, key, &value, 8);
	return value;
}

int kvr_catalog_unpack_tenant(struct kvr_span key, struct kvr_span value,
	char ret_name[KVR_NAME_MAX], uint64_t *ret_slab_count)
{
	if (key.bytes < 1 || !kvr_row_sealed(KVR_CATALOG_TENANT, key, key.bytes, value, 8) ||
		memchr(key.data, '\0', key.bytes) || kvr_get64(value.data) == 0)
		return -EBADMSG;
	memcpy(ret_name, key.data, key.bytes);
	ret_name[key.bytes] = '\0';
	*ret_slab_count = kvr_get64(value.data);
	return 0;
}

/* ---- child ------------------------------------------------------------------------------------- */

struct kvr_catalog_value kvr_catalog_pack_child(
	const struct kvr_catalog_key *key, const uint8_t hash[KVR_HASH_BYTES])
{
	struct kvr_catalog_value value;

	memcpy(value.data, hash, KVR_HASH_BYTES);
	seal(KVR_CATALOG_CHILD, key, &value, KVR_HASH_BYTES);
	return value;
}

int kvr_catalog_unpack_child(struct kvr_span key, struct kvr_span value,
	uint8_t ret_parent[KVR_HASH_BYTES], uint32_t *ret_tokens, uint64_t *ret_id,
	uint8_t ret_hash[KVR_HASH_BYTES])
{
	uint32_t tokens;
	uint64_t id;

	if (!kvr_row_sealed(KVR_CATALOG_CHILD, key, CHILD_KEY, value, KVR_HASH_BYTES))
		return -EBADMSG;
	tokens = (uint32_t)kvr_get_big(key.data + KVR_HASH_BYTES, 4);
	id = kvr_get_big(key.data + KVR_HASH_BYTES + 4, 8);
	if (tokens < 1 || tokens > KVR_SEGMENT_TOKENS_MAX || id < 1)
		return -EBADMSG;
	memcpy(ret_parent, key.data, KVR_HASH_BYTES);
	memcpy(ret_hash, value.data, KVR_HASH_BYTES);
	*ret_tokens = tokens;
	*ret_id = id;
	return 0;
}

/* ---- cluster, merged and slab ------------------------------------------------------------------ */

/* How many of a lane the table may have. */
static uint32_t units_max(enum kvr_catalog_table table)
{
	KVR_ASSERT(table == KVR_CATALOG_CLUSTER || table == KVR_CATALOG_MERGED);
	return table == KVR_CATALOG_CLUSTER ? KVR_CLUSTERS_MAX + 1 : KVR_MERGED_SETS;
}

struct kvr_catalog_value kvr_catalog_pack_unit(enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, const struct kvr_catalog_unit_row *row)
{
	const struct kvr_catalog_unit *at = &row->at;
	struct kvr_catalog_value value;

	KVR_ASSERT(at->rows >= 1);
	KVR_ASSERT(at->rows <= KVR_SEGMENT_TOKENS_MAX);
	KVR_ASSERT(row->lane_count <= units_max(table));
	kvr_put_little(value.data, at->slab, 4);
	kvr_put_little(value.data + 4, at->offset, 4);
	kvr_put_little(value.data + 8, at->bytes, 4);
	kvr_put_little(value.data + 12, at->rows, 2);
	kvr_put_little(value.data + 14, row->lane_count, 2);
	kvr_put_little(value.data + 16, at->crc, 4);
	seal(table, key, &value, UNIT_BYTES);
	return value;
}

int kvr_catalog_unpack_unit(enum kvr_catalog_table table, struct kvr_span key,
	struct kvr_span value, struct kvr_catalog_unit_row *ret_row)
{
	struct kvr_catalog_unit_row row;
	struct kvr_catalog_unit *at = &row.at;

	if (!kvr_row_sealed(table, key, UNIT_KEY, value, UNIT_BYTES))
		return -EBADMSG;
	row.id = kvr_get_big(key.data, 8);
	row.lane = (uint32_t)kvr_get_big(key.data + 8, 2);
	row.number = (uint32_t)kvr_get_big(key.data + 10, 2);
	row.lane_count = kvr_get16(value.data + 14);
	*at = (struct kvr_catalog_unit){
		.slab = kvr_get32(value.data),
		.offset = kvr_get32(value.data + 4),
		.bytes = kvr_get32(value.data + 8),
		.rows = kvr_get16(value.data + 12),
		.crc = kvr_get32(value.data + 16),
	};
	if (row.id < 1 || row.lane >= KVR_LANES_MAX || row.number >= units_max(table))
		return -EBADMSG;
	if (row.lane_count < 1 || row.lane_count > units_max(table))
		return -EBADMSG;
	if (at->offset < KVR_SLAB_HEADER_BYTES || at->offset >= KVR_SLAB_BYTES)
		return -EBADMSG;
	if (at->rows < 1 || at->rows > KVR_SEGMENT_TOKENS_MAX || at->bytes < 1)
		return -EBADMSG;
	*ret_row = row;
	return 0;
}

struct kvr_catalog_value kvr_catalog_pack_slab(const struct kvr_catalog_key *key, uint64_t id)
{
	struct kvr_catalog_value value;

	kvr_put_little(value.data, id, 8);
	seal(KVR_CATALOG_SLAB, key, &value, 8);
	return value;
}

int kvr_catalog_unpack_slab(
	struct kvr_span key, struct kvr_span value, uint32_t *ret_slab, uint64_t *ret_id)
{
	if (!kvr_row_sealed(KVR_CATALOG_SLAB, key, 4, value, 8))
		return -EBADMSG;
	*ret_slab = (uint32_t)kvr_get_big(key.data, 4);
	*ret_id = kvr_get64(value.data);
	return 0;
}

/* ---- state and use
 * --------------------------------------------------------------------------------- */

struct kvr_catalog_value kvr_catalog_pack_state(
	const struct kvr_catalog_key *key, const struct kvr_catalog_state *state)
{
	struct kvr_catalog_value value;

	KVR_ASSERT((state->flags & ~FLAGS_KNOWN) == 0);
	kvr_put_little(value.data, state->used, 8);
	kvr_put_little(value.data + 8, state->flags, 4);
	memcpy(value.data + 12, state->hash, KVR_HASH_BYTES);
	seal(KVR_CATALOG_STATE, key, &value, STATE_BYTES);
	return value;
}

int kvr_catalog_unpack_state(
	struct kvr_span key, struct kvr_span value, struct kvr_catalog_state *ret_state)
{
	struct kvr_catalog_state state;

	if (!kvr_row_sealed(KVR_CATALOG_STATE, key, 8, value, STATE_BYTES))
		return -EBADMSG;
	state.id = kvr_get_big(key.data, 8);
	state.used = kvr_get64(value.data);
	state.flags = kvr_get32(value.data + 8);
	if (state.id < 1 || (state.flags & ~FLAGS_KNOWN) != 0)
		return -EBADMSG;
	memcpy(state.hash, value.data + 12, KVR_HASH_BYTES);
	*ret_state = state;
	return 0;
}

struct kvr_catalog_value kvr_catalog_pack_use(const struct kvr_catalog_key *key)
{
	struct kvr_catalog_value value;

	seal(KVR_CATALOG_USE, key, &value, 0);
	return value;
}

int kvr_catalog_unpack_use(
	struct kvr_span key, struct kvr_span value, uint64_t *ret_used, uint64_t *ret_id)
{
	if (!kvr_row_sealed(KVR_CATALOG_USE, key, 16, value, 0))
		return -EBADMSG;
	if (kvr_get_big(key.data + 8, 8) < 1)
		return -EBADMSG;
	*ret_used = kvr_get_big(key.data, 8);
	*ret_id = kvr_get_big(key.data + 8, 8);
	return 0;
}

/* ---- any
 * ----------------------------------------------------------------------------------------- */

static int unpack_any_meta(struct kvr_span key, struct kvr_span value)
{
	struct kvr_catalog_meta meta;
	struct kvr_catalog_commit commit;

	return key.bytes == 6 ? kvr_catalog_unpack_commit(key, value, &commit)
			      : kvr_catalog_unpack_meta(key, value, &meta);
}

int kvr_catalog_unpack(enum kvr_catalog_table table, struct kvr_span key, struct kvr_span value)
{
	union {
		char name[KVR_NAME_MAX];
		struct kvr_slab_model model;
		struct kvr_catalog_segment segment;
		uint8_t hashes[2][KVR_HASH_BYTES];
		struct kvr_catalog_unit_row unit;
		struct kvr_catalog_state state;
	} row;
	struct kvr_catalog_counts counts;
	uint64_t numbers[2];
	uint32_t number;

	switch (table) {
	case KVR_CATALOG_META: return unpack_any_meta(key, value);
	case KVR_CATALOG_TENANT:
		return kvr_catalog_unpack_tenant(key, value, row.name, &numbers[0]);
	case KVR_CATALOG_MODEL: return kvr_catalog_unpack_model(key, value, &row.model);
	case KVR_CATALOG_SEGMENT:
		return kvr_catalog_unpack_segment(key, value, NULL, 0, &row.segment, &counts);
	case KVR_CATALOG_CHILD:
		return kvr_catalog_unpack_child(
			key, value, row.hashes[0], &number, &numbers[0], row.hashes[1]);
	case KVR_CATALOG_CLUSTER:
	case KVR_CATALOG_MERGED: return kvr_catalog_unpack_unit(table, key, value, &row.unit);
	case KVR_CATALOG_SLAB: return kvr_catalog_unpack_slab(key, value, &number, &numbers[0]);
	case KVR_CATALOG_STATE: return kvr_catalog_unpack_state(key, value, &row.state);
	case KVR_CATALOG_USE: return kvr_catalog_unpack_use(key, value, &numbers[0], &numbers[1]);
	}
	return -EBADMSG;
}
