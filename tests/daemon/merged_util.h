/* SPDX-License-Identifier: Apache-2.0 */
/* merged_util.h: merged sets as the daemon makes them, made by the test: apart, for the client's header and the device's
 * both have a struct kvr_recall_item. */
#ifndef KVR_TESTS_DAEMON_MERGED_H
#define KVR_TESTS_DAEMON_MERGED_H

#include "kernels/segment.h"
#include "kernels/tail.h"

/* Fills extents and merged_tokens of all lanes, on a device of our own, of the same instructions as the daemon's (D4). */
void merged_make(struct kvr_segment_view *view, const struct kvr_tail_view *tail);

#endif
