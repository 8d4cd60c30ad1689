/* SPDX-License-Identifier: Apache-2.0 */
/* message_arena.c: the fixed memory of messages, and protobuf-c's way into it.
 *
 * No policy: what a message may hold is decided in message_check.c and by the readers.
 *
 *   0          used                     capacity
 *   ├── taken ──┤──────── free ─────────┤        taken grows; only a reset takes it back */
#include "proto/message_arena.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/* x86-64's; where pages are larger, madvise refuses and nothing is given back. */
#define PAGE_BYTES 4096u

KVR_STATIC_ASSERT(KVR_MESSAGE_ALIGN >= _Alignof(max_align_t));
KVR_STATIC_ASSERT(offsetof(struct kvr_message_arena, memory) % KVR_MESSAGE_ALIGN == 0);
KVR_STATIC_ASSERT(KVR_MESSAGE_ARENA_BYTES % KVR_MESSAGE_ALIGN == 0);
KVR_STATIC_ASSERT(KVR_REPLY_BYTES_MAX <= KVR_MESSAGE_BYTES_MAX);

/* protobuf-c expects NULL when memory is short and handles it at each of its calls. */
static void *arena_alloc(void *arena, size_t bytes)
{
	return kvr_message_alloc(arena, bytes);
}

/* Nothing is given back before the reset; protobuf-c frees what it drops, and on failure all. */
static void arena_free(void *arena, void *pointer)
{
	(void)arena;
	(void)pointer;
}

int kvr_message_arena_open(struct kvr_message_arena **ret_arena)
{
	/* Not zeroed: pages are touched when a message first needs them. */
	struct kvr_message_arena *arena = malloc(sizeof(*arena));

	if (arena == NULL)
		return -ENOMEM;
	arena->allocator = (ProtobufCAllocator){
		.alloc = arena_alloc,
		.free = arena_free,
		.allocator_data = arena,
	};
	arena->capacity = sizeof(arena->memory);
	arena->used = 0;
	arena->touched = 0;
	kvr_message_reset(arena);
	*ret_arena = arena;
	return 0;
}

struct kvr_message_arena *kvr_message_arena_close(struct kvr_message_arena *arena)
{
	free(arena);
	return NULL;
}

void kvr_message_arena_trim(struct kvr_message_arena *arena)
{
	const uintptr_t page = PAGE_BYTES;
	uintptr_t from = (uintptr_t)(arena->memory + KVR_MESSAGE_KEPT_BYTES);
	uintptr_t end;

	kvr_message_reset(arena);
	if (arena->touched <= KVR_MESSAGE_KEPT_BYTES)
		return;
	KVR_ASSERT(arena->touched <= sizeof(arena->memory));
	from = (from + page - 1) / page * page;
	end = (uintptr_t)(arena->memory + sizeof(arena->memory)) / page * page;
	if (from < end) /* private and anonymous: it reads as zeros when it is next touched */
		madvise((void *)from, end - from, MADV_DONTNEED);
	arena->touched = 0;
}

void kvr_message_reset(struct kvr_message_arena *arena)
{
	KVR_ASSERT(arena->capacity <= sizeof(arena->memory));
	KVR_ASSERT(arena->capacity % KVR_MESSAGE_ALIGN == 0);
	arena->error[0] = '\0';
	arena->touched = arena->used > arena->touched ? arena->used : arena->touched;
	arena->used = 0;
	arena->exhausted = false;
}

void *kvr_message_alloc(struct kvr_message_arena *arena, size_t bytes)
{
	uint8_t *memory = arena->memory + arena->used;

	KVR_ASSERT(arena->used <= arena->capacity);
	KVR_ASSERT(arena->used % KVR_MESSAGE_ALIGN == 0);
	if (bytes > arena->capacity - arena->used) {
		arena->exhausted = true;
		return NULL;
	}
	/* What is left is a multiple of the alignment, so the padding fits too. */
	arena->used += (bytes + KVR_MESSAGE_ALIGN - 1) / KVR_MESSAGE_ALIGN * KVR_MESSAGE_ALIGN;
	KVR_ASSERT(arena->used <= arena->capacity);
	return memory;
}

const char *kvr_message_error(const struct kvr_message_arena *arena)
{
	return arena->error;
}

int kvr_message_refuse(struct kvr_message_arena *arena, int error, const char *format, ...)
{
	va_list list;

	KVR_ASSERT(error == -EBADMSG || error == -E2BIG);
	va_start(list, format);
	vsnprintf(arena->error, sizeof(arena->error), format, list); /* M4 */
	va_end(list);
	return error;
}

int kvr_message_bound(struct kvr_message_arena *arena, const char *field, uint64_t value,
	uint64_t min, uint64_t max)
{
	KVR_ASSERT(min <= max);
	if (value > max)
		return kvr_message_refuse(arena, -E2BIG, "%s is %llu, at most %llu", field,
			(unsigned long long)value, (unsigned long long)max);
	if (value < min)
		return kvr_message_refuse(arena, -EBADMSG, "%s is %llu, at least %llu", field,
			(unsigned long long)value, (unsigned long long)min);
	return 0;
}

int kvr_message_bound_float(
	struct kvr_message_arena *arena, const char *field, float value, float min, float max)
{
	KVR_ASSERT(min <= max);
	KVR_ASSERT(isfinite(min));
	KVR_ASSERT(isfinite(max));
	if (value >= min && value <= max) /* false for NaN */
		return 0;
	return kvr_message_refuse(arena, -EBADMSG, "%s is %g, must be %g to %g", field,
		(double)value, (double)min, (double)max);
}

int kvr_message_unpack(struct kvr_message_arena *arena,
	const ProtobufCMessageDescriptor *descriptor, struct kvr_span from,
	const ProtobufCMessage **ret_message)
{
	const ProtobufCMessage *message;
	int error = kvr_message_check(arena, descriptor, from); /* M1 */

	if (error < 0)
		return error;
	message = protobuf_c_message_unpack(descriptor, &arena->allocator, from.bytes, from.data);
	if (message == NULL && arena->exhausted)
		return kvr_message_refuse(arena, -E2BIG, "%s does not fit %zu bytes when unpacked",
			descriptor->short_name, arena->capacity); /* M2 */
	if (message == NULL)
		return kvr_message_refuse(
			arena, -EBADMSG, "%s cannot be read", descriptor->short_name);
	KVR_ASSERT(message->descriptor == descriptor);
	*ret_message = message;
	return 0;
}

int64_t kvr_message_pack(const ProtobufCMessage *message, struct kvr_span into, size_t bytes_max)
{
	size_t bytes = protobuf_c_message_get_packed_size(message);
	size_t written;

	KVR_ASSERT(bytes_max <= KVR_MESSAGE_BYTES_MAX);
	if (bytes > into.bytes || bytes > bytes_max)
		return -EMSGSIZE;
	written = protobuf_c_message_pack(message, into.data);
	KVR_ASSERT(written == bytes);
	return (int64_t)bytes;
}
