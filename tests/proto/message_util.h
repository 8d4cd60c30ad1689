/* SPDX-License-Identifier: Apache-2.0 */
/* message_util.h: random messages, their comparison, and a writer of raw protobuf bytes.
 *
 * Only for tests/proto. Everything random comes from the one seed in the struct. */
#ifndef KVR_TESTS_PROTO_MESSAGE_UTIL_H
#define KVR_TESTS_PROTO_MESSAGE_UTIL_H

#include "proto/message.h"

/* ---- random messages --------------------------------------------------------------------------- */

#define KVR_TEST_SEED   0x6b7672656361ull
#define KVR_TEST_ROUNDS 200u

/* A generator and the memory that its last message points into. */
struct kvr_test {
	uint64_t seed;
	uint32_t list_max; /* elements of a random list, at most */
	uint32_t ids[64];
	uint8_t query[256];
	struct kvr_wire_layer layers[KVR_APPEND_LAYERS_MAX];
	struct kvr_wire_recall_item items[64];
	struct kvr_wire_budget budgets[KVR_QUERY_HEADS_MAX];
	struct kvr_wire_recalled recalled[64];
	struct kvr_wire_model models[KVR_LIST_ENTRIES_MAX];
	struct kvr_wire_metric metrics[KVR_LIST_ENTRIES_MAX];
	struct kvr_wire_segment segments[KVR_LIST_ENTRIES_MAX];
};

uint64_t kvr_test_random(struct kvr_test *test);
/* 0 to max, all lengths of varint equally likely. */
uint64_t kvr_test_number(struct kvr_test *test, uint64_t max);

void kvr_test_hello(struct kvr_test *test, struct kvr_hello *ret_hello);
void kvr_test_welcome(struct kvr_test *test, struct kvr_welcome *ret_welcome);
void kvr_test_request(
	struct kvr_test *test, enum kvr_request_kind kind, struct kvr_request *ret_request);
void kvr_test_reply(struct kvr_test *test, enum kvr_request_kind kind, struct kvr_reply *ret_reply);

/* Fail the running cmocka test where a field differs. */
void kvr_test_same_request(const struct kvr_request *a, const struct kvr_request *b);
void kvr_test_same_reply(const struct kvr_reply *a, const struct kvr_reply *b);

/* ---- raw bytes --------------------------------------------------------------------------------- */

struct kvr_test_bytes {
	uint8_t *data;
	size_t count, max;
};

void kvr_test_bytes_free(struct kvr_test_bytes *bytes);
void kvr_test_put(struct kvr_test_bytes *bytes, const void *data, size_t count);
void kvr_test_put_varint(struct kvr_test_bytes *bytes, uint32_t field, uint64_t value);
void kvr_test_put_fixed32(struct kvr_test_bytes *bytes, uint32_t field, uint32_t value);
void kvr_test_put_float(struct kvr_test_bytes *bytes, uint32_t field, float value);
void kvr_test_put_bytes(
	struct kvr_test_bytes *bytes, uint32_t field, const void *data, size_t count);
/* The envelope of a request around a body; the body is freed. */
void kvr_test_put_request(struct kvr_test_bytes *bytes, uint32_t kind, struct kvr_test_bytes *body);

/* Unpacks `head` and `body` as a request of `kind` and frees both. Fails the test unless that gives
 * `error`, with `name` in its text, and id, session and secret all the same. */
void kvr_test_expect(struct kvr_message_arena *arena, struct kvr_test_bytes *head, uint32_t kind,
	struct kvr_test_bytes *body, int error, const char *name, struct kvr_request *ret_request);

static inline struct kvr_span kvr_test_span(const struct kvr_test_bytes *bytes)
{
	return (struct kvr_span){bytes->data, bytes->count};
}

#endif
