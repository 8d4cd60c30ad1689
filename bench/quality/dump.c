/* SPDX-License-Identifier: Apache-2.0 */
/* dump.c: see dump.h. */
#include "bench/quality/dump.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/answer.h"
#include "bench/quality/memory.h"
#include "client/cli_npy.h"
#include "kernels/cpu.h"

/* One of the three files. */
static struct kvr_npy open_file(const char *path, const char *which)
{
	char name[512];
	struct kvr_npy_error error;
	struct kvr_npy npy;

	snprintf(name, sizeof(name), "%s_%s.npy", path, which);
	if (kvr_npy_open(name, &npy, &error))
		quality_fail("%s: %s", error.subject, error.remedy);
	if (npy.dim_count != 4)
		quality_fail("%s: %u dimensions, 4 are wanted", name, npy.dim_count);
	if (npy.type != KVR_NPY_F2 && npy.type != KVR_NPY_F4)
		quality_fail("%s: elements of type %s, <f2 or <f4 are wanted", name,
			kvr_npy_descr(npy.type));
	for (uint32_t i = 0; i < 4; i++)
		if (npy.shape[i] > KVR_SEQUENCE_TOKENS_MAX)
			quality_fail(
				"%s: a dimension of %llu", name, (unsigned long long)npy.shape[i]);
	return npy;
}

static enum kvr_dtype dtype_of(const struct kvr_npy *npy)
{
	return npy->type == KVR_NPY_F2 ? KVR_DTYPE_F16 : KVR_DTYPE_F32;
}

static struct kvr_geometry geometry_of(
	const char *path, const struct kvr_npy *k, const struct kvr_npy *v, const struct kvr_npy *q)
{
	const struct kvr_geometry geometry = {.layer_count = (uint32_t)k->shape[0],
		.query_heads = (uint32_t)q->shape[1],
		.kv_heads = (uint32_t)k->shape[1],
		.key_dim = (uint32_t)k->shape[3],
		.value_dim = (uint32_t)v->shape[3],
		.dtype = dtype_of(k),
		.segment_tokens = KVR_SEGMENT_TOKENS,
		.cluster_tokens = KVR_CLUSTER_TOKENS,
		.sink_tokens = QUALITY_SINKS};

	if (memcmp(k->shape, v->shape, 3 * sizeof(k->shape[0])) != 0 || k->type != v->type)
		quality_fail("%s: K and V differ in layers, heads, tokens or type", path);
	if (q->shape[0] != k->shape[0] || q->shape[3] != k->shape[3])
		quality_fail("%s: K and Q differ in layers or dimension", path);
	if (!kvr_geometry_valid(&geometry))
		quality_fail("%s: not a shape that kvrecall serves (base/geometry.h)", path);
	if (kvr_geometry_group(&geometry) > QUALITY_GROUP_MAX)
		quality_fail("%s: more than %u query heads per kv head", path, QUALITY_GROUP_MAX);
	/* A prompt that is shorter has nothing to choose from. */
	if (k->shape[2] < q->shape[2] + 4 * QUALITY_SINKS)
		quality_fail("%s: %llu queries leave too few of %llu tokens for a prompt", path,
			(unsigned long long)q->shape[2], (unsigned long long)k->shape[2]);
	return geometry;
}

/* Tokens `first` on of K and V, as they are. */
static void copy_rows(
	struct quality_rows *rows, const struct kvr_npy *k, const struct kvr_npy *v, uint32_t first)
{
	const size_t key = kvr_geometry_key_bytes(&rows->geometry);
	const size_t value = kvr_geometry_value_bytes(&rows->geometry);
	const uint8_t *keys = k->data.data, *values = v->data.data;

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(&rows->geometry); lane++) {
		const size_t token = lane * k->shape[2] + first;

		memcpy(quality_rows_key(rows, lane, 0), keys + token * key,
			rows->token_count * key);
		memcpy(quality_rows_value(rows, lane, 0), values + token * value,
			rows->token_count * value);
	}
}

static void check_finite(const char *path, const struct kvr_npy *npy)
{
	const uint8_t *data = npy->data.data;
	float x;

	for (uint64_t i = 0; i < npy->element_count; i++) {
		kvr_floats_of(&x, data + i * npy->element_bytes, dtype_of(npy), 1);
		if (!(x - x == 0.0f))
			quality_fail("%s: an element that is not finite", path);
	}
}

