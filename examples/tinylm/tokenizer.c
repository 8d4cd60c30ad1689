/* SPDX-License-Identifier: Apache-2.0 */
/* tokenizer.c: see tokenizer.h.
 *
 * The text is a doubly linked list of symbols, each a run of bytes. Every pair of neighbours whose
 * union is a piece waits in a heap, best first. A pair taken from the heap is stale if one of its
 * symbols has been joined meanwhile: then its length is no longer that of the two together.
 * n characters cost O(n log n). */
#include "examples/tinylm/tokenizer.h"

#include <errno.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "examples/tinylm/model.h"

#define NONE        UINT32_MAX
#define FIRST_BYTE  3u /* id of <0x00> */
#define FIRST_PIECE (FIRST_BYTE + 256u)

static const char space[] = "\xe2\x96\x81"; /* U+2581 */

struct piece {
	const char *text;
	uint32_t bytes;
};

struct tinylm_tokenizer {
	uint8_t *file;
	size_t file_bytes;
	struct piece *pieces; /* by id */
	uint32_t count;
	uint32_t *slots; /* hash table of ids, NONE: empty; linear probing */
	uint32_t slot_mask;
};

struct symbol {
	uint32_t first, bytes; /* of the text; bytes 0: joined to another */
	uint32_t before, after;
};

struct pair {
	uint32_t piece; /* the lower the id, the higher the score */
	uint32_t left, right;
	uint32_t bytes; /* of both together, when the pair was pushed */
};

struct encoder {
	const struct tinylm_tokenizer *tokenizer;
	char *text; /* with spaces replaced */
	struct symbol *symbols;
	struct pair *heap;
	uint32_t symbol_count, heap_count;
};

static uint32_t hash(const char *text, uint32_t bytes)
{
	uint32_t value = 2166136261u; /* FNV-1a */

	for (uint32_t i = 0; i < bytes; i++)
		value = (value ^ (uint8_t)text[i]) * 16777619u;
	return value ^ value >> 15;
}

static uint32_t find(const struct tinylm_tokenizer *tokenizer, const char *text, uint32_t bytes)
{
	if (bytes > TINYLM_PIECE_BYTES)
		return NONE;
	for (uint32_t slot = hash(text, bytes);; slot++) {
		const uint32_t id = tokenizer->slots[slot & tokenizer->slot_mask];

		if (id == NONE || (tokenizer->pieces[id].bytes == bytes &&
					  memcmp(tokenizer->pieces[id].text, text, bytes) == 0))
			return id;
	}
}

/* Fills pieces and slots from the file. Control and byte pieces do not take part in joining. */
static int pieces_read(struct tinylm_tokenizer *tokenizer)
{
	const char *at = (const char *)tokenizer->file;
	const char *end = at + tokenizer->file_bytes;
	uint32_t id = 0;

	for (; at < end && id < tokenizer->count; id++) {
		const char *line_end = memchr(at, '\n', (size_t)(end - at));
		const char *tab = line_end ? memrchr(at, '\t', (size_t)(line_end - at)) : NULL;
		uint32_t slot;

		if (!tab || tab == at || tab - at > (ptrdiff_t)TINYLM_PIECE_BYTES)
			return -EBADMSG;
		tokenizer->pieces[id] = (struct piece){at, (uint32_t)(tab - at)};
		at = line_end + 1;
		if (id < FIRST_PIECE)
			continue;
		/* Ids in the order of falling scores: encoding compares ids for scores. */
		if (strtol(tab + 1, NULL, 10) != -(long)(id - FIRST_PIECE))
			return -EBADMSG;
		slot = hash(tokenizer->pieces[id].text, tokenizer->pieces[id].bytes);
		while (tokenizer->slots[slot & tokenizer->slot_mask] != NONE)
			slot++;
		tokenizer->slots[slot & tokenizer->slot_mask] = id;
	}
	return at == end && id == tokenizer->count && id > FIRST_PIECE ? 0 : -EBADMSG;
}

