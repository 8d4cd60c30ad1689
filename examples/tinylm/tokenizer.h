/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.h: text to token ids and back: byte-pair encoding as SentencePiece does it.
 *
 * tokenizer.vocab holds one piece a line, "piece TAB score"; the line number is the id. A piece of
 * score s was the -s-th merge. "▁" (U+2581) stands for a space, "<0xNN>" for a byte. Ids 0, 1 and 2
 * are <unk>, <s> (starts a document) and </s>. Nothing is normalised and no space is added in front.
 *
 * Encoding starts from single characters and joins, again and again, the two neighbours whose union
 * is the piece with the highest score (the leftmost of equals), until no union is a piece. Characters
 * that are no piece become their UTF-8 bytes; so do bytes that are not UTF-8.
 *
 * Threads: read-only after opening; any.
 * Source: Sennrich et al., arXiv 1508.07909; Kudo and Richardson, arXiv 1808.06226. */
#ifndef TINYLM_TOKENIZER_H
#define TINYLM_TOKENIZER_H

#include <stddef.h>
#include <stdint.h>

#define TINYLM_TOKEN_START 1u
#define TINYLM_PIECE_BYTES 64u /* longest piece */

struct tinylm_tokenizer;

/* Reads `path`, which must have `vocab` lines, `bytes` bytes and this CRC-32 (model.h).
 * Errors: those of open; -EBADMSG, -ENOMEM. */
int tinylm_tokenizer_open(const char *path, uint32_t vocab, uint32_t bytes, uint32_t crc,
	struct tinylm_tokenizer **ret_tokenizer);
struct tinylm_tokenizer *tinylm_tokenizer_close(struct tinylm_tokenizer *tokenizer);

/* Writes up to `max` ids (no <s>) and returns how many. Errors: -ENOBUFS, -ENOMEM. A text has at most
 * as many tokens as bytes, or three per "▁" in it. */
int64_t tinylm_encode(const struct tinylm_tokenizer *tokenizer, const char *text, size_t bytes,
	uint32_t *ret_tokens, size_t max);

/* The text of one token: at most TINYLM_PIECE_BYTES bytes, not terminated; nothing for <s> and </s>.
 * Returns how many. A character may be spread over several byte tokens. */
size_t tinylm_decode(const struct tinylm_tokenizer *tokenizer, uint32_t token,
	char ret_text[TINYLM_PIECE_BYTES]);

#endif
