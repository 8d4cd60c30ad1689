/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_tree.c: LMDB's trees of pages, as far as it takes to know that they are sound.
 *
 * Pages themselves stand in catalog_page.h. */
#include "tiers/catalog_tree.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/catalog_page.h"

#define DEPTH_MAX  12u /* pages have dozens of nodes: more than any disk holds */
#define EDGE_PAGES 2u  /* on either side of a range */
#define META_TRIES 8u

/* Which part of a tree. */
enum part {
	PART_ALL,
	PART_RANGE,
	PART_LAST,  /* the path to the last leaf pages below a page */
	PART_FIRST, /* to the first */
};

struct walk {
	int fd;
	uint32_t page_bytes;
	uint64_t file_pages; /* that can be read */
	uint64_t last_page;
	uint64_t *used;          /* a bit per page; NULL: not looked for */
	uint8_t *pages;          /* two paths: through the main tree, and below it */
	const char *const *lazy; /* tables whose leaf pages are left out, then NULL; or NULL */
	const char *named;       /* the one table that is looked at, or NULL: all */
	struct kvr_span first, last;
	struct kvr_page_tree *found; /* of the named table */
	struct kvr_span value;       /* where the value of the key `first` goes, or no room */
	size_t value_bytes;          /* of it; 0: not seen */
	uint64_t free_count;
};

/* One tree while it is walked. */
struct climb {
	struct walk *walk;
	struct kvr_page_tree tree;
	enum kvr_page_kind kind;
	bool leaves;
	struct kvr_page_tree seen; /* counted */
};

/* ---- pages ------------------------------------------------------------------------------------- */

static int read_at(int fd, void *to, size_t bytes, uint64_t at)
{
	while (bytes > 0) {
		const ssize_t got = pread(fd, to, bytes, (off_t)at);

		if (got < 0 && errno == EINTR)
			continue;
		if (got < 0)
			return -errno;
		if (got == 0)
			return -EBADMSG; /* shorter than its own numbers say */
		to = (uint8_t *)to + got;
		bytes -= (size_t)got;
		at += (uint64_t)got;
	}
	return 0;
}

/* Takes pages, which must be nobody's so far. */
static int take(struct walk *walk, uint64_t page, uint64_t count)
{
	if (page < KVR_PAGE_METAS || page > walk->last_page || count > walk->last_page + 1 - page)
		return -EBADMSG;
	for (uint64_t i = page; walk->used && i < page + count; i++) {
		const uint64_t bit = (uint64_t)1 << (i % 64);

		if (walk->used[i / 64] & bit)
			return -EBADMSG;
		walk->used[i / 64] |= bit;
	}
	return 0;
}

static int read_page(struct walk *walk, uint64_t page, uint8_t *ret_page)
{
	if (page >= walk->file_pages)
		return -EBADMSG;
	return read_at(walk->fd, ret_page, walk->page_bytes, page * walk->page_bytes);
}

/* ---- what leaf nodes lead to
 * ----------------------------------------------------------------------- */

static int check_tree(struct walk *walk, const struct kvr_page_tree *tree, enum part part,
	enum kvr_page_kind kind, bool leaves);

/* Pages that a record of the free tree lists: a count, then that many, descending. */
static int check_free(struct walk *walk, const uint8_t *list, uint64_t bytes)
{
	uint64_t count;

	if (bytes < 8 || bytes % 8 != 0)
		return -EBADMSG;
	count = kvr_page_get64(list);
	if (count > bytes / 8 - 1)
		return -EBADMSG;
	for (uint64_t i = 1; i <= count; i++) {
		int error = take(walk, kvr_page_get64(list + 8 * i), 1);

		if (error < 0)
			return error;
		if (i > 1 && kvr_page_get64(list + 8 * i) >= kvr_page_get64(list + 8 * (i - 1)))
			return -EBADMSG;
	}
	walk->free_count += count;
	return 0;
}

