/* SPDX-License-Identifier: Apache-2.0 */
/* hit_trace_util.c: see hit_trace_util.h.
 *
 *   prefill ─► tail ─► CLUSTER, PACK ─► 4 segments ─► per request: RECALL ─► rows for tinylm's attention
 *                                                            └──► what was taken ─► trace
 *
 * Stands apart from bench_util.h: the client's header and the device's both have recall items. */
#include <math.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/hit_trace_util.h"
#include "examples/tinylm/engine.h"
#include "kernels/device.h"

#define SEGMENT  1024u
#define SEGMENTS (HIT_PROMPT / SEGMENT)
#define PROMPT   HIT_PROMPT
#define STEPS    HIT_STEPS

/* What tinylm's recall cache asks of a store: nothing is sealed or forgotten while the steps run. */
struct recorder {
	struct tinylm_source source;
	struct kvr_geometry geometry;
	struct kvr_device *device;
	struct kvr_segment_view views[SEGMENTS];
	const struct kvr_segment_view *segments[SEGMENTS];
	uint32_t first[HIT_LANES][SEGMENTS]; /* number of a lane's first cluster of a segment */
	uint32_t budget;
	uint16_t *keys, *values;                /* [lane][budget][D] */
	float *weights;                         /* [K][budget]: zeros */
	struct kvr_chosen chosen[HIT_CLUSTERS]; /* of one lane */
	float *queries;                         /* [L][H][D] of the recall that was started */
	struct hit_trace *trace;
};

__attribute__((noreturn, format(printf, 1, 2))) static void fail(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "hit: ");
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

static void *need(size_t count, size_t bytes)
{
	void *memory = calloc(count + 1, bytes);

	if (!memory)
		fail("no memory for %zu bytes", count * bytes);
	return memory;
}

static uint8_t *need_aligned(size_t bytes)
{
	void *memory = aligned_alloc(64, (bytes + 127) & ~(size_t)63);

	if (!memory)
		fail("no memory for %zu bytes", bytes);
	return memory;
}

static void must(int rc, const char *what)
{
	if (rc < 0)
		fail("%s: %s", what, strerror(-rc));
}

/* ---- recording ------------------------------------------------------------------------------- */

static void run_job(struct kvr_device *device, enum kvr_job_kind kind, void *items, uint32_t count)
{
	struct kvr_job job = {.kind = kind, .items = items, .item_count = count};
	struct kvr_job *done;
	struct pollfd fd = {.fd = kvr_device_fd(device), .events = POLLIN};

	must(kvr_device_submit(device, &job), "kvr_device_submit");
	while (kvr_device_reap(device, &done, 1) == 0)
		poll(&fd, 1, -1);
	must(job.status, "job");
}

static void record(struct hit_trace *trace, uint32_t cluster)
{
	if (trace->taken_count == trace->taken_max)
		fail("more clusters taken than were expected");
	trace->taken[trace->taken_count++] = cluster;
	trace->taken_bytes += trace->bytes[cluster];
}

static void record_end(struct hit_trace *trace)
{
	if (trace->request_count == trace->request_max)
		fail("more requests than were expected");
	trace->ends[trace->request_count++] = trace->taken_count;
}

static struct kvr_recall_item make_item(
	struct recorder *recorder, uint32_t lane, const float *queries)
{
	const struct kvr_geometry *geometry = &recorder->geometry;
	const uint32_t group = kvr_geometry_group(geometry);
	const size_t query = (size_t)(lane % geometry->kv_heads) * group * geometry->key_dim;
	const size_t row = (size_t)lane * recorder->budget * geometry->key_dim;

	return (struct kvr_recall_item){.segments = recorder->segments,
		.segment_count = SEGMENTS,
		.geometry = geometry,
		.lane = lane,
		.rank = KVR_RANK_SHARE,
		.query_count = group,
		.query = (const uint8_t *)(queries + query),
		.query_dtype = KVR_DTYPE_F32,
		.scale = 1 / sqrtf((float)geometry->key_dim),
		.budget_tokens = recorder->budget,
		.row_capacity = recorder->budget,
		.keys = (uint8_t *)(recorder->keys + row),
		.values = (uint8_t *)(recorder->values + row),
		.chosen = recorder->chosen,
		.chosen_max = HIT_CLUSTERS};
}

