/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_page.c: whether a page of LMDB's is sound.
 *
 * Nothing is read beyond the page, whatever is in it: an offset is used after it has been compared
 * with the page's length. */
#include "tiers/catalog_page.h"

#include <errno.h>

#include "base/assert.h"

#define MAGIC        0xbeefc0deu
#define VERSION      1u
#define TREE_NUMBERS 8u /* keys are native integers of 8 bytes: the free tree */

int kvr_page_compare(enum kvr_page_kind kind, struct kvr_span a, struct kvr_span b)
{
	const size_t bytes = a.bytes < b.bytes ? a.bytes : b.bytes;
	int order;

	if (kind == KVR_PAGE_FREE && a.bytes == 8 && b.bytes == 8) {
		const uint64_t one = kvr_page_get64(a.data);
		const uint64_t other = kvr_page_get64(b.data);

		return one < other ? -1 : one > other;
	}
	order = bytes > 0 ? memcmp(a.data, b.data, bytes) : 0;
	if (order == 0 && a.bytes != b.bytes)
		order = a.bytes < b.bytes ? -1 : 1;
	return order;
}

/* The length of a node with what it says of itself; 0: it does not fit. */
static uint32_t node_bytes(
	enum kvr_page_kind kind, const uint8_t *page, uint32_t page_bytes, uint32_t at)
{
	const uint8_t *node = page + at;
	uint64_t bytes = KVR_PAGE_NODE_HEAD;

	if (at % 2 != 0 || at + KVR_PAGE_NODE_HEAD > page_bytes)
		return 0;
	bytes += kvr_page_get16(node + 6);
	if (kvr_page_get16(page + 10) == KVR_PAGE_LEAF) {
		const uint16_t flags = kvr_page_get16(node + 4);

		if (flags == KVR_PAGE_NODE_TREE && kind == KVR_PAGE_MAIN &&
			kvr_page_get32(node) == KVR_PAGE_TREE)
			bytes += KVR_PAGE_TREE;
		else if (flags == KVR_PAGE_NODE_BIG && kind != KVR_PAGE_MAIN)
			bytes += sizeof(uint64_t);
		else if (flags == 0 && kind != KVR_PAGE_MAIN)
			bytes += kvr_page_get32(node);
		else
			return 0;
	}
	bytes = (bytes + 1) & ~(uint64_t)1;
	return at + bytes <= page_bytes ? (uint32_t)bytes : 0;
}

/* The nodes of a page whose head is sound: each inside, no two at one place, and one behind the
 * other from upper to the end. Whoever follows them from upper on passes all bytes once; so where
 * the lengths add up to just that, there are no others. */
static bool nodes_fill(
	enum kvr_page_kind kind, const uint8_t *page, uint32_t page_bytes, uint32_t upper)
{
	const uint32_t count = kvr_page_nodes(page);
	uint64_t begins[KVR_PAGE_BYTES_MAX / 2 / 64 + 1] = {0}; /* a bit per even place */
	uint32_t sum = 0;

	for (uint32_t i = 0; i < count; i++) {
		const uint32_t at = kvr_page_get16(page + KVR_PAGE_HEAD + 2 * (size_t)i);
		const uint32_t bytes = at >= upper ? node_bytes(kind, page, page_bytes, at) : 0;

		if (bytes == 0 || (begins[at / 128] >> (at / 2 % 64) & 1))
			return false;
		begins[at / 128] |= (uint64_t)1 << (at / 2 % 64);
		sum += bytes;
	}
	begins[page_bytes / 128] |= (uint64_t)1 << (page_bytes / 2 % 64);
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t at = kvr_page_get16(page + KVR_PAGE_HEAD + 2 * (size_t)i);
		const uint32_t end = at + node_bytes(kind, page, page_bytes, at);

		if (!(begins[end / 128] >> (end / 2 % 64) & 1))
			return false;
	}
	return sum == page_bytes - upper && (begins[upper / 128] >> (upper / 2 % 64) & 1);
}

