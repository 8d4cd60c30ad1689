/* SPDX-License-Identifier: Apache-2.0 */
/* policy_decay.c: DECAY.
 *
 * Goal: tiers/policy.h keeps what was used most, lately; keeps P1 to P4; takes nothing that may not go;
 * remembers what went; and a scan does not push out what is in use.
 *
 * Method: a model that keeps every use with its time and adds up what each is worth, with few enough
 * entries that the draw sees all of them; many entries, where the victim's rank among all is held
 * against what a draw of 16 gives; random operations with the places walked; two equal runs. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <math.h>
#include <cmocka.h>

#include "tests/tiers/random_util.h"
#include "tiers/policy.h"

enum {
	FEW = 16, /* entries, all of which a draw sees */
	NAMES = 40,
	USES = 4000,
	MANY = 4096,
	GHOSTS = 65536,
	WEIGHT = 100,
};

static struct kvr_policy_entry entries[MANY];
static struct kvr_policy_ghost ghosts[GHOSTS];

static bool may_always(void *context, uint32_t entry)
{
	(void)context;
	(void)entry;
	return true;
}

struct pins {
	bool pinned[MANY];
	uint32_t asked;
};

static bool may_evict(void *context, uint32_t entry)
{
	struct pins *pins = context;

	pins->asked++;
	return !pins->pinned[entry];
}

static void start(struct kvr_policy *policy, uint32_t entry_max, uint32_t ghost_max)
{
	memset(entries, 0, entry_max * sizeof(*entries));
	memset(ghosts, 0, ghost_max * sizeof(*ghosts));
	kvr_policy_init(policy, KVR_POLICY_DECAY, entries, entry_max, ghosts, ghost_max);
}

/* P1 and P3. */
static void check_all(const struct kvr_policy *policy)
{
	uint64_t weight = 0;
	uint32_t in = 0;

	for (uint32_t place = 0; place < policy->main.count; place++) {
		const uint32_t entry = policy->entries[place].next;

		assert_true(entry < policy->entry_max);
		assert_int_equal(policy->entries[entry].prev, place);
		assert_int_equal(policy->entries[entry].queue, 2);
		weight += policy->entries[entry].weight;
	}
	for (uint32_t e = 0; e < policy->entry_max; e++)
		in += policy->entries[e].queue != 0;
	assert_int_equal(in, policy->main.count);
	assert_int_equal(weight, policy->main.weight);
	assert_int_equal(policy->small.count, 0);
}

/* ---- against every use ----------------------------------------------------------------------- */

struct model {
	uint32_t use_count;
	uint32_t name[USES];
	uint64_t time[USES];
};

static void model_use(struct model *model, uint32_t name, uint64_t time)
{
	assert_true(model->use_count < USES);
	model->name[model->use_count] = name;
	model->time[model->use_count++] = time;
}

/* What a name's uses are worth now. */
static double model_heat(const struct model *model, uint32_t name, uint64_t now)
{
	const double life = (double)FEW * WEIGHT * KVR_POLICY_TURNOVERS;
	double heat = 0;

	for (uint32_t i = 0; i < model->use_count; i++)
		if (model->name[i] == name)
			heat += exp2(-(double)(now - model->time[i]) / life);
	return heat;
}

/* Entries of one weight, and always as many: then the half-life never changes. */
static void test_heat(void **state)
{
	struct kvr_random *random = *state;
	static struct model model;
	struct kvr_policy policy;
	uint32_t where[NAMES]; /* entry + 1 of a name, 0: not here */
	uint32_t refused = 0, evicted = 0;

	memset(&model, 0, sizeof(model));
	memset(where, 0, sizeof(where));
	start(&policy, FEW, GHOSTS);
	for (uint32_t e = 0; e < FEW; e++) {
		kvr_policy_admit(&policy, e, e, WEIGHT);
		model_use(&model, e, policy.now);
		where[e] = e + 1;
	}
	for (uint32_t step = 0; step < 3000; step++) {
		/* Low names are used more. */
		const uint32_t name =
			(uint32_t)(NAMES * kvr_random_unit(random) * kvr_random_unit(random));
		double least = INFINITY, heat;
		uint32_t victim;

		kvr_policy_advance(&policy, kvr_random_range(random, 1, 3 * WEIGHT));
		model_use(&model, name, policy.now);
		if (where[name] > 0) {
			kvr_policy_touch(&policy, where[name] - 1, 0);
			continue;
		}
		for (uint32_t n = 0; n < NAMES; n++)
			if (where[n] > 0)
				least = fmin(least, model_heat(&model, n, policy.now));
		heat = model_heat(&model, name, policy.now);
		kvr_policy_note(&policy, name);
		if (!kvr_policy_wants(&policy, name)) {
			assert_true(heat <= least * 1.02);
			refused++;
			continue;
		}
		assert_true(heat >= least * 0.98);
		victim = kvr_policy_evict(&policy, may_always, NULL);
		assert_int_not_equal(victim, KVR_POLICY_NONE);
		assert_true(model_heat(&model, (uint32_t)entries[victim].name, policy.now) <=
			    least * 1.02);
		where[entries[victim].name] = 0;
		kvr_policy_admit(&policy, victim, name, WEIGHT);
		where[name] = victim + 1;
		check_all(&policy);
		evicted++;
	}
	print_message("heat: %u evicted, %u refused\n", evicted, refused);
	assert_true(evicted > 100);
	assert_true(refused > 10);
}

