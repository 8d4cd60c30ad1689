/* SPDX-License-Identifier: Apache-2.0 */
/* content_util.c: see content_util.h.
 *
 * Normal numbers come from a table, read from a random place on for each row: a gibibyte of keys is
 * made in a second or two. */
#include "bench/content_util.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_util.h"

#define TOPICS       48u
#define DRIFT_TOKENS 1024u
#define TABLE        (1u << 20)
#define CHUNK        512u /* tokens per append, if the region holds so many */

static const float drift_size = 0.6f, noise_size = 0.7f, channel_size = 12.0f;

struct bench_content {
	struct bench_shape shape;
	uint32_t seed;
	float *topic;  /* [lanes][TOPICS][dim] */
	float *drift;  /* [lanes][2][dim] */
	float *large;  /* [dim] */
	float *normal; /* [TABLE + dim] */
};

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9u;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint16_t bf16(float value)
{
	uint32_t bits;

	memcpy(&bits, &value, sizeof(bits));
	return (uint16_t)((bits + 0x7fffu + (bits >> 16 & 1)) >> 16);
}

static float *floats(size_t count)
{
	float *memory = malloc(count * sizeof(*memory));

	if (!memory)
		bench_fail("no memory for %zu numbers", count);
	return memory;
}

static void fill_normal(float *to, size_t count, uint64_t seed)
{
	for (size_t i = 0; i < count; i++) {
		const uint64_t random = mix(seed << 32 ^ i);
		const double u = ((double)(random >> 32) + 1) / 4294967297.0;
		const double v = (double)(random & 0xffffffffu) / 4294967296.0;

		to[i] = (float)(sqrt(-2 * log(u)) * cos(6.283185307179586 * v));
	}
}

struct bench_content *bench_content_open(struct bench_shape shape, uint32_t seed)
{
	const size_t lanes = (size_t)shape.layers * shape.kv_heads;
	struct bench_content *content = malloc(sizeof(*content));

	if (!content)
		bench_fail("no memory");
	content->shape = shape;
	content->seed = seed;
	content->topic = floats(lanes * TOPICS * shape.dim);
	content->drift = floats(lanes * 2 * shape.dim);
	content->large = floats(shape.dim);
	content->normal = floats(TABLE + shape.dim);
	fill_normal(content->topic, lanes * TOPICS * shape.dim, seed * 4ull);
	fill_normal(content->drift, lanes * 2 * shape.dim, seed * 4ull + 1);
	fill_normal(content->normal, TABLE + shape.dim, seed * 4ull + 2);
	for (uint32_t d = 0; d < shape.dim; d++)
		content->large[d] = d == 3 || d == shape.dim - 5 ? channel_size : 0;
	return content;
}

struct bench_content *bench_content_close(struct bench_content *content)
{
	free(content->topic);
	free(content->drift);
	free(content->large);
	free(content->normal);
	free(content);
	return NULL;
}

uint64_t bench_token_bytes(struct bench_shape shape)
{
	return (uint64_t)shape.layers * shape.kv_heads * shape.dim * 2 * sizeof(uint16_t);
}

/* What a token of a lane is about. */
static const float *topic_of(const struct bench_content *content, uint32_t lane, uint32_t token)
{
	const uint64_t random = mix((uint64_t)content->seed << 48 ^ (uint64_t)lane << 32 ^ token);
	const uint32_t index =
		(uint32_t)(((random >> 32) * (random & 0xffffffffu) >> 32) * TOPICS >> 32);

	return content->topic + ((size_t)lane * TOPICS + index) * content->shape.dim;
}

static const float *noise_of(const struct bench_content *content, uint64_t which)
{
	return content->normal + mix(which * 2654435761u + content->seed) % TABLE;
}

void bench_rows(struct bench_content *content, uint32_t layer, uint32_t first, uint32_t count,
	uint16_t *ret_keys, uint16_t *ret_values)
{
	const uint32_t dim = content->shape.dim, heads = content->shape.kv_heads;

	for (uint32_t i = 0; i < count * heads; i++) {
		const uint32_t token = first + i / heads, lane = layer * heads + i % heads;
		const uint64_t which = ((uint64_t)lane << 32 | token) * 2;
		const float *topic = topic_of(content, lane, token);
		const float *key = noise_of(content, which), *value = noise_of(content, which + 1);
		const float *drift = content->drift + (size_t)lane * 2 * dim;
		const float angle = 6.2831853f * (float)(token % DRIFT_TOKENS) / DRIFT_TOKENS;
		const float along = drift_size * cosf(angle), across = drift_size * sinf(angle);

		for (uint32_t d = 0; d < dim; d++) {
			ret_keys[(size_t)i * dim + d] =
				bf16(topic[d] + content->large[d] + along * drift[d] +
					across * drift[dim + d] + noise_size * key[d]);
			ret_values[(size_t)i * dim + d] = bf16(value[d]);
		}
	}
}