int tinylm_tokenizer_open(const char *path, uint32_t vocab, uint32_t bytes, uint32_t crc,
	struct tinylm_tokenizer **ret_tokenizer)
{
	struct tinylm_tokenizer *tokenizer = calloc(1, sizeof(*tokenizer));
	uint32_t slot_count = 1;
	int error =
		tokenizer ? tinylm_map(path, &tokenizer->file, &tokenizer->file_bytes) : -ENOMEM;

	if (error)
		goto fail;
	if (tokenizer->file_bytes != bytes || tinylm_crc32(tokenizer->file, bytes) != crc) {
		error = -EBADMSG;
		goto fail;
	}
	while (slot_count < 2 * vocab)
		slot_count *= 2;
	tokenizer->count = vocab;
	tokenizer->slot_mask = slot_count - 1;
	tokenizer->pieces = calloc(vocab, sizeof(*tokenizer->pieces));
	tokenizer->slots = malloc(slot_count * sizeof(*tokenizer->slots));
	if (!tokenizer->pieces || !tokenizer->slots) {
		error = -ENOMEM;
		goto fail;
	}
	memset(tokenizer->slots, 0xff, slot_count * sizeof(*tokenizer->slots));
	error = pieces_read(tokenizer);
	if (error)
		goto fail;
	*ret_tokenizer = tokenizer;
	return 0;
fail:
	tinylm_tokenizer_close(tokenizer);
	return error;
}

struct tinylm_tokenizer *tinylm_tokenizer_close(struct tinylm_tokenizer *tokenizer)
{
	if (!tokenizer)
		return NULL;
	tinylm_unmap(tokenizer->file, tokenizer->file_bytes);
	free(tokenizer->pieces);
	free(tokenizer->slots);
	free(tokenizer);
	return NULL;
}

/* ---- encoding -------------------------------------------------------------------------------- */

static bool better(const struct pair *a, const struct pair *b)
{
	return a->piece != b->piece ? a->piece < b->piece : a->left < b->left;
}

static void heap_push(struct encoder *encoder, struct pair pair)
{
	uint32_t at = encoder->heap_count++;

	for (; at > 0 && better(&pair, &encoder->heap[(at - 1) / 2]); at = (at - 1) / 2)
		encoder->heap[at] = encoder->heap[(at - 1) / 2];
	encoder->heap[at] = pair;
}

static struct pair heap_pop(struct encoder *encoder)
{
	const struct pair best = encoder->heap[0];
	const struct pair last = encoder->heap[--encoder->heap_count];
	uint32_t at = 0;

	for (;;) {
		uint32_t child = 2 * at + 1;

		if (child >= encoder->heap_count)
			break;
		if (child + 1 < encoder->heap_count &&
			better(&encoder->heap[child + 1], &encoder->heap[child]))
			child++;
		if (!better(&encoder->heap[child], &last))
			break;
		encoder->heap[at] = encoder->heap[child];
		at = child;
	}
	encoder->heap[at] = last;
	return best;
}

static void pair_push(struct encoder *encoder, uint32_t left, uint32_t right)
{
	const struct symbol *a, *b;
	uint32_t piece;

	if (left == NONE || right == NONE)
		return;
	a = &encoder->symbols[left];
	b = &encoder->symbols[right];
	piece = find(encoder->tokenizer, encoder->text + a->first, a->bytes + b->bytes);
	if (piece != NONE)
		heap_push(encoder, (struct pair){piece, left, right, a->bytes + b->bytes});
}

/* Bytes of the UTF-8 character at `text`; 1 where there is none. */
static uint32_t character_bytes(const char *text, size_t left)
{
	const uint8_t lead = (uint8_t)text[0];
	uint32_t bytes = lead >= 0xf0 ? 4 : lead >= 0xe0 ? 3 : lead >= 0xc0 ? 2 : 1;

	if (bytes > left)
		return 1;
	for (uint32_t i = 1; i < bytes; i++)
		if (((uint8_t)text[i] & 0xc0) != 0x80)
			return 1;
	return bytes;
}

