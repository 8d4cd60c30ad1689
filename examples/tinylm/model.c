/* SPDX-License-Identifier: Apache-2.0 */
/* model.c: see model.h. The file is checked completely before a size in it is used. */
#include "examples/tinylm/model.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "examples/tinylm/math.h"

#define HEADER_BYTES 128u
#define VERSION      1u
#define WIDTH_MAX    65536u /* any dimension: keeps products of two within 32 bits */

static const uint8_t magic[8] = "tinylm\0";

/* Where reading and writing have got to. */
struct cursor {
	const uint8_t *from;
	float *to;
};

int tinylm_map(const char *path, uint8_t **ret_data, size_t *ret_bytes)
{
	const int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct stat stat;
	void *data;
	int error = 0;

	if (fd < 0)
		return -errno;
	if (fstat(fd, &stat) < 0)
		error = -errno;
	else if (stat.st_size <= 0)
		error = -EBADMSG;
	data = error ? MAP_FAILED : mmap(NULL, (size_t)stat.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (!error && data == MAP_FAILED)
		error = -errno;
	close(fd);
	if (error)
		return error;
	*ret_data = data;
	*ret_bytes = (size_t)stat.st_size;
	return 0;
}

void tinylm_unmap(uint8_t *data, size_t bytes)
{
	if (data)
		munmap(data, bytes);
}

uint32_t tinylm_crc32(const uint8_t *data, size_t bytes)
{
	uint32_t table[256];
	uint32_t crc = 0xffffffffu;

	for (uint32_t i = 0; i < 256; i++) {
		table[i] = i;
		for (int bit = 0; bit < 8; bit++)
			table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320u : 0);
	}
	for (size_t i = 0; i < bytes; i++)
		crc = crc >> 8 ^ table[(crc ^ data[i]) & 0xff];
	return ~crc;
}

static uint32_t get32(const uint8_t *from)
{
	uint32_t value;

	memcpy(&value, from, sizeof(value));
	return value;
}

static float get_float(const uint8_t *from)
{
	float value;

	memcpy(&value, from, sizeof(value));
	return value;
}

/* Floats that the tensors take in memory. The dimensions have been checked. */
static uint64_t float_count(const struct tinylm_model *model)
{
	const uint64_t heads = (uint64_t)model->query_heads * model->head_dim;
	const uint64_t kv = (uint64_t)model->kv_heads * model->head_dim;
	const uint64_t layer =
		2 + 2 * heads + 2 * kv + 3 * (uint64_t)model->ffn; /* times D: norms, q o, k v, w */

	return model->dim * (model->vocab + layer * model->layer_count + 1);
}

/* Bytes of the file: int8 in place of f32 for the matrices, and a scale per row. */
static uint64_t file_bytes(const struct tinylm_model *model)
{
	const uint64_t norms = (uint64_t)model->dim * (2 * model->layer_count + 1);
	const uint64_t rows = (uint64_t)model->query_heads * model->head_dim +
			      2 * (uint64_t)model->kv_heads * model->head_dim +
			      2 * (uint64_t)model->dim + 2 * (uint64_t)model->ffn;

	return HEADER_BYTES + float_count(model) - norms +
	       4 * (norms + model->vocab + model->layer_count * rows);
}

static int header_read(struct tinylm_model *model, const uint8_t *data, size_t bytes)
{
	uint64_t size;

	if (bytes < HEADER_BYTES || memcmp(data, magic, sizeof(magic)) != 0 ||
		get32(data + 8) != VERSION ||
		get32(data + 12) != tinylm_crc32(data + 16, bytes - 16))
		return -EBADMSG;
	model->dim = get32(data + 16);
	model->ffn = get32(data + 20);
	model->layer_count = get32(data + 24);
	model->query_heads = get32(data + 28);
	model->kv_heads = get32(data + 32);
	model->head_dim = get32(data + 36);
	model->vocab = get32(data + 40);
	model->context = get32(data + 44);
	model->rope_theta = get_float(data + 48);
	model->norm_eps = get_float(data + 52);
	memcpy(&size, data + 56, sizeof(size));
	memcpy(model->digest, data + 64, sizeof(model->digest));
	model->vocab_bytes = get32(data + 96);
	model->vocab_crc = get32(data + 100);
	if (!model->dim || !model->ffn || !model->layer_count || !model->query_heads ||
		!model->kv_heads || !model->head_dim || !model->vocab || !model->context ||
		!(model->rope_theta > 1) || !(model->norm_eps > 0))
		return -EBADMSG;
	if (model->dim > WIDTH_MAX || model->ffn > WIDTH_MAX || model->vocab > WIDTH_MAX ||
		model->head_dim > WIDTH_MAX || model->layer_count > TINYLM_LAYERS_MAX ||
		model->query_heads > TINYLM_HEADS_MAX || model->kv_heads > model->query_heads)
		return -E2BIG;
	if (model->dim % TINYLM_PANEL || model->ffn % TINYLM_PANEL || model->vocab % TINYLM_PANEL ||
		model->head_dim % TINYLM_PANEL || model->query_heads % model->kv_heads)
		return -EBADMSG;
	return size == bytes && size == file_bytes(model) ? 0 : -EBADMSG;
}

