/* SPDX-License-Identifier: Apache-2.0 */
/* recall.c: the rows that queries need, into the client's region.
 *
 *   check all items ─► readers + 1 ─► rounds: RECALL items for some heads ─► gaps? ─► stage.h ─┐
 *                                       ▲                                                     │ table rows
 *                                       └───────────── more heads ◄───────────────────────────┤
 *                                                                        readers - 1, reply ◄─┘
 *
 * Without a store a round takes as many heads as a work holds, and one runs after the other. With one rounds are small
 * and several run at once: while one reads what is not in memory, the next one chooses.
 *
 * Everything is checked before anything is staged: a refused recall has written nothing. What the
 * client does with its region meanwhile can spoil its own rows and nothing else. */
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "daemon/daemon.h"
#include "daemon/recall_item.h"

#define ROUND_ITEMS 16u /* with a store */
#define ROUNDS_MAX  4u  /* likewise, at once */

static void round_done(struct kvr_work *work);

/* Gives each item its part of the stage's list. Returns how many items there is room for; 0: no memory. */
static uint32_t share_out(struct kvr_call *call, struct kvr_work *work, uint32_t count)
{
	uint32_t needed = 0, fitting = 0, at = 0;
	struct kvr_stage *stage;

	for (uint32_t i = 0; i < count; i++) {
		work->items.recall[i].chosen_max = kvr_recall_chosen_max(&work->items.recall[i]);
		if (i > 0 && needed + work->items.recall[i].chosen_max > KVR_STAGE_CHOSEN_MAX)
			break;
		needed += work->items.recall[i].chosen_max;
		fitting++;
	}
	stage = kvr_stage_of(call->daemon, work, needed);
	for (uint32_t i = 0; stage && i < fitting; i++) {
		work->items.recall[i].chosen = stage->chosen + at;
		at += work->items.recall[i].chosen_max;
	}
	return stage ? fitting : 0;
}

/* Fills the work from the cursor on. False: no memory. */
static bool submit_round(struct kvr_call *call, struct kvr_work *work)
{
	const bool stored = call->daemon->stages.entries != NULL;
	const uint32_t max = stored ? ROUND_ITEMS : KVR_WORK_ITEMS_MAX;
	uint32_t at_item = call->cursor_item, at_head = call->cursor_head, count = 0;

	work->first_item = at_item;
	work->first_head = at_head;
	while (count < max && at_item < call->request.recall.item_count) {
		kvr_recall_describe(call, at_item, at_head, &work->items.recall[count]);
		if (++at_head == kvr_recall_heads(call, work->items.recall[count++].geometry)) {
			at_head = 0;
			at_item++;
		}
	}
	KVR_ASSERT(count > 0);
	KVR_ASSERT(count <= max);
	if (stored)
		count = share_out(call, work, count);
	if (count == 0)
		return false;
	KVR_ASSERT(call->works_running < ROUNDS_MAX);
	for (uint32_t i = 0; i < count; i++) {
		if (++call->cursor_head == kvr_recall_heads(call, work->items.recall[i].geometry)) {
			call->cursor_head = 0;
			call->cursor_item++;
		}
	}
	call->works_running++;
	kvr_work_submit(work, KVR_JOB_RECALL, count, !kvr_call_background(call), round_done, call);
	return true;
}

/* Whether the call has heads that no round has taken, and somebody to stage them for. */
static bool has_more(const struct kvr_call *call)
{
	return call->cursor_item < call->request.recall.item_count &&
	       call->session->state == KVR_SESSION_ATTACHED;
}

static void count_recall(const struct kvr_call *call)
{
	struct kvr_daemon_counters *counters = &call->daemon->counters;

	counters->recall_count++;
	counters->recall_items += call->request.recall.item_count;
	counters->recall_bytes += call->reply.recalled.staged_bytes;
	counters->missing_tokens += call->reply.recalled.token_missing;
	counters->recall_ns += kvr_clock_ns() - call->start_ns;
	kvr_audit_offer(&call->daemon->audit, call);
}

static void finish(struct kvr_call *call)
{
	const uint32_t count = call->request.recall.item_count;
	bool same = true;

	for (uint32_t i = 0; i < count; i++) {
		struct kvr_sequence *sequence = call->sequences[i];

		KVR_ASSERT(sequence->readers > 0);
		sequence->readers--;
		kvr_sequence_touch(sequence);
		same &= memcmp(&call->recalled[i], &call->recalled[0], sizeof(*call->recalled)) ==
			0;
	}
	call->reply.recalled.count = same ? 0 : count;
	call->reply.recalled.items = same ? NULL : call->recalled;
	call->reply.recalled.same = call->recalled[0];
	if (!call->done)
		count_recall(call);
	if (has_more(call))
		kvr_call_refuse(call, KVR_CODE_FULL, "no memory for a list of clusters");
	kvr_call_done(call);
}

