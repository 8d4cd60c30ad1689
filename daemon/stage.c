/* SPDX-License-Identifier: Apache-2.0 */
/* stage.c: gaps of a recall, filled from NVMe. */
#include "daemon/stage.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "base/assert.h"
#include "daemon/cache.h"
#include "daemon/daemon.h"
#include "daemon/log.h"

#define SEGMENT_SHIFT 40u /* pieces of all segments in one space: slot, then offset in the stream */
KVR_STATIC_ASSERT((uint64_t)KVR_SLAB_PARTS_MAX *KVR_SLAB_BYTES <= (uint64_t)1 << SEGMENT_SHIFT);

static void pump(struct kvr_stage *stage);

static void wake(struct kvr_waiter *waiter)
{
	pump(KVR_CONTAINER_OF(waiter, struct kvr_stage, waiter));
}

int kvr_stages_open(struct kvr_stages *stages)
{
	stages->entries = calloc(KVR_WORKS_MAX, sizeof(*stages->entries));
	for (uint32_t i = 0; stages->entries && i < KVR_WORKS_MAX; i++)
		kvr_waiter_init(&stages->entries[i].waiter, wake);
	return stages->entries ? 0 : -ENOMEM;
}

/* Bytes of a stage's room: one mapping, of which only what is used takes memory, and which goes back whole. */
static size_t room_bytes(uint32_t chosen)
{
	return chosen * (sizeof(struct kvr_chosen) + sizeof(struct kvr_plan_piece) +
				sizeof(struct kvr_plan_span));
}

static void free_room(struct kvr_stages *stages, struct kvr_stage *stage)
{
	if (stage->chosen_max == 0)
		return;
	KVR_ASSERT(stages->with_room > 0);
	stages->with_room--;
	munmap(stage->chosen, room_bytes(stage->chosen_max));
	stage->chosen = NULL;
	stage->chosen_max = 0;
}

void kvr_stages_close(struct kvr_stages *stages)
{
	for (uint32_t i = 0; stages->entries && i < KVR_WORKS_MAX; i++)
		free_room(stages, &stages->entries[i]);
	free(stages->entries);
	stages->entries = NULL;
}

struct kvr_stage *kvr_stage_of(struct kvr_daemon *daemon, struct kvr_work *work, uint32_t chosen)
{
	struct kvr_stage *stage = &daemon->stages.entries[work - daemon->works.entries];
	void *room;

	KVR_ASSERT(work->pool == &daemon->works);
	/* Every segment rounds its clusters up; the sinks are at most a block. */
	KVR_ASSERT(
		chosen <= KVR_SEQUENCE_CLUSTERS_MAX + KVR_SEQUENCE_SEGMENTS_MAX + KVR_BLOCK_TOKENS);
	stage->work = work;
	if (stage->chosen && chosen <= stage->chosen_max)
		return stage;
	if (chosen < KVR_STAGE_CHOSEN_MAX)
		chosen = KVR_STAGE_CHOSEN_MAX;
	free_room(&daemon->stages, stage);
	room = mmap(NULL, room_bytes(chosen), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
		-1, 0);
	if (room == MAP_FAILED)
		return NULL;
	KVR_STATIC_ASSERT(sizeof(struct kvr_chosen) % _Alignof(struct kvr_plan_piece) == 0);
	KVR_STATIC_ASSERT(sizeof(struct kvr_plan_piece) % _Alignof(struct kvr_plan_span) == 0);
	stage->chosen = room;
	stage->pieces = (struct kvr_plan_piece *)(void *)(stage->chosen + chosen);
	stage->spans = (struct kvr_plan_span *)(void *)(stage->pieces + chosen);
	stage->chosen_max = chosen;
	daemon->stages.with_room++;
	return stage;
}

void kvr_stage_give(struct kvr_daemon *daemon, const struct kvr_work *work)
{
	struct kvr_stages *stages = &daemon->stages;

	if (stages->entries && stages->with_room > KVR_STAGES_KEPT)
		free_room(stages, &stages->entries[work - daemon->works.entries]);
}

/* ---- what a piece stands for ----------------------------------------------------------------- */

struct target {
	const struct kvr_recall_item *item;
	const struct kvr_chosen *chosen;
	uint32_t segment; /* slot in the directory */
};

