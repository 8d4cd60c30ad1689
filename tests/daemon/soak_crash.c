/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: kill -9 of a daemon with a store, at any moment of putting, syncing, recalling, fetching, dropping and evicting. What
 * sync had acknowledged is there after the next start, bit for bit, unless it was dropped or had to make room; what a
 * drop had acknowledged is not; nothing wrong is ever served; clients attach again and open again by themselves.
 * Method: three client processes that note in shared memory what was acknowledged to them, and check every byte
 * that they get; a parent that kills, starts again and compares with the notes. Ten rounds; 200 with KVR_SOAK.
 *
 * With a store of 64 slabs segments must go, the longest unused first. A sequence must be there if all that was touched since its put
 * was begun, with what is pinned, has room beside it. Each segment of this model is one slab. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <signal.h>

#include "tests/daemon/soak_util.h"

#define CLIENTS      3u
#define PINNED       3u
#define PINNED_SLABS 4u /* each at most: SOAK_TOKENS of 128 a slab */
#define SMALL_SLABS  64u
#define SLACK_SLABS  10u /* one more than needed goes; puts that were cut off */
#define KNOWN        65536u

static const struct process_part parts[] = {{"engine", soak_play}, {NULL, NULL}};

/* ---- what must be there ---------------------------------------------------------------------- */

struct known {
	uint64_t last;
	uint32_t owner, n, slabs;
};

static int by_last(const void *a, const void *b)
{
	const uint64_t one = ((const struct known *)a)->last,
		       other = ((const struct known *)b)->last;

	return one < other ? 1 : -(one > other);
}

static uint32_t made_by(uint32_t owner)
{
	return owner == SOAK_PARENT ? PINNED : (uint32_t)soak_get(&soak_notes->made[owner]);
}

/* Everything that was ever touched, what is pinned apart, latest first. */
static uint32_t collect(struct known *ret_known)
{
	uint32_t count = 0;

	for (uint32_t owner = 0; owner < CLIENTS; owner++) {
		for (uint32_t n = 0; n < made_by(owner) && count < KNOWN; n++)
			ret_known[count++] =
				(struct known){soak_get(&soak_notes->items[owner][n].last), owner,
					n, soak_slabs(owner, n)};
	}
	qsort(ret_known, count, sizeof(*ret_known), by_last);
	return count;
}

/* Whether an acknowledged sequence cannot have been evicted. */
static bool required(uint32_t owner, uint32_t n)
{
	static struct known known[KNOWN];
	const struct soak_item *item = &soak_notes->items[owner][n];
	uint32_t slabs = PINNED * PINNED_SLABS + soak_slabs(owner, n);
	const uint64_t state = soak_get(&item->state);
	uint32_t count;

	if (state != SOAK_ACKED || !soak_notes->evicts || owner == SOAK_PARENT)
		return state == SOAK_ACKED;
	if (soak_count(owner, n) <= SOAK_PREFIX)
		return false; /* it may be all another one's, and as old as that */
	count = collect(known);
	for (uint32_t i = 0; i < count && known[i].last > soak_get(&item->begun); i++) {
		if (known[i].owner != owner || known[i].n != n)
			slabs += known[i].slabs;
	}
	return slabs + SLACK_SLABS <= SMALL_SLABS;
}

struct totals {
	uint32_t required, dropped, partial, gone, rounds, in_phase[SOAK_PHASES], cut_starts;
	double evicted, errors;
	uint64_t acked, forks, drops, attached, checked_tokens;
};

static void inspect(struct soak_engine *engine, uint32_t owner, uint32_t n, struct totals *totals)
{
	const uint64_t before = soak_get(&soak_notes->items[owner][n].state);
	const uint32_t count = soak_count(owner, n);
	const bool must = required(owner, n);
	uint32_t matched = 0;

	soak_touch(owner, n);
	assert_int_equal(soak_open(engine, owner, n, &matched), 0);
	/* Others go on: it may have been dropped, or put again, meanwhile. */
	if (must && matched < count && required(owner, n))
		fail_msg("sequence %u/%u was acknowledged; %u of %u tokens are there", owner, n,
			matched, count);
	if (before == SOAK_DROPPED && matched > 0)
		fail_msg("sequence %u/%u was dropped; %u tokens are there", owner, n, matched);
	totals->required += must;
	totals->dropped += before == SOAK_DROPPED;
	totals->partial += !must && before == SOAK_ACKED && matched > 0 && matched < count;
	totals->gone += !must && before == SOAK_ACKED && matched == 0;
	assert_int_equal(soak_check(engine, matched), 0);
	assert_int_equal(soak_end(engine), 0);
}

static void inspect_all(struct soak_engine *engine, struct totals *totals)
{
	static struct known known[KNOWN];
	const uint32_t count = collect(known);
	uint32_t looked = 0;

	for (uint32_t n = 0; n < PINNED; n++)
		inspect(engine, SOAK_PARENT, n, totals);
	/* Looking at what may go makes the rest older: a few. */
	for (uint32_t i = 0; i < count && i < SOAK_NEWEST; i++) {
		if (!soak_notes->evicts ? i < 12 : required(known[i].owner, known[i].n))
			inspect(engine, known[i].owner, known[i].n, totals);
	}
	while (looked++ < (soak_notes->evicts ? 2u : 20u) && count > 0) {
		const struct known *any = &known[process_random(0, count - 1)];

		inspect(engine, any->owner, any->n, totals);
	}
}

