/* SPDX-License-Identifier: Apache-2.0 */
/* arena.c: a bounded mapping, and an allocator whose blocks tile it without headers.
 *
 * It does not grow, does not give memory back to the system, and does not know who asks.
 *
 * The arena is cut into blocks of whole units (128 bytes), live or free. The caller tells a block's
 * size again when it frees it, so live blocks carry nothing. A free block has its size in its own
 * memory, at both ends; two bits per unit, outside the mapping, tell the kinds apart:
 *
 *     live block             free block                                 live block
 *   ┌──────────────────────┬──────────────────────────────────────────┬─────────
 *   │ payload              │ struct free_head              bytes_last │ payload
 *   └──────────────────────┴──────────────────────────────────────────┴─────────
 *     ▲ live bit of its                                            ▲    ▲
 *       first unit                    free bit of its last unit ───┘    └ live bit
 *
 * A binary tree over leaves of 64 KiB holds the size of the largest free block that ends in each half:
 *
 *                     tree[1] = 5M                    alloc(small) goes down to the lowest address
 *                 ┌───────┴───────┐                   that fits, alloc(large) to the highest: small
 *            tree[2] = 8K      tree[3] = 5M           and large blocks gather at opposite ends, and
 *           ┌────┴────┐       ┌────┴────┐             small ones do not riddle the room of the large.
 *          8K         0      64K        5M
 *
 * free merges with both neighbours, so the places of a segment, taken together and dropped
 * together, leave one hole. Cost: one descent and one or two ascents of the tree, and a look at the
 * free blocks of one or two leaves. Under AddressSanitizer, what is not live is poisoned.
 *
 * Invariants:
 *   B1  The live bit of a unit is set if and only if a live block begins there.
 *   B2  The free bit of a unit is set if and only if a free block ends there.
 *   B3  No two free blocks are neighbours.
 *   B4  A leaf's node is the size of the largest free block that ends in it, 0 where there is none; an
 *       inner node is the larger of its two children.
 *   B5  The bytes of live and free blocks sum to the capacity.
 *
 * Source: address-ordered first fit and boundary tags (Knuth, TAOCP 2.5); here the tags of live blocks
 * are bits, and the tree replaces the list. */
#include <errno.h>
#include <sanitizer/asan_interface.h>
#include <stdlib.h>

#include "base/assert.h"
#include "tiers/arena.h"

#define CAPACITY_BYTES_MIN ((uint64_t)4 << 20)
#define CAPACITY_BYTES_MAX ((uint64_t)1 << 44)
#define UNIT_BYTES         ((size_t)128) /* two cache lines: what the prefetcher fetches in pairs */
#define LEAF_BYTES         ((size_t)64 << 10)
#define LEAF_WORDS         (LEAF_BYTES / UNIT_BYTES / 64) /* of a map */
#define LARGE_BYTES        ((size_t)64 << 10)             /* above any usual place */
#define FREE_MAGIC         0x6b76724672656521ull

KVR_STATIC_ASSERT(KVR_MAPPING_ALIGNMENT % LEAF_BYTES == 0);
KVR_STATIC_ASSERT(LEAF_BYTES % (UNIT_BYTES * 64) == 0);

/* At the start of a free block. */
struct free_head {
	uint64_t bytes; /* of the block; again in its last 8 bytes */
	uint64_t magic;
};

KVR_STATIC_ASSERT(sizeof(struct free_head) + sizeof(uint64_t) <= UNIT_BYTES);

struct kvr_arena {
	struct kvr_mapping mapping;
	uint64_t *live_map; /* B1 */
	uint64_t *free_map; /* B2 */
	uint64_t *tree;     /* B4; children of n: 2n and 2n + 1 */
	size_t leaf_first;  /* node of leaf 0; a power of two */
	struct kvr_arena_stat stat;
};

static bool bit_get(const uint64_t *map, size_t bit)
{
	return map[bit / 64] >> (bit % 64) & 1;
}

static void bit_set(uint64_t *map, size_t bit)
{
	KVR_ASSERT(!bit_get(map, bit));
	map[bit / 64] |= 1ull << (bit % 64);
}

static void bit_clear(uint64_t *map, size_t bit)
{
	KVR_ASSERT(bit_get(map, bit));
	map[bit / 64] &= ~(1ull << (bit % 64));
}

static size_t whole_units(size_t bytes)
{
	return (bytes + UNIT_BYTES - 1) / UNIT_BYTES * UNIT_BYTES;
}

static size_t unit_of(const struct kvr_arena *arena, const uint8_t *memory)
{
	size_t offset = (size_t)(memory - arena->mapping.base);

	KVR_ASSERT(offset < arena->mapping.bytes); /* A1 */
	KVR_ASSERT(offset % UNIT_BYTES == 0);      /* A2 */
	return offset / UNIT_BYTES;
}

