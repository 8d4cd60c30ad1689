/* SPDX-License-Identifier: Apache-2.0 */
/* slab.h: what is in slabs.kvr: slab headers, segment heads, and where a lane's units lie. Pure
 * functions over bytes.
 *
 * A segment is a stream of bytes, cut into the bodies of slabs, in order:
 *
 *   slab     ┌──────┬───────────────┐┌──────┬───────────────┐┌──────┬────────┐
 *            │header│ body          ││header│ body          ││header│ body   │   header 4 KiB,
 *            └──────┴───────────────┘└──────┴───────────────┘└──────┴────────┘   body 1 MiB - 4 KiB
 *   stream           head│summary│lane 0│lane 1│ ... │lane n│set 0│ ... │checksums
 *
 *   head       4 KiB, what the segment is (table in slab.c)
 *   summary    token ids [token_count] u32, then the summary as the kernels see it
 *              (kernels/segment.h); one CRC-32C in the head; padded to 4 KiB
 *   lanes      per lane its clusters in store order, each K [n][Dk], then V [n][Dv]; a lane starts
 *              right behind the one before
 *   sets       per merged set, if the model keeps any, that of each lane which is not dense, likewise: who
 *              asks for a set asks for it of all lanes; what is last is padded to 4 KiB
 *   checksums  CRC-32C of every unit, u32 [lane][unit_count], 0 for one without rows, then one of
 *              these; padded to 4 KiB
 *
 * The catalog's `cluster` and `merged` rows say the same as the checksums (and are what a load reads); these are
 * here so that the catalog can be made again from slabs alone. All integers are little-endian.
 *
 * Invariants:
 *   B1  A part of the stream that starts at a multiple of 4 KiB starts so in the file and, read
 *       into aligned memory, in memory too; so a span of the stream that crosses slabs is
 *       contiguous in its buffer.
 *   B2  What is read from disk is checked before it is used for anything: magic, version, CRC-32C,
 *       and then every number against base/limits.h and against the lengths that follow from the
 *       others.
 *
 * Threads: none of its own. */
#ifndef KVR_TIERS_SLAB_H
#define KVR_TIERS_SLAB_H

#include <stdbool.h>
#include <stdint.h>

#include "base/geometry.h"
#include "kernels/segment.h"
#include "tiers/nvme.h"

#define KVR_SLAB_HEADER_BYTES 4096u
#define KVR_SLAB_BODY_BYTES   (KVR_SLAB_BYTES - KVR_SLAB_HEADER_BYTES)
#define KVR_SLAB_VERSION      2u
#define KVR_SLAB_UUID_BYTES   16u
/* The largest stream: 16 GiB of slabs a segment. A model whose segments may need more is not
 * stored. */
#define KVR_SLAB_PARTS_MAX 16384u

/* One slab's header. */
struct kvr_slab_header {
	uint8_t store[KVR_SLAB_UUID_BYTES]; /* the store it belongs to */
	uint64_t segment;                   /* id, 1 or more */
	uint32_t part, part_count;          /* of the segment's slabs */
	uint32_t body_bytes;                /* used, of this slab's body */
};

/* Whose keys and values these are: as much of a model as survives the daemon. */
struct kvr_slab_model {
	uint8_t root
		[KVR_HASH_BYTES]; /* chain hash of no tokens: tenant's salt and model identity */
	char tenant[KVR_NAME_MAX];
	char name[KVR_NAME_MAX];
	uint8_t digest[KVR_HASH_BYTES];
	uint32_t rank;
	struct kvr_geometry geometry;
};

/* A segment's head. */
struct kvr_slab_head {
	uint64_t segment;
	uint8_t hash[KVR_HASH_BYTES];
	uint8_t parent[KVR_HASH_BYTES]; /* the model's root where it is the first of a sequence */
	uint32_t token_first, token_count;
	uint32_t summary_crc;
	struct kvr_slab_model model;
};

/* Where the stream's parts begin, from geometry and token counts alone. */
struct kvr_slab_layout {
	uint64_t summary_at, summary_bytes; /* without padding */
	uint64_t payload_at, payload_bytes; /* of clusters */
	uint64_t merged_at, merged_bytes;   /* of merged sets; right behind them */
	uint64_t checksums_at, checksums_bytes;
	uint64_t stream_bytes; /* a multiple of 4 KiB */
	uint32_t part_count;
};

void kvr_slab_layout(const struct kvr_geometry *geometry, uint32_t token_first,
	uint32_t token_count, struct kvr_slab_layout *ret_layout);

/* Where a byte of the stream lies: which part, and the offset in its slab; and how many of the
 * stream's bytes follow in the same slab, this one included. */
static inline uint32_t kvr_slab_part(uint64_t at, uint32_t *ret_offset, uint32_t *ret_left)
{
	const uint32_t in_body = (uint32_t)(at % KVR_SLAB_BODY_BYTES);

	*ret_offset = KVR_SLAB_HEADER_BYTES + in_body;
	*ret_left = KVR_SLAB_BODY_BYTES - in_body;
	return (uint32_t)(at / KVR_SLAB_BODY_BYTES);
}

/* The place of a unit in the stream; 0 bytes where it has no rows. The view has row_first. */
uint64_t kvr_slab_unit_at(const struct kvr_slab_layout *layout, const struct kvr_segment_view *view,
	uint32_t lane, uint32_t unit, uint32_t *ret_bytes);

/* ---- bytes ----------------------------------------------------------------------------------- */

/* Writes a header or head into KVR_SLAB_HEADER_BYTES of memory, zeros behind it. */
void kvr_slab_pack_header(const struct kvr_slab_header *header, uint8_t *ret_bytes);
void kvr_slab_pack_head(const struct kvr_slab_head *head, uint8_t *ret_bytes);

/* Reads them (B2). Errors: -ENOENT (not a header: free or wiped), -EBADMSG (damaged),
 * -EPROTONOSUPPORT (another version). */
int kvr_slab_unpack_header(const uint8_t *bytes, struct kvr_slab_header *ret_header);
int kvr_slab_unpack_head(const uint8_t *bytes, struct kvr_slab_head *ret_head);

/* The version of a page that was refused with -EPROTONOSUPPORT. */
uint32_t kvr_slab_version(const uint8_t *bytes);

/* Whether a summary that was read is one that S1 to S4 and S9 hold for: kernels and layouts index by its
 * numbers, and take logarithms of them. */
bool kvr_slab_summary_valid(const struct kvr_segment_view *view);

#endif