static const float *read_floats(struct cursor *at, uint32_t count)
{
	float *to = at->to;

	memcpy(to, at->from, (size_t)count * 4);
	at->from += (size_t)count * 4;
	at->to += count;
	return to;
}

/* scale[rows], int8 [rows][columns] -> panels [rows / PANEL][columns][PANEL]. */
static const float *read_matrix(struct cursor *at, uint32_t rows, uint32_t columns)
{
	const uint8_t *scales = at->from;
	const int8_t *numbers = (const int8_t *)at->from + (size_t)rows * 4;
	float *to = at->to;

	for (uint32_t r = 0; r < rows; r++) {
		const float scale = get_float(scales + (size_t)r * 4);
		float *panel = to + (size_t)(r / TINYLM_PANEL) * columns * TINYLM_PANEL;

		for (uint32_t c = 0; c < columns; c++)
			panel[(size_t)c * TINYLM_PANEL + r % TINYLM_PANEL] =
				scale * (float)numbers[(size_t)r * columns + c];
	}
	at->from += (size_t)rows * 4 + (size_t)rows * columns;
	at->to += (size_t)rows * columns;
	return to;
}

int tinylm_model_open(const char *path, struct tinylm_model **ret_model)
{
	struct tinylm_model *model = calloc(1, sizeof(*model));
	struct cursor at = {0};
	uint8_t *data = NULL;
	size_t bytes = 0;
	int error = model ? tinylm_map(path, &data, &bytes) : -ENOMEM;

	if (error)
		goto fail;
	error = header_read(model, data, bytes);
	if (error)
		goto fail;
	error = posix_memalign((void **)&model->memory, 64, float_count(model) * sizeof(float));
	if (error) {
		error = -error;
		goto fail;
	}
	at = (struct cursor){data + HEADER_BYTES, model->memory};
	model->embedding = read_matrix(&at, model->vocab, model->dim);
	for (uint32_t l = 0; l < model->layer_count; l++) {
		struct tinylm_layer *layer = &model->layers[l];
		const uint32_t kv_width = model->kv_heads * model->head_dim;
		const uint32_t query_width = model->query_heads * model->head_dim;

		layer->norm1 = read_floats(&at, model->dim);
		layer->wq = read_matrix(&at, query_width, model->dim);
		layer->wk = read_matrix(&at, kv_width, model->dim);
		layer->wv = read_matrix(&at, kv_width, model->dim);
		layer->wo = read_matrix(&at, model->dim, query_width);
		layer->norm2 = read_floats(&at, model->dim);
		layer->w1 = read_matrix(&at, model->ffn, model->dim);
		layer->w2 = read_matrix(&at, model->dim, model->ffn);
		layer->w3 = read_matrix(&at, model->ffn, model->dim);
	}
	model->norm = read_floats(&at, model->dim);
	tinylm_unmap(data, bytes);
	*ret_model = model;
	return 0;
fail:
	tinylm_unmap(data, bytes);
	tinylm_model_close(model);
	return error;
}

struct tinylm_model *tinylm_model_close(struct tinylm_model *model)
{
	if (model)
		free(model->memory);
	free(model);
	return NULL;
}

void tinylm_model_embed(const struct tinylm_model *model, uint32_t token, float *out)
{
	const float *panel =
		model->embedding + (size_t)(token / TINYLM_PANEL) * model->dim * TINYLM_PANEL;

	for (uint32_t d = 0; d < model->dim; d++)
		out[d] = panel[(size_t)d * TINYLM_PANEL + token % TINYLM_PANEL];
}
