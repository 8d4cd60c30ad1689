/* SPDX-License-Identifier: Apache-2.0 */
/* audit.c: the audit's way through its states; what it found is audit_record.c's. See audit.h. */
#include "daemon/audit.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"
#include "daemon/audit_record.h"
#include "daemon/daemon.h"
#include "daemon/recall_item.h"

#define PIECE_BYTES ((size_t)4 << 20) /* of keys and values that are fetched at a time, about */
#define ALIGN       64u

int kvr_audit_open(struct kvr_audit *audit, struct kvr_daemon *daemon)
{
	void *memory = mmap(NULL, KVR_AUDIT_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return -ENOMEM;
	*audit = (struct kvr_audit){
		.daemon = daemon,
		.session = {.state = KVR_SESSION_ATTACHED,
			.region = {{memory, KVR_AUDIT_BYTES}, -1},
			.client = "kvrecalld: audit"},
	};
	kvr_list_init(&audit->session.calls);
	kvr_list_init(&audit->session.sequences);
	kvr_list_init(&audit->waiters);
	return 0;
}

void kvr_audit_stop(struct kvr_audit *audit)
{
	audit->stopping = true;
}

void kvr_audit_close(struct kvr_audit *audit)
{
	if (!audit->session.region.memory.data)
		return;
	KVR_ASSERT(audit->state == KVR_AUDIT_IDLE);
	munmap(audit->session.region.memory.data, KVR_AUDIT_BYTES);
	kvr_audit_forget(audit);
	*audit = (struct kvr_audit){0};
}

/* ---- the beginning --------------------------------------------------------------------------- */

/* Cuts `bytes` off the region. */
static void *carve(const struct kvr_audit *audit, size_t *at, size_t bytes)
{
	uint8_t *place = audit->session.region.memory.data + (*at < KVR_AUDIT_BYTES ? *at : 0);

	*at += (bytes + ALIGN - 1) / ALIGN * ALIGN;
	return place;
}

static uint64_t offset_of(const struct kvr_audit *audit, const void *place)
{
	return (uint64_t)((const uint8_t *)place - audit->session.region.memory.data);
}

/* An output of one vector per query head, and its log-sum-exp. */
static float *carve_output(const struct kvr_audit *audit, size_t *at,
	const struct kvr_geometry *geometry, float **ret_lse)
{
	float *out = carve(
		audit, at, (size_t)geometry->query_heads * geometry->value_dim * sizeof(float));

	*ret_lse = carve(audit, at, geometry->query_heads * sizeof(float));
	return out;
}

/* Lays the region out for the request. False: it is too small for these rows. */
static bool lay_out(struct kvr_audit *audit, const struct kvr_geometry *geometry)
{
	const size_t rows = (size_t)audit->heads * audit->row_capacity;
	const size_t key_bytes = kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(geometry);
	const size_t token_bytes = geometry->kv_heads * (key_bytes + value_bytes);
	const size_t query_bytes = (size_t)geometry->query_heads * geometry->key_dim *
				   kvr_dtype_bytes(audit->query_dtype);
	size_t at = 0;

	audit->piece_tokens =
		PIECE_BYTES / token_bytes > 1 ? (uint32_t)(PIECE_BYTES / token_bytes) : 1;
	audit->query = carve(audit, &at, query_bytes);
	audit->item.table = at;
	carve(audit, &at, audit->heads * sizeof(struct kvr_wire_rows));
	audit->rows_out = carve_output(audit, &at, geometry, &audit->rows_lse);
	audit->rest_out = carve_output(audit, &at, geometry, &audit->rest_lse);
	audit->all_out = carve_output(audit, &at, geometry, &audit->all_lse);
	audit->piece_out = carve_output(audit, &at, geometry, &audit->piece_lse);
	audit->piece_keys =
		carve(audit, &at, (size_t)audit->piece_tokens * geometry->kv_heads * key_bytes);
	audit->piece_values =
		carve(audit, &at, (size_t)audit->piece_tokens * geometry->kv_heads * value_bytes);
	audit->keys = carve(audit, &at, rows * key_bytes);
	audit->values = carve(audit, &at, rows * value_bytes);
	audit->weights = carve(audit, &at, rows * audit->group * sizeof(float));
	audit->item.query_offset = offset_of(audit, audit->query);
	audit->item.keys = offset_of(audit, audit->keys);
	audit->item.values = offset_of(audit, audit->values);
	audit->item.weights = offset_of(audit, audit->weights);
	audit->item.outputs = offset_of(audit, audit->rest_out);
	audit->item.lse = offset_of(audit, audit->rest_lse);
	audit->layer.keys = offset_of(audit, audit->piece_keys);
	audit->layer.values = offset_of(audit, audit->piece_values);
	return at <= KVR_AUDIT_BYTES;
}

/* The same recall, of one layer, for sealed tokens and the sinks. */
static void take_request(struct kvr_audit *audit, const struct kvr_call *call, uint32_t at)
{
	const struct kvr_sequence *sequence = call->sequences[at];
	const struct kvr_geometry *geometry = &sequence->model->geometry;

	audit->item = call->request.recall.items[at];
	audit->item.query = (struct kvr_span){0};
	audit->request = call->request;
	audit->request.recall.items = &audit->item;
	audit->request.recall.item_count = 1;
	audit->request.recall.sinks = true;
	audit->request.recall.tail = false;
	audit->request.recall.want_weights = audit->request.recall.centroid_rows > 0;
	audit->request.recall.want_positions = false;
	audit->request.recall.background = true;
	audit->query_dtype = call->request.recall.query_dtype;
	audit->scale = call->request.recall.scale;
	if (audit->scale == 0)
		audit->scale = 1.0f / sqrtf((float)geometry->key_dim);
	audit->mixed = call->request.recall.form == KVR_FORM_MIXED;
	audit->heads = kvr_recall_heads(call, geometry);
	audit->group = geometry->query_heads / audit->heads;
	audit->layer.layer = audit->item.layer;
	audit->row_capacity = kvr_recall_rows(call, at, sequence);
	audit->request.recall.row_capacity = audit->row_capacity;
	if (audit->item.budgets.data) {
		memcpy(audit->budgets, audit->item.budgets.data, audit->item.budgets.bytes);
		audit->item.budgets.data = (uint8_t *)audit->budgets;
	}
}

static void copy_query(struct kvr_audit *audit, const struct kvr_call *call, uint32_t at,
	const struct kvr_geometry *geometry)
{
	const struct kvr_wire_recall_item *item = &call->request.recall.items[at];
	const size_t bytes = (size_t)geometry->query_heads * geometry->key_dim *
			     kvr_dtype_bytes(call->request.recall.query_dtype);

	memcpy(audit->query,
		item->query.data ? item->query.data
				 : call->session->region.memory.data + item->query_offset,
		bytes);
}

void kvr_audit_offer(struct kvr_audit *audit, const struct kvr_call *call)
{
	struct kvr_daemon *daemon = audit->daemon;
	const uint32_t every = daemon->config->audit_every;
	uint32_t at;
	struct kvr_sequence *sequence;

	if (every == 0 || audit->stopping || call->request.recall.form == KVR_FORM_MERGED ||
		call->session == &audit->session)
		return;
	if (++audit->seen_count < every || audit->state != KVR_AUDIT_IDLE ||
		!kvr_list_empty(&audit->waiters))
		return;
	audit->seen_count = 0;
	at = (uint32_t)((audit->done_count + audit->abandoned_count) * 7919 %
			call->request.recall.item_count);
	sequence = call->sequences[at];
	if (sequence->chain_count == 0)
		return;
	take_request(audit, call, at);
	if (!lay_out(audit, &sequence->model->geometry) ||
		kvr_sequence_open(daemon, &audit->session, sequence->model,
			sequence->chain[sequence->chain_count - 1], &audit->sequence) < 0) {
		audit->abandoned_count++;
		return;
	}
	copy_query(audit, call, at, &sequence->model->geometry);
	audit->item.sequence = audit->sequence->id;
	audit->session.tenant = call->session->tenant;
	audit->next_token = 0;
	audit->failed = false;
	audit->yielding = false;
	audit->waiting = false;
	audit->state = KVR_AUDIT_RECALL;
}

/* ---- calls of its own ------------------------------------------------------------------------ */

static void call_done(struct kvr_call *call)
{
	struct kvr_audit *audit = &call->daemon->audit;

	KVR_ASSERT(audit->waiting);
	audit->waiting = false;
	audit->failed = call->reply.code != 0;
	if (call->request.kind == KVR_REQUEST_RECALL)
		audit->failed |= call->reply.recalled.token_missing > 0;
}

static void send(struct kvr_audit *audit)
{
	audit->waiting = true;
	if (kvr_call_start_own(audit->daemon, &audit->session, &audit->request, call_done))
		return;
	audit->waiting = false;
	audit->failed = true;
}

static void send_fetch(struct kvr_audit *audit)
{
	const uint32_t left = audit->sequence->covered - audit->next_token;

	audit->request.kind = KVR_REQUEST_FETCH;
	audit->request.fetch.sequence = audit->sequence->id;
	audit->request.fetch.first = audit->next_token;
	audit->request.fetch.count = left < audit->piece_tokens ? left : audit->piece_tokens;
	audit->request.fetch.layers = &audit->layer;
	audit->request.fetch.layer_count = 1;
	send(audit);
}

/* ---- attention ------------------------------------------------------------------------------- */

static void work_done(struct kvr_work *work)
{
	struct kvr_audit *audit = work->owner;

	KVR_ASSERT(audit->waiting);
	audit->waiting = false;
	kvr_work_give(work);
}

/* What all items share; `head` is a query head, the first of `count`. */
static struct kvr_attend_item attend(
	const struct kvr_audit *audit, uint32_t head, uint32_t count, float *out, float *lse)
{
	const struct kvr_geometry *geometry = &audit->sequence->model->geometry;

	return (struct kvr_attend_item){
		.geometry = geometry,
		.query_count = count,
		.query = audit->query +
			 (size_t)head * geometry->key_dim * kvr_dtype_bytes(audit->query_dtype),
		.query_dtype = audit->query_dtype,
		.scale = audit->scale,
		.out = out + (size_t)head * geometry->value_dim,
		.lse = lse + head,
	};
}

/* Attention over the rows of one head, and over its centroids, which weigh differently for each query; also over none of
 * them, which is an estimate of nothing. (A fold says that itself.) Returns how many items. */
static uint32_t describe_rows(struct kvr_audit *audit, uint32_t head, struct kvr_attend_item *items)
{
	const struct kvr_geometry *geometry = &audit->sequence->model->geometry;
	const size_t key_bytes = kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(geometry);
	const size_t capacity = audit->row_capacity;
	uint8_t *keys = audit->keys + head * capacity * key_bytes;
	uint8_t *values = audit->values + head * capacity * value_bytes;
	const uint32_t queries = audit->request.recall.centroid_rows > 0 ? audit->group : 0;
	struct kvr_wire_rows rows;
	uint32_t exact, count = 0;

	memcpy(&rows, audit->session.region.memory.data + audit->item.table + head * sizeof(rows),
		sizeof(rows));
	exact = rows.row_count - rows.centroid_count;
	items[count] =
		attend(audit, head * audit->group, audit->group, audit->rows_out, audit->rows_lse);
	items[count].row_count = exact;
	items[count].keys = keys;
	items[count++].values = values;
	for (uint32_t g = 0; g < queries; g++) {
		const uint32_t query = head * audit->group + g;

		items[count] = attend(audit, query, 1, audit->rest_out, audit->rest_lse);
		items[count].row_count = rows.centroid_count;
		items[count].keys = keys + exact * key_bytes;
		items[count].values = values + exact * value_bytes;
		items[count++].weights = audit->weights + query * capacity + exact;
	}
	return count;
}

/* Attention over the piece that was fetched. */
static uint32_t describe_piece(struct kvr_audit *audit, struct kvr_attend_item *items)
{
	const struct kvr_geometry *geometry = &audit->sequence->model->geometry;
	const uint32_t group = kvr_geometry_group(geometry);
	const size_t key_bytes = kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(geometry);

	for (uint32_t head = 0; head < geometry->kv_heads; head++) {
		items[head] =
			attend(audit, head * group, group, audit->piece_out, audit->piece_lse);
		items[head].row_count = audit->request.fetch.count;
		items[head].keys = audit->piece_keys + head * key_bytes;
		items[head].values = audit->piece_values + head * value_bytes;
		items[head].key_stride = geometry->kv_heads * key_bytes;
		items[head].value_stride = geometry->kv_heads * value_bytes;
	}
	return geometry->kv_heads;
}

static void submit(struct kvr_audit *audit)
{
	struct kvr_work *work = kvr_work_take(&audit->daemon->works);
	uint32_t count = 0;

	audit->failed = !work;
	if (!work)
		return;
	KVR_STATIC_ASSERT(2 * KVR_QUERY_HEADS_MAX <= KVR_WORK_ITEMS_MAX);
	if (audit->state == KVR_AUDIT_PIECE)
		count = describe_piece(audit, work->items.attend);
	for (uint32_t head = 0; audit->state == KVR_AUDIT_ROWS && head < audit->heads; head++)
		count += describe_rows(audit, head, work->items.attend + count);
	audit->waiting = true;
	kvr_work_submit(work, KVR_JOB_ATTEND, count, false, work_done, audit);
}

/* Takes what comes from other rows into an output, as in split attention. */
static void merge(float *out, float *lse, const float *more, float more_lse, uint32_t dim)
{
	const double most = fmax((double)*lse, (double)more_lse);
	double a, b;

	if (isinf(more_lse) && more_lse < 0)
		return;
	a = exp((double)*lse - most);
	b = exp((double)more_lse - most);
	for (uint32_t i = 0; i < dim; i++)
		out[i] = (float)((a * (double)out[i] + b * (double)more[i]) / (a + b));
	*lse = (float)(most + log(a + b));
}

static void merge_piece(struct kvr_audit *audit)
{
	const struct kvr_geometry *geometry = &audit->sequence->model->geometry;

	for (size_t h = 0; h < geometry->query_heads; h++) {
		if (audit->next_token == 0) {
			audit->all_lse[h] = -INFINITY;
			memset(audit->all_out + h * geometry->value_dim, 0,
				geometry->value_dim * sizeof(float));
		}
		merge(audit->all_out + h * geometry->value_dim, &audit->all_lse[h],
			audit->piece_out + h * geometry->value_dim, audit->piece_lse[h],
			geometry->value_dim);
	}
	audit->next_token += audit->request.fetch.count;
}

/* ---- the end --------------------------------------------------------------------------------- */

/* How far `out` is from what it should be. */
static double distance(const float *out, const float *exact, uint32_t dim)
{
	double apart = 0, size = 0;

	for (uint32_t i = 0; i < dim; i++) {
		apart += ((double)out[i] - (double)exact[i]) * ((double)out[i] - (double)exact[i]);
		size += (double)exact[i] * (double)exact[i];
	}
	return size > 0 ? sqrt(apart / size) : 0;
}

static void record(struct kvr_audit *audit)
{
	const struct kvr_model *model = audit->sequence->model;
	const uint32_t dim = model->geometry.value_dim;
	struct kvr_audit_layer *layer = kvr_audit_layer_of(audit, model, audit->layer.layer);

	for (size_t h = 0; layer && h < model->geometry.query_heads; h++) {
		const double mass = exp((double)audit->rows_lse[h] - (double)audit->all_lse[h]);
		float *out = audit->rows_out + h * dim;

		if (audit->mixed)
			merge(out, &audit->rows_lse[h], audit->rest_out + h * dim,
				audit->rest_lse[h], dim);
		kvr_audit_add(layer, mass, distance(out, audit->all_out + h * dim, dim));
	}
}

static void finish(struct kvr_audit *audit, bool complete)
{
	if (complete)
		record(audit);
	audit->done_count += complete;
	audit->abandoned_count += !complete;
	kvr_sequence_close(audit->sequence, true);
	audit->sequence = NULL;
	audit->state = KVR_AUDIT_IDLE;
	madvise(audit->session.region.memory.data, KVR_AUDIT_BYTES, MADV_DONTNEED);
}

static void go_on(struct kvr_audit *audit)
{
	switch (audit->state) {
	case KVR_AUDIT_IDLE: break;
	case KVR_AUDIT_RECALL:
		audit->state = KVR_AUDIT_ROWS;
		send(audit);
		break;
	case KVR_AUDIT_ROWS:
		submit(audit);
		audit->state = KVR_AUDIT_TOKENS;
		break;
	case KVR_AUDIT_TOKENS:
		send_fetch(audit);
		audit->state = KVR_AUDIT_PIECE;
		break;
	case KVR_AUDIT_PIECE:
		submit(audit);
		audit->state = KVR_AUDIT_MERGE;
		break;
	case KVR_AUDIT_MERGE:
		merge_piece(audit);
		if (audit->next_token == audit->sequence->covered)
			finish(audit, true);
		else
			audit->state = KVR_AUDIT_TOKENS;
		break;
	}
}

bool kvr_audit_yield(struct kvr_audit *audit, const struct kvr_tenant *tenant)
{
	if (audit->state == KVR_AUDIT_IDLE || audit->session.tenant != tenant)
		return false;
	audit->yielding = true;
	return true;
}

/* Who waits is woken one round after the end, when the sequence is settled and its leases are gone. */
void kvr_audit_step(struct kvr_audit *audit)
{
	if (audit->state == KVR_AUDIT_IDLE)
		kvr_waiters_wake(&audit->waiters);
	while (audit->state != KVR_AUDIT_IDLE && !audit->waiting) {
		if (audit->failed || audit->stopping || audit->yielding)
			finish(audit, false);
		else
			go_on(audit);
	}
}