/* Layers first .. first + count - 1: one request. */
static int recall(struct tinylm_source *source, uint32_t first, uint32_t count,
	const float *queries, struct tinylm_recalled *ret_recalled)
{
	struct recorder *recorder = (struct recorder *)(void *)source;
	const struct kvr_geometry *geometry = &recorder->geometry;
	const uint32_t heads = geometry->kv_heads;

	for (uint32_t lane = first * heads; lane < (first + count) * heads; lane++) {
		const uint32_t at = lane / heads - first;
		struct tinylm_recalled *layer = &ret_recalled[at];
		struct kvr_recall_item item = make_item(recorder, lane,
			queries + (size_t)at * geometry->query_heads * geometry->key_dim);

		run_job(recorder->device, KVR_JOB_RECALL, &item, 1);
		for (uint32_t i = 0; i < item.chosen_count; i++)
			record(recorder->trace, recorder->first[lane][recorder->chosen[i].segment] +
							recorder->chosen[i].cluster);
		if (lane % heads == 0) {
			layer->keys = (const uint16_t *)(const void *)item.keys;
			layer->values = (const uint16_t *)(const void *)item.values;
		}
		layer->weights = recorder->weights;
		layer->capacity = recorder->budget;
		layer->row_counts[lane % heads] = item.row_count;
		layer->missing_rows = 0;
		layer->covered_tokens = PROMPT;
	}
	record_end(recorder->trace);
	return 0;
}

static int recall_start(struct tinylm_source *source, const float *queries)
{
	struct recorder *recorder = (struct recorder *)(void *)source;
	const struct kvr_geometry *geometry = &recorder->geometry;

	memcpy(recorder->queries, queries,
		sizeof(float) * geometry->layer_count * geometry->query_heads * geometry->key_dim);
	return 0;
}

static int recall_finish(struct tinylm_source *source, struct tinylm_recalled *ret_recalled)
{
	struct recorder *recorder = (struct recorder *)(void *)source;

	return recall(source, 0, recorder->geometry.layer_count, recorder->queries, ret_recalled);
}

/* Tokens that are decoded stay with the engine. */
static int append(struct tinylm_source *source, const uint32_t *tokens, uint32_t first,
	uint32_t count, const uint16_t *keys, const uint16_t *values)
{
	(void)source;
	(void)tokens;
	(void)first;
	(void)count;
	(void)keys;
	(void)values;
	return 0;
}

static uint32_t sealed_tokens(const struct tinylm_source *source)
{
	(void)source;
	return PROMPT;
}

static const struct tinylm_source_ops source_ops = {
	append, recall, recall_start, recall_finish, sealed_tokens};

/* ---- sealing --------------------------------------------------------------------------------- */

/* Copies a segment's tokens from the cache of the prefill. */
static void fill_tail(const struct tinylm_cache *full, const struct kvr_tail_view *tail,
	uint32_t first, uint16_t *keys, uint16_t *values)
{
	const struct kvr_geometry *geometry = tail->geometry;
	const size_t dim = geometry->key_dim;

	for (uint32_t layer = 0; layer < geometry->layer_count; layer++) {
		tinylm_full_rows(full, layer, first, SEGMENT, keys, values);
		for (uint32_t i = 0; i < SEGMENT * geometry->kv_heads; i++) {
			const uint32_t token = i / geometry->kv_heads;
			const uint32_t lane = layer * geometry->kv_heads + i % geometry->kv_heads;

			memcpy(kvr_tail_key(tail, lane, token), keys + i * dim, dim * 2);
			memcpy(kvr_tail_value(tail, lane, token), values + i * dim, dim * 2);
		}
	}
}

