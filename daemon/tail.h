/* SPDX-License-Identifier: Apache-2.0 */
/* tail.h: the memory of a sequence's tail: blocks of rows with their token ids behind them.
 *
 * Part of the sequence module. Block memory comes from the arena, on the tenant's account. */
#ifndef KVR_DAEMON_TAIL_H
#define KVR_DAEMON_TAIL_H

#include "daemon/sequence.h"

/* Frees blocks that the first `tokens` tokens do not need. */
void kvr_tail_shrink(struct kvr_sequence *sequence, uint32_t tokens);

/* The first `count` tokens, which every layer has, are sealed: the others become the first. No reader
 * and no append runs. */
void kvr_tail_advance(struct kvr_sequence *sequence, uint32_t count);

#endif
