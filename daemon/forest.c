/* SPDX-License-Identifier: Apache-2.0 */
/* forest.c: walks down the directory's forest: match, drop. See directory.h.
 *
 * Walks use an explicit stack, as long as the table: a segment has one parent, so it is pushed at
 * most once. */
#include <string.h>

#include "base/assert.h"
#include "daemon/directory.h"
#include "tiers/store.h"

/* Pushes the READY children that the prompt goes on with; returns the new height. */
static uint32_t push_matching(struct kvr_directory *directory, uint32_t child,
	const uint32_t *tokens, uint32_t count, uint32_t height)
{
	for (; child != KVR_SEGMENT_NONE; child = directory->segments[child].sibling_next) {
		const struct kvr_segment *segment = &directory->segments[child];
		const struct kvr_segment_view *view = &segment->view;

		if (segment->state != KVR_SEGMENT_READY || segment->quarantined ||
			view->token_first > count || view->token_count > count - view->token_first)
			continue;
		if (memcmp(segment->tokens, tokens + view->token_first,
			    view->token_count * sizeof(*tokens)) != 0)
			continue;
		KVR_ASSERT(height < KVR_SEGMENTS_MAX);
		directory->stack[height++] = child;
	}
	return height;
}

uint32_t kvr_directory_match(struct kvr_directory *directory, const struct kvr_model *model,
	const uint32_t *tokens, uint32_t count)
{
	uint32_t height = push_matching(directory, model->child_first, tokens, count, 0);
	uint32_t best = KVR_SEGMENT_NONE, best_tokens = 0;

	while (height > 0) {
		uint32_t index = directory->stack[--height];
		const struct kvr_segment *segment = &directory->segments[index];
		uint32_t end = segment->view.token_first + segment->view.token_count;

		if (end > best_tokens) {
			best = index;
			best_tokens = end;
		}
		height = push_matching(directory, segment->child_first, tokens, count, height);
	}
	return best;
}

/* Lists a subtree in the stack, parents before children; returns how many. */
static uint32_t list_subtree(struct kvr_directory *directory, uint32_t root)
{
	uint32_t count = 0;

	directory->stack[count++] = root;
	for (uint32_t at = 0; at < count; at++) {
		uint32_t child = directory->segments[directory->stack[at]].child_first;

		for (; child != KVR_SEGMENT_NONE; child = directory->segments[child].sibling_next) {
			KVR_ASSERT(count < KVR_SEGMENTS_MAX);
			directory->stack[count++] = child;
		}
	}
	return count;
}

/* The store has it, and counts it when it is asked to drop the same: here it is forgotten. */
static bool counted_below(const struct kvr_segment *segment)
{
	return segment->stored == KVR_STORED_YES;
}

void kvr_directory_drop(
	struct kvr_directory *directory, uint32_t index, struct kvr_dropped_count *ret_dropped)
{
	uint32_t count = list_subtree(directory, index);

	KVR_ASSERT(count >= 1);
	while (count > 0) { /* children first */
		const uint32_t at = directory->stack[--count];
		const struct kvr_segment *segment = &directory->segments[at];

		if (!kvr_directory_idle(directory, at)) {
			ret_dropped->kept_count += !counted_below(segment);
			continue;
		}
		if (!counted_below(segment)) {
			ret_dropped->segment_count++;
			ret_dropped->freed_bytes += segment->payload_bytes + segment->memory_bytes;
		}
		kvr_directory_remove(directory, at);
	}
}

/* A segment that the store let go of has no lease; what follows it, if anything does, is in memory alone. */
void kvr_directory_gone(struct kvr_directory *directory)
{
	struct kvr_dropped_count dropped = {0};
	uint64_t ids[64];
	uint32_t count;

	while ((count = kvr_store_gone(directory->store, ids, 64)) > 0) {
		for (uint32_t i = 0; i < count; i++) {
			const uint32_t index = kvr_directory_find_id(directory, ids[i]);

			if (index == KVR_SEGMENT_NONE)
				continue;
			/* Has it children that are on their way to the store, it stays until they have failed; but
			 * nobody is to match or lease it: its slabs are others' by now. */
			directory->segments[index].quarantined = true;
			directory->segments[index].gone = true;
			kvr_directory_drop(directory, index, &dropped);
		}
	}
}

void kvr_directory_drop_model(struct kvr_directory *directory, struct kvr_model *model,
	struct kvr_dropped_count *ret_dropped)
{
	uint32_t root = model->child_first;

	while (root != KVR_SEGMENT_NONE) {
		uint32_t next = directory->segments[root].sibling_next;

		kvr_directory_drop(directory, root, ret_dropped);
		root = next;
	}
}