/* ---- many entries ---------------------------------------------------------------------------- */

/* The coldest of 16 has, in the mean, 1/17 of all entries below it. */
static void test_rank(void **state)
{
	struct kvr_random *random = *state;
	struct kvr_policy policy;
	double ranks = 0;
	const int rounds = 500;

	start(&policy, MANY, GHOSTS);
	for (uint32_t e = 0; e < MANY; e++) {
		kvr_policy_advance(&policy, WEIGHT);
		kvr_policy_admit(&policy, e, e, WEIGHT);
	}
	for (int i = 0; i < rounds; i++) {
		uint32_t colder = 0, victim;

		for (int touch = 0; touch < 50; touch++) {
			kvr_policy_advance(&policy, WEIGHT);
			kvr_policy_touch(&policy, kvr_random_range(random, 0, MANY - 1), 0);
		}
		victim = kvr_policy_evict(&policy, may_always, NULL);
		for (uint32_t e = 0; e < MANY; e++)
			colder += entries[e].queue != 0 && entries[e].score < entries[victim].score;
		ranks += (double)colder / MANY;
		kvr_policy_admit(&policy, victim, MANY + (uint64_t)i, WEIGHT);
	}
	print_message("rank: %.4f, 1/17 is %.4f\n", ranks / rounds, 1.0 / 17);
	assert_true(ranks / rounds < 0.08);
	assert_true(ranks / rounds > 0.03); /* it is a draw, not a scan of all */
}

/* What goes on; the same for the same seed. Returns a digest of the victims. */
static uint64_t storm(struct kvr_random random)
{
	static struct pins pins;
	struct kvr_policy policy;
	uint64_t digest = 0;
	uint32_t none = 0, evicted = 0;

	memset(&pins, 0, sizeof(pins));
	start(&policy, MANY, 4096);
	for (uint32_t step = 0; step < 200000; step++) {
		uint32_t entry = kvr_random_range(&random, 0, MANY - 1);
		const uint32_t action = kvr_random_range(&random, 0, 99);
		/* Pinned are few at first, then nearly all. */
		const bool pin = kvr_random_range(&random, 0, 200000) < step;

		pins.pinned[entry] = pin;
		kvr_policy_advance(&policy, kvr_random_range(&random, 0, 10000));
		if (entries[entry].queue == 0 && action < 60) {
			const uint64_t name = kvr_random_range(&random, 0, 20000);

			kvr_policy_note(&policy, name);
			kvr_policy_wants(&policy, name);
			kvr_policy_admit(&policy, entry, name,
				kvr_random_range(&random, 1, 16384) +
					((uint64_t)(action == 0) << 33));
		} else if (entries[entry].queue != 0 && action < 50) {
			kvr_policy_touch(&policy, entry, 0);
		} else if (entries[entry].queue != 0 && action < 55) {
			kvr_policy_remove(&policy, entry);
		} else if (action >= 60) {
			const uint32_t resident = policy.main.count;

			pins.asked = 0;
			entry = kvr_policy_evict(&policy, may_evict, &pins);
			assert_true(pins.asked <= 8 * resident); /* P2 */
			none += entry == KVR_POLICY_NONE;
			if (entry == KVR_POLICY_NONE)
				continue;
			assert_false(pins.pinned[entry]);
			assert_int_equal(entries[entry].queue, 0);
			digest = digest * 31 + entry;
			evicted++;
		}
		if (step % 2000 == 0)
			check_all(&policy);
	}
	check_all(&policy);
	print_message("storm: %u evicted, %u times none\n", evicted, none);
	assert_true(evicted > 1000);
	return digest;
}

/* P4: the same calls, the same victims. */
static void test_storm(void **state)
{
	struct kvr_random *random = *state;
	const struct kvr_random seed = *random;

	assert_true(storm(seed) == storm(seed));
	kvr_random_next(random);
}

/* ---- single traits --------------------------------------------------------------------------- */

