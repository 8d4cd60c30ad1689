/* SPDX-License-Identifier: Apache-2.0 */
/* forward.c: see forward.h. All buffers are [batch][width]; nothing is allocated per pass. */
#include "examples/tinylm/forward.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

struct tinylm_forward {
	const struct tinylm_model *model;
	const struct tinylm_math *math;
	uint32_t batch;
	float *stream;        /* [batch][D] the residual stream */
	float *normed;        /* [batch][D] */
	float *queries, *out; /* [batch][H * Dh] */
	float *keys, *values; /* [batch][K * Dh] */
	uint16_t *keys16, *values16;
	float *gate, *up;       /* [batch][F] */
	float *cosines, *sines; /* [batch][Dh / 2] */
	double *turns;          /* [Dh / 2] radians per position */
	float *memory;          /* the floats above */
};

int tinylm_forward_open(const struct tinylm_model *model, const struct tinylm_math *math,
	uint32_t batch, struct tinylm_forward **ret_forward)
{
	struct tinylm_forward *forward = calloc(1, sizeof(*forward));
	const size_t query_width = (size_t)model->query_heads * model->head_dim;
	const size_t kv_width = (size_t)model->kv_heads * model->head_dim;
	const uint32_t half = model->head_dim / 2;
	const size_t widths[] = {model->dim, model->dim, query_width, query_width, kv_width,
		kv_width, model->ffn, model->ffn, half, half};
	float **const to[] = {&forward->stream, &forward->normed, &forward->queries, &forward->out,
		&forward->keys, &forward->values, &forward->gate, &forward->up, &forward->cosines,
		&forward->sines};
	size_t total = 0;

	if (!forward)
		return -ENOMEM;
	forward->model = model;
	forward->math = math;
	forward->batch = batch;
	for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++)
		total += widths[i] * batch;
	forward->memory = calloc(total, sizeof(float));
	forward->keys16 = calloc(kv_width * batch, sizeof(uint16_t));
	forward->values16 = calloc(kv_width * batch, sizeof(uint16_t));
	forward->turns = calloc(half, sizeof(double));
	if (!forward->memory || !forward->keys16 || !forward->values16 || !forward->turns) {
		tinylm_forward_close(forward);
		return -ENOMEM;
	}
	total = 0;
	for (size_t i = 0; i < sizeof(widths) / sizeof(widths[0]); i++) {
		*to[i] = forward->memory + total;
		total += widths[i] * batch;
	}
	for (uint32_t i = 0; i < half; i++)
		forward->turns[i] = pow((double)model->rope_theta, -2.0 * i / model->head_dim);
	*ret_forward = forward;
	return 0;
}

struct tinylm_forward *tinylm_forward_close(struct tinylm_forward *forward)
{
	if (!forward)
		return NULL;
	free(forward->memory);
	free(forward->keys16);
	free(forward->values16);
	free(forward->turns);
	free(forward);
	return NULL;
}

static void rms_norm(const struct tinylm_forward *forward, const float *gain, uint32_t count)
{
	const uint32_t dim = forward->model->dim;

	for (uint32_t t = 0; t < count; t++) {
		const float *x = forward->stream + (size_t)t * dim;
		float *out = forward->normed + (size_t)t * dim;
		float squares = 0;
		float inverse;

		for (uint32_t d = 0; d < dim; d++)
			squares += x[d] * x[d];
		inverse = 1 / sqrtf(squares / (float)dim + forward->model->norm_eps);
		for (uint32_t d = 0; d < dim; d++)
			out[d] = x[d] * inverse * gain[d];
	}
}

/* x [count][heads][Dh] in place. */
static void rope(const struct tinylm_forward *forward, float *x, uint32_t heads, uint32_t count)
{
	const uint32_t half = forward->model->head_dim / 2;

	for (uint32_t t = 0; t < count; t++)
		for (uint32_t head = 0; head < heads; head++)
			for (uint32_t i = 0; i < half; i++) {
				const float c = forward->cosines[t * half + i];
				const float s = forward->sines[t * half + i];
				float *pair = x + (((size_t)t * heads + head) * half + i) * 2;
				const float a = pair[0];
				const float b = pair[1];

				pair[0] = a * c - b * s;
				pair[1] = a * s + b * c;
			}
}

static void multiply(const struct tinylm_forward *forward, float *out, const float *x,
	const float *panels, uint32_t count, uint32_t outputs, uint32_t inner)
{
	forward->math->matmul(out, outputs, x, inner, panels, count, outputs, inner);
}

static void add(float *to, const float *what, size_t count)
{
	for (size_t i = 0; i < count; i++)
		to[i] += what[i];
}

