/* SPDX-License-Identifier: Apache-2.0 */
/* cli_source.c: arrays, token ids and the model, as put, recall and fetch need them.
 *
 * Token ids made from content: every token's rows of all lanes are hashed, the hashes are chained,
 * and an id is taken from the chain. So equal beginnings get equal ids, and from the first token
 * that differs on, all ids differ (but for one in N by chance). The hash is not cryptographic: the
 * ids are for trying things out with arrays that came without ids.
 *
 * Threads: one. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/limits.h"
#include "client/cli_source.h"

#define TOKENS_FROM 0x80000000u /* ids below it fit a signed integer too */
#define LIST_PAGE   16u

/* ---- types ----------------------------------------------------------------------------------- */

uint32_t kvr_source_type_bytes(enum kvr_type type)
{
	return type == KVR_F32 ? 4 : 2;
}

enum kvr_npy_type kvr_source_npy_type(enum kvr_type type)
{
	/* bfloat16 has no name in numpy; <u2 is what every version can read. */
	return type == KVR_F32 ? KVR_NPY_F4 : type == KVR_F16 ? KVR_NPY_F2 : KVR_NPY_U2;
}

int kvr_source_type(struct kvr_cli *cli, const struct kvr_npy *array, const char *path,
	const char *dtype, enum kvr_type *ret_type)
{
	bool bf16 = dtype && !strcmp(dtype, "bf16");

	if (dtype && !bf16)
		return kvr_cli_usage(
			cli, "--dtype takes bf16 only; f16 and f32 are named in files");
	if (array->type == KVR_NPY_F4)
		*ret_type = KVR_F32;
	else if (array->type == KVR_NPY_F2)
		*ret_type = KVR_F16;
	else if (bf16 && (array->type == KVR_NPY_U2 || array->type == KVR_NPY_V2))
		*ret_type = KVR_BF16;
	else
		return kvr_cli_refuse(cli, EINVAL,
			"give f16 or f32, or bfloat16 as <u2 or V2 together with --dtype bf16",
			"%s: elements of type %s are no keys, values or queries", path,
			kvr_npy_descr(array->type));
	return 0;
}

/* ---- arrays ---------------------------------------------------------------------------------- */

int kvr_source_refused(struct kvr_cli *cli, int error, const struct kvr_npy_error *why)
{
	kvr_cli_refuse(cli, -error, why->remedy, "%s", why->subject);
	return error;
}

int kvr_source_array(struct kvr_cli *cli, const char *path, uint32_t dim_count, const char *axes,
	struct kvr_npy *ret_array)
{
	struct kvr_npy_error why;
	struct kvr_npy array;
	int error = kvr_npy_open(path, &array, &why);

	if (error)
		return kvr_source_refused(cli, error, &why);
	for (uint32_t i = 0; i < array.dim_count && !error; i++)
		if (array.shape[i] > UINT32_MAX)
			error = -E2BIG;
	if (!error && array.dim_count == dim_count) {
		*ret_array = array;
		return 0;
	}
	kvr_cli_refuse(cli, error ? E2BIG : EINVAL, "", "%s: %u dimensions, not %s", path,
		array.dim_count, axes);
	kvr_npy_close(&array);
	return error ? error : -EINVAL;
}

static int open_arrays(
	struct kvr_cli *cli, const struct kvr_source_options *options, struct kvr_source *source)
{
	const char *axes = "4: [layer][kv head][token][dim]";
	const uint64_t *k = source->keys.shape, *v = source->values.shape;
	enum kvr_type value_type = 0;
	int error = kvr_source_array(cli, options->keys, 4, axes, &source->keys);