/* What may not go stays, and when only one of very many may, that one is found. */
static void test_pinned(void **state)
{
	static struct pins pins;
	struct kvr_policy policy;

	(void)state;
	memset(&pins, 0, sizeof(pins));
	start(&policy, MANY, GHOSTS);
	assert_int_equal(kvr_policy_evict(&policy, may_evict, &pins), KVR_POLICY_NONE);
	for (uint32_t e = 0; e < MANY; e++) {
		kvr_policy_admit(&policy, e, e, WEIGHT);
		pins.pinned[e] = true;
	}
	assert_int_equal(kvr_policy_evict(&policy, may_evict, &pins), KVR_POLICY_NONE);
	assert_int_equal(policy.main.count, MANY);
	for (uint32_t e = 7; e < MANY; e += 400) {
		pins.pinned[e] = false;
		assert_int_equal(kvr_policy_evict(&policy, may_evict, &pins), e);
		assert_int_equal(kvr_policy_evict(&policy, may_evict, &pins), KVR_POLICY_NONE);
	}
	check_all(&policy);
}

/* A scan of names that are used once does not push out what is used again and again. */
static void test_scan(void **state)
{
	struct kvr_policy policy;

	(void)state;
	start(&policy, FEW, GHOSTS);
	for (uint32_t e = 0; e < FEW; e++)
		kvr_policy_admit(&policy, e, e, WEIGHT);
	for (int round = 0; round < 8; round++) {
		kvr_policy_advance(&policy, (uint64_t)FEW / 2 * WEIGHT);
		for (uint32_t e = 0; e < FEW / 2; e++)
			kvr_policy_touch(&policy, e, 0);
	}
	for (uint64_t name = FEW; name < 5 * FEW; name++) {
		uint32_t victim;

		kvr_policy_advance(&policy, WEIGHT);
		kvr_policy_note(&policy, name);
		if (!kvr_policy_wants(&policy, name))
			continue;
		victim = kvr_policy_evict(&policy, may_always, NULL);
		assert_true(victim >= FEW / 2);
		kvr_policy_admit(&policy, victim, name, WEIGHT);
	}
}

/* A name that went comes back with what it was worth; an unknown one with a single use. */
static void test_memory(void **state)
{
	struct kvr_policy policy;
	uint64_t score;

	(void)state;
	start(&policy, 1, GHOSTS);
	kvr_policy_admit(&policy, 0, 5, WEIGHT);
	assert_int_equal(entries[0].score, policy.now);
	for (int i = 0; i < 4; i++)
		kvr_policy_touch(&policy, 0, 0);
	score = entries[0].score;
	assert_true(score > policy.now);
	assert_int_equal(kvr_policy_evict(&policy, may_always, NULL), 0);
	kvr_policy_admit(&policy, 0, 5, WEIGHT);
	assert_int_equal(entries[0].score, score);
	kvr_policy_remove(&policy, 0);
	kvr_policy_admit(&policy, 0, 5, WEIGHT); /* dropped, so forgotten */
	assert_int_equal(entries[0].score, policy.now);
	kvr_policy_remove(&policy, 0);
	kvr_policy_admit(&policy, 0, 6, (uint64_t)1 << 40);
	assert_int_equal(entries[0].weight, UINT32_MAX);
	check_all(&policy);
}

/* What was hot while much was in is remembered when next to nothing is: a half-life is short then, and its score far
 * ahead. It is a number all the same, and stays the hottest. */
static void test_hot_and_alone(void **state)
{
	struct kvr_policy policy;

	(void)state;
	start(&policy, 64, 64);
	for (uint32_t entry = 0; entry < 64; entry++)
		kvr_policy_admit(&policy, entry, 1000 + entry, 1u << 20);
	for (uint32_t use = 0; use < 1000; use++)
		kvr_policy_touch(&policy, 0, 0);
	for (uint32_t entry = 63; entry > 0; entry--)
		kvr_policy_remove(&policy, entry);
	kvr_policy_evict(&policy, may_evict, &(struct pins){{false}, 0});
	assert_int_equal(policy.main.count, 0);
	kvr_policy_advance(&policy, 1);
	kvr_policy_note(&policy, 1000);
	kvr_policy_admit(&policy, 0, 1000, 100);
	kvr_policy_note(&policy, 2000);
	assert_false(kvr_policy_wants(&policy, 2000)); /* used once */
	assert_true(entries[0].score >= policy.now);
	assert_true(entries[0].score < UINT64_MAX / 2);
	check_all(&policy);
}

int main(void)
{
	struct kvr_random random = kvr_random_start();
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_prestate(test_heat, &random),
		cmocka_unit_test_prestate(test_rank, &random),
		cmocka_unit_test_prestate(test_storm, &random),
		cmocka_unit_test(test_pinned),
		cmocka_unit_test(test_scan),
		cmocka_unit_test(test_memory),
		cmocka_unit_test(test_hot_and_alone),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
