/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_record.h: the catalog's rows as bytes, both ways. Pure functions.
 *
 * They know keys, values and their ranges. They do not know LMDB, nor which rows belong together.
 *
 * Every value ends with a CRC-32C over the number of its table, its key and the value before it. So
 * a flipped bit in key or value is found, and so is a row that turns up under another key or in
 * another table. Tables OFFSET SIZE MEANING stand in catalog_record.c.
 *
 * Invariants:
 *   R1  unpack accepts what pack wrote and nothing else: for every row that it accepts, packing
 *   what it returned gives
 *       the same bytes.
 *   R2  Nothing of a row is returned before length, CRC-32C and every range are checked: -EBADMSG.
 *   R3  The order of keys as bytes is the order of what they say.
 *
 * Threads: none of its own. */
#ifndef KVR_TIERS_CATALOG_RECORD_H
#define KVR_TIERS_CATALOG_RECORD_H

#include "base/span.h"
#include "tiers/catalog.h"

/* On disk, in every CRC-32C: never renumber. */
enum kvr_catalog_table {
	KVR_CATALOG_META = 0,
	KVR_CATALOG_TENANT = 1,
	KVR_CATALOG_MODEL = 2,
	KVR_CATALOG_SEGMENT = 3,
	KVR_CATALOG_CHILD = 4,
	KVR_CATALOG_CLUSTER = 5,
	KVR_CATALOG_SLAB = 6,
	KVR_CATALOG_STATE = 7,
	KVR_CATALOG_USE = 8,
	KVR_CATALOG_MERGED = 9,
};

#define KVR_CATALOG_TABLES 10u

/* The largest key; and values, with their CRC-32C. Strings are keys without the NUL. */
#define KVR_CATALOG_KEY_MAX       63u
#define KVR_CATALOG_SEGMENT_BYTES (92u + 4u * KVR_SLAB_PARTS_MAX + 4u)
#define KVR_CATALOG_MODEL_BYTES   2256u
#define KVR_CATALOG_VALUE_MAX     64u /* of all others */

/* A key, or a small row on its way to the disk. */
struct kvr_catalog_key {
	uint32_t bytes;
	uint8_t data[KVR_CATALOG_KEY_MAX];
};

struct kvr_catalog_value {
	uint32_t bytes;
	uint8_t data[KVR_CATALOG_VALUE_MAX];
};

/* What the last commit said of itself: whether LMDB shows the newest one, and all of it. */
struct kvr_catalog_commit {
	uint64_t transaction; /* LMDB's number of it */
	uint64_t cluster_count, merged_count;
};

/* A row of table cluster or merged. lane_count: how many rows its lane has there, so that a missing one
 * is noticed. */
struct kvr_catalog_unit_row {
	uint64_t id;
	uint32_t lane, number; /* of the cluster; of the set */
	uint32_t lane_count;
	struct kvr_catalog_unit at;
};

/* How many rows a segment has in these tables. */
struct kvr_catalog_counts {
	uint32_t cluster, merged;
};

/* ---- keys ------------------------------------------------------------------------------------ */

struct kvr_catalog_key kvr_catalog_key_text(const char *text); /* meta and tenant */
struct kvr_catalog_key kvr_catalog_key_hash(
	const uint8_t hash[KVR_HASH_BYTES]); /* model, segment */
struct kvr_catalog_key kvr_catalog_key_child(
	const uint8_t parent[KVR_HASH_BYTES], uint32_t tokens, uint64_t id);
struct kvr_catalog_key kvr_catalog_key_unit(uint64_t id, uint32_t lane, uint32_t number);
struct kvr_catalog_key kvr_catalog_key_slab(uint32_t slab);
struct kvr_catalog_key kvr_catalog_key_state(uint64_t id);
struct kvr_catalog_key kvr_catalog_key_use(uint64_t used, uint64_t id);

/* ---- values: what pack returns goes under the key that it is given ----------------------------- */

struct kvr_catalog_value kvr_catalog_pack_meta(
	const struct kvr_catalog_key *key, const struct kvr_catalog_meta *meta);
struct kvr_catalog_value kvr_catalog_pack_commit(
	const struct kvr_catalog_key *key, const struct kvr_catalog_commit *commit);
struct kvr_catalog_value kvr_catalog_pack_tenant(
	const struct kvr_catalog_key *key, uint64_t slab_count);
struct kvr_catalog_value kvr_catalog_pack_child(
	const struct kvr_catalog_key *key, const uint8_t hash[KVR_HASH_BYTES]);
struct kvr_catalog_value kvr_catalog_pack_unit(enum kvr_catalog_table table,
	const struct kvr_catalog_key *key, const struct kvr_catalog_unit_row *row);
struct kvr_catalog_value kvr_catalog_pack_slab(const struct kvr_catalog_key *key, uint64_t id);
struct kvr_catalog_value kvr_catalog_pack_state(
	const struct kvr_catalog_key *key, const struct kvr_catalog_state *state);
struct kvr_catalog_value kvr_catalog_pack_use(const struct kvr_catalog_key *key);

/* Into KVR_CATALOG_MODEL_BYTES, and KVR_CATALOG_SEGMENT_BYTES; the latter returns how many. */
void kvr_catalog_pack_model(const struct kvr_slab_model *model, uint8_t *ret_value);
uint32_t kvr_catalog_pack_segment(const struct kvr_catalog_segment *segment,
	struct kvr_catalog_counts counts, uint8_t *ret_value);

/* ---- and back: 0 or -EBADMSG (R2) -------------------------------------------------------------- */

/* -EPROTONOSUPPORT: another version, whose row may look different behind the first 8 bytes; ret_meta->version
 * alone is set. */
int kvr_catalog_unpack_meta(
	struct kvr_span key, struct kvr_span value, struct kvr_catalog_meta *ret_meta);
int kvr_catalog_unpack_commit(
	struct kvr_span key, struct kvr_span value, struct kvr_catalog_commit *ret_commit);
int kvr_catalog_unpack_tenant(struct kvr_span key, struct kvr_span value,
	char ret_name[KVR_NAME_MAX], uint64_t *ret_slab_count);
int kvr_catalog_unpack_model(
	struct kvr_span key, struct kvr_span value, struct kvr_slab_model *ret_model);
/* parts: room for part_max numbers, -E2BIG if there are more; NULL: not wanted. */
int kvr_catalog_unpack_segment(struct kvr_span key, struct kvr_span value, uint32_t *parts,
	uint32_t part_max, struct kvr_catalog_segment *ret_segment,
	struct kvr_catalog_counts *ret_counts);
int kvr_catalog_unpack_child(struct kvr_span key, struct kvr_span value,
	uint8_t ret_parent[KVR_HASH_BYTES], uint32_t *ret_tokens, uint64_t *ret_id,
	uint8_t ret_hash[KVR_HASH_BYTES]);
int kvr_catalog_unpack_unit(enum kvr_catalog_table table, struct kvr_span key,
	struct kvr_span value, struct kvr_catalog_unit_row *ret_row);
int kvr_catalog_unpack_slab(
	struct kvr_span key, struct kvr_span value, uint32_t *ret_slab, uint64_t *ret_id);
int kvr_catalog_unpack_state(
	struct kvr_span key, struct kvr_span value, struct kvr_catalog_state *ret_state);
int kvr_catalog_unpack_use(
	struct kvr_span key, struct kvr_span value, uint64_t *ret_used, uint64_t *ret_id);

/* A row of any table: 0 or why it is none. For whoever reads all of them. */
int kvr_catalog_unpack(enum kvr_catalog_table table, struct kvr_span key, struct kvr_span value);

#endif
