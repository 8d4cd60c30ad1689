/* SPDX-License-Identifier: Apache-2.0 */
/* fill.c: the rows of one cluster that has been read from below: checked, then staged and kept.
 *
 *   payload ─ CRC-32C ─┬─ differs: -EIO, nothing written
 *   (a buffer of reads)└─ is right ─► first rows of K and V to a gap of a reply
 *                                  └► the whole to its place in host memory
 *
 * The check reads a few KiB that no processor has touched yet; the copies behind it find them in the
 * cache. So nothing is copied that was not checked, at little more than the cost of the copies. */

#include <errno.h>

#include "kernels/crc.h"
#include "kernels/move.h"

int kvr_cpu_fill(struct kvr_fill_item *item, enum kvr_isa isa, struct kvr_span scratch)
{
	const struct kvr_move_ops *ops = kvr_move_ops_of(isa);
	const size_t key_bytes = kvr_geometry_key_bytes(item->geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(item->geometry);
	const uint8_t *values = item->payload + item->row_count * key_bytes;
	const size_t bytes = item->row_count * (key_bytes + value_bytes);

	(void)scratch;
	KVR_ASSERT(item->row_count <= KVR_SEGMENT_TOKENS_MAX);
	KVR_ASSERT(item->rows <= item->row_count);
	KVR_ASSERT(!item->keys == !item->values);
	item->status = kvr_crc32c(0, item->payload, bytes) == item->crc ? 0 : -EIO;
	if (item->status != 0)
		return item->status;
	if (item->keys) {
		ops->move(item->keys, item->payload, item->rows * key_bytes);
		ops->move(item->values, values, item->rows * value_bytes);
	}
	if (item->copy)
		ops->move(item->copy, item->payload, bytes);
	return 0;
}
