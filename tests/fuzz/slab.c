/* SPDX-License-Identifier: Apache-2.0 */
/* slab.c: any bytes as a slab's header, a segment's head, and its summary.
 *
 * Goal: what is on a disk, damaged or made by somebody, is refused or gives numbers that layouts
 * may be made of; a summary that is valid may be indexed by, wherever its numbers lead. Method:
 * libFuzzer. Checksums are set right in most inputs, since no fuzzer finds them by chance. What is
 * accepted is packed again, and must come out the same; of an accepted summary every place of every
 * unit and row is computed, in memory that just holds it. */
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "kernels/crc.h"
#include "tiers/slab.h"

#define PAGE          KVR_SLAB_HEADER_BYTES
#define CRC_AT        12u
#define SUMMARY_BYTES ((size_t)1 << 20) /* larger ones cost time and show no more */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void seal(uint8_t page[PAGE])
{
	uint32_t crc;

	memset(page + CRC_AT, 0, sizeof(crc));
	crc = kvr_crc32c(0, page, PAGE);
	memcpy(page + CRC_AT, &crc, sizeof(crc));
}

static void header_again(const uint8_t page[PAGE])
{
	struct kvr_slab_header header;
	struct kvr_slab_header back;
	uint8_t again[PAGE];

	if (kvr_slab_unpack_header(page, &header) < 0)
		return;
	kvr_slab_pack_header(&header, again);
	KVR_ASSERT(kvr_slab_unpack_header(again, &back) == 0);
	KVR_ASSERT(back.segment == header.segment);
	KVR_ASSERT(back.part < back.part_count);
}

/* All that a recall computes from a summary. */
static void use_summary(const struct kvr_segment_view *view, const struct kvr_slab_layout *layout)
{
	uint64_t end = layout->payload_at;
	uint32_t unit_bytes;

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry); lane++) {
		const uint16_t *row_token = kvr_segment_row_token(view, lane);
		uint64_t tokens = 0;

		for (uint32_t unit = 0; unit <= view->cluster_max; unit++) {
			KVR_ASSERT(kvr_slab_unit_at(layout, view, lane, unit, &unit_bytes) == end);
			end += unit_bytes;
		}
		for (uint32_t row = 0; row < view->token_count; row++)
			tokens += row_token[row];
		KVR_ASSERT(tokens == (uint64_t)view->token_count * (view->token_count - 1) / 2);
	}
	KVR_ASSERT(end == layout->payload_at + layout->payload_bytes);
	for (uint32_t unit = view->cluster_max + 1; unit < view->unit_count; unit++) {
		for (uint32_t lane = 0; lane < kvr_geometry_lanes(view->geometry); lane++) {
			const uint64_t at = kvr_slab_unit_at(layout, view, lane, unit, &unit_bytes);

			KVR_ASSERT(unit_bytes == 0 || at == end);
			end += unit_bytes;
		}
	}
	KVR_ASSERT(end == layout->merged_at + layout->merged_bytes);
}

static void summary_of(const struct kvr_slab_head *head, const uint8_t *data, size_t bytes)
{
	struct kvr_slab_layout layout;
	struct kvr_segment_view view;
	uint8_t *memory;
	size_t need;

	kvr_slab_layout(&head->model.geometry, head->token_first, head->token_count, &layout);
	KVR_ASSERT(layout.stream_bytes > layout.payload_bytes);
	kvr_segment_shape(&view, &head->model.geometry, head->token_first, head->token_count);
	need = kvr_segment_bind(&view, NULL);
	if (need > SUMMARY_BYTES)
		return;
	memory = aligned_alloc(64, need);
	KVR_ASSERT(memory != NULL);
	kvr_segment_bind(&view, memory);
	memset(memory, 0, need);
	/* Behind the means, which may be anything: what is indexed by. */
	if (bytes > need - (size_t)((uint8_t *)view.row_first - memory))
		bytes = need - (size_t)((uint8_t *)view.row_first - memory);
	memcpy(view.row_first, data, bytes);
	if (kvr_slab_summary_valid(&view))
		use_summary(&view, &layout);
	free(memory);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
	uint8_t page[PAGE] = {0};
	struct kvr_slab_head head;
	struct kvr_slab_head back;
	uint8_t again[PAGE];
	size_t used;

	if (bytes < 1)
		return 0;
	used = bytes - 1 < PAGE ? bytes - 1 : PAGE;
	memcpy(page, data + 1, used);
	if (data[0] & 1)
		seal(page);
	header_again(page);
	if (kvr_slab_unpack_head(page, &head) < 0)
		return 0;
	kvr_slab_pack_head(&head, again);
	KVR_ASSERT(kvr_slab_unpack_head(again, &back) == 0);
	KVR_ASSERT(memcmp(head.model.tenant, back.model.tenant, KVR_NAME_MAX) == 0);
	KVR_ASSERT(kvr_geometry_valid(&back.model.geometry));
	summary_of(&head, data + 1 + used, bytes - 1 - used);
	return 0;
}
