/* SPDX-License-Identifier: Apache-2.0 */
/* catalog_tree.h: whether LMDB can follow its own pages: a look at data.mdb before LMDB has it.
 *
 * LMDB believes what its pages say. A flipped bit in one makes it read and write beyond pages, or
 * run into an assertion. So every page is looked at before LMDB touches it for the first time after
 * an open. This knows trees of pages; what rows say is tiers/catalog_record.h's.
 *
 *   meta 0, 1 ─► free tree:  transaction ─► pages that are free
 *          └───► main tree:  name ─► root ─► branch pages ─► leaf pages ─► overflow pages
 *
 * What is checked: every number of a page against the page's length and the file's; nodes fill a
 * page without gap or overlap; keys ascend, inside what the pages above say; trees have the depth,
 * pages and rows that their records say; no page is used twice, or used and free. The last finds a
 * reference that has become another one, also to an older copy of the right page.
 *
 * Leaf pages of the largest tables, `cluster` and `merged`, are left out at open (a hundredth of their
 * pages is above them) and looked at with the first use of a segment: kvr_catalog_tree_range.
 *
 * Invariants:
 *   L1  Nothing is read beyond a page that was read, whatever is in it.
 *   L2  Pages come by pread: a disk that cannot read is -EIO here, and the page is in memory when
 *       LMDB wants it.
 *
 * Threads: none of its own; any thread may call it. Source: the format of LMDB 0.9 (data version
 * 1), little-endian. */
#ifndef KVR_TIERS_CATALOG_TREE_H
#define KVR_TIERS_CATALOG_TREE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/span.h"

struct kvr_catalog_tree_report {
	uint32_t page_bytes;
	uint64_t transaction; /* the newest; 0: there is none yet */
	uint64_t page_count;  /* with those that are free */
	uint64_t free_count;
};

/* Looks at the whole file but the leaf pages of the tables named in `lazy`, up to a NULL (lazy NULL: at
 * all). Nobody writes to it. map_bytes: no page lies beyond. Errors: -EBADMSG, -EPROTONOSUPPORT (another format), -EFBIG
 * (pages beyond map_bytes), -EIO, -ENOMEM. */
int kvr_catalog_tree_check(int fd, uint64_t map_bytes, const char *const *lazy,
	struct kvr_catalog_tree_report *ret_report);

/* Looks at the leaf pages of a table that hold keys first .. last, and at two on either side, which
 * LMDB may join them with, as of the newest commit. The caller's transaction keeps its pages.
 * Errors: likewise. */
int kvr_catalog_tree_range(int fd, const char *table, struct kvr_span first, struct kvr_span last);

/* The value of a small row as of the commit in meta page 0 or 1: the newest, or the one before,
 * whose pages are still there. ret_bytes 0: no such row, or larger than the room. Nobody writes to
 * the file. Errors: likewise. */
int kvr_catalog_tree_value(int fd, uint32_t slot, const char *table, struct kvr_span key,
	struct kvr_span room, size_t *ret_bytes, uint64_t *ret_transaction);

#endif
