/* SPDX-License-Identifier: Apache-2.0 */
/* arena.h: the daemon's one bounded piece of host memory for keys, values and summaries.
 *
 * One mapping of a fixed size, with the largest pages the system grants and locked as far as it allows
 * (tiers/mapping.h), and an allocator on top that hands out runs of bytes. The arena never grows;
 * full is NULL.
 *
 * Reserved 2 MiB pages are there from the start. Other memory is taken from the system as it is
 * first used: opening is quick, but a machine that promises more than it has can still run out.
 *
 * Invariants:
 *   A1  used_bytes <= capacity_bytes, always; memory outside the mapping is never handed out.
 *   A2  Every allocation is 64-byte aligned, and no two overlap.
 *   A3  After everything is freed, one allocation of the whole capacity succeeds again.
 *
 * Threads: one, the owner. The memory handed out may be used by any. */
#ifndef KVR_TIERS_ARENA_H
#define KVR_TIERS_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "tiers/mapping.h"

struct kvr_arena;

struct kvr_arena_stat {
	uint64_t capacity_bytes;
	uint64_t requested_bytes; /* sum of live allocations as asked for */
	uint64_t used_bytes;      /* sum of what they take of the capacity */
	uint64_t full_bytes;      /* requested_bytes when alloc last failed; 0 while none has.
	                           * 1 - full_bytes / capacity_bytes is the waste that counts: rounding
	                           * and holes that were too small. */
	uint64_t metadata_bytes;  /* the allocator's own, outside the capacity */
	uint64_t locked_bytes;    /* by mlock */
	uint64_t allocation_count;
	enum kvr_pages pages;
};

/* Maps the memory. `capacity_bytes` is rounded up to 2 MiB. Errors: -ENOMEM, -EINVAL (below 4 MiB
 * or above 16 TiB). */
int kvr_arena_open(uint64_t capacity_bytes, struct kvr_arena **ret_arena);

/* 64-byte aligned memory of `bytes` (1 or more), uninitialised. NULL: full, or too much in pieces. */
void *kvr_arena_alloc(struct kvr_arena *arena, size_t bytes);

/* Takes back what alloc gave; `bytes` as asked for. NULL is ignored. */
void kvr_arena_free(struct kvr_arena *arena, void *memory, size_t bytes);

void kvr_arena_stat(const struct kvr_arena *arena, struct kvr_arena_stat *ret_stat);

/* The whole mapping, for registration with io_uring or CUDA. Borrowed. */
void *kvr_arena_base(const struct kvr_arena *arena, size_t *ret_bytes);

/* Unmaps, whatever is still allocated. Takes NULL; returns NULL. */
struct kvr_arena *kvr_arena_close(struct kvr_arena *arena);

#endif
