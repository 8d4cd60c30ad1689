/* SPDX-License-Identifier: Apache-2.0 */
/* message_same_util.c: comparison of messages and a writer of raw bytes: see message_util.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "tests/proto/message_util.h"

/* ---- comparison -------------------------------------------------------------------------------- */

static void same_float(float a, float b)
{
	assert_memory_equal(&a, &b, sizeof(a));
}

static void same_geometry(const struct kvr_geometry *a, const struct kvr_geometry *b)
{
	assert_int_equal(a->layer_count, b->layer_count);
	assert_int_equal(a->query_heads, b->query_heads);
	assert_int_equal(a->kv_heads, b->kv_heads);
	assert_int_equal(a->key_dim, b->key_dim);
	assert_int_equal(a->value_dim, b->value_dim);
	assert_int_equal(a->dtype, b->dtype);
	assert_int_equal(a->segment_tokens, b->segment_tokens);
	assert_int_equal(a->cluster_tokens, b->cluster_tokens);
	assert_int_equal(a->sink_tokens, b->sink_tokens);
	assert_int_equal(a->merged, b->merged);
	assert_memory_equal(a->dense, b->dense, sizeof(a->dense));
}

static void same_tokens(const struct kvr_tokens *a, const struct kvr_tokens *b)
{
	assert_int_equal(a->count, b->count);
	assert_int_equal(a->offset, b->offset);
	assert_int_equal(a->ids != NULL, b->ids != NULL);
	if (a->ids != NULL)
		assert_memory_equal(a->ids, b->ids, a->count * sizeof(*a->ids));
}

static void same_layers(const struct kvr_wire_layer *a, uint32_t a_count,
	const struct kvr_wire_layer *b, uint32_t b_count)
{
	assert_int_equal(a_count, b_count);
	for (uint32_t i = 0; i < a_count; i++) {
		assert_int_equal(a[i].layer, b[i].layer);
		assert_int_equal(a[i].keys, b[i].keys);
		assert_int_equal(a[i].values, b[i].values);
	}
}

static void same_recall(const struct kvr_request *a, const struct kvr_request *b)
{
	assert_int_equal(a->recall.item_count, b->recall.item_count);
	assert_int_equal(a->recall.rank, b->recall.rank);
	assert_int_equal(a->recall.query_dtype, b->recall.query_dtype);
	same_float(a->recall.scale, b->recall.scale);
	assert_int_equal(a->recall.budget_tokens, b->recall.budget_tokens);
	same_float(a->recall.budget_mass, b->recall.budget_mass);
	assert_int_equal(a->recall.row_capacity, b->recall.row_capacity);
	assert_int_equal(a->recall.sinks, b->recall.sinks);
	assert_int_equal(a->recall.tail, b->recall.tail);
	assert_int_equal(a->recall.want_weights, b->recall.want_weights);
	assert_int_equal(a->recall.want_positions, b->recall.want_positions);
	assert_int_equal(a->recall.background, b->recall.background);
	assert_int_equal(a->recall.form, b->recall.form);
	assert_int_equal(a->recall.centroid_rows, b->recall.centroid_rows);
	assert_int_equal(a->recall.merged_set, b->recall.merged_set);
	for (uint32_t i = 0; i < a->recall.item_count; i++) {
		const struct kvr_wire_recall_item *x = &a->recall.items[i];
		const struct kvr_wire_recall_item *y = &b->recall.items[i];

		assert_int_equal(x->sequence, y->sequence);
		assert_int_equal(x->layer, y->layer);
		assert_int_equal(x->query.bytes, y->query.bytes);
		assert_int_equal(x->query.data != NULL, y->query.data != NULL);
		if (x->query.data != NULL)
			assert_memory_equal(x->query.data, y->query.data, x->query.bytes);
		assert_int_equal(x->query_offset, y->query_offset);
		assert_int_equal(x->keys, y->keys);
		assert_int_equal(x->values, y->values);
		assert_int_equal(x->weights, y->weights);
		assert_int_equal(x->positions, y->positions);
		assert_int_equal(x->table, y->table);
		assert_int_equal(x->outputs, y->outputs);
		assert_int_equal(x->lse, y->lse);
		assert_int_equal(x->first, y->first);
		assert_int_equal(x->budgets.bytes, y->budgets.bytes);
		assert_int_equal(x->budgets.data != NULL, y->budgets.data != NULL);
		if (x->budgets.data != NULL)
			assert_memory_equal(x->budgets.data, y->budgets.data, x->budgets.bytes);
	}
}

