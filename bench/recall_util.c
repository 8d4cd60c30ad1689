/* SPDX-License-Identifier: Apache-2.0 */
/* recall_util.c: see recall_util.h. */
#include "bench/recall_util.h"

#include <stdlib.h>

#include "base/clock.h"
#include "bench/bench_util.h"

#define ALIGN(bytes) (((bytes) + 4095) & ~(uint64_t)4095)

/* Bytes of the parts of one item: query, keys, values, positions, rows. */
static void part_bytes(struct bench_shape shape, uint32_t budget, uint64_t ret_bytes[5])
{
	const uint64_t rows = (uint64_t)shape.kv_heads * budget;

	ret_bytes[0] = ALIGN((uint64_t)shape.query_heads * shape.dim * sizeof(uint16_t));
	ret_bytes[1] = ALIGN(rows * shape.dim * sizeof(uint16_t));
	ret_bytes[2] = ret_bytes[1];
	ret_bytes[3] = ALIGN(rows * sizeof(int32_t));
	ret_bytes[4] = ALIGN(shape.kv_heads * sizeof(struct kvr_rows));
}

uint64_t bench_recall_bytes(struct bench_shape shape, uint32_t layers, uint32_t budget)
{
	uint64_t bytes[5], sum = 0;

	part_bytes(shape, budget, bytes);
	for (int i = 0; i < 5; i++)
		sum += bytes[i];
	return sum * layers;
}

struct bench_recall *bench_recall_open(struct kvr_client *client, struct kvr_sequence *sequence,
	struct bench_shape shape, uint32_t layers, uint32_t budget, uint64_t at)
{
	struct bench_recall *recall = calloc(1, sizeof(*recall));
	struct kvr_recall_item *items = calloc(layers, sizeof(*items));
	uint8_t *memory = (uint8_t *)kvr_region(client, NULL) + at;
	uint64_t bytes[5];

	if (!recall || !items || !(recall->queries = calloc(layers, sizeof(uint16_t *))))
		bench_fail("no memory");
	part_bytes(shape, budget, bytes);
	for (uint32_t layer = 0; layer < layers; layer++) {
		void *part[5];

		for (int i = 0; i < 5; i++) {
			part[i] = memory;
			memory += bytes[i];
		}
		recall->queries[layer] = part[0];
		items[layer] = (struct kvr_recall_item){.sequence = sequence,
			.layer = layer,
			.query = part[0],
			.keys = part[1],
			.values = part[2],
			.positions = part[3],
			.rows = part[4]};
	}
	recall->shape = shape;
	recall->recall = (struct kvr_recall){.items = items,
		.item_count = layers,
		.query_type = KVR_BF16,
		.budget_tokens = budget,
		.row_capacity = budget};
	return recall;
}

struct bench_recall *bench_recall_close(struct bench_recall *recall)
{
	free(recall->recall.items);
	free(recall->queries);
	free(recall);
	return NULL;
}

void bench_recall_ask(struct bench_recall *recall, struct bench_content *content, uint32_t tokens,
	uint32_t number)
{
	for (uint32_t i = 0; i < recall->recall.item_count; i++)
		bench_query(
			content, recall->recall.items[i].layer, tokens, number, recall->queries[i]);
}

double bench_recall_run(
	struct kvr_client *client, struct bench_recall *recall, uint32_t first, uint32_t count)
{
	struct kvr_recall part = recall->recall;
	uint64_t start;

	part.items += first;
	part.item_count = count;
	start = kvr_clock_ns();
	bench_need(client, kvr_recall(client, &part), "kvr_recall");
	return (double)(kvr_clock_ns() - start) / 1000;
}

uint64_t bench_recall_staged(const struct bench_recall *recall)
{
	uint64_t rows = 0;

	for (uint32_t i = 0; i < recall->recall.item_count; i++) {
		for (uint32_t head = 0; head < recall->shape.kv_heads; head++)
			rows += recall->recall.items[i].rows[head].row_count;
	}
	return rows * recall->shape.dim * 2 * sizeof(uint16_t);
}