/* Writes the table rows of a round. */
static void write_table(struct kvr_call *call, const struct kvr_work *work)
{
	uint8_t *region = call->session->region.memory.data;
	uint32_t at_item = work->first_item, at_head = work->first_head;

	for (uint32_t i = 0; i < work->job.item_count; i++) {
		const struct kvr_recall_item *done = &work->items.recall[i];
		const struct kvr_wire_rows rows = {done->row_count, done->cluster_count,
			done->centroid_count, done->token_missing, done->mass};
		const struct kvr_wire_recall_item *item = &call->request.recall.items[at_item];

		KVR_ASSERT(done->row_count <= done->row_capacity);
		memcpy(region + item->table + at_head * sizeof(rows), &rows, sizeof(rows));
		call->reply.recalled.token_missing += rows.token_missing;
		call->reply.recalled.staged_bytes +=
			rows.row_count * (uint64_t)(kvr_geometry_key_bytes(done->geometry) +
						    kvr_geometry_value_bytes(done->geometry));
		if (++at_head == kvr_recall_heads(call, done->geometry)) {
			at_head = 0;
			at_item++;
		}
	}
}

/* A round has all its rows: the table, then the next one. */
void kvr_recall_filled(struct kvr_work *work)
{
	struct kvr_call *call = work->owner;

	write_table(call, work);
	KVR_ASSERT(call->works_running > 0);
	call->works_running--;
	if (has_more(call) && submit_round(call, work))
		return;
	kvr_stage_give(call->daemon, work);
	kvr_work_give(work);
	if (call->works_running == 0)
		finish(call);
}

static void round_done(struct kvr_work *work)
{
	struct kvr_call *call = work->owner;
	struct kvr_stages *stages = &call->daemon->stages;

	KVR_ASSERT(work->job.status == 0); /* device.h: a recall does not fail */
	if (!stages->entries ||
		!kvr_stage_start(&stages->entries[work - call->daemon->works.entries], call))
		kvr_recall_filled(work);
}

/* With a store: further rounds beside the first, as works are free. */
static void submit_more(struct kvr_call *call)
{
	struct kvr_works *works = &call->daemon->works;

	for (uint32_t i = 1; i < ROUNDS_MAX && call->daemon->stages.entries && has_more(call);
		i++) {
		struct kvr_work *work = kvr_work_take(works);

		if (!work)
			return;
		if (!submit_round(call, work)) {
			kvr_work_give(work);
			return;
		}
	}
}

/* Finds an item's sequence. NULL: *ret_outcome says whether the call was refused or waits. */
static struct kvr_sequence *reader_of(
	struct kvr_call *call, uint64_t id, enum kvr_outcome *ret_outcome)
{
	struct kvr_sequence *sequence = kvr_call_sequence(call, id);

	*ret_outcome = KVR_OUTCOME_DONE;
	if (!sequence)
		return NULL;
	if (kvr_sequence_queued(sequence) || !kvr_sequence_readable(sequence)) {
		*ret_outcome = kvr_call_wait(call, sequence);
		return NULL;
	}
	return sequence;
}

enum kvr_outcome kvr_handle_recall(struct kvr_daemon *daemon, struct kvr_call *call)
{
	const uint32_t count = call->request.recall.item_count;
	struct kvr_work *work;
	enum kvr_outcome outcome;

	if (count == 0)
		return kvr_call_refuse(call, KVR_CODE_ARGUMENT, "a recall without items");
	for (uint32_t i = 0; i < count; i++) {
		const struct kvr_wire_recall_item *item = &call->request.recall.items[i];
		struct kvr_sequence *sequence = reader_of(call, item->sequence, &outcome);

		if (!sequence)
			return outcome;
		if (!kvr_recall_check(call, i, sequence))
			return KVR_OUTCOME_DONE;
		call->sequences[i] = sequence;
	}
	work = kvr_work_take(&daemon->works);
	if (!work)
		return kvr_call_wait_work(call, call->sequences[0]);
	for (uint32_t i = 0; i < count; i++)
		call->sequences[i]->readers++; /* they outlive their session while readers run */
	if (!submit_round(call, work)) {
		kvr_work_give(work);
		for (uint32_t i = 0; i < count; i++)
			call->sequences[i]->readers--;
		return kvr_call_refuse(call, KVR_CODE_FULL, "no memory for a list of clusters");
	}
	submit_more(call);
	return KVR_OUTCOME_PENDING;
}