void kvr_test_same_request(const struct kvr_request *a, const struct kvr_request *b)
{
	assert_int_equal(a->id, b->id);
	assert_int_equal(a->session, b->session);
	assert_memory_equal(a->secret, b->secret, sizeof(a->secret));
	assert_int_equal(a->deadline_ms, b->deadline_ms);
	assert_int_equal(a->kind, b->kind);
	switch (a->kind) {
	case KVR_REQUEST_PING: break;
	case KVR_REQUEST_MODEL_REGISTER:
		assert_string_equal(a->model_register.name, b->model_register.name);
		assert_memory_equal(
			a->model_register.digest, b->model_register.digest, KVR_HASH_BYTES);
		same_geometry(&a->model_register.geometry, &b->model_register.geometry);
		assert_int_equal(a->model_register.rank, b->model_register.rank);
		break;
	case KVR_REQUEST_MODEL_LIST:
		assert_int_equal(a->model_list.first, b->model_list.first);
		break;
	case KVR_REQUEST_OPEN:
		assert_int_equal(a->open.model, b->open.model);
		same_tokens(&a->open.tokens, &b->open.tokens);
		break;
	case KVR_REQUEST_APPEND:
		assert_int_equal(a->append.sequence, b->append.sequence);
		assert_int_equal(a->append.first, b->append.first);
		assert_int_equal(a->append.count, b->append.count);
		same_tokens(&a->append.tokens, &b->append.tokens);
		same_layers(a->append.layers, a->append.layer_count, b->append.layers,
			b->append.layer_count);
		break;
	case KVR_REQUEST_RECALL: same_recall(a, b); break;
	case KVR_REQUEST_FETCH:
		assert_int_equal(a->fetch.sequence, b->fetch.sequence);
		assert_int_equal(a->fetch.first, b->fetch.first);
		assert_int_equal(a->fetch.count, b->fetch.count);
		same_layers(a->fetch.layers, a->fetch.layer_count, b->fetch.layers,
			b->fetch.layer_count);
		break;
	case KVR_REQUEST_SYNC:
		assert_int_equal(a->sync.sequence, b->sync.sequence);
		assert_int_equal(a->sync.seal_tail, b->sync.seal_tail);
		break;
	case KVR_REQUEST_FORK: assert_int_equal(a->fork.sequence, b->fork.sequence); break;
	case KVR_REQUEST_CLOSE:
		assert_int_equal(a->close.sequence, b->close.sequence);
		assert_int_equal(a->close.discard_tail, b->close.discard_tail);
		break;
	case KVR_REQUEST_DROP:
		assert_int_equal(a->drop.has_segment, b->drop.has_segment);
		assert_memory_equal(a->drop.segment, b->drop.segment, KVR_HASH_BYTES);
		assert_int_equal(a->drop.model, b->drop.model);
		break;
	case KVR_REQUEST_PIN:
		assert_int_equal(a->pin.sequence, b->pin.sequence);
		assert_memory_equal(a->pin.segment, b->pin.segment, KVR_HASH_BYTES);
		assert_int_equal(a->pin.unpin, b->pin.unpin);
		break;
	case KVR_REQUEST_STATS: assert_int_equal(a->stats.first, b->stats.first); break;
	case KVR_REQUEST_SEGMENT_LIST:
		assert_int_equal(a->segment_list.first, b->segment_list.first);
		assert_int_equal(a->segment_list.model, b->segment_list.model);
		break;
	}
}

