/* SPDX-License-Identifier: Apache-2.0 */
/* attach.c: fuzzes what travels on the attach socket.
 *
 * Goal: no bytes on the attach socket do more than be refused, on either side.
 *
 * Method: unpack them as a hello and as a welcome, in a full arena and in a small one. What is
 * accepted is packed, unpacked and packed again; both packings must agree. */
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "proto/message_arena.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define BYTES_MAX 4096u

static struct kvr_message_arena *arena;
static uint8_t first[BYTES_MAX], second[BYTES_MAX];

static const struct kvr_span into_first = {first, sizeof(first)};
static const struct kvr_span into_second = {second, sizeof(second)};

static void check_hello(struct kvr_span from)
{
	struct kvr_hello hello;
	int64_t bytes;
	int error;

	if (kvr_hello_unpack(from, arena, &hello) < 0) {
		KVR_ASSERT(kvr_message_error(arena)[0] != '\0');
		return;
	}
	bytes = kvr_hello_pack(&hello, into_first);
	KVR_ASSERT(bytes > 0);
	error = kvr_hello_unpack((struct kvr_span){first, (size_t)bytes}, arena, &hello);
	KVR_ASSERT(error == 0);
	KVR_ASSERT(kvr_hello_pack(&hello, into_second) == bytes);
	KVR_ASSERT(memcmp(first, second, (size_t)bytes) == 0);
}

static void check_welcome(struct kvr_span from)
{
	struct kvr_welcome welcome;
	int64_t bytes;
	int error;

	if (kvr_welcome_unpack(from, arena, &welcome) < 0) {
		KVR_ASSERT(kvr_message_error(arena)[0] != '\0');
		return;
	}
	bytes = kvr_welcome_pack(&welcome, into_first);
	KVR_ASSERT(bytes > 0);
	error = kvr_welcome_unpack((struct kvr_span){first, (size_t)bytes}, arena, &welcome);
	KVR_ASSERT(error == 0);
	KVR_ASSERT(kvr_welcome_pack(&welcome, into_second) == bytes);
	KVR_ASSERT(memcmp(first, second, (size_t)bytes) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct kvr_span from = {(uint8_t *)data, size};
	struct kvr_hello hello;
	struct kvr_welcome welcome;

	if (arena == NULL && kvr_message_arena_open(&arena) < 0)
		abort();
	check_hello(from);
	check_welcome(from);
	arena->capacity = size > 0 ? (size_t)KVR_MESSAGE_ALIGN * (data[size - 1] % 32u) : 0;
	(void)kvr_hello_unpack(from, arena, &hello);
	(void)kvr_welcome_unpack(from, arena, &welcome);
	arena->capacity = sizeof(arena->memory);
	return 0;
}
