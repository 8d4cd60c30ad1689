/* SPDX-License-Identifier: Apache-2.0 */
/* slab.c: the bytes of slab headers and segment heads, and the arithmetic of the stream.
 *
 * Both begin alike, in this and all later versions, so that a newer one is told from a damaged one:
 *
 *   OFFSET SIZE MEANING
 *        0    8 magic: "KVRSLAB\n" or "KVRHEAD\n"
 *        8    4 version
 *       12    4 CRC-32C of all KVR_SLAB_HEADER_BYTES, with these four as zeros
 *
 * A slab header goes on:
 *
 *       16   16 store's uuid
 *       32    8 segment id
 *       40    4 part
 *       44    4 part count
 *       48    4 body bytes in use
 *       52      zeros
 *
 * A segment head goes on:
 *
 *       16    8 segment id
 *       24   32 chain hash
 *       56   32 parent's chain hash, or the model's root
 *       88    4 first token
 *       92    4 token count
 *       96    4 CRC-32C of token ids and summary
 *      100    4 tensor-parallel rank
 *      104   32 model's root
 *      136   64 tenant, zeros behind it
 *      200   64 model's name, zeros behind it
 *      264   32 model's digest
 *      296   40 layers, query heads, kv heads, key dim, value dim, dtype, segment tokens,
 *               cluster tokens, sink tokens, merged
 *      336 2048 dense lanes, u64 each 64 of them
 *     2384      zeros
 *
 * Source: none; the layout is this project's own. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "kernels/crc.h"
#include "tiers/slab.h"

#define MAGIC_BYTES    8u
#define DENSE_WORDS    (KVR_LANES_MAX / 64u)
#define GEOMETRY_WORDS 10u
#define ALIGNED(n)     (((n) + KVR_SLAB_HEADER_BYTES - 1) & ~(uint64_t)(KVR_SLAB_HEADER_BYTES - 1))

static const uint8_t slab_magic[MAGIC_BYTES] = {'K', 'V', 'R', 'S', 'L', 'A', 'B', '\n'};
static const uint8_t head_magic[MAGIC_BYTES] = {'K', 'V', 'R', 'H', 'E', 'A', 'D', '\n'};

enum {
	AT_VERSION = 8,
	AT_CRC = 12,
	SLAB_AT_STORE = 16,
	SLAB_AT_SEGMENT = 32,
	SLAB_AT_PART = 40,
	SLAB_AT_PART_COUNT = 44,
	SLAB_AT_BODY_BYTES = 48,
	HEAD_AT_SEGMENT = 16,
	HEAD_AT_HASH = 24,
	HEAD_AT_PARENT = 56,
	HEAD_AT_TOKEN_FIRST = 88,
	HEAD_AT_TOKEN_COUNT = 92,
	HEAD_AT_SUMMARY_CRC = 96,
	HEAD_AT_RANK = 100,
	HEAD_AT_ROOT = 104,
	HEAD_AT_TENANT = 136,
	HEAD_AT_NAME = 200,
	HEAD_AT_DIGEST = 264,
	HEAD_AT_GEOMETRY = 296,
	HEAD_AT_DENSE = 336,
	HEAD_END = 2384,
};

_Static_assert(SLAB_AT_STORE + KVR_SLAB_UUID_BYTES == SLAB_AT_SEGMENT, "the table above");
_Static_assert(HEAD_AT_HASH + KVR_HASH_BYTES == HEAD_AT_PARENT, "the table above");
_Static_assert(HEAD_AT_PARENT + KVR_HASH_BYTES == HEAD_AT_TOKEN_FIRST, "the table above");
_Static_assert(HEAD_AT_ROOT + KVR_HASH_BYTES == HEAD_AT_TENANT, "the table above");
_Static_assert(HEAD_AT_TENANT + KVR_NAME_MAX == HEAD_AT_NAME, "the table above");
_Static_assert(HEAD_AT_NAME + KVR_NAME_MAX == HEAD_AT_DIGEST, "the table above");
_Static_assert(HEAD_AT_DIGEST + KVR_HASH_BYTES == HEAD_AT_GEOMETRY, "the table above");
_Static_assert(HEAD_AT_GEOMETRY + 4 * GEOMETRY_WORDS == HEAD_AT_DENSE, "the table above");
_Static_assert(HEAD_AT_DENSE + 8 * DENSE_WORDS == HEAD_END, "the table above");
_Static_assert((unsigned)HEAD_END <= KVR_SLAB_HEADER_BYTES, "a head is one page");
_Static_assert(KVR_SLAB_BODY_BYTES % KVR_SLAB_HEADER_BYTES == 0, "B1");
/* Keys, values, ids and summaries are written as they lie in memory: so are all numbers. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the format is little-endian");

/* ---- integers -------------------------------------------------------------------------------- */