static void same_model(const struct kvr_wire_model *a, const struct kvr_wire_model *b)
{
	assert_int_equal(a->model, b->model);
	assert_string_equal(a->name, b->name);
	assert_memory_equal(a->digest, b->digest, KVR_HASH_BYTES);
	same_geometry(&a->geometry, &b->geometry);
	assert_int_equal(a->rank, b->rank);
	assert_int_equal(a->segment_count, b->segment_count);
	assert_int_equal(a->stored_bytes, b->stored_bytes);
}

static void same_metric(const struct kvr_wire_metric *a, const struct kvr_wire_metric *b)
{
	assert_string_equal(a->name, b->name);
	assert_string_equal(a->text, b->text);
	assert_memory_equal(&a->value, &b->value, sizeof(a->value));
}

static void same_segment(const struct kvr_wire_segment *a, const struct kvr_wire_segment *b)
{
	assert_memory_equal(a->hash, b->hash, KVR_HASH_BYTES);
	assert_int_equal(a->has_parent, b->has_parent);
	assert_memory_equal(a->parent, b->parent, KVR_HASH_BYTES);
	assert_int_equal(a->model, b->model);
	assert_int_equal(a->token_first, b->token_first);
	assert_int_equal(a->token_count, b->token_count);
	assert_int_equal(a->stored_bytes, b->stored_bytes);
	assert_int_equal(a->leases, b->leases);
	assert_int_equal(a->pins, b->pins);
	assert_int_equal(a->resident_bytes, b->resident_bytes);
	assert_int_equal(a->durable, b->durable);
	assert_int_equal(a->quarantined, b->quarantined);
}

static void same_list(const struct kvr_reply *a, const struct kvr_reply *b)
{
	/* The three lists have one layout: entries, count, next. */
	assert_int_equal(a->models.count, b->models.count);
	assert_int_equal(a->models.next, b->models.next);
	for (uint32_t i = 0; i < a->models.count; i++) {
		if (a->kind == KVR_REQUEST_MODEL_LIST)
			same_model(&a->models.entries[i], &b->models.entries[i]);
		else if (a->kind == KVR_REQUEST_STATS)
			same_metric(&a->metrics.entries[i], &b->metrics.entries[i]);
		else
			same_segment(&a->segments.entries[i], &b->segments.entries[i]);
	}
}

static void same_recalled(const struct kvr_reply *a, const struct kvr_reply *b)
{
	assert_int_equal(a->recalled.count, b->recalled.count);
	for (uint32_t i = 0; i < a->recalled.count; i++) {
		assert_int_equal(
			a->recalled.items[i].token_count, b->recalled.items[i].token_count);
		assert_int_equal(
			a->recalled.items[i].covered_tokens, b->recalled.items[i].covered_tokens);
	}
	assert_int_equal(a->recalled.same.token_count, b->recalled.same.token_count);
	assert_int_equal(a->recalled.same.covered_tokens, b->recalled.same.covered_tokens);
	assert_int_equal(a->recalled.staged_bytes, b->recalled.staged_bytes);
	assert_int_equal(a->recalled.token_missing, b->recalled.token_missing);
}

void kvr_test_same_reply(const struct kvr_reply *a, const struct kvr_reply *b)
{
	assert_int_equal(a->id, b->id);
	assert_int_equal(a->code, b->code);
	assert_string_equal(a->subject, b->subject);
	assert_int_equal(a->kind, b->kind);
	if (a->code != 0)
		return;
	switch (a->kind) {
	case KVR_REQUEST_PING:
	case KVR_REQUEST_CLOSE: break;
	case KVR_REQUEST_MODEL_REGISTER:
		assert_int_equal(a->model_registered.model, b->model_registered.model);
		same_geometry(&a->model_registered.geometry, &b->model_registered.geometry);
		break;
	case KVR_REQUEST_OPEN:
	case KVR_REQUEST_FORK:
		assert_int_equal(a->opened.sequence, b->opened.sequence);
		assert_int_equal(a->opened.matched_tokens, b->opened.matched_tokens);
		break;
	case KVR_REQUEST_APPEND:
		assert_int_equal(a->appended.token_count, b->appended.token_count);
		assert_int_equal(a->appended.sealed_tokens, b->appended.sealed_tokens);
		break;
	case KVR_REQUEST_RECALL: same_recalled(a, b); break;
	case KVR_REQUEST_FETCH:
		assert_int_equal(a->fetched.staged_bytes, b->fetched.staged_bytes);
		break;
	case KVR_REQUEST_SYNC:
		assert_int_equal(a->synced.sealed_tokens, b->synced.sealed_tokens);
		break;
	case KVR_REQUEST_DROP:
		assert_int_equal(a->dropped.segment_count, b->dropped.segment_count);
		assert_int_equal(a->dropped.freed_bytes, b->dropped.freed_bytes);
		assert_int_equal(a->dropped.kept_count, b->dropped.kept_count);
		break;
	case KVR_REQUEST_PIN:
		assert_int_equal(a->pinned.segment_count, b->pinned.segment_count);
		break;
	case KVR_REQUEST_MODEL_LIST:
	case KVR_REQUEST_STATS:
	case KVR_REQUEST_SEGMENT_LIST: same_list(a, b); break;
	}
}

