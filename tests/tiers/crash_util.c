/* SPDX-License-Identifier: Apache-2.0 */
/* crash_util.c: the workload. */
#include <errno.h>
#include <poll.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <cmocka.h>

#include "tests/tiers/crash_record_util.h"
#include "tests/tiers/crash_util.h"

#define WAIT_MS 60000
#define NONE    UINT8_MAX

enum {
	SMALL = 8, /* tokens of a segment of one slab */
	BIG = 256, /* of two */
	GROUP = 3, /* segments of a step, at most */
	IDLE_MS = 20000,
};

/* A tree; each after its parent. */
enum { A, B, C, D, E, F, G, H, I, J, K, L, M };

static const struct {
	uint8_t parent;
	uint32_t tokens;
} tree[KVR_CRASH_SEGMENTS] = {
	[A] = {NONE, SMALL},
	[B] = {A, SMALL},
	[C] = {B, BIG},
	[D] = {NONE, SMALL},
	[E] = {A, SMALL},
	[F] = {D, BIG},
	[G] = {NONE, SMALL},
	[H] = {G, SMALL},
	[I] = {NONE, BIG},
	[J] = {A, SMALL},
	[K] = {J, SMALL},
	[L] = {NONE, SMALL},
	[M] = {L, BIG},
};

enum work {
	OPEN,
	PUT,
	MARK,
	DROP,
	DROP_ALL,
	CLOSE,
};

static const struct step {
	enum work work;
	bool parted; /* by several commits */
	uint8_t count;
	uint8_t segments[GROUP];
	struct {
		uint64_t used;
		uint32_t flags;
	} marks[GROUP];
} steps[KVR_CRASH_STEPS] = {
	{OPEN, .parted = true},
	{PUT, .count = 3, .segments = {A, B, C}},
	{PUT, .count = 1, .segments = {D}},
	{PUT, .count = 2, .segments = {E, F}},
	{MARK, .count = 3, .segments = {A, D, F},
		.marks = {{9, KVR_CATALOG_PINNED}, {5, 0}, {6, 0}}},
	{MARK, .count = 1, .segments = {C}, .marks = {{8, KVR_CATALOG_QUARANTINED}}},
	{PUT, .count = 2, .segments = {G, H}},              /* every slab is taken */
	{PUT, .count = 1, .segments = {I}, .parted = true}, /* C goes, being quarantined */
	{DROP, .count = 1, .segments = {G}},                /* and H with it */
	{OPEN, .count = 0},                                 /* a restart */
	{PUT, .count = 2, .segments = {J, K}},
	{PUT, .count = 2, .segments = {L, M}, .parted = true}, /* F goes for L, D for M */
	{DROP_ALL, .count = 0},                                /* but A, which is pinned */
	{PUT, .count = 2, .segments = {G, H}},                 /* again */
	{CLOSE, .count = 0},
};

bool kvr_crash_is_atomic(uint32_t step)
{
	return !steps[step].parted;
}

uint32_t kvr_crash_needed(uint32_t step, uint32_t flushes)
{
	switch (steps[step].work) {
	case PUT:
	case MARK: return flushes;
	/* The commit, two, and the wipes; when they are forgotten, the rows of wiped slabs are there once more. */
	case DROP:
	case DROP_ALL: return 3;
	default: return 0; /* a boot that is not counted serves again */
	}
}

/* ---- the world ------------------------------------------------------------------------------- */

static struct kvr_store_sealed *make_segment(const struct kvr_store_bed *bed,
	const struct kvr_store_sealed *parent, uint32_t count, uint64_t seed)
{
	uint32_t tokens[BIG];
	struct kvr_random random = {seed};

	for (uint32_t i = 0; i < count; i++)
		tokens[i] = (uint32_t)kvr_random_next(&random);
	return kvr_store_sealed_make(bed, parent, tokens, count);
}