static void put_u32(uint8_t *bytes, uint32_t value)
{
	memcpy(bytes, &value, sizeof(value));
}

static void put_u64(uint8_t *bytes, uint64_t value)
{
	memcpy(bytes, &value, sizeof(value));
}

static uint32_t get_u32(const uint8_t *bytes)
{
	uint32_t value;

	memcpy(&value, bytes, sizeof(value));
	return value;
}

static uint64_t get_u64(const uint8_t *bytes)
{
	uint64_t value;

	memcpy(&value, bytes, sizeof(value));
	return value;
}

/* ---- the stream ------------------------------------------------------------------------------ */

static uint64_t row_bytes(const struct kvr_geometry *geometry)
{
	return kvr_geometry_key_bytes(geometry) + kvr_geometry_value_bytes(geometry);
}

/* Of the lanes before `lane`, those that are not dense: that have merged sets. */
static uint32_t sparse_lanes(const struct kvr_geometry *geometry, uint32_t lane)
{
	uint32_t sparse = lane;

	for (uint32_t first = 0; first < lane; first += 64) {
		const uint32_t left = lane - first;
		const uint64_t mask = left < 64 ? ((uint64_t)1 << left) - 1 : UINT64_MAX;

		sparse -= (uint32_t)__builtin_popcountll(geometry->dense[first / 64] & mask);
	}
	return sparse;
}

void kvr_slab_layout(const struct kvr_geometry *geometry, uint32_t token_first,
	uint32_t token_count, struct kvr_slab_layout *ret_layout)
{
	const uint32_t lanes = kvr_geometry_lanes(geometry);
	struct kvr_slab_layout layout;
	struct kvr_segment_view view;

	kvr_segment_shape(&view, geometry, token_first, token_count);
	layout.summary_at = KVR_SLAB_HEADER_BYTES;
	layout.summary_bytes =
		(uint64_t)token_count * sizeof(uint32_t) + kvr_segment_bind(&view, NULL);
	layout.payload_at = ALIGNED(layout.summary_at + layout.summary_bytes);
	layout.payload_bytes = (uint64_t)token_count * kvr_geometry_token_bytes(geometry);
	layout.merged_at = layout.payload_at + layout.payload_bytes;
	layout.merged_bytes = 0;
	if (view.merged_max > 0)
		layout.merged_bytes = (uint64_t)view.merged_max * sparse_lanes(geometry, lanes) *
				      row_bytes(geometry);
	layout.checksums_at = ALIGNED(layout.merged_at + layout.merged_bytes);
	layout.checksums_bytes = (kvr_segment_extent_count(&view) + 1) * sizeof(uint32_t);
	layout.stream_bytes = ALIGNED(layout.checksums_at + layout.checksums_bytes);
	layout.part_count =
		(uint32_t)((layout.stream_bytes + KVR_SLAB_BODY_BYTES - 1) / KVR_SLAB_BODY_BYTES);
	KVR_ASSERT(layout.payload_at % KVR_SLAB_HEADER_BYTES == 0); /* B1 */
	KVR_ASSERT(layout.part_count >= 1);
	*ret_layout = layout;
}

/* The place of a merged set of a lane that is not dense. */
static uint64_t merged_at(const struct kvr_slab_layout *layout, const struct kvr_segment_view *view,
	uint32_t lane, uint32_t unit)
{
	const uint32_t lanes = kvr_geometry_lanes(view->geometry);
	uint64_t rows = (uint64_t)kvr_segment_unit_rows(view, lane, unit) *
			sparse_lanes(view->geometry, lane);

	for (uint32_t before = view->cluster_max + 1; before < unit; before++)
		rows += (uint64_t)kvr_segment_unit_rows(view, lane, before) *
			sparse_lanes(view->geometry, lanes);
	return layout->merged_at + rows * row_bytes(view->geometry);
}