/* Attention of one layer, from the stream to the stream. */
static int attention(struct tinylm_forward *forward, struct tinylm_cache *cache,
	const struct tinylm_pass *pass, uint32_t l)
{
	const struct tinylm_model *model = forward->model;
	const struct tinylm_layer *layer = &model->layers[l];
	const uint32_t query_width = model->query_heads * model->head_dim;
	const uint32_t kv_width = model->kv_heads * model->head_dim;
	const uint32_t n = pass->count;
	int error;

	rms_norm(forward, layer->norm1, n);
	multiply(forward, forward->queries, forward->normed, layer->wq, n, query_width, model->dim);
	rope(forward, forward->queries, model->query_heads, n);
	if (!pass->held) {
		multiply(forward, forward->keys, forward->normed, layer->wk, n, kv_width,
			model->dim);
		multiply(forward, forward->values, forward->normed, layer->wv, n, kv_width,
			model->dim);
		rope(forward, forward->keys, model->kv_heads, n);
		for (size_t i = 0; i < (size_t)n * kv_width; i++) {
			forward->keys16[i] = tinylm_to_bf16(forward->keys[i]);
			forward->values16[i] = tinylm_to_bf16(forward->values[i]);
		}
	}
	error = cache->ops->attend(cache, &(struct tinylm_layer_pass){.pass = pass,
						  .layer = l,
						  .queries = forward->queries,
						  .keys = forward->keys16,
						  .values = forward->values16,
						  .out = forward->out});
	if (error)
		return error;
	multiply(forward, forward->normed, forward->out, layer->wo, n, model->dim, query_width);
	add(forward->stream, forward->normed, (size_t)n * model->dim);
	return 0;
}

/* SwiGLU of one layer: down(silu(gate(x)) * up(x)). */
static void feed_forward(struct tinylm_forward *forward, uint32_t l, uint32_t count)
{
	const struct tinylm_model *model = forward->model;
	const struct tinylm_layer *layer = &model->layers[l];

	rms_norm(forward, layer->norm2, count);
	multiply(forward, forward->gate, forward->normed, layer->w1, count, model->ffn, model->dim);
	multiply(forward, forward->up, forward->normed, layer->w3, count, model->ffn, model->dim);
	for (size_t i = 0; i < (size_t)count * model->ffn; i++)
		forward->up[i] *= forward->gate[i] / (1 + expf(-forward->gate[i]));
	multiply(forward, forward->normed, forward->up, layer->w2, count, model->dim, model->ffn);
	add(forward->stream, forward->normed, (size_t)count * model->dim);
}

int tinylm_forward_run(struct tinylm_forward *forward, struct tinylm_cache *cache,
	const struct tinylm_pass *pass, float *ret_logits, uint32_t logit_count)
{
	const struct tinylm_model *model = forward->model;
	const uint32_t half = model->head_dim / 2;
	int error;

	if (!pass->count || pass->count > forward->batch || logit_count > pass->count ||
		pass->first > model->context || pass->count > model->context - pass->first)
		return -EINVAL;
	for (uint32_t t = 0; t < pass->count; t++) {
		if (pass->tokens[t] >= model->vocab)
			return -EINVAL;
		tinylm_model_embed(
			model, pass->tokens[t], forward->stream + (size_t)t * model->dim);
		for (uint32_t i = 0; i < half; i++) {
			const double angle = (pass->first + t) * forward->turns[i];

			forward->cosines[t * half + i] = (float)cos(angle);
			forward->sines[t * half + i] = (float)sin(angle);
		}
	}
	error = cache->ops->begin(cache, pass);
	for (uint32_t l = 0; !error && l < model->layer_count; l++) {
		error = attention(forward, cache, pass, l);
		if (!error)
			feed_forward(forward, l, pass->count);
	}
	if (!error)
		error = cache->ops->end(cache, pass);
	if (error || !logit_count)
		return error;
	rms_norm(forward, model->norm, pass->count);
	multiply(forward, ret_logits,
		forward->normed + (size_t)(pass->count - logit_count) * model->dim,
		model->embedding, logit_count, model->vocab, model->dim);
	return 0;
}

int tinylm_forward_prefill(struct tinylm_forward *forward, struct tinylm_cache *cache,
	const uint32_t *tokens, uint32_t first, uint32_t count, float *ret_logits)
{
	for (uint32_t done = 0; done < count;) {
		const uint32_t part = count - done < forward->batch ? count - done : forward->batch;
		const struct tinylm_pass pass = {tokens + done, first + done, part, false};
		int error;

		done += part;
		error = tinylm_forward_run(
			forward, cache, &pass, ret_logits, done == count && ret_logits ? 1 : 0);
		if (error)
			return error;
	}
	return 0;
}