void kvr_crash_world_init(struct kvr_crash_world *world)
{
	memset(world, 0, sizeof(*world));
	kvr_store_bed_init(&world->bed, KVR_CRASH_SLABS, KVR_NVME_IO_THREADS);
	world->bed.model.geometry.segment_tokens = BIG;
	world->bed.model.geometry.key_dim = 256;
	world->bed.model.geometry.value_dim = 256;
	world->bed.config.depth = 2; /* few threads: a store is opened thousands of times */
	world->bed.config.batch = 2;
	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		const uint8_t parent = tree[i].parent;

		world->segments[i] = make_segment(&world->bed,
			parent == NONE ? NULL : world->segments[parent], tree[i].tokens, i);
	}
	for (uint32_t i = 0; i < KVR_CRASH_SLABS; i++)
		world->fillers[i] = make_segment(&world->bed, NULL, SMALL, 1000 + i);
	kvr_crash_world_move(world, 0);
}

void kvr_crash_world_fini(struct kvr_crash_world *world)
{
	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++)
		kvr_store_sealed_free(world->segments[i]);
	for (uint32_t i = 0; i < KVR_CRASH_SLABS; i++)
		kvr_store_sealed_free(world->fillers[i]);
	kvr_store_bed_fini(&world->bed);
}

void kvr_crash_world_move(struct kvr_crash_world *world, uint32_t number)
{
	snprintf(world->root, sizeof(world->root), "%s/%u", world->bed.dir, number);
	snprintf(world->store, sizeof(world->store), "%s/store", world->root);
	assert_true(mkdir(world->root, 0700) == 0 || errno == EEXIST);
	world->bed.config.dir = world->store;
}

/* ---- jobs ------------------------------------------------------------------------------------ */

/* What the store has removed since the last look. Whoever says it has made it durable. */
static void take_gone(struct kvr_crash_world *world, bool dropped)
{
	uint64_t ids[KVR_CRASH_SLABS];
	uint32_t count;

	while ((count = kvr_store_gone(world->bed.store, ids, KVR_CRASH_SLABS)) > 0) {
		for (uint32_t i = 0; i < count * KVR_CRASH_SEGMENTS; i++) {
			const uint32_t segment = i % KVR_CRASH_SEGMENTS;

			if (world->segments[segment]->id != ids[i / KVR_CRASH_SEGMENTS])
				continue;
			world->now.segments[segment] =
				(struct kvr_crash_belief){.dropped = dropped};
		}
	}
}

/* Hands all over at once, so that puts are one group whatever the scheduler does, and waits for all. */
static void run_all(struct kvr_crash_world *world, struct kvr_store_job *jobs, uint32_t count)
{
	struct kvr_store *store = world->bed.store;
	struct pollfd ready = {.fd = kvr_store_fd(store), .events = POLLIN};
	struct kvr_store_job *done[GROUP];
	uint32_t reaped = 0;

	pthread_mutex_lock(&store->write_queue.mutex);
	for (uint32_t i = 0; i < count; i++)
		kvr_list_push(&store->write_queue.jobs, &jobs[i].link);
	pthread_cond_signal(&store->write_queue.cond);
	pthread_mutex_unlock(&store->write_queue.mutex);
	while (reaped < count) {
		/* What is gone makes it readable, too. */
		reaped += kvr_store_reap(store, done + reaped, count - reaped);
		if (reaped < count)
			assert_int_equal(poll(&ready, 1, WAIT_MS), 1);
		if (reaped < count)
			usleep(50);
	}
}

static void run_put(struct kvr_crash_world *world, const struct step *step)
{
	struct kvr_store_job jobs[GROUP] = {0};

	for (uint32_t i = 0; i < step->count; i++) {
		struct kvr_store_sealed *segment = world->segments[step->segments[i]];

		jobs[i] = (struct kvr_store_job){
			.op = KVR_STORE_PUT,
			.put = {.model = &world->bed.model,
				.view = &segment->view,
				.tokens = segment->tokens,
				.quota_bytes = UINT64_MAX,
				.parts = segment->parts,
				.crcs = segment->crcs},
		};
		memcpy(jobs[i].put.hash, segment->hash, KVR_HASH_BYTES);
		memcpy(jobs[i].put.parent, segment->parent, KVR_HASH_BYTES);
	}
	run_all(world, jobs, step->count);
	take_gone(world, false);
	for (uint32_t i = 0; i < step->count; i++) {
		struct kvr_crash_belief *belief = &world->now.segments[step->segments[i]];

		if (!world->tolerant)
			assert_int_equal(jobs[i].status, 0);
		*belief = (struct kvr_crash_belief){.there = KVR_CRASH_EITHER, .unmarked = true};
		if (jobs[i].status == 0) {
			world->segments[step->segments[i]]->id = jobs[i].put.id;
			kvr_store_unhold(world->bed.store, jobs[i].put.id);
			*belief = (struct kvr_crash_belief){.there = KVR_CRASH_PRESENT};
		}
	}
}