uint64_t kvr_slab_unit_at(const struct kvr_slab_layout *layout, const struct kvr_segment_view *view,
	uint32_t lane, uint32_t unit, uint32_t *ret_bytes)
{
	uint64_t at;

	KVR_ASSERT(lane < kvr_geometry_lanes(view->geometry));
	*ret_bytes =
		(uint32_t)(kvr_segment_unit_rows(view, lane, unit) * row_bytes(view->geometry));
	if (unit > view->cluster_max) {
		at = *ret_bytes > 0 ? merged_at(layout, view, lane, unit) : layout->merged_at;
	} else {
		const uint16_t *row_first = kvr_segment_row_first(view, lane);

		KVR_ASSERT(row_first[unit] <= row_first[unit + 1]); /* S1 */
		at = layout->payload_at + ((uint64_t)lane * view->token_count + row_first[unit]) *
						  row_bytes(view->geometry);
		KVR_ASSERT(at + *ret_bytes <= layout->merged_at);
	}
	KVR_ASSERT(at + *ret_bytes <= layout->merged_at + layout->merged_bytes);
	return at;
}

/* ---- bytes ----------------------------------------------------------------------------------- */

/* Of a page whose checksum field is taken for zeros. */
static uint32_t page_crc(const uint8_t *bytes)
{
	static const uint8_t zeros[4];
	uint32_t crc = kvr_crc32c(0, bytes, AT_CRC);

	crc = kvr_crc32c(crc, zeros, sizeof(zeros));
	return kvr_crc32c(crc, bytes + AT_CRC + sizeof(zeros),
		KVR_SLAB_HEADER_BYTES - AT_CRC - sizeof(zeros));
}

static void begin_page(uint8_t *bytes, const uint8_t *magic)
{
	memset(bytes, 0, KVR_SLAB_HEADER_BYTES);
	memcpy(bytes, magic, MAGIC_BYTES);
	put_u32(bytes + AT_VERSION, KVR_SLAB_VERSION);
}

static int check_page(const uint8_t *bytes, const uint8_t *magic)
{
	if (memcmp(bytes, magic, MAGIC_BYTES) != 0)
		return -ENOENT;
	if (get_u32(bytes + AT_CRC) != page_crc(bytes))
		return -EBADMSG;
	return get_u32(bytes + AT_VERSION) == KVR_SLAB_VERSION ? 0 : -EPROTONOSUPPORT;
}

/* A name with zeros behind it, whatever lay there. */
static void copy_name(char *ret_name, const char *name)
{
	const size_t bytes = strnlen(name, KVR_NAME_MAX - 1);

	memset(ret_name, 0, KVR_NAME_MAX);
	memcpy(ret_name, name, bytes);
}

void kvr_slab_pack_header(const struct kvr_slab_header *header, uint8_t *ret_bytes)
{
	KVR_ASSERT(header->segment >= 1);
	KVR_ASSERT(header->part < header->part_count);
	KVR_ASSERT(header->part_count <= KVR_SLAB_PARTS_MAX);
	KVR_ASSERT(header->body_bytes <= KVR_SLAB_BODY_BYTES);
	begin_page(ret_bytes, slab_magic);
	memcpy(ret_bytes + SLAB_AT_STORE, header->store, KVR_SLAB_UUID_BYTES);
	put_u64(ret_bytes + SLAB_AT_SEGMENT, header->segment);
	put_u32(ret_bytes + SLAB_AT_PART, header->part);
	put_u32(ret_bytes + SLAB_AT_PART_COUNT, header->part_count);
	put_u32(ret_bytes + SLAB_AT_BODY_BYTES, header->body_bytes);
	put_u32(ret_bytes + AT_CRC, page_crc(ret_bytes));
}

int kvr_slab_unpack_header(const uint8_t *bytes, struct kvr_slab_header *ret_header)
{
	int rc = check_page(bytes, slab_magic); /* B2 */
	struct kvr_slab_header header;

	if (rc < 0)
		return rc;
	memcpy(header.store, bytes + SLAB_AT_STORE, KVR_SLAB_UUID_BYTES);
	header.segment = get_u64(bytes + SLAB_AT_SEGMENT);
	header.part = get_u32(bytes + SLAB_AT_PART);
	header.part_count = get_u32(bytes + SLAB_AT_PART_COUNT);
	header.body_bytes = get_u32(bytes + SLAB_AT_BODY_BYTES);
	if (header.segment == 0 || header.part_count > KVR_SLAB_PARTS_MAX ||
		header.part >= header.part_count || header.body_bytes == 0 ||
		header.body_bytes > KVR_SLAB_BODY_BYTES)
		return -EBADMSG;
	*ret_header = header;
	return 0;
}