	if (!error)
		error = kvr_source_array(cli, options->values, 4, axes, &source->values);
	if (!error)
		error = kvr_source_type(
			cli, &source->keys, options->keys, options->dtype, &source->type);
	if (!error)
		error = kvr_source_type(
			cli, &source->values, options->values, options->dtype, &value_type);
	if (error)
		return error;
	if (value_type != source->type || k[0] != v[0] || k[1] != v[1] || k[2] != v[2])
		return kvr_cli_refuse(cli, EINVAL, "give keys and values of the same tokens",
			"%s and %s differ in type, layers, kv heads or tokens", options->keys,
			options->values);
	if (k[2] > KVR_SEQUENCE_TOKENS_MAX)
		return kvr_cli_refuse(cli, E2BIG, "split it",
			"%s: %llu tokens exceed the limit of %u", options->keys,
			(unsigned long long)k[2], KVR_SEQUENCE_TOKENS_MAX);
	/* The daemon refuses more too; here these numbers size arrays and products. */
	if (k[0] > KVR_LAYERS_MAX || k[1] > KVR_KV_HEADS_MAX || k[3] > KVR_DIM_MAX ||
		v[3] > KVR_DIM_MAX)
		return kvr_cli_refuse(cli, E2BIG,
			"give [layer][kv head][token][dim], in this order of axes",
			"%s: %llu layers, %llu kv heads, dim %llu exceed %u, %u, %u", options->keys,
			(unsigned long long)k[0], (unsigned long long)k[1],
			(unsigned long long)k[3], KVR_LAYERS_MAX, KVR_KV_HEADS_MAX, KVR_DIM_MAX);
	source->layers = (uint32_t)k[0];
	source->kv_heads = (uint32_t)k[1];
	source->token_count = (uint32_t)k[2];
	source->key_dim = (uint32_t)k[3];
	source->value_dim = (uint32_t)v[3];
	return 0;
}

void kvr_source_move(const struct kvr_source_move *move)
{
	size_t bytes = move->row_bytes, step = move->heads * bytes;

	for (uint32_t head = 0; head < move->heads; head++) {
		uint64_t lane = (uint64_t)move->layer * move->heads + head;
		uint8_t *file = move->file + (lane * move->file_tokens + move->file_first) * bytes;
		uint8_t *region = move->region + head * bytes;

		for (uint32_t i = 0; i < move->count; i++, file += bytes, region += step)
			if (move->to_region)
				memcpy(region, file, bytes);
			else
				memcpy(file, region, bytes);
	}
}

/* ---- token ids ------------------------------------------------------------------------------- */

/* Mixes one word into a hash: a full multiply folded onto itself. */
static uint64_t mix(uint64_t hash, uint64_t word)
{
	__uint128_t product =
		(__uint128_t)(hash ^ 0x9e3779b97f4a7c15u) * (word ^ 0xd6e8feb86659fd93u);

	return (uint64_t)product ^ (uint64_t)(product >> 64) ^ (hash << 32 | hash >> 32);
}

static uint64_t mix_bytes(uint64_t hash, const uint8_t *data, size_t bytes)
{
	uint64_t word = 0;

	for (; bytes >= 8; data += 8, bytes -= 8) {
		memcpy(&word, data, 8);
		hash = mix(hash, word);
	}
	word = 0;
	memcpy(&word, data, bytes);
	return bytes ? mix(hash, word) : hash;
}

static int make_tokens(struct kvr_source *source, uint32_t below)
{
	size_t row[2] = {source->key_dim * (size_t)source->keys.element_bytes,
		source->value_dim * (size_t)source->values.element_bytes};
	const uint8_t *at[2] = {source->keys.data.data, source->values.data.data};
	uint64_t *hashes = calloc(source->token_count, sizeof(*hashes));
	uint64_t chain = 1;

	source->tokens = malloc(source->token_count * sizeof(*source->tokens));
	if (!hashes || !source->tokens) {
		free(hashes);
		return -ENOMEM;
	}
	/* File order, for the sake of the page cache: a lane's tokens lie together. */
	for (uint32_t lane = 0; lane < source->layers * source->kv_heads; lane++)
		for (uint32_t i = 0; i < source->token_count; i++)
			for (int part = 0; part < 2; part++, at[part - 1] += row[part - 1])
				hashes[i] = mix_bytes(hashes[i], at[part], row[part]);
	for (uint32_t i = 0; i < source->token_count; i++) {
		chain = mix(chain, hashes[i]);
		source->tokens[i] = (uint32_t)((chain >> 32) % below);
	}
	free(hashes);
	return 0;
}

static int64_t token_at(const struct kvr_npy *array, uint64_t index)
{
	const uint8_t *at = array->data.data + index * array->element_bytes;
	int64_t wide;
	int32_t narrow;
	uint32_t plain;

	/* Copies, because a file's elements need not be aligned. */
	if (array->type == KVR_NPY_I8) {
		memcpy(&wide, at, sizeof(wide));
		return wide;
	}
	if (array->type == KVR_NPY_I4) {
		memcpy(&narrow, at, sizeof(narrow));
		return narrow;
	}
	memcpy(&plain, at, sizeof(plain));
	return plain;
}

