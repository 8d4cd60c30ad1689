/* SPDX-License-Identifier: Apache-2.0 */
/* fetch.c: tokens read back in token order, bit-identical, from chain and tail.
 *
 * A unit is one lane of one segment, or of the tail. Units that are in memory go through the device in rounds, as many as
 * a work holds. Others are read whole, as many neighbours as a read takes, several reads at a time:
 *
 *   read ─► FILL checks every cluster ─► FETCH from a view of its own, whose extents point into the read's buffer
 *
 * What cannot be read or is damaged ends the request with UNREADABLE; nothing wrong is called right.
 *
 * Threads: the core thread's. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/cache.h"
#include "daemon/daemon.h"

#define READS_AT_ONCE \
	12u /* of one request: what the disk needs to be busy, and some to be copied */

/* A unit that is read: a copy of its segment's view, with extents for its lane alone. */
struct unit {
	struct kvr_segment_view view;
	const struct kvr_segment_view *views[1];
	uint32_t layer, head; /* of the request */
};

static bool check_layer(struct kvr_call *call, const struct kvr_wire_layer *layer,
	const struct kvr_sequence *sequence)
{
	const struct kvr_geometry *geometry = &sequence->model->geometry;
	const uint32_t first = call->request.fetch.first, count = call->request.fetch.count;
	const uint64_t rows = (uint64_t)count * geometry->kv_heads;
	uint32_t have;

	if (layer->layer >= geometry->layer_count) {
		kvr_call_refuse(call, KVR_CODE_ARGUMENT, "layer %u: the model has %u", layer->layer,
			geometry->layer_count);
		return false;
	}
	have = sequence->covered + sequence->fill[layer->layer];
	if (first > have || count > have - first) {
		kvr_call_refuse(call, KVR_CODE_RANGE, "tokens %u to %llu; layer %u has %u", first,
			(unsigned long long)first + count, layer->layer, have);
		return false;
	}
	return kvr_call_region(call, layer->keys, rows * kvr_geometry_key_bytes(geometry), "keys")
		       .data &&
	       kvr_call_region(
		       call, layer->values, rows * kvr_geometry_value_bytes(geometry), "values")
		       .data;
}

/* ---- units ----------------------------------------------------------------------------------- */

static uint32_t lane_of(const struct kvr_call *call, uint32_t layer, uint32_t head)
{
	return call->request.fetch.layers[layer].layer * call->sequence->model->geometry.kv_heads +
	       head;
}

/* Where a lane's tokens go; from which segments is the caller's. */
static void describe(
	const struct kvr_call *call, uint32_t at, uint32_t head, struct kvr_fetch_item *ret_item)
{
	const struct kvr_geometry *geometry = &call->sequence->model->geometry;
	const struct kvr_wire_layer *layer = &call->request.fetch.layers[at];
	const size_t key_bytes = kvr_geometry_key_bytes(geometry);
	const size_t value_bytes = kvr_geometry_value_bytes(geometry);
	uint8_t *region = call->session->region.memory.data;

	*ret_item = (struct kvr_fetch_item){
		.tail_first = call->sequence->covered,
		.geometry = geometry,
		.lane = lane_of(call, at, head),
		.first = call->request.fetch.first,
		.count = call->request.fetch.count,
		.keys = region + layer->keys + head * key_bytes,
		.values = region + layer->values + head * value_bytes,
		.key_stride = geometry->kv_heads * key_bytes,
		.value_stride = geometry->kv_heads * value_bytes,
	};
}

/* Whether the range has tokens of the chain's segment `at`; at chain_count: of the tail. */
static bool wanted(const struct kvr_call *call, uint32_t at)
{
	const struct kvr_sequence *sequence = call->sequence;
	const uint32_t first = call->request.fetch.first;
	const uint32_t end = first + call->request.fetch.count;
	const struct kvr_segment_view *view;

	if (at == sequence->chain_count)
		return end > sequence->covered;
	view = sequence->views[at];
	return view->token_first < end && view->token_first + view->token_count > first;
}

/* Moves the cursor (layer, segment, head) to the next unit behind this head, or over segments that are not wanted. */
static void step(struct kvr_call *call)
{
	if (++call->cursor_head < call->sequence->model->geometry.kv_heads)
		return;
	call->cursor_head = 0;
	call->cursor_segment++;
}

static bool has_more(struct kvr_call *call)
{
	if (call->reply.code || call->session->state != KVR_SESSION_ATTACHED)
		return false;
	while (call->cursor_item < call->request.fetch.layer_count) {
		if (call->cursor_segment > call->sequence->chain_count) {
			call->cursor_segment = 0;
			call->cursor_item++;
		} else if (wanted(call, call->cursor_segment)) {
			return true;
		} else {
			call->cursor_segment++;
		}
	}
	return false;
}