/* A value on pages of its own; they are read only where they say what is free. */
static int check_big(struct climb *climb, const uint8_t *node)
{
	struct walk *walk = climb->walk;
	const uint64_t first = kvr_page_get64(kvr_page_key(node).data + kvr_page_key(node).bytes);
	const uint64_t bytes = kvr_page_get32(node);
	uint8_t head[KVR_PAGE_HEAD];
	uint8_t *list;
	uint64_t count;
	int error;

	if (first >= walk->file_pages)
		return -EBADMSG;
	error = read_at(walk->fd, head, sizeof(head), first * walk->page_bytes);
	if (error < 0)
		return error;
	count = kvr_page_get32(head + 12);
	if (kvr_page_get64(head) != first || kvr_page_get16(head + 10) != KVR_PAGE_OVERFLOW ||
		count < 1 || count > walk->file_pages - first ||
		KVR_PAGE_HEAD + bytes > count * walk->page_bytes)
		return -EBADMSG;
	error = take(walk, first, count);
	climb->seen.overflow_count += count;
	if (error < 0 || climb->kind != KVR_PAGE_FREE)
		return error;
	list = malloc(bytes + 1);
	if (!list)
		return -ENOMEM;
	error = read_at(walk->fd, list, bytes, first * walk->page_bytes + KVR_PAGE_HEAD);
	if (error == 0)
		error = check_free(walk, list, bytes);
	free(list);
	return error;
}

static bool is_named(const char *name, struct kvr_span key)
{
	return strlen(name) == key.bytes && memcmp(name, key.data, key.bytes) == 0;
}

/* A row of the main tree: a table. */
static int check_table(struct walk *walk, const uint8_t *node)
{
	const struct kvr_span name = kvr_page_key(node);
	const struct kvr_page_tree tree = kvr_page_read_tree(name.data + name.bytes);
	bool lazy = false;

	if (tree.flags != 0)
		return -EBADMSG;
	for (uint32_t i = 0; walk->lazy && walk->lazy[i]; i++)
		lazy |= is_named(walk->lazy[i], name);
	if (!walk->named)
		return check_tree(walk, &tree, PART_ALL, KVR_PAGE_TABLE, !lazy);
	if (is_named(walk->named, name))
		*walk->found = tree;
	return 0;
}

/* Copies the value that is looked for, if this is it. */
static void keep_value(struct walk *walk, const uint8_t *node)
{
	const struct kvr_span key = kvr_page_key(node);
	const uint32_t bytes = kvr_page_get32(node);

	if (bytes > walk->value.bytes || kvr_page_compare(KVR_PAGE_TABLE, key, walk->first) != 0)
		return;
	memcpy(walk->value.data, key.data + key.bytes, bytes);
	walk->value_bytes = bytes;
}

static int check_leaf(struct climb *climb, const uint8_t *page)
{
	int error = 0;

	climb->seen.leaf_count++;
	climb->seen.row_count += kvr_page_nodes(page);
	for (uint32_t i = 0; error == 0 && i < kvr_page_nodes(page); i++) {
		const uint8_t *node = kvr_page_node(page, i);
		const struct kvr_span key = kvr_page_key(node);

		if (kvr_page_get16(node + 4) == KVR_PAGE_NODE_BIG)
			error = check_big(climb, node);
		else if (climb->kind == KVR_PAGE_MAIN)
			error = check_table(climb->walk, node);
		else if (climb->kind == KVR_PAGE_FREE)
			error = check_free(climb->walk, key.data + key.bytes, kvr_page_get32(node));
		else
			keep_value(climb->walk, node);
	}
	return error;
}

/* ---- trees
 * ----------------------------------------------------------------------------------------- */

static int check_page(struct climb *climb, uint64_t number, uint32_t level, enum part part,
	struct kvr_span low, struct kvr_span high);

/* Which children of a branch page hold what is between first and last. */
static void find_range(
	const struct climb *climb, const uint8_t *page, uint32_t *ret_first, uint32_t *ret_last)
{
	uint32_t first = 0;
	uint32_t last = 0;

	for (uint32_t i = 1; i < kvr_page_nodes(page); i++) {
		const struct kvr_span key = kvr_page_key(kvr_page_node(page, i));

		if (kvr_page_compare(climb->kind, key, climb->walk->first) <= 0)
			first = i;
		if (kvr_page_compare(climb->kind, key, climb->walk->last) <= 0)
			last = i;
	}
	*ret_first = first;
	*ret_last = last;
}

static int check_children(struct climb *climb, const uint8_t *page, uint32_t level, enum part part,
	struct kvr_span low, struct kvr_span high)
{
	const uint32_t count = kvr_page_nodes(page);
	const uint32_t edge = level + 2 == climb->tree.depth ? EDGE_PAGES : 1;
	uint32_t first = 0; /* of those that are in the part */
	uint32_t last = count - 1;
	uint32_t begin = 0; /* of those that are looked at */
	uint32_t end = count;
	int error = 0;