void quality_dump_read(const char *path, struct quality_input *ret_input)
{
	struct kvr_npy k = open_file(path, "K"), v = open_file(path, "V"), q = open_file(path, "Q");
	const struct kvr_geometry geometry = geometry_of(path, &k, &v, &q);
	const uint32_t tail = (uint32_t)q.shape[2], tokens = (uint32_t)k.shape[2];
	const uint32_t heads = geometry.layer_count * geometry.query_heads;
	const size_t dim = geometry.key_dim;
	const uint8_t *queries = q.data.data;
	const char *slash = strrchr(path, '/');
	struct quality_input *input = ret_input;

	check_finite(path, &k);
	check_finite(path, &v);
	check_finite(path, &q);
	*input = (struct quality_input){.context_tokens = tokens};
	snprintf(input->name, sizeof(input->name), "%s", slash ? slash + 1 : path);
	quality_rows_open(&input->prompt, &geometry, tokens - tail);
	copy_rows(&input->prompt, &k, &v, 0);
	quality_rows_widen(&input->prompt);
	quality_rows_open(&input->tail, &geometry, tail);
	copy_rows(&input->tail, &k, &v, tokens - tail);
	input->queries = quality_need((size_t)tail * heads * dim, sizeof(float));
	for (uint32_t head = 0; head < heads; head++)
		for (uint32_t i = 0; i < tail; i++)
			kvr_floats_of(input->queries + ((size_t)i * heads + head) * dim,
				queries + ((size_t)head * tail + i) * dim * q.element_bytes,
				dtype_of(&q), dim);
	kvr_npy_close(&k);
	kvr_npy_close(&v);
	kvr_npy_close(&q);
}

/* ---- writing ----------------------------------------------------------------------------------- */

static struct kvr_npy create_file(
	const char *path, const char *which, const uint64_t shape[4], float **ret_data)
{
	char name[512];
	struct kvr_npy_error error;
	struct kvr_npy npy;

	snprintf(name, sizeof(name), "%s_%s.npy", path, which);
	if (kvr_npy_create(name, KVR_NPY_F4, shape, 4, &npy, &error))
		quality_fail("%s: %s", error.subject, error.remedy);
	*ret_data = (float *)(void *)npy.data.data;
	return npy;
}

static void commit_file(struct kvr_npy *npy)
{
	struct kvr_npy_error error;

	if (kvr_npy_commit(npy, &error))
		quality_fail("%s: %s", error.subject, error.remedy);
}

void quality_dump_write(const char *path, const struct quality_input *input)
{
	const struct kvr_geometry *geometry = &input->prompt.geometry;
	const uint32_t prompt = input->prompt.token_count, tail = input->tail.token_count;
	const uint32_t heads = geometry->layer_count * geometry->query_heads;
	const uint64_t shape[3][4] = {
		{geometry->layer_count, geometry->kv_heads, prompt + tail, geometry->key_dim},
		{geometry->layer_count, geometry->kv_heads, prompt + tail, geometry->value_dim},
		{geometry->layer_count, geometry->query_heads, tail, geometry->key_dim}};
	float *keys, *values, *queries;
	struct kvr_npy k = create_file(path, "K", shape[0], &keys);
	struct kvr_npy v = create_file(path, "V", shape[1], &values);
	struct kvr_npy q = create_file(path, "Q", shape[2], &queries);

	for (uint32_t lane = 0; lane < kvr_geometry_lanes(geometry); lane++)
		for (uint32_t t = 0; t < prompt + tail; t++) {
			const struct quality_rows *rows =
				t < prompt ? &input->prompt : &input->tail;
			const uint32_t token = t < prompt ? t : t - prompt;

			kvr_floats_of(keys, quality_rows_key(rows, lane, token), geometry->dtype,
				geometry->key_dim);
			kvr_floats_of(values, quality_rows_value(rows, lane, token),
				geometry->dtype, geometry->value_dim);
			keys += geometry->key_dim;
			values += geometry->value_dim;
		}
	for (uint32_t head = 0; head < heads; head++)
		for (uint32_t i = 0; i < tail; i++, queries += geometry->key_dim)
			memcpy(queries,
				input->queries + ((size_t)i * heads + head) * geometry->key_dim,
				geometry->key_dim * sizeof(float));
	commit_file(&k);
	commit_file(&v);
	commit_file(&q);
}