/* Whether the unit at the cursor is all in memory. What a running job needs may go meanwhile: then it is read after all. */
static bool here(const struct kvr_call *call, uint32_t head)
{
	const struct kvr_sequence *sequence = call->sequence;
	const uint32_t lane = lane_of(call, call->cursor_item, head);
	const struct kvr_segment_view *view;
	const uint16_t *row_first;

	if (call->cursor_segment == sequence->chain_count)
		return true;
	view = sequence->views[call->cursor_segment];
	row_first = kvr_segment_row_first(view, lane);
	for (uint32_t c = 0; c <= view->cluster_count[lane]; c++) {
		const uint8_t *extent = kvr_segment_extent(view, lane)[c];

		if (row_first[c + 1] > row_first[c] && !extent)
			return false;
	}
	return true;
}

/* Whether the unit at the cursor needs no read. After a round that was overtaken (call->started) all but the tail is read. */
static bool at_hand(const struct kvr_call *call)
{
	const struct kvr_sequence *sequence = call->sequence;
	const struct kvr_segment *segments = call->daemon->directory.segments;

	if (call->cursor_segment == sequence->chain_count ||
		segments[sequence->chain[call->cursor_segment]].stored != KVR_STORED_YES)
		return true; /* there is no other place to read it from */
	return !call->started && here(call, call->cursor_head);
}

/* ---- the end --------------------------------------------------------------------------------- */

static void pump(struct kvr_call *call);

static void unreadable(struct kvr_call *call)
{
	kvr_call_refuse(call, KVR_CODE_UNREADABLE, "tokens %u to %u: some could not be read",
		call->request.fetch.first,
		call->request.fetch.first + call->request.fetch.count - 1);
}

static void end_part(struct kvr_call *call)
{
	struct kvr_sequence *sequence = call->sequence;
	const struct kvr_geometry *geometry = &sequence->model->geometry;

	KVR_ASSERT(call->works_running > 0);
	call->works_running--;
	pump(call);
	if (call->works_running > 0)
		return;
	KVR_ASSERT(sequence->readers > 0);
	sequence->readers--;
	kvr_sequence_touch(sequence);
	if (!call->reply.code)
		call->reply.fetched.staged_bytes =
			(uint64_t)call->request.fetch.layer_count * geometry->kv_heads *
			call->request.fetch.count *
			(kvr_geometry_key_bytes(geometry) + kvr_geometry_value_bytes(geometry));
	if (!call->done)
		call->daemon->counters.fetch_bytes += call->reply.fetched.staged_bytes;
	kvr_work_give(call->work);
	kvr_call_done(call);
}

/* ---- in memory ------------------------------------------------------------------------------- */

static void round_done(struct kvr_work *work)
{
	struct kvr_call *call = work->owner;
	bool lost = false;

	/* A cluster may have gone since the round began: that unit is read, whatever else is here. */
	for (uint32_t i = 0; i < work->job.item_count && work->job.status < 0; i++)
		lost |= work->items.fetch[i].status < 0;
	KVR_ASSERT(lost == (work->job.status < 0));
	if (lost && call->daemon->store && !call->started) {
		call->cursor_item = work->first_item; /* the round again, without memory */
		call->cursor_head = work->first_head;
		call->cursor_segment = call->round_segment;
		call->started = true;
	} else if (lost) {
		unreadable(call);
	}
	KVR_ASSERT(call->round_running);
	call->round_running = false;
	end_part(call);
}

/* A round of units from the cursor on that are in memory. */
static void submit_round(struct kvr_call *call)
{
	struct kvr_work *work = call->work;
	struct kvr_sequence *sequence = call->sequence;
	uint32_t count = 0;

	work->first_item = call->cursor_item;
	work->first_head = call->cursor_head;
	call->round_segment = call->cursor_segment;
	while (count < KVR_WORK_ITEMS_MAX && has_more(call) && at_hand(call)) {
		struct kvr_fetch_item *item = &work->items.fetch[count++];

		describe(call, call->cursor_item, call->cursor_head, item);
		if (call->cursor_segment == sequence->chain_count) {
			item->tail = &sequence->tail;
		} else {
			item->segments = sequence->views + call->cursor_segment;
			item->segment_count = 1;
		}
		step(call);
	}
	KVR_ASSERT(count > 0);
	KVR_ASSERT(!call->round_running);
	call->works_running++;
	call->round_running = true;
	kvr_work_submit(work, KVR_JOB_FETCH, count, !kvr_call_background(call), round_done, call);
}

/* ---- from below ------------------------------------------------------------------------------ */

static size_t lane_bytes(const struct kvr_segment_view *view)
{
	return view->token_count *
	       (kvr_geometry_key_bytes(view->geometry) + kvr_geometry_value_bytes(view->geometry));
}

