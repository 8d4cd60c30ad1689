/* SPDX-License-Identifier: Apache-2.0 */
/* recall_item.h: one (sequence, layer) of a recall: what it may ask for, and what that is for the device.
 *
 * It does not run anything: recall.c does, in rounds of heads.
 *
 *   CLUSTERS, MIXED   the whole chain, chosen from by the query ─► rows, then the tail's
 *   MERGED            segments from `first` on:  merged ... merged │ exact ... exact │ tail
 *                                                     merged_end ──┘   only with `tail`
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_RECALL_ITEM_H
#define KVR_DAEMON_RECALL_ITEM_H

#include <stdbool.h>
#include <stdint.h>

#include "kernels/device.h"

struct kvr_call;
struct kvr_sequence;

/* Heads that rows are chosen for: kv heads, or query heads. */
uint32_t kvr_recall_heads(const struct kvr_call *call, const struct kvr_geometry *geometry);

/* Checks item `at` against its model and the region, and sets call->recalled[at]. False: refused. */
bool kvr_recall_check(struct kvr_call *call, uint32_t at, const struct kvr_sequence *sequence);

/* The most rows that a head of item `at`, which is not MERGED, can get of sealed tokens, sinks and all. */
uint32_t kvr_recall_rows(
	const struct kvr_call *call, uint32_t at, const struct kvr_sequence *sequence);

/* Describes head `head` of item `at`, which was checked, to the device. */
void kvr_recall_describe(
	const struct kvr_call *call, uint32_t at, uint32_t head, struct kvr_recall_item *ret_item);

/* The most units that an item can list as chosen (kernels/device.h). */
uint32_t kvr_recall_chosen_max(const struct kvr_recall_item *item);

#endif