	if (part == PART_RANGE) {
		find_range(climb, page, &first, &last);
		begin = first > edge ? first - edge : 0;
		end = count - last - 1 > edge ? last + 1 + edge : count;
	} else if (part == PART_LAST) {
		begin = count > edge ? count - edge : 0;
	} else if (part == PART_FIRST) {
		end = count > edge ? edge : count;
	}
	for (uint32_t i = begin; error == 0 && i < end; i++) {
		const uint8_t *node = kvr_page_node(page, i);
		enum part below = part;

		if (part == PART_RANGE && (i < first || i > last))
			below = i < first ? PART_LAST : PART_FIRST;
		error = check_page(climb, kvr_page_below(node), level + 1, below,
			i > 0 ? kvr_page_key(node) : low,
			i + 1 < count ? kvr_page_key(kvr_page_node(page, i + 1)) : high);
	}
	return error;
}

static int check_page(struct climb *climb, uint64_t number, uint32_t level, enum part part,
	struct kvr_span low, struct kvr_span high)
{
	struct walk *walk = climb->walk;
	const bool branch = level + 1 < climb->tree.depth;
	uint8_t *page;
	int error = take(walk, number, 1);

	KVR_ASSERT(level < DEPTH_MAX);
	if (error < 0)
		return error;
	if (!branch && !climb->leaves) {
		climb->seen.leaf_count++;
		return number < walk->file_pages ? 0 : -EBADMSG;
	}
	/* A table's path lies behind that of the main tree, which leads to it. */
	page = walk->pages +
	       (size_t)(level + (climb->kind == KVR_PAGE_MAIN ? 0 : DEPTH_MAX)) * walk->page_bytes;
	error = read_page(walk, number, page);
	if (error < 0)
		return error;
	if (kvr_page_get64(page) != number)
		return -EBADMSG;
	if (!kvr_page_sound(climb->kind, page, walk->page_bytes, branch) ||
		!kvr_page_ordered(climb->kind, page, branch, low, high))
		return -EBADMSG;
	if (!branch)
		return check_leaf(climb, page);
	climb->seen.branch_count++;
	return check_children(climb, page, level, part, low, high);
}

static int check_tree(struct walk *walk, const struct kvr_page_tree *tree, enum part part,
	enum kvr_page_kind kind, bool leaves)
{
	struct climb climb = {
		.walk = walk,
		.tree = *tree,
		.kind = kind,
		.leaves = leaves,
	};
	const struct kvr_span none = {NULL, 0};
	const struct kvr_page_tree *seen = &climb.seen;
	int error;

	if (tree->root == KVR_PAGE_NONE)
		return tree->depth == 0 && tree->row_count == 0 ? 0 : -EBADMSG;
	if (tree->depth < 1 || tree->depth > DEPTH_MAX)
		return -EBADMSG;
	error = check_page(&climb, tree->root, 0, part, none, none);
	if (error < 0 || part != PART_ALL)
		return error;
	if (seen->branch_count != tree->branch_count || seen->leaf_count != tree->leaf_count)
		return -EBADMSG;
	if (leaves && (seen->overflow_count != tree->overflow_count ||
			      seen->row_count != tree->row_count))
		return -EBADMSG;
	return 0;
}

/* ---- the file
 * -------------------------------------------------------------------------------------- */

/* Both. A commit may go on meanwhile: what is read twice and is the same is whole. */
static int read_metas(int fd, struct kvr_page_meta ret_metas[KVR_PAGE_METAS])
{
	uint8_t pages[2][KVR_PAGE_METAS][KVR_PAGE_HEAD + KVR_PAGE_META_BYTES];
	struct kvr_page_meta first = {.page_bytes = KVR_PAGE_BYTES_MIN};
	int error = read_at(fd, pages[0][0], sizeof(pages[0][0]), 0);

	if (error == 0)
		error = kvr_page_read_meta(pages[0][0], 0, &first);
	for (uint32_t try = 0; error == 0 && try < META_TRIES; try++) {
		for (uint32_t slot = 0; error == 0 && slot < KVR_PAGE_METAS; slot++)
			error = read_at(fd, pages[try % 2][slot], sizeof(pages[0][0]),
				(uint64_t)slot * first.page_bytes);
		if (try > 0 && memcmp(pages[0], pages[1], sizeof(pages[0])) == 0)
			break;
	}
	for (uint32_t slot = 0; error == 0 && slot < KVR_PAGE_METAS; slot++)
		error = kvr_page_read_meta(pages[0][slot], slot, &ret_metas[slot]);
	if (error < 0)
		return error;
	return ret_metas[0].page_bytes == ret_metas[1].page_bytes ? 0 : -EBADMSG;
}

