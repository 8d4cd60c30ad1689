/* SPDX-License-Identifier: Apache-2.0 */
/* store.c: see store.h. */
#include "bench/quality/store.h"

#include <math.h>
#include <stdlib.h>

#include "bench/quality/memory.h"

static void make_bounds(
	struct quality_bounds *bounds, const struct quality_rows *rows, uint32_t lane)
{
	const uint32_t dim = rows->geometry.key_dim, sinks = rows->geometry.sink_tokens;
	float key[KVR_DIM_MAX];

	bounds->page_count =
		(rows->token_count - sinks + QUALITY_PAGE_TOKENS - 1) / QUALITY_PAGE_TOKENS;
	bounds->least = quality_need((size_t)bounds->page_count * dim, sizeof(float));
	bounds->most = quality_need((size_t)bounds->page_count * dim, sizeof(float));
	for (uint32_t i = 0; i < bounds->page_count * dim; i++) {
		bounds->least[i] = INFINITY;
		bounds->most[i] = -INFINITY;
	}
	for (uint32_t t = sinks; t < rows->token_count; t++) {
		const size_t page = (t - sinks) / QUALITY_PAGE_TOKENS;

		quality_rows_get_key(rows, lane, t, key);
		for (uint32_t d = 0; d < dim; d++) {
			bounds->least[page * dim + d] =
				fminf(bounds->least[page * dim + d], key[d]);
			bounds->most[page * dim + d] = fmaxf(bounds->most[page * dim + d], key[d]);
		}
	}
}

void quality_store_open(
	struct quality_store *store, const struct quality_rows *rows, struct quality_worker *worker)
{
	const uint32_t lanes = kvr_geometry_lanes(&rows->geometry);
	struct quality_sealed retro;

	*store = (struct quality_store){.rows = rows,
		.summary = quality_need(lanes, sizeof(*store->summary)),
		.pages = quality_need(lanes, sizeof(*store->pages)),
		.retro = quality_need(lanes, sizeof(*store->retro)),
		.bounds = quality_need(lanes, sizeof(*store->bounds))};
	quality_sealed_open(&store->ours, rows,
		&(struct quality_sealing){
			KVR_SEGMENT_TOKENS, KVR_CLUSTER_TOKENS, (1u << KVR_MERGED_SETS) - 1, false},
		worker);
	quality_sealed_open(&store->clusterkv, rows,
		&(struct quality_sealing){QUALITY_WHOLE, QUALITY_CLUSTERKV_TOKENS, 0, false},
		worker);
	quality_sealed_open(&retro, rows,
		&(struct quality_sealing){QUALITY_WHOLE, QUALITY_RETRO_TOKENS, 0, true}, worker);
	for (uint32_t lane = 0; lane < lanes; lane++) {
		quality_partition_sealed(&store->summary[lane], &store->ours, lane, false);
		quality_partition_pages(&store->pages[lane], rows, lane, QUALITY_PAGE_TOKENS);
		quality_partition_sealed(&store->retro[lane], &retro, lane, true);
		make_bounds(&store->bounds[lane], rows, lane);
	}
	quality_sealed_close(&retro);
}

void quality_store_open_variant(struct quality_store *store, const struct quality_rows *rows,
	const struct quality_sealing *sealing, bool exact, struct quality_worker *worker)
{
	const uint32_t lanes = kvr_geometry_lanes(&rows->geometry);

	*store = (struct quality_store){
		.rows = rows, .summary = quality_need(lanes, sizeof(*store->summary))};
	quality_sealed_open(&store->ours, rows, sealing, worker);
	for (uint32_t lane = 0; lane < lanes; lane++)
		quality_partition_sealed(&store->summary[lane], &store->ours, lane, exact);
}

void quality_store_close(struct quality_store *store)
{
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(&store->rows->geometry); lane++) {
		quality_partition_close(&store->summary[lane]);
		if (!store->pages)
			continue;
		quality_partition_close(&store->pages[lane]);
		quality_partition_close(&store->retro[lane]);
		free(store->bounds[lane].least);
		free(store->bounds[lane].most);
	}
	quality_sealed_close(&store->ours);
	quality_sealed_close(&store->clusterkv);
	free(store->summary);
	free(store->pages);
	free(store->retro);
	free(store->bounds);
	*store = (struct quality_store){0};
}