static uint32_t slot_of(const struct kvr_daemon *daemon, const struct kvr_segment_view *view)
{
	const struct kvr_segment *segment = KVR_CONTAINER_OF(view, const struct kvr_segment, view);

	return (uint32_t)(segment - daemon->directory.segments);
}

/* `tag` is the place in stage->chosen, which the items share in order. */
static struct target target_of(const struct kvr_stage *stage, uint32_t tag)
{
	const struct kvr_work *work = stage->work;
	struct target target = {.chosen = &stage->chosen[tag]};
	uint32_t low = 0, high = work->job.item_count - 1;

	while (low < high) {
		const uint32_t middle = (low + high + 1) / 2;

		if (work->items.recall[middle].chosen <= target.chosen)
			low = middle;
		else
			high = middle - 1;
	}
	target.item = &work->items.recall[low];
	KVR_ASSERT(target.chosen >= target.item->chosen);
	KVR_ASSERT(target.chosen < target.item->chosen + target.item->chosen_count);
	target.segment =
		slot_of(stage->call->daemon, target.item->segments[target.chosen->segment]);
	return target;
}

static const struct kvr_segment *segment_of(const struct kvr_stage *stage, uint64_t offset)
{
	return &stage->call->daemon->directory.segments[offset >> SEGMENT_SHIFT];
}

/* ---- planning -------------------------------------------------------------------------------- */

static void add_piece(struct kvr_stage *stage, const struct kvr_recall_item *item,
	const struct kvr_chosen *chosen)
{
	const struct kvr_segment_view *view = item->segments[chosen->segment];
	struct kvr_slab_layout layout;
	struct kvr_plan_piece *piece = &stage->pieces[stage->piece_count++];
	uint64_t at;

	kvr_slab_layout(view->geometry, view->token_first, view->token_count, &layout);
	at = kvr_slab_unit_at(&layout, view, item->lane, chosen->cluster, &piece->bytes);
	piece->offset = (uint64_t)slot_of(stage->call->daemon, view) << SEGMENT_SHIFT | at;
	piece->tag = (uint32_t)(chosen - stage->chosen);
}

/* Bytes of units that the round takes, as rows are staged: neither tail nor centroids. */
static uint64_t taken_bytes(const struct kvr_work *work)
{
	uint64_t bytes = 0;

	for (uint32_t i = 0; i < work->job.item_count; i++) {
		const struct kvr_recall_item *item = &work->items.recall[i];

		bytes += (uint64_t)(item->row_count - item->tail_count - item->centroid_count) *
			 (kvr_geometry_key_bytes(item->geometry) +
				 kvr_geometry_value_bytes(item->geometry));
	}
	return bytes;
}

bool kvr_stage_start(struct kvr_stage *stage, struct kvr_call *call)
{
	struct kvr_daemon *daemon = call->daemon;
	const struct kvr_work *work = stage->work;
	const struct kvr_plan_rule rule = {daemon->reads.alignment, KVR_PLAN_GAP_BYTES,
		KVR_PLAN_SPAN_BYTES, KVR_WORK_ITEMS_MAX};

	KVR_ASSERT(work->owner == call);
	KVR_ASSERT(call->works_running > 0);
	stage->call = call;
	stage->piece_count = stage->span_count = stage->span_next = 0;
	stage->reads_running = stage->lost_count = 0;
	if (!call->done) /* an audit's repetition says nothing of what is wanted */
		kvr_cache_advance(&daemon->cache, taken_bytes(work));
	for (uint32_t i = 0; i < work->job.item_count; i++) {
		const struct kvr_recall_item *item = &work->items.recall[i];

		for (uint32_t c = 0; c < item->chosen_count; c++) {
			const struct kvr_chosen *chosen = &item->chosen[c];

			if (!call->done)
				kvr_cache_touch(&daemon->cache,
					slot_of(daemon, item->segments[chosen->segment]),
					item->lane, chosen->cluster, chosen->share,
					!chosen->absent);
			if (chosen->absent)
				add_piece(stage, item, chosen);
		}
	}
	if (stage->piece_count == 0)
		return false;
	stage->span_count = kvr_plan(&rule, stage->pieces, stage->piece_count, stage->spans);
	pump(stage);
	return true;
}