/* The last 8 bytes of a unit: where it ends a free block, that block's size. */
static uint64_t *bytes_last(const struct kvr_arena *arena, size_t unit)
{
	return (void *)(arena->mapping.base + (unit + 1) * UNIT_BYTES - sizeof(uint64_t));
}

/* Makes `bytes` from `memory` on a free block; B4 is the caller's to restore. Returns its last unit. */
static size_t free_insert(struct kvr_arena *arena, uint8_t *memory, size_t bytes)
{
	struct free_head *head = (void *)memory;
	size_t last = unit_of(arena, memory) + bytes / UNIT_BYTES - 1;

	ASAN_UNPOISON_MEMORY_REGION(head, sizeof(*head));
	ASAN_UNPOISON_MEMORY_REGION(bytes_last(arena, last), sizeof(uint64_t));
	*head = (struct free_head){bytes, FREE_MAGIC};
	*bytes_last(arena, last) = bytes;
	bit_set(arena->free_map, last); /* B2 */
	return last;
}

/* Makes a free block nobody's; B4 is the caller's to restore. Returns its size. */
static size_t free_remove(struct kvr_arena *arena, uint8_t *memory)
{
	struct free_head *head = (void *)memory;
	size_t bytes = head->bytes;
	size_t last;

	KVR_ASSERT(head->magic == FREE_MAGIC); /* else somebody wrote into memory that was freed */
	KVR_ASSERT(bytes >= UNIT_BYTES);
	last = unit_of(arena, memory) + bytes / UNIT_BYTES - 1;
	KVR_ASSERT(*bytes_last(arena, last) == bytes);
	bit_clear(arena->free_map, last); /* B2 */
	head->magic = 0;
	ASAN_POISON_MEMORY_REGION(head, sizeof(*head));
	ASAN_POISON_MEMORY_REGION(bytes_last(arena, last), sizeof(uint64_t));
	return bytes;
}

/* Restores B4 after free blocks that end in the leaf of `unit` came or went. */
static void tree_update(struct kvr_arena *arena, size_t unit)
{
	const size_t word_first = unit / 64 / LEAF_WORDS * LEAF_WORDS;
	size_t node = arena->leaf_first + word_first / LEAF_WORDS;
	uint64_t most = 0;

	for (size_t word = word_first; word < word_first + LEAF_WORDS; word++) {
		for (uint64_t bits = arena->free_map[word]; bits; bits &= bits - 1) {
			size_t last = word * 64 + (size_t)__builtin_ctzll(bits);
			uint64_t bytes = *bytes_last(arena, last);

			most = bytes > most ? bytes : most;
		}
	}
	while (arena->tree[node] != most) {
		arena->tree[node] = most;
		if (node == 1)
			break;
		most = arena->tree[node ^ 1] > most ? arena->tree[node ^ 1] : most;
		node /= 2;
	}
}

/* The free block of `bytes` or more that ends lowest, or highest; NULL where there is none. */
static uint8_t *fit(const struct kvr_arena *arena, size_t bytes, bool highest)
{
	size_t node = 1;
	size_t word_first;

	if (arena->tree[node] < bytes)
		return NULL;
	while (node < arena->leaf_first) {
		node = 2 * node + highest;
		if (arena->tree[node] < bytes)
			node ^= 1;
		KVR_ASSERT(arena->tree[node] >= bytes); /* B4 */
	}
	word_first = (node - arena->leaf_first) * LEAF_WORDS;
	for (size_t i = 0; i < LEAF_WORDS; i++) {
		size_t word = word_first + (highest ? LEAF_WORDS - 1 - i : i);
		uint64_t bits = arena->free_map[word];

		while (bits) {
			int bit = highest ? 63 - __builtin_clzll(bits) : __builtin_ctzll(bits);
			size_t last = word * 64 + (size_t)bit;
			uint64_t found_bytes = *bytes_last(arena, last);

			if (found_bytes >= bytes)
				return arena->mapping.base + (last + 1) * UNIT_BYTES - found_bytes;
			bits &= ~(1ull << bit);
		}
	}
	KVR_ASSERT(false); /* B4: the leaf has what its node promised */
	return NULL;
}

