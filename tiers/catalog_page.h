/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_page.h: one page of LMDB's, as bytes: where things are in it, and whether it is sound.
 * Pure functions.
 *
 * They know nothing of other pages; that is catalog_tree.c's, and nobody else includes this.
 *
 *   page    OFFSET SIZE MEANING                       node    OFFSET SIZE MEANING
 *                0    8 its number                                 0    4 leaf: bytes of the value
 *                8    2 (nothing)                                       branch: page below, low
 *                bits
 *               10    2 flags: branch, leaf, overflow, meta        4    2 leaf: flags; branch:
 *               page, high bits 12    2 lower: end of the index                    6    2 bytes of
 *               the key 14    2 upper: begin of the nodes                  8      key; leaf: value,
 *               or, with 12    4 overflow: how many pages                          flag "big", the
 *               number of the 16   2n index: where nodes are                            first of
 *               its overflow pages
 *
 *   meta    OFFSET SIZE MEANING, behind 16 bytes      tree    OFFSET SIZE MEANING
 *                0    4 magic                                      0    4 in the first: bytes of a
 *                page 4    4 version                                    4    2 flags
 *                8    8 address: 0                                 6    2 depth
 *               16    8 bytes of the map                           8    8 branch pages
 *               24   48 free tree                                 16    8 leaf pages
 *               72   48 main tree                                 24    8 overflow pages
 *              120    8 last page                                 32    8 rows
 *              128    8 transaction                               40    8 root, or all ones
 *
 * A sound page is filled by its nodes from upper to its end, each byte by one, and its keys ascend.
 *
 * Threads: none of its own. Source: the format of LMDB 0.9 (data version 1), little-endian. */
#ifndef KVR_TIERS_CATALOG_PAGE_H
#define KVR_TIERS_CATALOG_PAGE_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#include "base/span.h"

#define KVR_PAGE_HEAD       16u
#define KVR_PAGE_NODE_HEAD  8u
#define KVR_PAGE_BYTES_MIN  512u
#define KVR_PAGE_BYTES_MAX  32768u
#define KVR_PAGE_METAS      2u
#define KVR_PAGE_META_BYTES 136u       /* behind the head */
#define KVR_PAGE_NONE       UINT64_MAX /* no root */
#define KVR_PAGE_TREE       48u        /* bytes of a table's record in a leaf of the main tree */

enum kvr_page_flag {
	KVR_PAGE_BRANCH = 1,
	KVR_PAGE_LEAF = 2,
	KVR_PAGE_OVERFLOW = 4,
	KVR_PAGE_META = 8,
};

enum kvr_page_node_flag {
	KVR_PAGE_NODE_BIG = 1,
	KVR_PAGE_NODE_TREE = 2,
};

/* Which tree a page is of. */
enum kvr_page_kind {
	KVR_PAGE_TABLE, /* keys are bytes */
	KVR_PAGE_MAIN,  /* and values are records of tables */
	KVR_PAGE_FREE,  /* keys are native integers of 8 bytes */
};

struct kvr_page_tree {
	uint16_t flags, depth;
	uint64_t branch_count, leaf_count, overflow_count, row_count, root;
};

struct kvr_page_meta {
	uint32_t page_bytes;
	struct kvr_page_tree free_tree, main_tree;
	uint64_t last_page, transaction;
};

static inline uint16_t kvr_page_get16(const uint8_t *from)
{
	uint16_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

static inline uint32_t kvr_page_get32(const uint8_t *from)
{
	uint32_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

static inline uint64_t kvr_page_get64(const uint8_t *from)
{
	uint64_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

/* ---- of a sound page --------------------------------------------------------------------------- */

static inline uint32_t kvr_page_nodes(const uint8_t *page)
{
	return (kvr_page_get16(page + 12) - KVR_PAGE_HEAD) / 2;
}

static inline const uint8_t *kvr_page_node(const uint8_t *page, uint32_t index)
{
	return page + kvr_page_get16(page + KVR_PAGE_HEAD + 2 * (size_t)index);
}

static inline struct kvr_span kvr_page_key(const uint8_t *node)
{
	return (struct kvr_span){
		(uint8_t *)(uintptr_t)node + KVR_PAGE_NODE_HEAD, kvr_page_get16(node + 6)};
}

/* The page below a branch's node. */
static inline uint64_t kvr_page_below(const uint8_t *node)
{
	return (uint64_t)kvr_page_get32(node) | (uint64_t)kvr_page_get16(node + 4) << 32;
}

/* The order of keys: negative, 0 or positive. */
int kvr_page_compare(enum kvr_page_kind kind, struct kvr_span a, struct kvr_span b);

/* ---- of any page ------------------------------------------------------------------------------- */

/* Whether a page of page_bytes is a sound branch or leaf page. */
bool kvr_page_sound(enum kvr_page_kind kind, const uint8_t *page, uint32_t page_bytes, bool branch);

/* Whether the keys of a sound page ascend strictly, none below `low`, all below `high` (data NULL:
 * no bound). The first key of a branch page is not used by LMDB, and may be anything. */
bool kvr_page_ordered(enum kvr_page_kind kind, const uint8_t *page, bool branch,
	struct kvr_span low, struct kvr_span high);

/* ---- of meta pages, and records of tables ------------------------------------------------------ */

/* KVR_PAGE_TREE bytes. */
struct kvr_page_tree kvr_page_read_tree(const uint8_t *from);

/* The head and KVR_PAGE_META_BYTES of page `slot`. -EBADMSG; -EPROTONOSUPPORT: another format. */
int kvr_page_read_meta(const uint8_t *page, uint32_t slot, struct kvr_page_meta *ret_meta);

#endif