static size_t unit_bytes(const struct kvr_segment_view *view)
{
	return (sizeof(struct unit) + view->unit_count * sizeof(uint8_t *) + 63) & ~(size_t)63;
}

static struct unit *unit_at(const struct kvr_read *read, uint32_t index)
{
	const struct kvr_segment_view *view = &read->spans[0].segment->view;

	return (struct unit *)(void *)(read->scratch + index * unit_bytes(view));
}

static void end_read(struct kvr_read *read)
{
	struct kvr_call *call = read->owner;

	kvr_read_give(read);
	end_part(call);
}

static void fetched(struct kvr_work *work)
{
	struct kvr_read *read = work->owner;

	KVR_ASSERT(work->job.status == 0); /* all extents are set */
	kvr_work_give(work);
	end_read(read);
}

static void fetch_units(struct kvr_read *read, struct kvr_work *work)
{
	const struct kvr_call *call = read->owner;

	for (uint32_t i = 0; i < read->count; i++) {
		struct unit *unit = unit_at(read, i);
		struct kvr_fetch_item *item = &work->items.fetch[i];

		describe(call, unit->layer, unit->head, item);
		item->segments = unit->views;
		item->segment_count = 1;
	}
	kvr_work_submit(
		work, KVR_JOB_FETCH, read->count, !kvr_call_background(call), fetched, read);
}

static void check_units(struct kvr_read *read, struct kvr_work *work);

/* The clusters of a round were checked. */
static void checked(struct kvr_work *work)
{
	struct kvr_read *read = work->owner;
	struct kvr_call *call = read->owner;
	bool bad = false;

	for (uint32_t i = 0; i < work->job.item_count; i++)
		bad |= work->items.fill[i].status < 0;
	if (bad) {
		kvr_stage_damaged(call->daemon, read->spans[0].segment,
			lane_of(call, unit_at(read, 0)->layer, unit_at(read, 0)->head));
		unreadable(call);
		kvr_work_give(work);
		end_read(read);
	} else if (read->first < read->count) {
		check_units(read, work);
	} else {
		fetch_units(read, work);
	}
}

/* Checks the next clusters, as many as a work holds; read->first and read->cluster say which are next. */
static void check_units(struct kvr_read *read, struct kvr_work *work)
{
	const struct kvr_call *call = read->owner;
	const struct kvr_segment *segment = read->spans[0].segment;
	uint32_t count = 0;

	while (read->first < read->count && count < KVR_WORK_ITEMS_MAX) {
		const struct unit *unit = unit_at(read, read->first);
		const uint32_t lane = lane_of(call, unit->layer, unit->head), c = read->cluster;
		const uint16_t *row_first = kvr_segment_row_first(&segment->view, lane) + c;

		if (row_first[1] > row_first[0])
			work->items.fill[count++] = (struct kvr_fill_item){
				.payload = kvr_segment_extent(&unit->view, lane)[c],
				.geometry = segment->view.geometry,
				.row_count = (uint32_t)(row_first[1] - row_first[0]),
				.crc = segment->crcs[(size_t)lane * segment->view.unit_count + c],
			};
		if (++read->cluster > segment->view.cluster_count[lane]) {
			read->cluster = 0;
			read->first++;
		}
	}
	if (count > 0)
		kvr_work_submit(
			work, KVR_JOB_FILL, count, !kvr_call_background(call), checked, read);
	else /* only a place for sinks was left, without any */
		fetch_units(read, work);
}

/* The read is complete: its bytes are checked before anything else. */
static void read_done(struct kvr_read *read)
{
	struct kvr_call *call = read->owner;
	struct kvr_works *works = &call->daemon->fill_works;
	struct kvr_work *work;

	if (read->spans[0].status < 0) {
		kvr_stage_damaged(call->daemon, read->spans[0].segment,
			lane_of(call, unit_at(read, 0)->layer, unit_at(read, 0)->head));
		unreadable(call);
		end_read(read);
		return;
	}
	work = kvr_work_take(works);
	if (work)
		check_units(read, work);
	else
		kvr_list_push(&works->waiters, &read->waiter.link);
}

static void wake_read(struct kvr_waiter *waiter)
{
	read_done(KVR_CONTAINER_OF(waiter, struct kvr_read, waiter));
}

/* Points a unit's extents into what will be read: its lane begins at `payload`. */
static void aim(struct unit *unit, const struct kvr_call *call, const struct kvr_segment *segment,
	uint32_t head, uint8_t *payload)
{
	const uint32_t lane = lane_of(call, call->cursor_item, head);
	const size_t row_bytes = lane_bytes(&segment->view) / segment->view.token_count;
	const uint16_t *row_first = kvr_segment_row_first(&segment->view, lane);
	uint8_t **extents = (uint8_t **)(void *)(unit + 1);

	unit->view = segment->view;
	/* Lanes before it have no extents, nor have merged sets: only this one's clusters are looked at. */
	unit->view.extent = extents - (size_t)lane * segment->view.unit_count;
	unit->views[0] = &unit->view;
	unit->layer = call->cursor_item;
	unit->head = head;
	for (uint32_t c = 0; c <= segment->view.cluster_count[lane]; c++)
		extents[c] = payload + row_first[c] * row_bytes;
}

