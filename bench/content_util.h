/* SPDX-License-Identifier: Apache-2.0 */
/* content_util.h: made-up keys, values and queries with the traits of real ones.
 *
 * Per lane, a key is
 *
 *   direction of its topic + large channels + slow drift along the text + noise
 *
 * with 48 topics of unequal frequency (an index is the product of two uniform numbers), directions of
 * normal numbers, two channels with an offset of 12, a drift of amplitude 0.6 with a period of 1,024
 * tokens, and normal noise of 0.7. Values are normal numbers. A query head takes the key of a token
 * drawn at random, without drift and large channels, and adds noise of 0.7: it attends to one topic.
 *
 * Every number is a function of seed, lane and position. Type bf16, sinks 16, other settings default. */
#ifndef KVR_BENCH_CONTENT_H
#define KVR_BENCH_CONTENT_H

#include <stdint.h>

#include "client/kvrecall.h"

struct bench_content;

struct bench_shape {
	uint32_t layers, query_heads, kv_heads, dim; /* dim: of keys and values */
};

struct bench_content *bench_content_open(struct bench_shape shape, uint32_t seed);
struct bench_content *bench_content_close(struct bench_content *content);

/* Registers a model of the shape. */
struct kvr_model *bench_model(struct kvr_client *client, struct bench_shape shape);

/* Opens a sequence of `tokens` tokens, appends them and waits until whole segments are sealed. Uses
 * the whole region. `seed` makes its token ids. */
struct kvr_sequence *bench_fill(struct kvr_client *client, struct kvr_model *model,
	struct bench_content *content, uint32_t tokens, uint32_t seed);

/* Opens the sequence that bench_fill has made, by its tokens; all whole segments of it are there. */
struct kvr_sequence *bench_reopen(
	struct kvr_client *client, struct kvr_model *model, uint32_t tokens, uint32_t seed);

/* Bytes of one token in all lanes, keys and values. */
uint64_t bench_token_bytes(struct bench_shape shape);

/* Writes keys and values of tokens first .. first + count - 1 of one layer, [count][K][dim] each. */
void bench_rows(struct bench_content *content, uint32_t layer, uint32_t first, uint32_t count,
	uint16_t *ret_keys, uint16_t *ret_values);

/* Writes the query [H][dim] of a layer, near keys of the first `tokens` tokens; another one for every
 * `number`. */
void bench_query(struct bench_content *content, uint32_t layer, uint32_t tokens, uint32_t number,
	uint16_t *ret_query);

#endif
