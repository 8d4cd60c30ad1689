/* SPDX-License-Identifier: Apache-2.0 */
/* remote.c: see remote.h.
 *
 *              append                  the daemon                    settle
 *   idle ─────────────────► sent ─────────────────────► answered ─────────────► idle
 *          (copies, submits)    (copies out of the region)       (takes the reply)
 *
 * Invariant M1: the append area is written only when no append is under way. */
#include "examples/tinylm/remote.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "client/kvrecall.h"

#define AREA_ALIGN     64u
#define BUSY_NS        1000000 /* between attempts while the daemon is busy */
#define BUSY_TRIES     20000u
#define CLUSTER_TOKENS 16u

struct remote {
	struct tinylm_source source;
	struct tinylm_store *store;
	struct kvr_sequence *sequence;
	uint32_t sealed_tokens;
	uint64_t recall_ticket; /* of recall_start */
	uint32_t merged_at
		[TINYLM_LAYERS_MAX]; /* sealed_tokens and 1 when the layer's merged set was staged; 0: never */
};

struct tinylm_store {
	struct tinylm_store_config config;
	struct kvr_client *client;
	struct kvr_model *model;
	uint16_t *keys, *values; /* the append and fetch area */
	uint32_t budget_tokens;
	enum tinylm_form form;
	/* The append under way: what it names must stay until it is settled. */
	struct remote *appending; /* NULL: none */
	struct kvr_append append;
	struct kvr_append_layer append_layers[TINYLM_LAYERS_MAX];
	uint64_t append_ticket;
	uint32_t *append_tokens; /* [batch] */
	/* The recall under way, or the last. */
	struct kvr_recall recall;
	struct kvr_recall_item items[TINYLM_LAYERS_MAX];
	float *queries; /* [L][H][D], a copy */
	char error[512];
};

static struct remote *remote_of(struct tinylm_source *source)
{
	return (struct remote *)(void *)source;
}

/* Notes why a call failed. Returns `error`. */
static int note(struct tinylm_store *store, const char *what, int error)
{
	const struct kvr_error *why = error < 0 ? kvr_error(store->client) : NULL;

	if (error >= 0)
		return error;
	if (why && why->subject && why->subject[0])
		snprintf(store->error, sizeof(store->error), "%s: %s; %s", what, why->subject,
			why->remedy);
	else
		snprintf(store->error, sizeof(store->error), "%s", what);
	return error;
}

static size_t area(size_t bytes)
{
	return (bytes + AREA_ALIGN - 1) / AREA_ALIGN * AREA_ALIGN;
}

/* Lays out the region from `base`; returns its size. With NULL it only measures. */
static size_t region_lay_out(struct tinylm_store *store, uint8_t *base)
{
	const struct tinylm_model *model = store->config.model;
	const size_t width = (size_t)model->kv_heads * model->head_dim * sizeof(uint16_t);
	const size_t batch_bytes = area(model->layer_count * store->config.batch * width);
	const size_t row_bytes = area(store->config.row_capacity * width);
	const size_t weight_bytes =
		area(store->config.row_capacity * (size_t)model->kv_heads * sizeof(float));
	const size_t table_bytes = area(model->kv_heads * sizeof(struct kvr_rows));
	const size_t partial_bytes = area(sizeof(float) * model->query_heads * model->head_dim);
	const size_t lse_bytes = area(sizeof(float) * model->query_heads);
	size_t at = 2 * batch_bytes;

	if (base) {
		store->keys = (uint16_t *)(void *)base;
		store->values = (uint16_t *)(void *)(base + batch_bytes);
	}
	for (uint32_t l = 0; l < model->layer_count; l++) {
		struct kvr_recall_item *item = &store->items[l];
		const size_t behind = at + 2 * row_bytes + weight_bytes;

		if (base)
			*item = (struct kvr_recall_item){.layer = l,
				.query = store->queries +
					 (size_t)l * model->query_heads * model->head_dim,
				.keys = base + at,
				.values = base + at + row_bytes,
				.weights = (float *)(void *)(base + at + 2 * row_bytes),
				.rows = (struct kvr_rows *)(void *)(base + behind),
				.outputs = (float *)(void *)(base + behind + table_bytes),
				.lse = (float *)(void *)(base + behind + table_bytes +
							 partial_bytes)};
		at = behind + table_bytes + partial_bytes + lse_bytes;
	}
	return at;
}