/* Starts to read units from the cursor on: neighbours that are not here, while they fit. False: no buffer is free. */
static bool submit_read(struct kvr_call *call)
{
	const struct kvr_sequence *sequence = call->sequence;
	struct kvr_reads *reads = &call->daemon->reads;
	const struct kvr_segment *segment =
		&call->daemon->directory.segments[sequence->chain[call->cursor_segment]];
	const struct kvr_segment_view *view = &segment->view;
	const uint32_t heads = view->geometry->kv_heads, first = call->cursor_head;
	const size_t lane = lane_bytes(view), unit = unit_bytes(view);
	struct kvr_slab_layout layout;
	uint64_t at, from, to;
	struct kvr_read *read;
	uint32_t count = 1;
	uint8_t *memory;

	while (first + count < heads && count < KVR_WORK_ITEMS_MAX &&
		(count + 1) * lane <= KVR_READ_BYTES &&
		(call->started || !here(call, first + count)))
		count++;
	kvr_slab_layout(view->geometry, view->token_first, view->token_count, &layout);
	at = layout.payload_at + (uint64_t)lane_of(call, call->cursor_item, first) * lane;
	from = at & ~(uint64_t)(reads->alignment - 1);
	to = (at + count * lane + reads->alignment - 1) & ~(uint64_t)(reads->alignment - 1);
	read = kvr_read_take(reads, (size_t)(to - from) + count * unit + 64);
	if (!read)
		return false;
	memory = kvr_read_add(read, segment, from, (uint32_t)(to - from)) + (at - from);
	read->scratch = kvr_read_scratch(read, count * unit);
	KVR_ASSERT(read->scratch);
	KVR_ASSERT(read->span_count == 1); /* neighbours in the stream */
	read->owner = call;
	read->first = read->cluster = 0;
	read->count = count;
	kvr_waiter_init(&read->waiter, wake_read);
	for (uint32_t i = 0; i < count; i++, step(call))
		aim(unit_at(read, i), call, segment, first + i, memory + i * lane);
	call->works_running++;
	kvr_read_submit(read, kvr_call_background(call) ? KVR_TIER_LATER : KVR_TIER_NORMAL,
		(uint32_t)(uintptr_t)call, read_done);
	return true;
}

/* ---- the operation --------------------------------------------------------------------------- */

static void wake_work(struct kvr_waiter *waiter)
{
	struct kvr_call *call = KVR_CONTAINER_OF(waiter, struct kvr_work, waiter)->owner;

	end_part(call); /* counted as running while it waited */
}

/* Starts what may start now. */
static void pump(struct kvr_call *call)
{
	while (has_more(call) && call->works_running < READS_AT_ONCE) {
		if (at_hand(call)) {
			if (call->round_running)
				return;
			submit_round(call);
		} else if (!submit_read(call)) {
			if (call->works_running > 0)
				return;
			call->works_running++; /* so that it stays until a buffer is free */
			kvr_waiter_init(&call->work->waiter, wake_work);
			call->work->owner = call;
			kvr_list_push(&call->daemon->reads.waiters, &call->work->waiter.link);
			return;
		}
	}
}

enum kvr_outcome kvr_handle_fetch(struct kvr_daemon *daemon, struct kvr_call *call)
{
	struct kvr_sequence *sequence = kvr_call_sequence(call, call->request.fetch.sequence);

	if (!sequence)
		return KVR_OUTCOME_DONE;
	if (kvr_sequence_queued(sequence) || !kvr_sequence_readable(sequence))
		return kvr_call_wait(call, sequence);
	if (call->request.fetch.count == 0 || call->request.fetch.layer_count == 0)
		return kvr_call_refuse(call, KVR_CODE_ARGUMENT, "no tokens or no layers");
	for (uint32_t i = 0; i < call->request.fetch.layer_count; i++) {
		if (!check_layer(call, &call->request.fetch.layers[i], sequence))
			return KVR_OUTCOME_DONE;
	}
	call->work = kvr_work_take(&daemon->works);
	if (!call->work)
		return kvr_call_wait_work(call, sequence);
	call->sequence = sequence;
	call->cursor_segment = 0;
	call->round_running = false;
	sequence->readers++;
	pump(call);
	KVR_ASSERT(call->works_running > 0);
	return KVR_OUTCOME_PENDING;
}