/* Clusters and packs one segment; numbers its clusters. The sinks are none: the engine keeps them. */
static void seal(struct recorder *recorder, uint32_t s, const struct kvr_tail_view *tail)
{
	struct kvr_segment_view *view = &recorder->views[s];
	const struct kvr_geometry *geometry = &recorder->geometry;
	const uint32_t lanes = kvr_geometry_lanes(geometry);
	const size_t row = kvr_geometry_key_bytes(geometry) + kvr_geometry_value_bytes(geometry);
	struct kvr_cluster_item items[HIT_LANES];
	struct hit_trace *trace = recorder->trace;

	kvr_segment_shape(view, geometry, s * SEGMENT, SEGMENT);
	kvr_segment_bind_all(view, need_aligned(kvr_segment_bind_all(view, NULL)));
	recorder->segments[s] = view;
	for (uint32_t lane = 0; lane < lanes; lane++)
		items[lane] = (struct kvr_cluster_item){tail, view, lane};
	run_job(recorder->device, KVR_JOB_CLUSTER, items, lanes);
	for (uint32_t lane = 0; lane < lanes; lane++) {
		const uint16_t *first = kvr_segment_row_first(view, lane);
		uint8_t *rows = need_aligned(SEGMENT * row);

		recorder->first[lane][s] = trace->cluster_count;
		for (uint32_t c = 0; c <= view->cluster_count[lane]; c++) {
			kvr_segment_set_extent(view, lane, c, rows + first[c] * row);
			if (c == view->cluster_count[lane])
				continue;
			trace->bytes[trace->cluster_count] =
				(uint32_t)((first[c + 1] - first[c]) * row);
			trace->total_bytes += trace->bytes[trace->cluster_count++];
		}
	}
	run_job(recorder->device, KVR_JOB_PACK, items, lanes);
}

/* Prefills the prompt and seals it. Returns the sinks' keys, then values, [L][sinks][K][D] each. */
static uint16_t *seal_prompt(struct recorder *recorder, const struct tinylm_engine *engine)
{
	const struct kvr_geometry *geometry = &recorder->geometry;
	const size_t width = (size_t)geometry->kv_heads * geometry->key_dim;
	const size_t sinks = width * TINYLM_SINKS * geometry->layer_count;
	uint16_t *rows = need(2 * SEGMENT * width, sizeof(*rows));
	uint16_t *sink_rows = need(2 * sinks, sizeof(*rows));
	uint8_t *blocks[SEGMENT / KVR_BLOCK_TOKENS];
	const struct kvr_tail_view tail = {geometry, blocks, SEGMENT / KVR_BLOCK_TOKENS};
	struct tinylm_cache *full;

	for (uint32_t i = 0; i < tail.block_count; i++)
		blocks[i] = need_aligned(kvr_tail_block_bytes(geometry));
	must(tinylm_full_open(engine->model, engine->math, PROMPT, TINYLM_BATCH, &full), "cache");
	must(tinylm_forward_prefill(
		     engine->forward, full, engine->tokens, 0, PROMPT, engine->logits),
		"prefill");
	for (uint32_t layer = 0; layer < geometry->layer_count; layer++)
		tinylm_full_rows(full, layer, 0, TINYLM_SINKS,
			sink_rows + layer * TINYLM_SINKS * width,
			sink_rows + sinks + layer * TINYLM_SINKS * width);
	for (uint32_t s = 0; s < SEGMENTS; s++) {
		fill_tail(full, &tail, s * SEGMENT, rows, rows + SEGMENT * width);
		seal(recorder, s, &tail);
	}
	tinylm_cache_close(full);
	for (uint32_t i = 0; i < tail.block_count; i++)
		free(blocks[i]);
	free(rows);
	return sink_rows;
}

/* ---- the trace ------------------------------------------------------------------------------- */