int kvr_arena_open(uint64_t capacity_bytes, struct kvr_arena **ret_arena)
{
	const uint64_t page = KVR_MAPPING_ALIGNMENT;
	struct kvr_arena *arena;
	size_t leaves;
	size_t words;
	int rc;

	if (capacity_bytes < CAPACITY_BYTES_MIN || capacity_bytes > CAPACITY_BYTES_MAX)
		return -EINVAL;
	arena = calloc(1, sizeof(*arena));
	if (!arena)
		return -ENOMEM;
	rc = kvr_mapping_open((capacity_bytes + page - 1) / page * page, &arena->mapping);
	if (rc < 0)
		goto fail;
	leaves = arena->mapping.bytes / LEAF_BYTES;
	words = leaves * LEAF_WORDS;
	arena->leaf_first = 1;
	while (arena->leaf_first < leaves)
		arena->leaf_first *= 2;
	arena->live_map = calloc(words, sizeof(uint64_t));
	arena->free_map = calloc(words, sizeof(uint64_t));
	arena->tree = calloc(2 * arena->leaf_first, sizeof(uint64_t));
	if (!arena->live_map || !arena->free_map || !arena->tree) {
		rc = -ENOMEM;
		goto fail;
	}
	arena->stat = (struct kvr_arena_stat){
		.capacity_bytes = arena->mapping.bytes,
		.metadata_bytes =
			sizeof(*arena) + (words + arena->leaf_first) * 2 * sizeof(uint64_t),
		.locked_bytes = arena->mapping.locked_bytes,
		.pages = arena->mapping.pages,
	};
	ASAN_POISON_MEMORY_REGION(arena->mapping.base, arena->mapping.bytes);
	tree_update(arena, free_insert(arena, arena->mapping.base, arena->mapping.bytes)); /* B5 */
	*ret_arena = arena;
	return 0;
fail:
	kvr_arena_close(arena);
	return rc;
}

void *kvr_arena_alloc(struct kvr_arena *arena, size_t bytes)
{
	const bool large = bytes >= LARGE_BYTES;
	uint8_t *block = NULL;
	size_t taken_bytes;
	size_t left_bytes;
	size_t last;

	KVR_ASSERT(bytes >= 1);
	if (bytes <= arena->mapping.bytes)
		block = fit(arena, whole_units(bytes), large);
	if (!block) {
		arena->stat.full_bytes = arena->stat.requested_bytes;
		return NULL;
	}
	taken_bytes = whole_units(bytes);
	left_bytes = free_remove(arena, block);
	last = unit_of(arena, block) + left_bytes / UNIT_BYTES - 1;
	KVR_ASSERT(left_bytes >= taken_bytes);
	left_bytes -= taken_bytes;
	if (large && left_bytes > 0) {
		tree_update(arena, free_insert(arena, block, left_bytes));
		block += left_bytes;
	} else if (left_bytes > 0) {
		free_insert(arena, block + taken_bytes, left_bytes);
	}
	tree_update(arena, last);
	bit_set(arena->live_map, unit_of(arena, block)); /* B1 */
	ASAN_UNPOISON_MEMORY_REGION(block, bytes);
	arena->stat.requested_bytes += bytes;
	arena->stat.used_bytes += taken_bytes;
	arena->stat.allocation_count++;
	KVR_ASSERT(arena->stat.used_bytes <= arena->mapping.bytes); /* A1 */
	return block;
}

void kvr_arena_free(struct kvr_arena *arena, void *memory, size_t bytes)
{
	const size_t taken_bytes = whole_units(bytes);
	uint8_t *first = memory;
	size_t first_unit;
	size_t end_unit;

	if (!memory)
		return;
	KVR_ASSERT(bytes >= 1);
	KVR_ASSERT(arena->stat.allocation_count >= 1);
	KVR_ASSERT(arena->stat.requested_bytes >= bytes);
	KVR_ASSERT(arena->stat.used_bytes >= taken_bytes);
	first_unit = unit_of(arena, first);
	end_unit = first_unit + taken_bytes / UNIT_BYTES;
	KVR_ASSERT(end_unit <= arena->mapping.bytes / UNIT_BYTES);
	bit_clear(arena->live_map, first_unit); /* B1; else freed twice, or never handed out */
	ASAN_POISON_MEMORY_REGION(first, taken_bytes);
	arena->stat.requested_bytes -= bytes;
	arena->stat.used_bytes -= taken_bytes;
	arena->stat.allocation_count--;
	/* B3. Blocks tile the arena: what begins behind this one and is not live is free. */
	if (end_unit < arena->mapping.bytes / UNIT_BYTES && !bit_get(arena->live_map, end_unit))
		end_unit += free_remove(arena, first + taken_bytes) / UNIT_BYTES;
	if (first_unit > 0 && bit_get(arena->free_map, first_unit - 1)) {
		first -= *bytes_last(arena, first_unit - 1);
		free_remove(arena, first);
		tree_update(arena, first_unit - 1);
	}
	free_insert(arena, first, (size_t)(arena->mapping.base + end_unit * UNIT_BYTES - first));
	tree_update(arena, end_unit - 1);
}

void kvr_arena_stat(const struct kvr_arena *arena, struct kvr_arena_stat *ret_stat)
{
	*ret_stat = arena->stat;
}

void *kvr_arena_base(const struct kvr_arena *arena, size_t *ret_bytes)
{
	*ret_bytes = arena->mapping.bytes;
	return arena->mapping.base;
}

struct kvr_arena *kvr_arena_close(struct kvr_arena *arena)
{
	if (!arena)
		return NULL;
	if (arena->mapping.base)
		ASAN_UNPOISON_MEMORY_REGION(arena->mapping.base, arena->mapping.bytes);
	kvr_mapping_close(&arena->mapping);
	free(arena->live_map);
	free(arena->free_map);
	free(arena->tree);
	free(arena);
	return NULL;
}
