/* SPDX-License-Identifier: Apache-2.0 */
/* minimal.c: the smallest engine: one layer of one kv head, with invented keys and values.
 *
 * It appends 4,096 tokens, asks for the 256 that a query needs, and attends over them. Start it twice:
 * the second time it finds its prefix in the daemon and appends nothing. README.md quotes it.
 * Not an example of error handling: it prints what was refused and ends. */
#include <kvrecall.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

enum { DIM = 64, TOKENS = 4096, ROWS = 256 + 16 };

/* Where the engine wants things in the region it shares with the daemon: its own choice. */
struct layout {
	float query[DIM], keys[TOKENS * DIM], values[TOKENS * DIM];
	float row_keys[ROWS * DIM], row_values[ROWS * DIM];
	struct kvr_rows rows;
};

/* A key per topic, plus some noise; the value of a token is its topic. 16 topics, 256 tokens each. */
static void invent(struct layout *at, uint32_t *tokens)
{
	for (int t = 0; t < TOKENS; t++) {
		int topic = t / 256;

		tokens[t] = (uint32_t)t;
		for (int d = 0; d < DIM; d++) {
			at->keys[t * DIM + d] = 3.0f * sinf(0.37f * (float)((topic + 1) * d)) +
						0.1f * sinf((float)(t * 7 + d));
			at->values[t * DIM + d] = (float)topic;
		}
	}
	memcpy(at->query, &at->keys[1000 * DIM], sizeof(at->query)); /* asks for topic 3 */
}

static float attend(const struct layout *at)
{
	float sum = 0, out = 0;

	for (uint32_t r = 0; r < at->rows.row_count; r++) {
		float logit = 0;

		for (int d = 0; d < DIM; d++)
			logit += at->query[d] * at->row_keys[r * DIM + (uint32_t)d];
		sum += expf(logit / 8 - 40);
		out += expf(logit / 8 - 40) * at->row_values[r * DIM];
	}
	return out / sum;
}

static int engine(struct kvr_client *client, uint32_t *tokens)
{
	/* The digest says what the keys and values come from: who registers the same may get yours. */
	struct kvr_model_config config = {.name = "minimal",
		.digest = "minimal: no weights, no RoPE",
		.sink_tokens = -1,
		.type = KVR_F32};
	struct kvr_recall_item item = {0};
	struct kvr_recall recall = {.items = &item, .item_count = 1, .query_type = KVR_F32};
	struct kvr_model *model;
	struct kvr_sequence *sequence;
	uint32_t matched;
	size_t bytes;
	struct layout *at = kvr_region(client, &bytes); /* 64 MiB if nobody asks for more */

	invent(at, tokens);
	config.layers = config.query_heads = config.kv_heads = 1;
	config.key_dim = config.value_dim = DIM;
	if (kvr_model_register(client, &config, &model) < 0 ||
		kvr_open(model, tokens, TOKENS, &sequence, &matched) < 0)
		return -1;
	if (matched < TOKENS) { /* the rest of the prompt is not there yet */
		struct kvr_append_layer layer = {
			0, at->keys + matched * DIM, at->values + matched * DIM};
		struct kvr_append append = {
			sequence, matched, TOKENS - matched, tokens + matched, &layer, 1};

		if (kvr_append(client, &append, NULL) < 0 || kvr_sync(sequence, true, NULL) < 0)
			return -1;
	}
	item.sequence = sequence;
	item.query = at->query;
	item.keys = at->row_keys; /* the rows land where the engine says */
	item.values = at->row_values;
	item.rows = &at->rows;
	recall.budget_tokens = 256;
	recall.row_capacity = ROWS;
	recall.sinks = true;
	if (kvr_recall(client, &recall) < 0)
		return -1;
	printf("matched %u of %d tokens; %u rows hold %.1f %% of the attention; output %.3f\n",
		matched, TOKENS, at->rows.row_count, 100.0 * (double)at->rows.mass,
		(double)attend(at));
	return kvr_close(sequence, false);
}

int main(void)
{
	static uint32_t tokens[TOKENS];
	struct kvr_client *client;
	int result = kvr_connect(NULL, &client);

	if (result < 0) {
		fprintf(stderr, "minimal: no daemon: %s\n", strerror(-result));
		return 1;
	}
	result = engine(client, tokens);
	if (result < 0)
		fprintf(stderr, "minimal: %s: %s; %s\n", kvr_error(client)->name,
			kvr_error(client)->subject, kvr_error(client)->remedy);
	kvr_disconnect(client);
	return result < 0;
}