bool kvr_page_sound(enum kvr_page_kind kind, const uint8_t *page, uint32_t page_bytes, bool branch)
{
	const uint32_t lower = kvr_page_get16(page + 12);
	const uint32_t upper = kvr_page_get16(page + 14);

	KVR_ASSERT(page_bytes >= KVR_PAGE_BYTES_MIN);
	KVR_ASSERT(page_bytes <= KVR_PAGE_BYTES_MAX);
	if (kvr_page_get16(page + 10) != (branch ? KVR_PAGE_BRANCH : KVR_PAGE_LEAF))
		return false;
	if (lower % 2 != 0 || lower < KVR_PAGE_HEAD || lower > upper)
		return false;
	if (upper % 2 != 0 || upper > page_bytes || kvr_page_nodes(page) < (branch ? 2u : 1u))
		return false;
	return nodes_fill(kind, page, page_bytes, upper);
}

bool kvr_page_ordered(enum kvr_page_kind kind, const uint8_t *page, bool branch,
	struct kvr_span low, struct kvr_span high)
{
	const uint32_t count = kvr_page_nodes(page);
	struct kvr_span before = {NULL, 0};

	for (uint32_t i = branch ? 1 : 0; i < count; i++) {
		const struct kvr_span key = kvr_page_key(kvr_page_node(page, i));

		if (kind == KVR_PAGE_FREE && key.bytes != 8)
			return false;
		if (!branch && key.bytes == 0)
			return false;
		if (before.data && kvr_page_compare(kind, before, key) >= 0)
			return false;
		if (!before.data && low.data && kvr_page_compare(kind, low, key) > 0)
			return false;
		before = key;
	}
	if (high.data && before.data && kvr_page_compare(kind, before, high) >= 0)
		return false;
	return true;
}

struct kvr_page_tree kvr_page_read_tree(const uint8_t *from)
{
	return (struct kvr_page_tree){
		.flags = kvr_page_get16(from + 4),
		.depth = kvr_page_get16(from + 6),
		.branch_count = kvr_page_get64(from + 8),
		.leaf_count = kvr_page_get64(from + 16),
		.overflow_count = kvr_page_get64(from + 24),
		.row_count = kvr_page_get64(from + 32),
		.root = kvr_page_get64(from + 40),
	};
}

int kvr_page_read_meta(const uint8_t *page, uint32_t slot, struct kvr_page_meta *ret_meta)
{
	const uint8_t *from = page + KVR_PAGE_HEAD;
	struct kvr_page_meta meta;

	if (kvr_page_get32(from) != MAGIC || kvr_page_get64(page) != slot ||
		kvr_page_get16(page + 10) != KVR_PAGE_META)
		return -EBADMSG;
	if (kvr_page_get32(from + 4) != VERSION)
		return -EPROTONOSUPPORT;
	meta = (struct kvr_page_meta){
		.page_bytes = kvr_page_get32(from + 24),
		.free_tree = kvr_page_read_tree(from + 24),
		.main_tree = kvr_page_read_tree(from + 72),
		.last_page = kvr_page_get64(from + 120),
		.transaction = kvr_page_get64(from + 128),
	};
	/* The bits that are left must be as they always are, since LMDB goes by them. */
	if (kvr_page_get64(from + 8) != 0 || meta.free_tree.flags != TREE_NUMBERS ||
		meta.main_tree.flags != 0 || meta.last_page < KVR_PAGE_METAS - 1)
		return -EBADMSG;
	if (meta.page_bytes < KVR_PAGE_BYTES_MIN || meta.page_bytes > KVR_PAGE_BYTES_MAX ||
		(meta.page_bytes & (meta.page_bytes - 1)) != 0)
		return -EBADMSG;
	/* Transactions take turns; a new file has 0 in both, and no tables. */
	if (meta.transaction % KVR_PAGE_METAS != slot && meta.transaction != 0)
		return -EBADMSG;
	if ((meta.transaction == 0) != (meta.main_tree.root == KVR_PAGE_NONE))
		return -EBADMSG;
	*ret_meta = meta;
	return 0;
}