/* ---- raw bytes --------------------------------------------------------------------------------- */

void kvr_test_bytes_free(struct kvr_test_bytes *bytes)
{
	free(bytes->data);
	*bytes = (struct kvr_test_bytes){0};
}

void kvr_test_put(struct kvr_test_bytes *bytes, const void *data, size_t count)
{
	if (bytes->count + count > bytes->max) {
		bytes->max = 2 * (bytes->count + count);
		bytes->data = realloc(bytes->data, bytes->max);
		assert_non_null(bytes->data);
	}
	if (count > 0)
		memcpy(bytes->data + bytes->count, data, count);
	bytes->count += count;
}

static void put_number(struct kvr_test_bytes *bytes, uint64_t value)
{
	uint8_t byte;

	do {
		byte = (uint8_t)((value & 0x7f) | (value > 0x7f ? 0x80 : 0));
		kvr_test_put(bytes, &byte, 1);
		value >>= 7;
	} while (value > 0);
}

void kvr_test_put_varint(struct kvr_test_bytes *bytes, uint32_t field, uint64_t value)
{
	put_number(bytes, (uint64_t)field << 3);
	put_number(bytes, value);
}

void kvr_test_put_fixed32(struct kvr_test_bytes *bytes, uint32_t field, uint32_t value)
{
	put_number(bytes, (uint64_t)field << 3 | 5);
	kvr_test_put(bytes, &value, sizeof(value));
}

void kvr_test_put_float(struct kvr_test_bytes *bytes, uint32_t field, float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	kvr_test_put_fixed32(bytes, field, bits);
}

void kvr_test_put_bytes(
	struct kvr_test_bytes *bytes, uint32_t field, const void *data, size_t count)
{
	put_number(bytes, (uint64_t)field << 3 | 2);
	put_number(bytes, count);
	kvr_test_put(bytes, data, count);
}

void kvr_test_put_request(struct kvr_test_bytes *bytes, uint32_t kind, struct kvr_test_bytes *body)
{
	static const uint8_t secret[KVR_SECRET_BYTES] = {7, 7};

	kvr_test_put_varint(bytes, 1, 42);
	kvr_test_put_varint(bytes, 2, 43);
	kvr_test_put_bytes(bytes, 3, secret, sizeof(secret));
	kvr_test_put_bytes(bytes, kind, body->data, body->count);
	kvr_test_bytes_free(body);
}

void kvr_test_expect(struct kvr_message_arena *arena, struct kvr_test_bytes *head, uint32_t kind,
	struct kvr_test_bytes *body, int error, const char *name, struct kvr_request *ret_request)
{
	int got;

	kvr_test_put_request(head, kind, body);
	got = kvr_request_unpack(kvr_test_span(head), arena, ret_request);
	if (got != error || (error != 0 && strstr(kvr_message_error(arena), name) == NULL))
		fail_msg("%s: %d, not %d: \"%s\"", name, got, error, kvr_message_error(arena));
	assert_int_equal(ret_request->id, 42);
	assert_int_equal(ret_request->session, 43);
	assert_int_equal(ret_request->secret[0], 7);
	kvr_test_bytes_free(head);
}
