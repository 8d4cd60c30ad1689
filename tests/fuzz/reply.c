/* SPDX-License-Identifier: Apache-2.0 */
/* reply.c: fuzzes replies, as a client reads them.
 *
 * Goal: no bytes that a daemon can send do more to a client than be refused.
 *
 * Method: the first byte chooses the kind that was asked, the rest is unpacked as the reply to it,
 * in a full arena and in a small one. What is accepted is packed, unpacked and packed again; both
 * packings must agree. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/message_arena.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct kvr_message_arena *arena;
static uint8_t first[KVR_REPLY_BYTES_MAX], second[KVR_REPLY_BYTES_MAX];

static void check(struct kvr_span from, enum kvr_request_kind kind)
{
	struct kvr_reply reply;
	int64_t first_bytes, second_bytes;
	int error = kvr_reply_unpack(from, kind, arena, &reply);

	if (error < 0) {
		KVR_ASSERT(error == -EBADMSG || error == -E2BIG);
		KVR_ASSERT(kvr_message_error(arena)[0] != '\0');
		return;
	}
	KVR_ASSERT(reply.id == kvr_reply_id(from));
	first_bytes = kvr_reply_pack(&reply, arena, (struct kvr_span){first, sizeof(first)});
	KVR_ASSERT(first_bytes > 0);
	error = kvr_reply_unpack(
		(struct kvr_span){first, (size_t)first_bytes}, kind, arena, &reply);
	KVR_ASSERT(error == 0);
	second_bytes = kvr_reply_pack(&reply, arena, (struct kvr_span){second, sizeof(second)});
	KVR_ASSERT(second_bytes == first_bytes);
	KVR_ASSERT(memcmp(first, second, (size_t)first_bytes) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	enum kvr_request_kind kind;
	struct kvr_span from;
	struct kvr_reply reply;

	if (arena == NULL && kvr_message_arena_open(&arena) < 0)
		abort();
	if (size == 0)
		return 0;
	kind = (enum kvr_request_kind)(KVR_REQUEST_PING + data[0] % 14);
	from = (struct kvr_span){(uint8_t *)data + 1, size - 1};
	check(from, kind);
	arena->capacity = (size_t)KVR_MESSAGE_ALIGN * data[size - 1];
	(void)kvr_reply_unpack(from, kind, arena, &reply);
	arena->capacity = sizeof(arena->memory);
	return 0;
}
