/* SPDX-License-Identifier: Apache-2.0 */
/* model.h: the weights, read from weights.tlm and checked.
 *
 * weights.tlm, little-endian; written by convert.py:
 *
 *   OFFSET SIZE MEANING
 *        0    8 magic "tinylm\0\0"
 *        8    4 version: 1
 *       12    4 CRC-32 (zlib's polynomial) of everything from offset 16 to the end
 *       16    4 D: width of the residual stream
 *       20    4 F: width of the feed-forward part
 *       24    4 L: layers
 *       28    4 H: query heads
 *       32    4 K: kv heads; H is a multiple of K
 *       36    4 Dh: dimension of a head
 *       40    4 V: vocabulary
 *       44    4 longest context trained on, tokens
 *       48    4 f32: theta of RoPE
 *       52    4 f32: epsilon of RMSNorm
 *       56    8 size of the file
 *       64   32 digest: SHA-256 of bytes 16-63 and 128 to the end. Names the model; not checked
 *       96    4 size of tokenizer.vocab, which belongs to these weights
 *      100    4 its CRC-32
 *      104   24 zero
 *      128      tensors
 *
 * A matrix [rows][columns] is stored as f32 scale[rows], then int8 [rows][columns]: weight = scale *
 * int8. Tensors, in this order: embedding [V][D]; for each layer norm1 f32 [D], wq [H * Dh][D],
 * wk [K * Dh][D], wv [K * Dh][D], wo [D][H * Dh], norm2 f32 [D], w1 [F][D], w2 [D][F], w3 [F][D];
 * at the end the final norm f32 [D]. The embedding is also the output matrix.
 *
 * In memory the matrices are f32 in panels (math.h): four times the file, and nothing to unpack per
 * token.
 *
 * Threads: read-only after opening; any. */
#ifndef TINYLM_MODEL_H
#define TINYLM_MODEL_H

#include <stddef.h>
#include <stdint.h>

#define TINYLM_DIGEST_BYTES 32u
#define TINYLM_HEADS_MAX    64u /* bounds arrays on the stack */
#define TINYLM_LAYERS_MAX   64u

struct tinylm_layer {
	const float *norm1, *norm2;     /* [D] */
	const float *wq, *wk, *wv, *wo; /* panels */
	const float *w1, *w2, *w3;      /* panels; gate, down, up */
};

struct tinylm_model {
	uint32_t dim, ffn, layer_count, query_heads, kv_heads, head_dim, vocab, context;
	float rope_theta, norm_eps;
	uint8_t digest[TINYLM_DIGEST_BYTES];
	uint32_t vocab_bytes, vocab_crc; /* of tokenizer.vocab */
	const float *embedding;          /* panels [V / PANEL][D][PANEL] */
	const float *norm;               /* [D] */
	struct tinylm_layer layers[TINYLM_LAYERS_MAX];
	float *memory; /* everything above lies here */
};

/* Reads `path`. Errors: those of open; -EBADMSG (not such a file, another version, CRC, a size that
 * does not fit), -E2BIG (dimensions beyond the limits), -ENOMEM. */
int tinylm_model_open(const char *path, struct tinylm_model **ret_model);
struct tinylm_model *tinylm_model_close(struct tinylm_model *model);

/* out [D] f32 = the embedding of `token` < V. */
void tinylm_model_embed(const struct tinylm_model *model, uint32_t token, float *out);

/* CRC-32 as zlib computes it. */
uint32_t tinylm_crc32(const uint8_t *data, size_t bytes);

/* Maps a whole file for reading. Errors: those of open and mmap; -EBADMSG for an empty one. */
int tinylm_map(const char *path, uint8_t **ret_data, size_t *ret_bytes);
void tinylm_unmap(uint8_t *data, size_t bytes);

#endif