/* ---- filling --------------------------------------------------------------------------------- */

void kvr_stage_damaged(struct kvr_daemon *daemon, const struct kvr_segment *damaged, uint32_t lane)
{
	struct kvr_segment *segment =
		&daemon->directory.segments[damaged - daemon->directory.segments];

	if (segment->quarantined)
		return;
	kvr_log(KVR_LOG_ERROR,
		"segment %llu: something of lane %u cannot be read or is damaged; the segment is "
		"not "
		"matched any more; kvrecall verify tells what else is",
		(unsigned long long)segment->id, lane);
	segment->quarantined = true;
	daemon->counters.quarantined++;
	kvr_keep_mark(&daemon->keep, segment);
	kvr_keep_flush(daemon); /* it may be forgotten before the next tick */
}

/* The unit cannot be read: nobody gets it again, and the segment is not matched any more. */
static void lose(struct kvr_stage *stage, const struct target *target)
{
	struct kvr_daemon *daemon = stage->call->daemon;
	struct kvr_segment *segment = &daemon->directory.segments[target->segment];
	const uint32_t lane = target->item->lane, cluster = target->chosen->cluster;

	stage->lost_count++;
	if (kvr_segment_extent(
		    &segment->view, lane)[cluster]) /* another read has succeeded, or lost it */
		return;
	kvr_segment_set_extent(&segment->view, lane, cluster, KVR_EXTENT_LOST);
	kvr_stage_damaged(daemon, segment, lane);
}

static void end_read(struct kvr_stage *stage, struct kvr_read *read)
{
	kvr_read_give(read);
	KVR_ASSERT(stage->reads_running > 0);
	stage->reads_running--;
	pump(stage);
}

static void filled(struct kvr_work *fill)
{
	struct kvr_read *read = fill->owner;
	struct kvr_stage *stage = read->owner;
	struct kvr_cache *cache = &stage->call->daemon->cache;
	uint32_t at = 0;

	for (uint32_t s = 0; s < read->span_count; s++) {
		const struct kvr_plan_span *span = &stage->spans[read->first + s];

		for (uint32_t p = 0; p < span->piece_count && read->spans[s].status == 0; p++) {
			const struct target target =
				target_of(stage, stage->pieces[span->piece_first + p].tag);
			const struct kvr_fill_item *item = &fill->items.fill[at++];

			if (item->status < 0)
				lose(stage, &target);
			if (item->copy && item->status < 0)
				kvr_cache_cancel(cache, target.segment, target.item->lane,
					target.chosen->cluster, item->copy);
			else if (item->copy)
				kvr_cache_insert(cache, target.segment, target.item->lane,
					target.chosen->cluster, item->copy);
		}
	}
	KVR_ASSERT(at == fill->job.item_count);
	kvr_work_give(fill);
	end_read(stage, read);
}

/* The rows of one unit: checked, then to their gap and, if there is room, to where they are kept. */
static void describe(const struct kvr_stage *stage, const struct kvr_plan_piece *piece,
	const uint8_t *payload, struct kvr_fill_item *ret_item)
{
	const struct target target = target_of(stage, piece->tag);
	const struct kvr_recall_item *item = target.item;
	const struct kvr_chosen *chosen = target.chosen;
	const struct kvr_segment *segment = segment_of(stage, piece->offset);
	struct kvr_cache *cache = &stage->call->daemon->cache;

	*ret_item = (struct kvr_fill_item){
		.payload = payload,
		.geometry = item->geometry,
		.row_count = kvr_segment_unit_rows(&segment->view, item->lane, chosen->cluster),
		.crc = segment->crcs[(size_t)item->lane * segment->view.unit_count +
				     chosen->cluster],
		.rows = chosen->rows,
		.keys = item->keys + chosen->row * kvr_geometry_key_bytes(item->geometry),
		.values = item->values + chosen->row * kvr_geometry_value_bytes(item->geometry),
	};
	if (!kvr_segment_extent(&segment->view, item->lane)[chosen->cluster])
		ret_item->copy =
			kvr_cache_reserve(cache, target.segment, item->lane, chosen->cluster);
}