/* The one that LMDB goes by. */
static int read_newest(int fd, struct kvr_page_meta *ret_meta)
{
	struct kvr_page_meta metas[KVR_PAGE_METAS] = {{.page_bytes = KVR_PAGE_BYTES_MIN}};
	int error = read_metas(fd, metas);

	if (error == 0)
		*ret_meta = metas[metas[1].transaction > metas[0].transaction];
	return error;
}

static void end_walk(struct walk *walk)
{
	free(walk->used);
	free(walk->pages);
}

static int begin_walk(struct walk *walk, int fd, const struct kvr_page_meta *meta, bool whole)
{
	struct stat stat;

	if (fstat(fd, &stat) < 0)
		return -errno;
	walk->fd = fd;
	walk->page_bytes = meta->page_bytes;
	walk->last_page = meta->last_page;
	walk->file_pages = (uint64_t)stat.st_size / meta->page_bytes;
	/* Pages at the end that were taken and given back in one transaction are not written. */
	if (walk->file_pages > meta->last_page + 1)
		walk->file_pages = meta->last_page + 1;
	walk->pages = malloc((size_t)2 * DEPTH_MAX * meta->page_bytes);
	if (whole)
		walk->used = calloc(meta->last_page / 64 + 1, sizeof(uint64_t));
	return walk->pages && (walk->used || !whole) ? 0 : -ENOMEM;
}

int kvr_catalog_tree_check(int fd, uint64_t map_bytes, const char *const *lazy,
	struct kvr_catalog_tree_report *ret_report)
{
	struct walk walk = {.lazy = lazy};
	struct kvr_page_meta meta = {.page_bytes = KVR_PAGE_BYTES_MIN};
	int error = read_newest(fd, &meta);

	if (error < 0)
		return error;
	/* Before anything is sized by it. */
	if (meta.last_page >= map_bytes / meta.page_bytes)
		return -EFBIG;
	error = begin_walk(&walk, fd, &meta, true);
	if (error == 0)
		error = check_tree(&walk, &meta.free_tree, PART_ALL, KVR_PAGE_FREE, true);
	if (error == 0)
		error = check_tree(&walk, &meta.main_tree, PART_ALL, KVR_PAGE_MAIN, true);
	end_walk(&walk);
	if (error < 0)
		return error;
	*ret_report = (struct kvr_catalog_tree_report){
		.page_bytes = meta.page_bytes,
		.transaction = meta.transaction,
		.page_count = meta.last_page + 1,
		.free_count = walk.free_count,
	};
	return 0;
}

int kvr_catalog_tree_range(int fd, const char *table, struct kvr_span first, struct kvr_span last)
{
	struct kvr_page_tree found = {.root = KVR_PAGE_NONE};
	struct walk walk = {.named = table, .first = first, .last = last, .found = &found};
	struct kvr_page_meta meta = {.page_bytes = KVR_PAGE_BYTES_MIN};
	int error = read_newest(fd, &meta);

	if (error < 0)
		return error;
	error = begin_walk(&walk, fd, &meta, false);
	if (error == 0)
		error = check_tree(&walk, &meta.main_tree, PART_ALL, KVR_PAGE_MAIN, true);
	if (error == 0)
		error = check_tree(&walk, &found, PART_RANGE, KVR_PAGE_TABLE, true);
	end_walk(&walk);
	return error;
}

int kvr_catalog_tree_value(int fd, uint32_t slot, const char *table, struct kvr_span key,
	struct kvr_span room, size_t *ret_bytes, uint64_t *ret_transaction)
{
	struct kvr_page_tree found = {.root = KVR_PAGE_NONE};
	struct walk walk = {
		.named = table, .first = key, .last = key, .found = &found, .value = room};
	struct kvr_page_meta metas[KVR_PAGE_METAS] = {{.page_bytes = KVR_PAGE_BYTES_MIN}};
	int error = read_metas(fd, metas);

	KVR_ASSERT(slot < KVR_PAGE_METAS);
	if (error < 0)
		return error;
	error = begin_walk(&walk, fd, &metas[slot], false);
	if (error == 0)
		error = check_tree(&walk, &metas[slot].main_tree, PART_ALL, KVR_PAGE_MAIN, true);
	if (error == 0)
		error = check_tree(&walk, &found, PART_RANGE, KVR_PAGE_TABLE, true);
	end_walk(&walk);
	if (error < 0)
		return error;
	*ret_bytes = walk.value_bytes;
	*ret_transaction = metas[slot].transaction;
	return 0;
}