/* Copies the text with spaces replaced and cuts it into characters. */
static void characters(struct encoder *encoder, const char *text, size_t bytes)
{
	uint32_t to = 0;

	for (size_t from = 0; from < bytes;) {
		struct symbol *symbol = &encoder->symbols[encoder->symbol_count];
		const uint32_t taken = character_bytes(text + from, bytes - from);
		const bool blank = text[from] == ' ';

		symbol->first = to;
		symbol->bytes = blank ? 3 : taken;
		symbol->before = encoder->symbol_count ? encoder->symbol_count - 1 : NONE;
		symbol->after = from + taken < bytes ? encoder->symbol_count + 1 : NONE;
		memcpy(encoder->text + to, blank ? space : text + from, symbol->bytes);
		encoder->symbol_count++;
		to += symbol->bytes;
		from += taken;
	}
}

static void join_all(struct encoder *encoder)
{
	for (uint32_t s = 0; s + 1 < encoder->symbol_count; s++)
		pair_push(encoder, s, s + 1);
	while (encoder->heap_count) {
		const struct pair pair = heap_pop(encoder);
		struct symbol *left = &encoder->symbols[pair.left];
		struct symbol *right = &encoder->symbols[pair.right];

		if (!left->bytes || !right->bytes || left->bytes + right->bytes != pair.bytes)
			continue;
		left->bytes = pair.bytes;
		left->after = right->after;
		if (right->after != NONE)
			encoder->symbols[right->after].before = pair.left;
		right->bytes = 0;
		pair_push(encoder, left->before, pair.left);
		pair_push(encoder, pair.left, left->after);
	}
}

/* The ids of the symbols that are left. */
static int64_t ids_write(const struct encoder *encoder, uint32_t *ret_tokens, size_t max)
{
	size_t count = 0;

	for (uint32_t s = encoder->symbol_count ? 0 : NONE; s != NONE;
		s = encoder->symbols[s].after) {
		const char *text = encoder->text + encoder->symbols[s].first;
		const uint32_t bytes = encoder->symbols[s].bytes;
		const uint32_t piece = find(encoder->tokenizer, text, bytes);

		if (count + (piece != NONE ? 1 : bytes) > max)
			return -ENOBUFS;
		if (piece != NONE)
			ret_tokens[count++] = piece;
		for (uint32_t i = 0; piece == NONE && i < bytes; i++)
			ret_tokens[count++] = FIRST_BYTE + (uint8_t)text[i];
	}
	return (int64_t)count;
}

int64_t tinylm_encode(const struct tinylm_tokenizer *tokenizer, const char *text, size_t bytes,
	uint32_t *ret_tokens, size_t max)
{
	struct encoder encoder = {.tokenizer = tokenizer};
	int64_t count = -ENOMEM;

	if (!bytes)
		return 0;
	if (bytes > NONE / 4)
		return -ENOBUFS;
	encoder.text = malloc(3 * bytes);
	encoder.symbols = malloc(bytes * sizeof(*encoder.symbols));
	/* At most one pair per character to start with, and two more per joint. */
	encoder.heap = malloc(3 * bytes * sizeof(*encoder.heap));
	if (encoder.text && encoder.symbols && encoder.heap) {
		characters(&encoder, text, bytes);
		join_all(&encoder);
		count = ids_write(&encoder, ret_tokens, max);
	}
	free(encoder.text);
	free(encoder.symbols);
	free(encoder.heap);
	return count;
}

size_t tinylm_decode(
	const struct tinylm_tokenizer *tokenizer, uint32_t token, char ret_text[TINYLM_PIECE_BYTES])
{
	size_t bytes = 0;

	if (token < FIRST_BYTE || token >= tokenizer->count)
		return 0;
	if (token < FIRST_PIECE) {
		ret_text[0] = (char)(token - FIRST_BYTE);
		return 1;
	}
	for (uint32_t i = 0; i < tokenizer->pieces[token].bytes;) {
		const char *text = tokenizer->pieces[token].text + i;
		const bool blank =
			tokenizer->pieces[token].bytes - i >= 3 && memcmp(text, space, 3) == 0;

		ret_text[bytes++] = blank ? ' ' : *text;
		i += blank ? 3 : 1;
	}
	return bytes;
}