static int read_tokens(struct kvr_cli *cli, const char *path, struct kvr_source *source)
{
	struct kvr_npy array;
	int error = kvr_source_array(cli, path, 1, "1: [token]", &array);

	if (error)
		return error;
	if (array.type != KVR_NPY_U4 && array.type != KVR_NPY_I4 && array.type != KVR_NPY_I8)
		error = kvr_cli_refuse(cli, EINVAL, "save them as <u4, <i4 or <i8",
			"%s: elements of type %s are no token ids", path,
			kvr_npy_descr(array.type));
	else if (array.element_count > KVR_SEQUENCE_TOKENS_MAX)
		error = kvr_cli_refuse(cli, E2BIG, "split it", "%s: more than %u tokens", path,
			KVR_SEQUENCE_TOKENS_MAX);
	else if (source->token_count && source->token_count != array.element_count)
		error = kvr_cli_refuse(cli, EINVAL, "give one token id per token",
			"%s: %llu token ids for %u tokens", path,
			(unsigned long long)array.element_count, source->token_count);
	if (!error) {
		source->token_count = (uint32_t)array.element_count;
		source->tokens = malloc(source->token_count * sizeof(*source->tokens));
		if (!source->tokens)
			error = kvr_cli_refuse(cli, ENOMEM, "", "%s: no memory", path);
	}
	for (uint32_t i = 0; source->tokens && i < source->token_count && !error; i++) {
		int64_t token = token_at(&array, i);

		if (token < 0 || token > UINT32_MAX)
			error = kvr_cli_refuse(cli, ERANGE, "token ids have 32 bits",
				"%s: token %u is %lld", path, i, (long long)token);
		else
			source->tokens[i] = (uint32_t)token;
	}
	kvr_npy_close(&array);
	return error;
}

int kvr_source_open(
	struct kvr_cli *cli, const struct kvr_source_options *options, struct kvr_source *source)
{
	int error = 0;

	if (!options->keys != !options->values)
		return kvr_cli_usage(cli, "--keys and --values go together");
	if (options->tokens && options->tokens_from)
		return kvr_cli_usage(cli, "--tokens and --tokens-from exclude each other");
	if (!options->tokens && !options->keys)
		return kvr_cli_usage(cli, "say which tokens: --tokens, or --keys and --values");
	if (options->tokens_from == 1)
		return kvr_cli_usage(cli, "--tokens-from takes 2 or more");
	if (options->keys)
		error = open_arrays(cli, options, source);
	if (error)
		return error;
	if (options->tokens)
		return read_tokens(cli, options->tokens, source);
	error = make_tokens(source, options->tokens_from ? options->tokens_from : TOKENS_FROM);
	return error ? kvr_cli_refuse(cli, -error, "", "no memory for token ids") : 0;
}

void kvr_source_close(struct kvr_source *source)
{
	kvr_npy_close(&source->keys);
	kvr_npy_close(&source->values);
	free(source->tokens);
	*source = (struct kvr_source){0};
}

/* ---- the model ------------------------------------------------------------------------------- */

int kvr_source_digest(
	struct kvr_cli *cli, const char *hex, const char *name, uint8_t ret_digest[32])
{
	if (hex && kvr_cli_hex(hex, ret_digest) != 64)
		return kvr_cli_usage(cli, "--digest takes 64 hexadecimal digits");
	for (uint64_t i = 0; !hex && i < 4; i++) {
		uint64_t word = mix_bytes(mix(i + 1, i), (const uint8_t *)name, strlen(name));

		memcpy(ret_digest + 8 * i, &word, 8);
	}
	return 0;
}

/* Whether a model goes by this name; a number is a name if no model has it as its name. */
static bool named(const struct kvr_model_info *info, const char *name, bool by_number)
{
	char number[16];

	snprintf(number, sizeof(number), "%u", info->model);
	return !strcmp(by_number ? number : info->name, name);
}