int tinylm_store_open(const struct tinylm_store_config *config, struct tinylm_store **ret_store)
{
	struct tinylm_store *store = calloc(1, sizeof(*store));
	const struct tinylm_model *model = config->model;
	struct kvr_model_config registered = {.name = "tinylm",
		.layers = model->layer_count,
		.query_heads = model->query_heads,
		.kv_heads = model->kv_heads,
		.key_dim = model->head_dim,
		.value_dim = model->head_dim,
		.type = KVR_BF16,
		.segment_tokens = config->segment_tokens,
		.cluster_tokens = CLUSTER_TOKENS,
		.sink_tokens = TINYLM_SINKS,
		.merged = KVR_MERGED_4};
	struct kvr_client_config attach = {.attach_path = config->socket, .name = "tinylm"};
	size_t region_bytes;
	int error = -ENOMEM;

	if (!store)
		return -ENOMEM;
	store->config = *config;
	store->append_tokens = calloc(config->batch, sizeof(*store->append_tokens));
	store->queries = calloc(
		(size_t)model->layer_count * model->query_heads * model->head_dim, sizeof(float));
	if (!store->append_tokens || !store->queries)
		goto fail;
	attach.region_bytes = region_lay_out(store, NULL);
	error = kvr_connect(&attach, &store->client);
	if (error)
		goto fail;
	memcpy(registered.digest, model->digest, sizeof(registered.digest));
	error = kvr_model_register(store->client, &registered, &store->model);
	if (error)
		goto fail;
	region_lay_out(store, kvr_region(store->client, &region_bytes));
	*ret_store = store;
	return 0;
fail:
	tinylm_store_close(store);
	return error;
}

struct tinylm_store *tinylm_store_close(struct tinylm_store *store)
{
	if (!store)
		return NULL;
	kvr_disconnect(store->client);
	free(store->append_tokens);
	free(store->queries);
	free(store);
	return NULL;
}

void tinylm_store_budget(struct tinylm_store *store, uint32_t budget_tokens)
{
	store->budget_tokens = budget_tokens < store->config.row_capacity
				       ? budget_tokens
				       : store->config.row_capacity;
}

void tinylm_store_form(struct tinylm_store *store, enum tinylm_form form)
{
	store->form = form;
}

const char *tinylm_store_error(const struct tinylm_store *store)
{
	return store->error;
}

/* Takes the reply of the append under way, if there is one. M1 */
static int settle(struct tinylm_store *store)
{
	struct remote *remote = store->appending;
	struct kvr_completion completion = {0};
	struct kvr_appended appended;
	int error;

	if (!remote)
		return 0;
	store->appending = NULL;
	error = kvr_wait(store->client, store->append_ticket, &completion);
	if (!error)
		error = completion.status;
	appended = completion.appended;
	for (uint32_t tries = 0; error == -EAGAIN && tries < BUSY_TRIES; tries++) {
		nanosleep(&(struct timespec){0, BUSY_NS}, NULL);
		error = kvr_append(store->client, &store->append, &appended);
	}
	if (error)
		return note(store, "append", error);
	remote->sealed_tokens = appended.sealed_tokens;
	return 0;
}

static int remote_append(struct tinylm_source *source, const uint32_t *tokens, uint32_t first,
	uint32_t count, const uint16_t *keys, const uint16_t *values)
{
	struct remote *remote = remote_of(source);
	struct tinylm_store *store = remote->store;
	const struct tinylm_model *model = store->config.model;
	const size_t layer = (size_t)count * model->kv_heads * model->head_dim;
	int error = count > store->config.batch ? -ENOBUFS : settle(store);

	if (error)
		return error;
	memcpy(store->keys, keys, model->layer_count * layer * sizeof(*keys));
	memcpy(store->values, values, model->layer_count * layer * sizeof(*values));
	memcpy(store->append_tokens, tokens, count * sizeof(*tokens));
	for (uint32_t l = 0; l < model->layer_count; l++)
		store->append_layers[l] = (struct kvr_append_layer){
			l, store->keys + l * layer, store->values + l * layer};
	store->append = (struct kvr_append){.sequence = remote->sequence,
		.first = first,
		.count = count,
		.tokens = store->append_tokens,
		.layers = store->append_layers,
		.layer_count = model->layer_count};
	error = kvr_append_submit(store->client, &store->append, &store->append_ticket);
	if (!error)
		store->appending = remote;
	return note(store, "append", error);
}