static void run_mark(struct kvr_crash_world *world, const struct step *step)
{
	struct kvr_store_job job = {.op = KVR_STORE_MARK, .mark.count = step->count};

	for (uint32_t i = 0; i < step->count; i++) {
		job.mark.marks[i].id = world->segments[step->segments[i]]->id;
		job.mark.marks[i].used = step->marks[i].used;
		job.mark.marks[i].flags = step->marks[i].flags;
	}
	run_all(world, &job, 1);
	if (!world->tolerant)
		assert_int_equal(job.status, 0);
	for (uint32_t i = 0; i < step->count; i++) {
		struct kvr_crash_belief *belief = &world->now.segments[step->segments[i]];

		if (belief->there != KVR_CRASH_PRESENT)
			continue;
		belief->unmarked = job.status < 0;
		belief->flags = step->marks[i].flags;
		belief->used = step->marks[i].used;
	}
}

static bool is_below(uint32_t segment, uint32_t top)
{
	while (segment != top && tree[segment].parent != NONE)
		segment = tree[segment].parent;
	return segment == top;
}

/* The writer commits once more when it is idle after a drop. To be waited for, so that runs are alike. */
static void await_idle(struct kvr_crash_world *world, uint64_t commits)
{
	struct kvr_store_stat stat;

	for (uint32_t ms = 0; ms < IDLE_MS; ms++) {
		kvr_store_stat(world->bed.store, &stat);
		if (stat.catalog.commit_count >= commits)
			return;
		usleep(1000);
	}
	fail_msg("the rows of wiped slabs were not committed");
}

static void run_drop(struct kvr_crash_world *world, const struct step *step)
{
	struct kvr_store_job job = {.op = KVR_STORE_DROP, .drop.all = step->work == DROP_ALL};
	struct kvr_store_stat stat;

	kvr_store_stat(world->bed.store, &stat);
	memcpy(job.drop.root, world->bed.model.root, KVR_HASH_BYTES);
	memcpy(job.drop.hash, world->segments[step->segments[0]]->hash, KVR_HASH_BYTES);
	run_all(world, &job, 1);
	take_gone(world, true);
	if (!world->tolerant) {
		assert_int_equal(job.status, 0);
		await_idle(world, stat.catalog.commit_count + 2);
	}
	for (uint32_t i = 0; i < KVR_CRASH_SEGMENTS; i++) {
		struct kvr_crash_belief *belief = &world->now.segments[i];
		const bool asked = job.drop.all || is_below(i, step->segments[0]);

		if (!asked || belief->there == KVR_CRASH_ABSENT)
			continue;
		if (job.status < 0)
			*belief = (struct kvr_crash_belief){
				.there = KVR_CRASH_EITHER, .unmarked = true};
		else if (!world->tolerant)
			assert_true(belief->flags & KVR_CATALOG_PINNED);
	}
}

/* A store that a fault keeps from opening opens without it. */
static void run_open(struct kvr_crash_world *world)
{
	int rc;

	kvr_store_test_close(&world->bed);
	rc = kvr_store_test_open(&world->bed);
	if (rc < 0 && world->tolerant && kvr_record_failed())
		rc = kvr_store_test_open(&world->bed);
	if (rc < 0)
		fail_msg("open: %s", world->bed.text);
	world->now.store = true;
	memcpy(world->now.secret, kvr_store_secret(world->bed.store), KVR_STORE_SECRET_BYTES);
}

void kvr_crash_step(struct kvr_crash_world *world, uint32_t number)
{
	const struct step *step = &steps[number];

	kvr_record_step();
	switch (step->work) {
	case OPEN: run_open(world); break;
	case PUT: run_put(world, step); break;
	case MARK: run_mark(world, step); break;
	case DROP:
	case DROP_ALL: run_drop(world, step); break;
	default: kvr_store_test_close(&world->bed); break;
	}
}