/* Goes through all models. Returns how many have the name, or -errno; of those that hold segments
 * (or of all, if none does) *ret_info is the last and *ret_best says how many there are. */
static int search(struct kvr_cli *cli, const char *name, bool by_number,
	struct kvr_model_info *ret_info, uint32_t *ret_best)
{
	struct kvr_model_info page[LIST_PAGE];
	uint32_t first = 0, empty = 0, full = 0;

	for (;;) {
		int got = kvr_model_list(cli->client, first, page, LIST_PAGE);

		if (got < 0)
			return kvr_cli_refused(cli, got);
		for (int i = 0; i < got; i++) {
			if (!named(&page[i], name, by_number))
				continue;
			if (!page[i].segment_count && full) {
				empty++;
				continue;
			}
			*ret_info = page[i];
			*(page[i].segment_count ? &full : &empty) += 1;
		}
		if (!got)
			break;
		first += (uint32_t)got;
	}
	*ret_best = full ? full : empty;
	return (int)(full + empty);
}

int kvr_source_find(struct kvr_cli *cli, const char *name, struct kvr_model_info *ret_info)
{
	struct kvr_model_info info = {0};
	uint32_t best = 0;
	int found = search(cli, name, false, &info, &best);

	if (!found)
		found = search(cli, name, true, &info, &best);
	if (found < 0)
		return found;
	if (!found)
		return kvr_cli_refuse(cli, ENOENT, "kvrecall models lists those there are",
			"no model '%s'", name);
	if (best > 1)
		return kvr_cli_refuse(cli, EINVAL,
			"name it by its number, which kvrecall models shows",
			"%u models are called '%s'", best, name);
	/* Sizes arrays and divides: not taken on trust, though it comes from the daemon. */
	if (!info.layers || info.layers > KVR_LAYERS_MAX || !info.kv_heads || !info.query_heads)
		return kvr_cli_refuse(cli, EPROTO, "use a tool of the daemon's version",
			"model '%s' has a geometry that cannot be", name);
	*ret_info = info;
	return 0;
}

/* Registers what the daemon has: the way to a handle. The list does not tell dense lanes. */
static int model_open(struct kvr_cli *cli, const struct kvr_model_info *info, const char *dense,
	struct kvr_model **ret_model)
{
	uint32_t lanes[KVR_LANES_MAX];
	struct kvr_model_config config = {
		.name = info->name,
		.layers = info->layers,
		.query_heads = info->query_heads,
		.kv_heads = info->kv_heads,
		.key_dim = info->key_dim,
		.value_dim = info->value_dim,
		.type = info->type,
		.segment_tokens = info->segment_tokens,
		.cluster_tokens = info->cluster_tokens,
		.sink_tokens = (int32_t)info->sink_tokens,
		.rank = info->rank,
		.merged = info->merged, /* a part of what the model is */
		.dense_lanes = lanes,
	};
	int count = dense ? kvr_cli_lanes(dense, info->layers, info->kv_heads, lanes, KVR_LANES_MAX)
			  : 0;
	int error;

	if (count < 0)
		return kvr_cli_usage(cli, "--dense takes layers below %u, like 0-1,5, not '%s'",
			info->layers, dense);
	config.dense_count = (uint32_t)count;
	memcpy(config.digest, info->digest, sizeof(config.digest));
	error = kvr_model_register(cli->client, &config, ret_model);
	return error ? kvr_cli_refused(cli, error) : 0;
}

int kvr_source_sequence(struct kvr_cli *cli, const struct kvr_source_options *options,
	const struct kvr_source *source, struct kvr_model_info *ret_info,
	struct kvr_sequence **ret_sequence, uint32_t *ret_matched)
{
	struct kvr_model *model = NULL;
	int error = kvr_source_find(cli, options->model, ret_info);

	if (!error)
		error = model_open(cli, ret_info, options->dense, &model);
	if (error)
		return error;
	error = kvr_open(model, source->tokens, source->token_count, ret_sequence, ret_matched);
	if (error)
		return kvr_cli_refused(cli, error);
	if (*ret_matched)
		return 0;
	kvr_close(*ret_sequence, true);
	*ret_sequence = NULL;
	return kvr_cli_refuse(cli, ENOENT,
		"put them first; give --dense as put had it, if it had it",
		"model '%s' holds none of these tokens", options->model);
}
