/* SPDX-License-Identifier: Apache-2.0 */
/* request.c: fuzzes requests, as the daemon reads them.
 *
 * Goal: no bytes that a client can send do more than be refused.
 *
 * Method: unpack them as a request. What is accepted is packed, unpacked and packed again; both
 * packings must agree, so nothing was lost or invented. Every input is tried in a full arena and in
 * one that is as small as the input's last byte says, so that every allocation fails once. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/message_arena.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static struct kvr_message_arena *arena;
static uint8_t first[KVR_MESSAGE_BYTES_MAX], second[KVR_MESSAGE_BYTES_MAX];

/* 0 if the bytes are a request. */
static int check(struct kvr_span from)
{
	struct kvr_request request;
	int64_t first_bytes, second_bytes;
	int error = kvr_request_unpack(from, arena, &request);

	if (error < 0) {
		KVR_ASSERT(error == -EBADMSG || error == -E2BIG);
		KVR_ASSERT(kvr_message_error(arena)[0] != '\0');
		return error;
	}
	first_bytes = kvr_request_pack(&request, arena, (struct kvr_span){first, sizeof(first)});
	KVR_ASSERT(first_bytes > 0);
	error = kvr_request_unpack((struct kvr_span){first, (size_t)first_bytes}, arena, &request);
	KVR_ASSERT(error == 0);
	second_bytes = kvr_request_pack(&request, arena, (struct kvr_span){second, sizeof(second)});
	KVR_ASSERT(second_bytes == first_bytes);
	KVR_ASSERT(memcmp(first, second, (size_t)first_bytes) == 0);
	return 0;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kvr_span from = {(uint8_t *)data, size};
	struct kvr_request request;

	if (arena == NULL && kvr_message_arena_open(&arena) < 0)
		abort();
	check(from);
	arena->capacity = size > 0 ? (size_t)KVR_MESSAGE_ALIGN * data[size - 1] : 0;
	(void)kvr_request_unpack(from, arena, &request);
	arena->capacity = sizeof(arena->memory);
	return 0;
}