static void pack_geometry(const struct kvr_geometry *geometry, uint8_t *bytes)
{
	const uint32_t numbers[GEOMETRY_WORDS] = {geometry->layer_count, geometry->query_heads,
		geometry->kv_heads, geometry->key_dim, geometry->value_dim, geometry->dtype,
		geometry->segment_tokens, geometry->cluster_tokens, geometry->sink_tokens,
		geometry->merged};

	for (size_t i = 0; i < GEOMETRY_WORDS; i++)
		put_u32(bytes + HEAD_AT_GEOMETRY + 4 * i, numbers[i]);
	for (size_t i = 0; i < DENSE_WORDS; i++)
		put_u64(bytes + HEAD_AT_DENSE + 8 * i, geometry->dense[i]);
}

static void unpack_geometry(const uint8_t *bytes, struct kvr_geometry *geometry)
{
	uint32_t numbers[GEOMETRY_WORDS];

	for (size_t i = 0; i < GEOMETRY_WORDS; i++)
		numbers[i] = get_u32(bytes + HEAD_AT_GEOMETRY + 4 * i);
	*geometry = (struct kvr_geometry){
		.layer_count = numbers[0],
		.query_heads = numbers[1],
		.kv_heads = numbers[2],
		.key_dim = numbers[3],
		.value_dim = numbers[4],
		.dtype = (enum kvr_dtype)numbers[5],
		.segment_tokens = numbers[6],
		.cluster_tokens = numbers[7],
		.sink_tokens = numbers[8],
		.merged = numbers[9],
	};
	for (size_t i = 0; i < DENSE_WORDS; i++)
		geometry->dense[i] = get_u64(bytes + HEAD_AT_DENSE + 8 * i);
}

void kvr_slab_pack_head(const struct kvr_slab_head *head, uint8_t *ret_bytes)
{
	char name[KVR_NAME_MAX];

	KVR_ASSERT(head->segment >= 1);
	KVR_ASSERT(head->token_count >= 1);
	KVR_ASSERT(head->model.tenant[0] != 0);
	KVR_ASSERT(kvr_geometry_valid(&head->model.geometry));
	begin_page(ret_bytes, head_magic);
	put_u64(ret_bytes + HEAD_AT_SEGMENT, head->segment);
	memcpy(ret_bytes + HEAD_AT_HASH, head->hash, KVR_HASH_BYTES);
	memcpy(ret_bytes + HEAD_AT_PARENT, head->parent, KVR_HASH_BYTES);
	put_u32(ret_bytes + HEAD_AT_TOKEN_FIRST, head->token_first);
	put_u32(ret_bytes + HEAD_AT_TOKEN_COUNT, head->token_count);
	put_u32(ret_bytes + HEAD_AT_SUMMARY_CRC, head->summary_crc);
	put_u32(ret_bytes + HEAD_AT_RANK, head->model.rank);
	memcpy(ret_bytes + HEAD_AT_ROOT, head->model.root, KVR_HASH_BYTES);
	copy_name(name, head->model.tenant);
	memcpy(ret_bytes + HEAD_AT_TENANT, name, KVR_NAME_MAX);
	copy_name(name, head->model.name);
	memcpy(ret_bytes + HEAD_AT_NAME, name, KVR_NAME_MAX);
	memcpy(ret_bytes + HEAD_AT_DIGEST, head->model.digest, KVR_HASH_BYTES);
	pack_geometry(&head->model.geometry, ret_bytes);
	put_u32(ret_bytes + AT_CRC, page_crc(ret_bytes));
}

/* Whether the head's numbers are ones that layouts may be made of (B2). */
static bool head_valid(const struct kvr_slab_head *head)
{
	const struct kvr_geometry *geometry = &head->model.geometry;

	return head->segment >= 1 && head->model.tenant[0] != 0 && kvr_geometry_valid(geometry) &&
	       head->token_count >= 1 && head->token_count <= geometry->segment_tokens &&
	       head->token_first <= KVR_SEQUENCE_TOKENS_MAX - head->token_count;
}

