/* SPDX-License-Identifier: Apache-2.0 */
/* sealed.c: see sealed.h.
 *
 *   rows ─► tail of one segment ─► CLUSTER ─► places for the units ─► PACK, MERGE ─► next segment */
#include "bench/quality/sealed.h"

#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"

/* ---- the tail that is sealed ------------------------------------------------------------------- */

struct seal {
	struct quality_sealed *sealed;
	struct quality_worker *worker;
	struct kvr_tail_view tail;
	uint8_t **blocks;
};

/* Fills the tail with the keys of a segment's lane, less their mean; and with no values. */
static void fill_centred(struct seal *seal, const struct kvr_segment_view *view, uint32_t lane)
{
	const struct quality_rows *rows = seal->sealed->rows;
	const uint32_t dim = rows->geometry.key_dim;
	const uint32_t first = view->token_first;
	double mean[KVR_DIM_MAX] = {0};
	float key[KVR_DIM_MAX];

	for (uint32_t t = view->sink_count; t < view->token_count; t++) {
		quality_rows_get_key(rows, lane, first + t, key);
		for (uint32_t d = 0; d < dim; d++)
			mean[d] += (double)key[d] / (view->token_count - view->sink_count);
	}
	for (uint32_t t = 0; t < view->token_count; t++) {
		quality_rows_get_key(rows, lane, first + t, key);
		for (uint32_t d = 0; d < dim; d++)
			key[d] -= (float)mean[d];
		memcpy(kvr_tail_key(&seal->tail, lane, t), key, dim * sizeof(float));
	}
}

static void fill(struct seal *seal, const struct kvr_segment_view *view, uint32_t lane)
{
	const struct quality_rows *rows = seal->sealed->rows;

	for (uint32_t t = 0; t < view->token_count; t++) {
		memcpy(kvr_tail_key(&seal->tail, lane, t),
			quality_rows_key(rows, lane, view->token_first + t),
			kvr_geometry_key_bytes(&rows->geometry));
		memcpy(kvr_tail_value(&seal->tail, lane, t),
			quality_rows_value(rows, lane, view->token_first + t),
			kvr_geometry_value_bytes(&rows->geometry));
	}
}

/* ---- a segment --------------------------------------------------------------------------------- */

/* Gives every unit of every lane its place. */
static uint8_t *place(struct kvr_segment_view *view)
{
	const struct kvr_geometry *geometry = view->geometry;
	const size_t row = kvr_geometry_key_bytes(geometry) + kvr_geometry_value_bytes(geometry);
	const size_t rows =
		(size_t)kvr_geometry_lanes(geometry) * (view->token_count + view->merged_max);
	uint8_t *payload = quality_need(rows, row);
	uint8_t *at = payload;

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(geometry); lane++)
		for (uint32_t unit = 0; unit < view->unit_count; unit++) {
			const bool used =
				unit <= view->cluster_count[lane] || unit > view->cluster_max;

			kvr_segment_set_extent(view, lane, unit, used ? at : NULL);
			if (used)
				at += kvr_segment_unit_rows(view, lane, unit) * row;
		}
	return payload;
}

static void seal_segment(struct seal *seal, uint32_t s, uint32_t first, bool centred)
{
	struct quality_sealed *sealed = seal->sealed;
	struct kvr_segment_view *view = &sealed->views[s];
	const uint32_t lanes = kvr_geometry_lanes(&sealed->geometry);
	const uint32_t left = sealed->rows->token_count - first;
	struct kvr_cluster_item *items = quality_need(lanes, sizeof(*items));

	kvr_segment_shape(view, &sealed->geometry, first,
		left < sealed->geometry.segment_tokens ? left : sealed->geometry.segment_tokens);
	kvr_segment_bind_all(view, quality_need(kvr_segment_bind_all(view, NULL), 1));
	sealed->segments[s] = view;
	for (uint32_t lane = 0; lane < lanes; lane++) {
		if (centred)
			fill_centred(seal, view, lane);
		else
			fill(seal, view, lane);
		items[lane] = (struct kvr_cluster_item){&seal->tail, view, lane};
	}
	quality_run_job(seal->worker, KVR_JOB_CLUSTER, items, lanes);
	sealed->payloads[s] = place(view);
	quality_run_job(seal->worker, KVR_JOB_PACK, items, lanes);
	if (view->merged_max > 0)
		quality_run_job(seal->worker, KVR_JOB_MERGE, items, lanes);
	free(items);
}

void quality_sealed_open(struct quality_sealed *sealed, const struct quality_rows *rows,
	const struct quality_sealing *sealing, struct quality_worker *worker)
{
	const uint32_t blocks = sealing->segment_tokens / KVR_BLOCK_TOKENS;
	struct seal seal = {.sealed = sealed, .worker = worker};

	*sealed = (struct quality_sealed){.rows = rows, .geometry = rows->geometry};
	sealed->geometry.segment_tokens = sealing->segment_tokens;
	sealed->geometry.cluster_tokens = sealing->cluster_tokens;
	sealed->geometry.merged = sealing->merged;
	if (sealing->centred) /* what is left of a key less the mean has more bits than the key */
		sealed->geometry.dtype = KVR_DTYPE_F32;
	sealed->segment_count =
		(rows->token_count + sealing->segment_tokens - 1) / sealing->segment_tokens;
	sealed->views = quality_need(sealed->segment_count, sizeof(*sealed->views));
	sealed->segments = quality_need(sealed->segment_count, sizeof(*sealed->segments));
	sealed->payloads = quality_need(sealed->segment_count, sizeof(*sealed->payloads));
	seal.blocks = quality_need(blocks, sizeof(*seal.blocks));
	for (uint32_t i = 0; i < blocks; i++)
		seal.blocks[i] = quality_need(kvr_tail_block_bytes(&sealed->geometry), 1);
	seal.tail = (struct kvr_tail_view){&sealed->geometry, seal.blocks, blocks};
	for (uint32_t s = 0; s < sealed->segment_count; s++)
		seal_segment(&seal, s, s * sealing->segment_tokens, sealing->centred);
	for (uint32_t i = 0; i < blocks; i++)
		free(seal.blocks[i]);
	free(seal.blocks);
}

void quality_sealed_close(struct quality_sealed *sealed)
{
	for (uint32_t s = 0; s < sealed->segment_count; s++) {
		free(sealed->views[s].memory);
		free(sealed->payloads[s]);
	}
	free(sealed->views);
	free(sealed->segments);
	free(sealed->payloads);
	*sealed = (struct quality_sealed){0};
}

uint32_t quality_sealed_clusters(const struct quality_sealed *sealed, uint32_t lane)
{
	uint32_t clusters = 0;

	for (uint32_t s = 0; s < sealed->segment_count; s++)
		clusters += sealed->views[s].cluster_count[lane];
	return clusters;
}

double quality_sealed_overhead(const struct quality_sealed *sealed)
{
	double bytes = 0.0;

	for (uint32_t s = 0; s < sealed->segment_count; s++) {
		struct kvr_segment_view view = sealed->views[s];

		bytes += (double)kvr_segment_bind(&view, NULL);
	}
	return bytes / ((double)sealed->rows->token_count *
			       (double)kvr_geometry_token_bytes(&sealed->rows->geometry));
}