static const enum kvr_recall_form forms[] = {
	[TINYLM_CLUSTERS] = KVR_RECALL_CLUSTERS,
	[TINYLM_MIXED] = KVR_RECALL_MIXED,
	[TINYLM_MERGED] = KVR_RECALL_MERGED,
};

/* Fills in the request for some layers. Queries are copied: the caller's may change meanwhile. */
static void recall_prepare(
	struct remote *remote, uint32_t first, uint32_t count, const float *queries)
{
	struct tinylm_store *store = remote->store;
	const struct tinylm_model *model = store->config.model;
	const size_t width = (size_t)model->query_heads * model->head_dim;

	memcpy(store->queries + first * width, queries, count * width * sizeof(float));
	for (uint32_t l = first; l < first + count; l++)
		store->items[l].sequence = remote->sequence;
	store->recall = (struct kvr_recall){.items = store->items + first,
		.item_count = count,
		.rank = KVR_BY_SHARE,
		.query_type = KVR_F32,
		.budget_tokens = store->budget_tokens,
		.row_capacity = store->config.row_capacity,
		.form = forms[store->form],
		.merged_divisor = store->form == TINYLM_MERGED ? TINYLM_MERGED_DIVISOR : 0,
		.tail = store->form == TINYLM_MERGED};
}

/* What landed in the region. Counts come from the daemon: they are held against the layout. */
static int recall_read(const struct tinylm_store *store, uint32_t first, uint32_t count,
	struct tinylm_recalled *ret_recalled)
{
	for (uint32_t i = 0; i < count; i++) {
		const struct kvr_recall_item *item = &store->items[first + i];
		struct tinylm_recalled *recalled = &ret_recalled[i];

		*recalled = (struct tinylm_recalled){.keys = item->keys,
			.values = item->values,
			.weights = item->weights,
			.partial = store->form == TINYLM_MIXED ? item->outputs : NULL,
			.partial_lse = item->lse,
			.capacity = store->config.row_capacity,
			/* What is not merged yet was staged as well. */
			.covered_tokens = store->form == TINYLM_MERGED ? item->token_count
								       : item->covered_tokens};
		for (uint32_t head = 0; head < store->config.model->kv_heads; head++) {
			if (item->rows[head].row_count > store->config.row_capacity)
				return -EPROTO;
			recalled->row_counts[head] = item->rows[head].row_count;
			recalled->missing_rows += item->rows[head].missing_tokens;
		}
	}
	return 0;
}

static int remote_recall(struct tinylm_source *source, uint32_t first, uint32_t count,
	const float *queries, struct tinylm_recalled *ret_recalled)
{
	struct remote *remote = remote_of(source);
	const bool merged = remote->store->form == TINYLM_MERGED;
	int error = merged ? settle(remote->store) : 0;

	if (error || (merged && remote->merged_at[first] == remote->sealed_tokens + 1))
		return error ? error : recall_read(remote->store, first, count, ret_recalled);
	recall_prepare(remote, first, count, queries);
	error = note(
		remote->store, "recall", kvr_recall(remote->store->client, &remote->store->recall));
	for (uint32_t l = first; !error && l < first + count; l++)
		remote->merged_at[l] = remote->sealed_tokens + 1;
	return error ? error : recall_read(remote->store, first, count, ret_recalled);
}

static int remote_recall_start(struct tinylm_source *source, const float *queries)
{
	struct remote *remote = remote_of(source);

	recall_prepare(remote, 0, remote->store->config.model->layer_count, queries);
	return note(remote->store, "recall",
		kvr_recall_submit(
			remote->store->client, &remote->store->recall, &remote->recall_ticket));
}

static int remote_recall_finish(struct tinylm_source *source, struct tinylm_recalled *ret_recalled)
{
	struct remote *remote = remote_of(source);
	struct tinylm_store *store = remote->store;
	struct kvr_completion completion = {0};
	int error = kvr_wait(store->client, remote->recall_ticket, &completion);

	error = note(store, "recall", error ? error : completion.status);
	return error ? error
		     : recall_read(store, 0, store->config.model->layer_count, ret_recalled);
}

