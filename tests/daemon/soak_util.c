/* SPDX-License-Identifier: Apache-2.0 */
/* soak_util.c: see soak_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/soak_util.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "base/clock.h"

#define GROUP   8u
#define SEGMENT 128u
#define REGION  (8u << 20)

/* ---- notes that all share -------------------------------------------------------------------- */

const char *const soak_phase_names[SOAK_PHASES] = {
	"idle", "open", "append", "sync", "recall", "fetch", "drop"};

struct soak_notes *soak_notes;

/* Its descriptor is inherited by the clients. */
void soak_notes_make(void)
{
	const int fd = memfd_create("notes", 0);
	char text[16];

	assert_true(fd >= 0);
	assert_int_equal(ftruncate(fd, sizeof(*soak_notes)), 0);
	snprintf(text, sizeof(text), "%d", fd);
	assert_int_equal(setenv("KVR_SOAK_NOTES", text, 1), 0);
	soak_notes = mmap(NULL, sizeof(*soak_notes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(soak_notes != MAP_FAILED);
}

static void notes_open(void)
{
	const int fd = (int)strtol(getenv("KVR_SOAK_NOTES"), NULL, 10);

	soak_notes = mmap(NULL, sizeof(*soak_notes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	assert_true(soak_notes != MAP_FAILED);
}

void soak_notes_clear(void)
{
	memset(soak_notes, 0, sizeof(*soak_notes));
}

bool soak_long(void)
{
	return getenv("KVR_SOAK") != NULL;
}

static void touch(struct soak_item *item)
{
	soak_set(&item->last, soak_add(&soak_notes->tick, 1));
}

void soak_touch(uint32_t owner, uint32_t n)
{
	touch(&soak_notes->items[owner][n]);
}

/* Every eighth of a client's own is in a model of its own, which is dropped now and then. */
static bool droppable(uint32_t owner, uint32_t n)
{
	return owner != SOAK_PARENT && n % GROUP == GROUP - 1;
}

uint32_t soak_count(uint32_t owner, uint32_t n)
{
	return 200 + (owner * 7919 + n * 104729) % (SOAK_TOKENS - 199);
}

uint32_t soak_slabs(uint32_t owner, uint32_t n)
{
	return (soak_count(owner, n) + SEGMENT - 1) / SEGMENT;
}

static void ids_of(uint32_t owner, uint32_t n, uint32_t *ret_ids)
{
	harness_tokens(owner * 1000000 + n, ret_ids, SOAK_TOKENS);
	if (!droppable(owner, n))
		harness_tokens(owner * 1000000 + 500000 + n / GROUP, ret_ids, SOAK_PREFIX);
}

/* ---- what clients and parent do alike -------------------------------------------------------- */

static void enter(const struct soak_engine *engine, enum soak_phase phase)
{
	if (engine->number < SOAK_CLIENTS)
		soak_set(&soak_notes->phase[engine->number], phase);
}

static int register_models(struct soak_engine *engine)
{
	int rc;

	engine->config.digest[0] = 50;
	rc = kvr_model_register(engine->client, &engine->config, &engine->shared);
	for (uint32_t i = 0; i < SOAK_CLIENTS && rc == 0; i++) {
		engine->config.digest[0] = (uint8_t)(60 + i);
		rc = kvr_model_register(engine->client, &engine->config, &engine->own[i]);
	}
	return rc;
}

static struct kvr_model *model_of(const struct soak_engine *engine, uint32_t owner, uint32_t n)
{
	return droppable(owner, n) ? engine->own[owner] : engine->shared;
}

int soak_open(struct soak_engine *engine, uint32_t owner, uint32_t n, uint32_t *ret_matched)
{
	enter(engine, SOAK_OPEN);
	ids_of(owner, n, engine->ids);
	return kvr_open(model_of(engine, owner, n), engine->ids, soak_count(owner, n),
		&engine->sequence, ret_matched);
}

int soak_end(struct soak_engine *engine)
{
	struct kvr_sequence *sequence = engine->sequence;

	engine->sequence = NULL;
	enter(engine, SOAK_IDLE);
	return kvr_close(sequence, true);
}

static int check_recall(struct soak_engine *engine, uint32_t layer)
{
	const struct kvr_recall recall = {
		.budget_tokens = 64, .row_capacity = 96 + SOAK_TOKENS, .sinks = true, .tail = true};
	const int rc = harness_check_recall(engine->client, engine->sequence, &engine->config,
		engine->ids, layer, recall, 0, NULL);

	if (rc > 0)
		soak_add(&soak_notes->checked_tokens, (uint32_t)rc);
	return rc < 0 ? rc : 0;
}

/* All bytes of the first `count` tokens, one way or both. */
int soak_check(struct soak_engine *engine, uint32_t count)
{
	const uint32_t how = process_random(0, 2);
	int rc = 0;

	enter(engine, SOAK_RECALL);
	for (uint32_t layer = 0; layer < engine->config.layers && how != 0 && rc == 0; layer++)
		rc = check_recall(engine, layer);
	enter(engine, SOAK_FETCH);
	if (rc == 0 && how != 1 && count > 0) {
		rc = harness_try_fetch(engine->client, engine->sequence, &engine->config,
			engine->ids, 0, count, 0);
		soak_add(&soak_notes->checked_tokens, rc == 0 ? count : 0);
	}
	return rc;
}

int soak_put(struct soak_engine *engine, uint32_t owner, uint32_t n)
{
	struct soak_item *item = &soak_notes->items[owner][n];
	const uint32_t count = soak_count(owner, n);
	uint32_t at = 0, sealed = 0;
	int rc;

	/* A put that was cut off may have stored all of it: then this one makes nothing younger. */
	if (soak_get(&item->state) == SOAK_NONE)
		soak_set(&item->begun, soak_add(&soak_notes->tick, 1));
	touch(item);
	soak_set(&item->state, SOAK_PUTTING);
	rc = soak_open(engine, owner, n, &at);
	if (rc == 0 && at > 0)
		rc = soak_check(engine, at);
	while (rc == 0 && at < count) {
		uint32_t part = process_random(1, 150);

		part = part < count - at ? part : count - at;
		enter(engine, SOAK_APPEND);
		rc = harness_append(engine->client, engine->sequence, &engine->config, engine->ids,
			at, part, 0);
		at += part;
		enter(engine, SOAK_RECALL);
		if (rc == 0 && process_random(0, 5) == 0)
			rc = check_recall(engine, process_random(0, 1));
	}
	enter(engine, SOAK_SYNC);
	if (rc == 0)
		rc = kvr_sync(engine->sequence, true, &sealed);
	if (rc < 0)
		return rc;
	assert_int_equal(sealed, count);
	soak_add(&soak_notes->slabs, soak_slabs(owner, n));
	touch(item);
	soak_set(&item->state, SOAK_ACKED);
	soak_add(&soak_notes->acked, 1);
	rc = soak_check(engine, count);
	return rc < 0 ? rc : soak_end(engine);
}

/* ---- the clients ----------------------------------------------------------------------------- */

static atomic_bool finish;

static void on_term(int number)
{
	(void)number;
	finish = true;
}

static int check_item(struct soak_engine *engine, uint32_t owner, uint32_t n)
{
	struct soak_item *item = &soak_notes->items[owner][n];
	uint32_t matched = 0;
	int rc;

	if (soak_get(&item->state) != SOAK_ACKED)
		return 0;
	touch(item);
	rc = soak_open(engine, owner, n, &matched);
	if (rc < 0)
		return rc;
	if (!soak_notes->evicts && soak_get(&item->state) == SOAK_ACKED &&
		matched < soak_count(owner, n))
		fail_msg("%u of %u tokens of %u/%u", matched, soak_count(owner, n), owner, n);
	rc = soak_check(engine, matched);
	return rc < 0 ? rc : soak_end(engine);
}

/* Whether there is room for more where nothing may be evicted. */
static bool room(void)
{
	return !soak_notes->evicts && soak_get(&soak_notes->slabs) < SOAK_SLABS_MAX;
}

/* A fork that goes another way. Where slabs are counted, it leaves nothing. */
static int fork_item(struct soak_engine *engine, uint32_t owner, uint32_t n)
{
	struct kvr_sequence *fork = NULL;
	uint32_t matched = 0, count = 0;
	int rc;

	if (soak_get(&soak_notes->items[owner][n].state) != SOAK_ACKED || droppable(owner, n))
		return 0;
	touch(&soak_notes->items[owner][n]);
	rc = soak_open(engine, owner, n, &matched);
	if (rc == 0)
		rc = kvr_fork(engine->sequence, &fork, &count);
	if (rc == 0) {
		assert_int_equal(count, matched);
		rc = soak_end(engine);
		engine->sequence = fork;
	}
	if (rc == 0) {
		harness_tokens((uint32_t)soak_get(&soak_notes->tick), engine->ids + matched, 40);
		enter(engine, SOAK_APPEND);
		rc = harness_append(
			engine->client, fork, &engine->config, engine->ids, matched, 40, 0);
	}
	if (rc == 0 && room() && process_random(0, 1)) {
		enter(engine, SOAK_SYNC);
		soak_add(&soak_notes->slabs, 1);
		rc = kvr_sync(fork, true, NULL);
	}
	if (rc == 0)
		rc = soak_check(engine, matched + 40);
	soak_add(&soak_notes->forks, rc == 0);
	return rc < 0 ? rc : soak_end(engine);
}

/* Drops all of the client's own model. While another one looks at it, some stays: then nothing is known. */
static int drop_own(struct soak_engine *engine)
{
	struct soak_item *items = soak_notes->items[engine->number];
	struct kvr_dropped dropped = {0};
	struct kvr_model_info models[32];
	int rc, count;

	enter(engine, SOAK_DROP);
	for (uint32_t n = GROUP - 1; n < soak_get(&soak_notes->made[engine->number]); n += GROUP) {
		if (soak_get(&items[n].state) == SOAK_ACKED)
			soak_set(&items[n].state, SOAK_DROPPING);
	}
	count = rc = kvr_model_list(engine->client, 0, models, 32);
	for (int i = 0; i < count && rc >= 0; i++) {
		if (models[i].digest[0] == 60 + engine->number)
			rc = kvr_drop_model(engine->client, models[i].model, &dropped);
	}
	if (rc < 0)
		return rc;
	for (uint32_t n = GROUP - 1; n < soak_get(&soak_notes->made[engine->number]); n += GROUP) {
		if (soak_get(&items[n].state) == SOAK_DROPPING && dropped.kept_count == 0)
			soak_set(&items[n].state, SOAK_DROPPED);
	}
	soak_add(&soak_notes->drops, 1);
	enter(engine, SOAK_IDLE);
	return 0;
}

/* Of 20 turns. A long run is not to wear out a disk. */
static uint32_t put_turns(void)
{
	return soak_notes->wide ? 4 : 8;
}

static int turn(struct soak_engine *engine)
{
	const uint32_t what = process_random(0, 19),
		       owner = process_random(0, soak_notes->clients - 1);
	const uint32_t made = (uint32_t)soak_get(&soak_notes->made[owner]);
	uint32_t n;
	int rc;

	if (engine->unfinished < SOAK_ITEMS ||
		(what < put_turns() && (soak_notes->evicts || room()) &&
			soak_get(&soak_notes->made[engine->number]) < SOAK_ITEMS)) {
		n = engine->unfinished < SOAK_ITEMS
			    ? engine->unfinished
			    : (uint32_t)soak_add(&soak_notes->made[engine->number], 1) - 1;
		engine->unfinished = n;
		rc = soak_put(engine, engine->number, n);
		if (rc == 0)
			engine->unfinished = SOAK_ITEMS;
		return rc;
	}
	if (what == 19)
		return drop_own(engine);
	if (made == 0)
		return 0;
	n = process_random(0, made - 1);
	if (process_random(0, 2) > 0 && made > SOAK_NEWEST)
		n = process_random(made - SOAK_NEWEST, made - 1);
	return what < put_turns() + 3 ? fork_item(engine, owner, n) : check_item(engine, owner, n);
}

/* The daemon died: sequences are stale, the next call attaches again by itself. */
static void survive(struct soak_engine *engine, int error)
{
	const uint64_t until_ns = kvr_clock_ns() + SOAK_WAIT_MS * 1000000ull;
	int rc = error;

	if (error != -ECONNRESET && error != -ESTALE && error != -ENOTCONN)
		fail_msg("%s: %s", strerror(-error), kvr_error(engine->client)->subject);
	enter(engine, SOAK_IDLE);
	kvr_close(engine->sequence, true);
	engine->sequence = NULL;
	while (rc != 0 && !finish) {
		rc = kvr_ping(engine->client);
		if (rc != 0 && rc != -ECONNRESET && rc != -ENOTCONN)
			fail_msg("attaching again: %s: %s", strerror(-rc),
				kvr_error(engine->client)->subject);
		assert_true(kvr_clock_ns() < until_ns);
	}
	soak_add(&soak_notes->attached, 1);
}

void soak_attach(struct soak_engine *engine, const char *socket)
{
	const struct kvr_client_config config = {
		.attach_path = socket, .region_bytes = REGION, .timeout_ms = SOAK_WAIT_MS};
	const uint64_t until_ns = kvr_clock_ns() + SOAK_WAIT_MS * 1000000ull;

	/* kvr_connect does not wait for a daemon, and this one may be killed at any moment. */
	while (kvr_connect(&config, &engine->client) != 0) {
		assert_true(kvr_clock_ns() < until_ns);
		process_sleep_us(10000);
	}
	engine->config = harness_model();
	if (soak_notes->wide) {
		engine->config.layers = 4;
		engine->config.query_heads = 8;
		engine->config.kv_heads = 4;
		engine->config.key_dim = 64;
		engine->config.value_dim = 64;
		engine->config.segment_tokens = 256;
	}
	while (register_models(engine) != 0)
		assert_true(kvr_clock_ns() < until_ns);
}

int soak_play(const char *socket, uint32_t number)
{
	static struct soak_engine engine;
	int rc;

	alarm(0); /* it goes on until SIGTERM, or dies with the parent */
	signal(SIGTERM, on_term);
	notes_open();
	engine.number = number;
	engine.unfinished = SOAK_ITEMS;
	soak_attach(&engine, socket);
	while (!finish) {
		rc = turn(&engine);
		if (rc < 0)
			survive(&engine, rc);
	}
	kvr_disconnect(engine.client);
	return 0;
}