int kvr_slab_unpack_head(const uint8_t *bytes, struct kvr_slab_head *ret_head)
{
	int rc = check_page(bytes, head_magic); /* B2 */
	struct kvr_slab_head head;

	if (rc < 0)
		return rc;
	if (bytes[HEAD_AT_TENANT + KVR_NAME_MAX - 1] != 0 ||
		bytes[HEAD_AT_NAME + KVR_NAME_MAX - 1] != 0)
		return -EBADMSG;
	head.segment = get_u64(bytes + HEAD_AT_SEGMENT);
	memcpy(head.hash, bytes + HEAD_AT_HASH, KVR_HASH_BYTES);
	memcpy(head.parent, bytes + HEAD_AT_PARENT, KVR_HASH_BYTES);
	head.token_first = get_u32(bytes + HEAD_AT_TOKEN_FIRST);
	head.token_count = get_u32(bytes + HEAD_AT_TOKEN_COUNT);
	head.summary_crc = get_u32(bytes + HEAD_AT_SUMMARY_CRC);
	head.model.rank = get_u32(bytes + HEAD_AT_RANK);
	memcpy(head.model.root, bytes + HEAD_AT_ROOT, KVR_HASH_BYTES);
	copy_name(head.model.tenant, (const char *)bytes + HEAD_AT_TENANT);
	copy_name(head.model.name, (const char *)bytes + HEAD_AT_NAME);
	memcpy(head.model.digest, bytes + HEAD_AT_DIGEST, KVR_HASH_BYTES);
	unpack_geometry(bytes, &head.model.geometry);
	if (!head_valid(&head))
		return -EBADMSG;
	*ret_head = head;
	return 0;
}

uint32_t kvr_slab_version(const uint8_t *bytes)
{
	return get_u32(bytes + AT_VERSION);
}

/* ---- summaries ------------------------------------------------------------------------------- */

/* S2 for one lane, given S1: every token once, ascending inside a cluster. */
static bool rows_valid(const struct kvr_segment_view *view, uint32_t lane)
{
	const uint16_t *row_first = kvr_segment_row_first(view, lane);
	const uint16_t *row_token = kvr_segment_row_token(view, lane);
	uint64_t seen[KVR_SEGMENT_TOKENS_MAX / 64] = {0};

	for (uint32_t cluster = 0; cluster <= view->cluster_count[lane]; cluster++) {
		for (uint32_t row = row_first[cluster]; row < row_first[cluster + 1]; row++) {
			const uint32_t token = row_token[row];

			if (token >= view->token_count || (seen[token / 64] >> (token % 64) & 1))
				return false;
			if (row > row_first[cluster] && token <= row_token[row - 1])
				return false;
			seen[token / 64] |= (uint64_t)1 << (token % 64);
		}
	}
	return true;
}

/* S4: the clustered rows of a dense lane are in token order. */
static bool dense_valid(const struct kvr_segment_view *view, uint32_t lane)
{
	const uint16_t *row_token = kvr_segment_row_token(view, lane);

	for (uint32_t row = 0; row + view->sink_count < view->token_count; row++) {
		if (row_token[row] != view->sink_count + row)
			return false;
	}
	return true;
}

/* S9 */
static bool merged_valid(const struct kvr_segment_view *view, uint32_t lane)
{
	const uint16_t *tokens = view->merged_tokens + (size_t)lane * view->merged_max;

	for (uint32_t unit = view->cluster_max + 1; unit < view->unit_count; unit++) {
		const uint32_t rows = kvr_segment_unit_rows(view, lane, unit);
		uint32_t sum = 0;

		for (uint32_t row = 0; row < rows; row++) {
			if (tokens[row] == 0)
				return false;
			sum += tokens[row];
		}
		if (rows > 0 && sum != view->token_count - view->sink_count)
			return false;
		tokens += rows;
	}
	return true;
}

static bool lane_valid(const struct kvr_segment_view *view, uint32_t lane)
{
	const uint16_t *row_first = kvr_segment_row_first(view, lane);
	const uint16_t *row_token = kvr_segment_row_token(view, lane);
	const uint32_t count = view->cluster_count[lane];

	if (count > view->cluster_max || row_first[0] != 0 ||
		row_first[count + 1] != view->token_count) /* S1 */
		return false;
	for (uint32_t cluster = 0; cluster < count; cluster++) {
		if (row_first[cluster] >= row_first[cluster + 1]) /* S1, S3 */
			return false;
	}
	for (uint32_t cluster = count + 1; cluster <= view->cluster_max; cluster++) {
		if (row_first[cluster + 1] != view->token_count) /* S1 */
			return false;
	}
	if (row_first[count] != view->token_count - view->sink_count) /* S3 */
		return false;
	if (!rows_valid(view, lane))
		return false;
	for (uint32_t sink = 0; sink < view->sink_count; sink++) { /* S3 */
		if (row_token[row_first[count] + sink] != sink)
			return false;
	}
	return kvr_geometry_is_dense(view->geometry, lane) ? dense_valid(view, lane)
							   : merged_valid(view, lane);
}

bool kvr_slab_summary_valid(const struct kvr_segment_view *view)
{
	const uint32_t lanes = kvr_geometry_lanes(view->geometry);

	for (uint32_t lane = 0; lane < lanes; lane++) {
		if (!lane_valid(view, lane))
			return false;
	}
	return true;
}