static uint32_t remote_sealed_tokens(const struct tinylm_source *source)
{
	return ((const struct remote *)(const void *)source)->sealed_tokens;
}

static const struct tinylm_source_ops remote_ops = {remote_append, remote_recall,
	remote_recall_start, remote_recall_finish, remote_sealed_tokens};

static struct remote *remote_new(struct tinylm_store *store)
{
	struct remote *remote = calloc(1, sizeof(*remote));

	if (!remote)
		return NULL;
	remote->source.ops = &remote_ops;
	remote->store = store;
	return remote;
}

double tinylm_store_metric(struct tinylm_store *store, const char *name)
{
	struct kvr_metric metrics[32];
	int count = 0;

	for (uint32_t first = 0; (count = kvr_stats(store->client, first, metrics, 32)) > 0;
		first += (uint32_t)count) {
		for (int i = 0; i < count; i++) {
			if (strcmp(metrics[i].name, name) == 0)
				return metrics[i].value;
		}
	}
	return 0;
}

int tinylm_remote_open(struct tinylm_store *store, const uint32_t *tokens, uint32_t count,
	struct tinylm_source **ret_source, uint32_t *ret_matched)
{
	struct remote *remote = remote_new(store);
	int error = remote ? settle(store) : -ENOMEM;

	if (!error)
		error = note(store, "open",
			kvr_open(store->model, tokens, count, &remote->sequence, ret_matched));
	if (error) {
		free(remote);
		return error;
	}
	remote->sealed_tokens = *ret_matched;
	*ret_source = &remote->source;
	return 0;
}

int tinylm_remote_fork(
	struct tinylm_source *source, struct tinylm_source **ret_source, uint32_t *ret_tokens)
{
	struct tinylm_store *store = remote_of(source)->store;
	struct remote *remote = remote_new(store);
	int error = remote ? settle(store) : -ENOMEM;

	if (!error)
		error = note(store, "fork",
			kvr_fork(remote_of(source)->sequence, &remote->sequence, ret_tokens));
	if (error) {
		free(remote);
		return error;
	}
	remote->sealed_tokens = remote_of(source)->sealed_tokens;
	*ret_source = &remote->source;
	return 0;
}

struct tinylm_source *tinylm_remote_close(struct tinylm_source *source, bool discard)
{
	struct remote *remote = source ? remote_of(source) : NULL;

	if (!remote)
		return NULL;
	settle(remote->store);
	kvr_close(remote->sequence, discard);
	free(remote);
	return NULL;
}

int tinylm_remote_sync(struct tinylm_source *source, uint32_t *ret_sealed_tokens)
{
	struct remote *remote = remote_of(source);
	int error = settle(remote->store);

	if (error)
		return error;
	error = note(
		remote->store, "sync", kvr_sync(remote->sequence, true, &remote->sealed_tokens));
	if (!error)
		*ret_sealed_tokens = remote->sealed_tokens;
	return error;
}

int tinylm_remote_fetch(struct tinylm_source *source, uint32_t first, uint32_t count,
	uint16_t *ret_keys, uint16_t *ret_values)
{
	struct remote *remote = remote_of(source);
	struct tinylm_store *store = remote->store;
	const struct tinylm_model *model = store->config.model;
	const size_t layer = (size_t)count * model->kv_heads * model->head_dim;
	struct kvr_fetch_layer layers[TINYLM_LAYERS_MAX];
	int error = count > store->config.batch ? -ENOBUFS : settle(store);

	if (error)
		return error;
	for (uint32_t l = 0; l < model->layer_count; l++)
		layers[l] = (struct kvr_fetch_layer){
			l, store->keys + l * layer, store->values + l * layer};
	error = note(store, "fetch",
		kvr_fetch(store->client, &(struct kvr_fetch){.sequence = remote->sequence,
						 .first = first,
						 .count = count,
						 .layers = layers,
						 .layer_count = model->layer_count}));
	if (error)
		return error;
	memcpy(ret_keys, store->keys, model->layer_count * layer * sizeof(*ret_keys));
	memcpy(ret_values, store->values, model->layer_count * layer * sizeof(*ret_values));
	return 0;
}