static void recorder_open(struct recorder *recorder, const struct tinylm_model *model,
	const struct hit_setting *setting, struct hit_trace *trace)
{
	const struct kvr_device_cpu_config device = {.threads = 1, .inline_item_us = UINT32_MAX};
	const uint32_t lanes = model->layer_count * model->kv_heads;
	const size_t rows = (size_t)lanes * setting->budget;

	if (lanes > HIT_LANES || model->kv_heads > TINYLM_HEADS_MAX)
		fail("a model with more lanes than expected");
	recorder->source.ops = &source_ops;
	recorder->geometry = (struct kvr_geometry){.layer_count = model->layer_count,
		.query_heads = model->query_heads,
		.kv_heads = model->kv_heads,
		.key_dim = model->head_dim,
		.value_dim = model->head_dim,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = SEGMENT,
		.cluster_tokens = KVR_CLUSTER_TOKENS,
		.sink_tokens = TINYLM_SINKS};
	recorder->budget = setting->budget;
	recorder->keys = need(rows * model->head_dim, sizeof(uint16_t));
	recorder->values = need(rows * model->head_dim, sizeof(uint16_t));
	recorder->weights = need((size_t)model->kv_heads * setting->budget, sizeof(float));
	recorder->queries = need(
		(size_t)model->layer_count * model->query_heads * model->head_dim, sizeof(float));
	recorder->trace = trace;
	must(kvr_device_open_cpu(&device, &recorder->device), "kvr_device_open_cpu");
	trace->request_max = (STEPS + 1) * model->layer_count;
	trace->taken_max = (STEPS + 1) * lanes * HIT_CLUSTERS;
	trace->taken = need(trace->taken_max, sizeof(*trace->taken));
	trace->ends = need(trace->request_max, sizeof(*trace->ends));
}

static void recorder_close(struct recorder *recorder)
{
	for (uint32_t s = 0; s < SEGMENTS; s++) {
		for (uint32_t lane = 0; lane < kvr_geometry_lanes(&recorder->geometry); lane++)
			free(kvr_segment_get_extent(&recorder->views[s], lane, 0));
		free(recorder->views[s].memory); /* the first array of the summary */
	}
	kvr_device_close(recorder->device);
	free(recorder->keys);
	free(recorder->values);
	free(recorder->weights);
	free(recorder->queries);
	free(recorder);
}

struct hit_trace *hit_trace_make(const struct hit_setting *setting)
{
	const struct tinylm_options options = {.model = "examples/tinylm/model",
		.text = setting->text,
		.token_count = PROMPT + STEPS,
		.segment_tokens = SEGMENT};
	struct hit_trace *trace = need(1, sizeof(*trace));
	struct recorder *recorder = need(1, sizeof(*recorder));
	struct tinylm_engine engine;
	struct tinylm_cache *cache;
	uint16_t *sinks;

	must(tinylm_engine_open(&options, &engine), "tinylm");
	recorder_open(recorder, engine.model, setting, trace);
	sinks = seal_prompt(recorder, &engine);
	must(tinylm_recall_open(&(struct tinylm_recall_config){.model = engine.model,
					.math = engine.math,
					.source = &recorder->source,
					.own_capacity = STEPS + TINYLM_BATCH,
					.row_capacity = setting->budget,
					.batch = TINYLM_BATCH,
					.speculative = !setting->layers},
		     PROMPT, sinks,
		     sinks + (size_t)engine.model->layer_count * TINYLM_SINKS *
				     engine.model->kv_heads * engine.model->head_dim,
		     &cache),
		"recall cache");
	for (uint32_t i = 0; i < STEPS; i++)
		must(tinylm_forward_run(engine.forward, cache,
			     &(struct tinylm_pass){
				     &engine.tokens[PROMPT + i], PROMPT + i, 1, false},
			     engine.logits, 1),
			"step");
	tinylm_cache_close(cache);
	tinylm_engine_close(&engine);
	recorder_close(recorder);
	free(sinks);
	return trace;
}

struct hit_trace *hit_trace_free(struct hit_trace *trace)
{
	free(trace->taken);
	free(trace->ends);
	free(trace);
	return NULL;
}