void bench_query(struct bench_content *content, uint32_t layer, uint32_t tokens, uint32_t number,
	uint16_t *ret_query)
{
	const uint32_t dim = content->shape.dim;
	const uint32_t group = content->shape.query_heads / content->shape.kv_heads;

	for (uint32_t head = 0; head < content->shape.query_heads; head++) {
		const uint64_t which =
			mix((uint64_t)number << 32 ^ (uint64_t)layer << 16 ^ head) | 1ull << 63;
		const uint32_t lane = layer * content->shape.kv_heads + head / group;
		const float *topic = topic_of(content, lane, (uint32_t)(which % tokens));
		const float *noise = noise_of(content, which);

		for (uint32_t d = 0; d < dim; d++)
			ret_query[(size_t)head * dim + d] = bf16(topic[d] + noise_size * noise[d]);
	}
}

struct kvr_model *bench_model(struct kvr_client *client, struct bench_shape shape)
{
	const struct kvr_model_config config = {
		.name = "bench",
		.digest = {(uint8_t)shape.layers, (uint8_t)shape.kv_heads, (uint8_t)shape.dim},
		.layers = shape.layers,
		.query_heads = shape.query_heads,
		.kv_heads = shape.kv_heads,
		.key_dim = shape.dim,
		.value_dim = shape.dim,
		.type = KVR_BF16,
		.sink_tokens = -1,
	};
	struct kvr_model *model = NULL;

	bench_need(client, kvr_model_register(client, &config, &model), "kvr_model_register");
	return model;
}

struct kvr_sequence *bench_fill(struct kvr_client *client, struct kvr_model *model,
	struct bench_content *content, uint32_t tokens, uint32_t seed)
{
	const struct bench_shape shape = content->shape;
	const size_t row = (size_t)shape.kv_heads * shape.dim;
	struct kvr_append_layer *layers = calloc(shape.layers, sizeof(*layers));
	uint32_t ids[CHUNK], chunk = CHUNK, matched = 0;
	struct kvr_sequence *sequence = NULL;
	size_t region_bytes;
	uint16_t *region = kvr_region(client, &region_bytes);

	while (chunk * bench_token_bytes(shape) > region_bytes)
		chunk /= 2;
	if (!layers || chunk == 0)
		bench_fail("region too small");
	ids[0] = seed << 24;
	bench_need(client, kvr_open(model, ids, 1, &sequence, &matched), "kvr_open");
	for (uint32_t first = 0; first < tokens; first += chunk) {
		const uint32_t count = tokens - first < chunk ? tokens - first : chunk;
		const struct kvr_append append = {
			sequence, first, count, ids, layers, shape.layers};

		for (uint32_t i = 0; i < count; i++)
			ids[i] = seed << 24 | (first + i);
		for (uint32_t layer = 0; layer < shape.layers; layer++) {
			uint16_t *keys = region + layer * 2 * count * row;

			layers[layer] = (struct kvr_append_layer){layer, keys, keys + count * row};
			bench_rows(content, layer, first, count, keys, keys + count * row);
		}
		bench_need(client, kvr_append(client, &append, NULL), "kvr_append");
		/* So that the tail stays short, and with it what the arena has ever used. */
		bench_need(client, kvr_sync(sequence, false, NULL), "kvr_sync");
	}
	free(layers);
	return sequence;
}

struct kvr_sequence *bench_reopen(
	struct kvr_client *client, struct kvr_model *model, uint32_t tokens, uint32_t seed)
{
	uint32_t *ids = calloc(tokens, sizeof(*ids));
	struct kvr_sequence *sequence = NULL;
	uint32_t matched = 0;

	if (!ids)
		bench_fail("no memory");
	for (uint32_t i = 0; i < tokens; i++)
		ids[i] = seed << 24 | i;
	bench_need(client, kvr_open(model, ids, tokens, &sequence, &matched), "kvr_open");
	if (matched != tokens)
		bench_fail("%u of %u tokens are stored", matched, tokens);
	free(ids);
	return sequence;
}
