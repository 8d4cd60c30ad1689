/* SPDX-License-Identifier: Apache-2.0 */
/* cli_source.h: what put, recall and fetch have in common: arrays, token ids, the model.
 *
 * Keys and values in files: [layer][kv head][token][dim]. In the region: [token][kv head][dim], one
 * such block per layer. kvr_source_move turns one into the other. */
#ifndef KVR_CLIENT_CLI_SOURCE_H
#define KVR_CLIENT_CLI_SOURCE_H

#include "client/cli.h"
#include "client/cli_npy.h"

/* The options, as given. */
struct kvr_source_options {
	const char *model;
	const char *digest; /* hexadecimal; NULL: of the name */
	const char *keys, *values;
	const char *tokens;
	uint32_t tokens_from; /* 0: not given */
	const char *dtype;
	const char *dense;
};

/* Rows of a table of options. */
#define KVR_SOURCE_TOKENS(options)                                                  \
	{"tokens", 'T', KVR_CLI_TEXT, false, &(options)->tokens, "FILE",            \
		"token ids: a .npy of u4, i4 or i8, one per token"},                \
	{                                                                           \
		"tokens-from", 0, KVR_CLI_U32, false, &(options)->tokens_from, "N", \
			"make ids below N from the content, so that equal\n"        \
			"content matches; without --tokens: 2147483648"             \
	}
#define KVR_SOURCE_DENSE(options)                                             \
	{                                                                     \
		"dense", 0, KVR_CLI_TEXT, false, &(options)->dense, "LAYERS", \
			"layers that are recalled whole, like 0-1,5; they\n"  \
			"belong to the model: give the same ones each time"   \
	}
#define KVR_SOURCE_DTYPE(options)                                           \
	{                                                                   \
		"dtype", 0, KVR_CLI_TEXT, false, &(options)->dtype, "bf16", \
			"elements of type <u2 or V2 are bfloat16"           \
	}

struct kvr_source {
	struct kvr_npy keys, values; /* data.data NULL: not given */
	enum kvr_type type;          /* of keys and values */
	uint32_t layers, kv_heads, key_dim, value_dim;
	uint32_t *tokens; /* [token_count]; owned */
	uint32_t token_count;
};

/* Maps the arrays if they are named, checks that they fit together, and reads or makes token ids.
 * Works on zeroed memory. Errors are reported. */
int kvr_source_open(
	struct kvr_cli *cli, const struct kvr_source_options *options, struct kvr_source *source);
void kvr_source_close(struct kvr_source *source);

/* Opens one array for kvr_source_open and for queries. Reports errors. */
int kvr_source_array(struct kvr_cli *cli, const char *path, uint32_t dim_count, const char *axes,
	struct kvr_npy *ret_array);

/* Reports what kvr_npy_* refused. Returns `error`. */
int kvr_source_refused(struct kvr_cli *cli, int error, const struct kvr_npy_error *why);

/* The type of elements, which are keys, values or queries. Reports errors. */
int kvr_source_type(struct kvr_cli *cli, const struct kvr_npy *array, const char *path,
	const char *dtype, enum kvr_type *ret_type);
uint32_t kvr_source_type_bytes(enum kvr_type type);
enum kvr_npy_type kvr_source_npy_type(enum kvr_type type);

/* The digest named on the command line, or one made from the model's name. */
int kvr_source_digest(
	struct kvr_cli *cli, const char *hex, const char *name, uint8_t ret_digest[32]);

/* Finds a model by its name, or by the daemon's number for it. Of several with one name, the only
 * one that holds segments is meant. Reports errors. */
int kvr_source_find(struct kvr_cli *cli, const char *name, struct kvr_model_info *ret_info);

/* Opens the stored sequence that begins with the source's tokens, with the model named. At least one
 * token matches, else the error is reported. */
int kvr_source_sequence(struct kvr_cli *cli, const struct kvr_source_options *options,
	const struct kvr_source *source, struct kvr_model_info *ret_info,
	struct kvr_sequence **ret_sequence, uint32_t *ret_matched);

/* One head's run of tokens in a file, and where it lies in the region. */
struct kvr_source_move {
	uint8_t *file;         /* [layer][head][file_tokens][row_bytes] */
	uint8_t *region;       /* [count][heads][row_bytes], of `layer` */
	uint32_t layer, heads; /* heads: kv heads */
	uint64_t file_tokens;  /* tokens of the file */
	uint64_t file_first;   /* the first to move */
	uint32_t count;
	size_t row_bytes;
	bool to_region;
};

/* Copies one layer's rows. */
void kvr_source_move(const struct kvr_source_move *move);

#endif