/* ---- rounds ---------------------------------------------------------------------------------- */

static struct harness_daemon harness;
static pid_t pids[CLIENTS];

static void begin(struct soak_engine *engine, const char *store_bytes, const char *const *arguments)
{
	soak_notes_clear();
	soak_notes->clients = CLIENTS;
	soak_notes->evicts = strcmp(store_bytes, "64 MiB") == 0;
	*engine = (struct soak_engine){.number = SOAK_PARENT, .unfinished = SOAK_ITEMS};
	harness_start_sized(&harness, store_bytes, arguments);
	soak_attach(engine, harness.socket);
	for (uint32_t n = 0; n < PINNED; n++) {
		uint32_t matched;

		assert_int_equal(soak_put(engine, SOAK_PARENT, n), 0);
		assert_int_equal(soak_open(engine, SOAK_PARENT, n, &matched), 0);
		assert_int_equal(kvr_pin(engine->sequence, false, &matched), 0);
		assert_int_equal(soak_end(engine), 0);
	}
	process_sleep_us(1500000); /* the store is told of pins a little later */
	for (uint32_t i = 0; i < CLIENTS; i++)
		pids[i] = process_start("engine", harness.socket, i);
}

/* Kills it, sometimes also the next one while it starts, and starts another. */
static void kill_once(
	struct soak_engine *engine, const char *const *arguments, struct totals *totals)
{
	process_sleep_us(process_random(0, 300000) * (PROCESS_SLOW == 1 ? 1 : 4));
	totals->evicted += harness_metric(engine->client, "store.evicted_count");
	totals->errors += harness_metric(engine->client, "store.errors_count");
	process_sleep_us(process_random(0, 3000));
	for (uint32_t i = 0; i < CLIENTS; i++)
		totals->in_phase[soak_get(&soak_notes->phase[i])]++;
	harness_kill(&harness);
	kvr_disconnect(engine->client);
	process_sleep_us(process_random(0, 20000));
	if (process_random(0, 5) == 0) {
		harness_launch(&harness, arguments);
		process_sleep_us(process_random(0, 40000));
		harness_kill(&harness);
		totals->cut_starts++;
	}
	harness_restart(&harness, arguments);
	soak_attach(engine, harness.socket);
}

static void end(struct soak_engine *engine, struct totals *totals)
{
	for (uint32_t i = 0; i < CLIENTS; i++)
		assert_int_equal(kill(pids[i], SIGTERM), 0);
	for (uint32_t i = 0; i < CLIENTS; i++)
		assert_int_equal(process_wait(pids[i], SOAK_WAIT_MS), 0);
	kvr_disconnect(engine->client);
	harness_stop(&harness);
	totals->acked += soak_get(&soak_notes->acked);
	totals->forks += soak_get(&soak_notes->forks);
	totals->drops += soak_get(&soak_notes->drops);
	totals->attached += soak_get(&soak_notes->attached);
	totals->checked_tokens += soak_get(&soak_notes->checked_tokens);
}

static void say(const struct totals *totals)
{
	print_message(
		"%u kills, %u more at start; clients were in", totals->rounds, totals->cut_starts);
	for (uint32_t i = 0; i < SOAK_PHASES; i++)
		print_message(" %s %u", soak_phase_names[i], totals->in_phase[i]);
	print_message("; they attached again %llu times\n", (unsigned long long)totals->attached);
	print_message("%llu sequences acknowledged, %llu forks, %llu drops, %.0f segments evicted; "
		      "%llu tokens' bytes checked\n",
		(unsigned long long)totals->acked, (unsigned long long)totals->forks,
		(unsigned long long)totals->drops, totals->evicted,
		(unsigned long long)totals->checked_tokens);
	print_message("after kills: %u had to be there and were, %u were dropped and gone, %u "
		      "evicted, %u in part; %.0f errors\n",
		totals->required, totals->dropped, totals->gone, totals->partial, totals->errors);
}

/* Ten times ten rounds for long, each with a store of its own: there is only so much room. */
static void kill_and_compare(const char *store_bytes)
{
	const char *const arguments[] = {"-m", "8 MiB", NULL};
	const uint32_t stores = soak_long() ? 10 : 1;
	const uint32_t rounds = soak_long() ? 10 : PROCESS_SLOW == 1 ? 5 : 2;
	struct totals totals = {.rounds = stores * rounds};
	static struct soak_engine engine;

	for (uint32_t i = 0; i < stores; i++) {
		begin(&engine, store_bytes, arguments);
		for (uint32_t round = 0; round < rounds; round++) {
			kill_once(&engine, arguments, &totals);
			inspect_all(&engine, &totals);
		}
		end(&engine, &totals);
	}
	say(&totals);
	assert_true(totals.required > 0);
	assert_true(totals.errors == 0);
	if (soak_notes->evicts && PROCESS_SLOW == 1)
		assert_true(totals.evicted > 0);
}

static void test_killed(void **state)
{
	(void)state;
	kill_and_compare("2 GiB");
}

static void test_killed_while_evicting(void **state)
{
	(void)state;
	kill_and_compare("64 MiB");
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_killed),
		cmocka_unit_test(test_killed_while_evicting),
	};

	process_part(argc, argv, parts);
	process_seed_print();
	soak_notes_make();
	return cmocka_run_group_tests_name("daemon soak crash", tests, NULL, NULL);
}