static void fill(struct kvr_read *read)
{
	struct kvr_stage *stage = read->owner;
	struct kvr_works *works = &stage->call->daemon->fill_works;
	struct kvr_work *work = kvr_work_take(works);
	uint32_t count = 0;

	if (!work) {
		kvr_list_push(&works->waiters, &read->waiter.link);
		return;
	}
	for (uint32_t s = 0; s < read->span_count; s++) {
		const struct kvr_plan_span *span = &stage->spans[read->first + s];

		for (uint32_t p = 0; p < span->piece_count; p++) {
			const struct kvr_plan_piece *piece = &stage->pieces[span->piece_first + p];
			const struct target target = target_of(stage, piece->tag);

			if (read->spans[s].status < 0)
				lose(stage, &target);
			else
				describe(stage, piece,
					read->spans[s].memory + (piece->offset - span->offset),
					&work->items.fill[count++]);
		}
	}
	if (count > 0) {
		kvr_work_submit(
			work, KVR_JOB_FILL, count, !kvr_call_background(stage->call), filled, read);
		return;
	}
	kvr_work_give(work);
	end_read(stage, read);
}

static void wake_fill(struct kvr_waiter *waiter)
{
	fill(KVR_CONTAINER_OF(waiter, struct kvr_read, waiter));
}

/* ---- reading --------------------------------------------------------------------------------- */

/* How many of the spans that are left make a read, and the bytes that it needs. */
static uint32_t batch_of(const struct kvr_stage *stage, size_t *ret_bytes)
{
	const struct kvr_reads *reads = &stage->call->daemon->reads;
	uint32_t count = 0, pieces = 0;
	size_t bytes = 0;

	while (stage->span_next + count < stage->span_count && count < KVR_READ_SPANS_MAX) {
		const struct kvr_plan_span *span = &stage->spans[stage->span_next + count];
		const size_t room = kvr_read_room(reads, span->bytes);

		if (count > 0 && (bytes + room > KVR_READ_BYTES ||
					 pieces + span->piece_count > KVR_WORK_ITEMS_MAX))
			break;
		bytes += room;
		pieces += span->piece_count;
		count++;
	}
	KVR_ASSERT(count > 0);
	KVR_ASSERT(pieces <= KVR_WORK_ITEMS_MAX);
	*ret_bytes = bytes;
	return count;
}

/* Starts the next read. False: no buffer is free. */
static bool start_read(struct kvr_stage *stage)
{
	const bool background = kvr_call_background(stage->call);
	size_t bytes;
	const uint32_t count = batch_of(stage, &bytes);
	struct kvr_read *read = kvr_read_take(&stage->call->daemon->reads, bytes);

	if (!read)
		return false;
	read->owner = stage;
	read->first = stage->span_next;
	kvr_waiter_init(&read->waiter, wake_fill);
	for (uint32_t i = 0; i < count; i++) {
		const struct kvr_plan_span *span = &stage->spans[stage->span_next];
		const uint64_t at = span->offset & (((uint64_t)1 << SEGMENT_SHIFT) - 1);

		if (!kvr_read_fits(read, at, span->bytes))
			break;
		kvr_read_add(read, segment_of(stage, span->offset), at, span->bytes);
		stage->span_next++;
	}
	KVR_ASSERT(read->span_count > 0);
	KVR_ASSERT(stage->span_next <= stage->span_count);
	stage->reads_running++;
	kvr_read_submit(read, background ? KVR_TIER_LATER : KVR_TIER_URGENT,
		(uint32_t)(uintptr_t)stage->call, fill);
	return true;
}

static void pump(struct kvr_stage *stage)
{
	struct kvr_daemon *daemon = stage->call->daemon;
	struct kvr_work *work = stage->work;

	while (stage->span_next < stage->span_count) {
		if (start_read(stage))
			continue;
		if (kvr_list_empty(&stage->waiter.link))
			kvr_list_push(&daemon->reads.waiters, &stage->waiter.link);
		return;
	}
	if (stage->reads_running > 0)
		return;
	if (stage->lost_count == 0)
		kvr_recall_filled(work);
	else /* G1 */
		kvr_work_submit(work, KVR_JOB_RECALL, work->job.item_count, work->job.urgent,
			work->done, work->owner);
}
