/* SPDX-License-Identifier: Apache-2.0 */
/* arena.h: the daemon's one bounded piece of host memory for keys, values and summaries.
 *
 * One mapping of a fixed size, backed by 2 MiB pages where the system grants them (hugetlb memfd, else
 * transparent huge pages, else 4 KiB pages with a warning), locked as far as RLIMIT_MEMLOCK allows.
 * An allocator on top hands out runs of bytes. The arena never grows; full is -ENOSPC.
 *
 * Invariants:
 *   A1  used_bytes <= capacity_bytes, always; memory outside the mapping is never handed out.
 *   A2  Every allocation is 64-byte aligned.
 *   A3  After everything is freed, one allocation of nearly the whole capacity succeeds again.
 *
 * Threads: one, the owner. */
#ifndef KVR_TIERS_ARENA_H
#define KVR_TIERS_ARENA_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct kvr_arena;

enum kvr_pages {
	KVR_PAGES_HUGETLB,     /* reserved 2 MiB pages */
	KVR_PAGES_TRANSPARENT, /* transparent huge pages, advised */
	KVR_PAGES_SMALL,       /* 4 KiB: slower, and worth a warning */
};

struct kvr_arena_stat {
	uint64_t capacity_bytes;
	uint64_t requested_bytes; /* sum of live allocations as asked for */
	uint64_t used_bytes;      /* sum of what they take, the allocator's own metadata included */
	uint64_t locked_bytes;    /* by mlock */
	uint64_t allocation_count;
	enum kvr_pages pages;
};

/* Maps the memory. `capacity_bytes` is rounded up to 2 MiB. Errors: -ENOMEM, -EINVAL (below 4 MiB). */
int kvr_arena_open(uint64_t capacity_bytes, struct kvr_arena **ret_arena);

/* 64-byte aligned memory of `bytes` (1 or more), uninitialised. NULL: full. */
void *kvr_arena_alloc(struct kvr_arena *arena, size_t bytes);

/* Takes back what alloc gave; `bytes` as asked for. NULL is ignored. */
void kvr_arena_free(struct kvr_arena *arena, void *memory, size_t bytes);

void kvr_arena_stat(const struct kvr_arena *arena, struct kvr_arena_stat *ret_stat);

/* The whole mapping, for registration with io_uring or CUDA. */
void *kvr_arena_base(const struct kvr_arena *arena, size_t *ret_bytes);

/* Unmaps. Takes NULL; returns NULL. */
struct kvr_arena *kvr_arena_close(struct kvr_arena *arena);

#endif
