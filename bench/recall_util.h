/* SPDX-License-Identifier: Apache-2.0 */
/* recall_util.h: recalls with prepared outputs, laid out in the region one behind the other. */
#ifndef KVR_BENCH_RECALL_H
#define KVR_BENCH_RECALL_H

#include <stdint.h>

#include "bench/content_util.h"

struct bench_recall {
	struct kvr_recall recall; /* items and the rest, ready for kvr_recall */
	struct bench_shape shape;
	uint16_t **queries; /* [layers] [H][dim], in the region: to be written before each recall */
};

/* Bytes of region that a recall of so many layers needs. */
uint64_t bench_recall_bytes(struct bench_shape shape, uint32_t layers, uint32_t budget);

/* Lays out a recall of layers 0 .. layers - 1 from byte `at` of the region. */
struct bench_recall *bench_recall_open(struct kvr_client *client, struct kvr_sequence *sequence,
	struct bench_shape shape, uint32_t layers, uint32_t budget, uint64_t at);
struct bench_recall *bench_recall_close(struct bench_recall *recall);

/* Writes the queries of all layers. */
void bench_recall_ask(struct bench_recall *recall, struct bench_content *content, uint32_t tokens,
	uint32_t number);

/* Carries items first .. first + count - 1 out; returns the time in us. */
double bench_recall_run(
	struct kvr_client *client, struct bench_recall *recall, uint32_t first, uint32_t count);

/* Bytes that the last recall staged, keys and values. */
uint64_t bench_recall_staged(const struct bench_recall *recall);

#endif
