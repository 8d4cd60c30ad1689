/* SPDX-License-Identifier: Apache-2.0 */
/* quality.c: the quality bench (bench/quality/).
 *
 * Goal: the bench measures what it says. Full attention is without error; no method has more mass than
 * the exact choice; more budget and better estimates err less; the device answers as the same recipe does in
 * plain C; a dump that was written reads back as what it was; one that does not fit together is refused.
 *
 * Method: 1,024 tokens of the project's story, the last 64 of which ask: the bench in small. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "bench/quality/dump.h"
#include "bench/quality/measure.h"
#include "bench/quality/memory.h"
#include "bench/quality/plan.h"
#include "client/cli_npy.h"

#define CONTEXT 1024u
#define TAIL    64u
#define STRIDE  8u /* of the queries, one in so many */

static struct quality_model *model;
static struct quality_input input;
static struct quality_store store;
static struct quality_entry entries[QUALITY_ENTRIES_MAX];
static uint32_t entry_count;

static void open_input(struct quality_worker *worker, void *context, uint32_t index)
{
	(void)context;
	(void)index;
	quality_model_input(model, "prose", CONTEXT, TAIL, worker, &input);
	quality_store_open(&store, &input.prompt, worker);
}

static int open_all(void **state)
{
	(void)state;
	model = quality_model_open();
	quality_work(1, open_input, NULL);
	entry_count = quality_plan_methods(&input, &store, entries);
	quality_measure_attention(entries, entry_count, STRIDE);
	return 0;
}

static int close_all(void **state)
{
	(void)state;
	quality_store_close(&store);
	quality_input_close(&input);
	model = quality_model_close(model);
	return 0;
}

static struct quality_entry *find(const char *method, double percent)
{
	for (uint32_t i = 0; i < entry_count; i++)
		if (!strcmp(entries[i].method->name, method) && entries[i].percent == percent)
			return &entries[i];
	fail_msg("no entry of %s at %g", method, percent);
	return NULL;
}

/* ---- orderings --------------------------------------------------------------------------------- */

static void test_full(void **state)
{
	const struct quality_entry *full = find("full", 100);

	(void)state;
	assert_true(full->error < 1e-5);
	assert_true(fabs(full->mass - 1.0) < 1e-5);
}

/* For every head the largest shares are the most mass that a number of tokens can have. */
static void test_mass(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < entry_count; i++) {
		const struct quality_entry *entry = &entries[i];

		assert_true(entry->mass > 0.0);
		assert_true(entry->mass < 1.0 + 1e-5);
		if (entry->method->fixed_percent > 0)
			continue;
		assert_true(entry->mass <= find("oracle_heads", entry->percent)->mass + 1e-6);
	}
}

static void test_orderings(void **state)
{
	(void)state;
	for (uint32_t b = 0; b < QUALITY_BUDGETS; b++) {
		const double percent = quality_percents[b];
		const struct quality_entry *clusters = find("clusters", percent);
		const struct quality_entry *mixed2 = find("mixed2", percent);

		assert_true(mixed2->error < find("mixed1", percent)->error);
		assert_true(find("mixed1", percent)->error < clusters->error);
		assert_true(mixed2->error < find("clusterkv", percent)->error);
		/* A short context leaves little to estimate where the budget is large. */
		assert_true(percent > 5 || mixed2->error < find("oracle", percent)->error);
		assert_true(find("mixed2_rescored", percent)->error < mixed2->error);
		assert_true(find("clusters_rescored", percent)->mass > clusters->mass);
		assert_true(fabs(mixed2->mass - clusters->mass) < 1e-3);
		assert_true(mixed2->error <= mixed2->error_p95);
	}
}

static void test_budgets(void **state)
{
	(void)state;
	for (uint32_t i = 0; i + 1 < entry_count; i++) {
		const struct quality_entry *less = &entries[i], *more = &entries[i + 1];

		if (less->method != more->method)
			continue;
		assert_true(more->budget_tokens > less->budget_tokens);
		assert_true(more->mass > less->mass);
		assert_true(more->error < less->error);
		assert_true(more->staged_bytes > less->staged_bytes);
	}
}

static void test_merged(void **state)
{
	static const char *const names[] = {"centroid_2", "centroid_4", "centroid_5", "centroid_8"};
	static const double percents[] = {50, 25, 20, 12.5};

	(void)state;
	for (uint32_t i = 0; i + 1 < 4; i++) {
		const struct quality_entry *more = find(names[i], percents[i]);
		const struct quality_entry *less = find(names[i + 1], percents[i + 1]);

		assert_true(more->error > 0.0);
		assert_true(less->error > more->error);
		assert_true(less->staged_bytes < more->staged_bytes);
		assert_true(less->mass < 1.0);
	}
}

/* ---- the device against plain C ---------------------------------------------------------------- */

/* The device rounds queries to 15 bits: a cluster now and then, and no more, may change its place. */
static void test_device(void **state)
{
	static const struct quality_recipe recipes[] = {
		{QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_NONE, 0.0, false},
		{QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_FIRST, 1.0, false},
		{QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_SECOND, 1.0, false}};
	static const char *const names[] = {"clusters", "mixed1", "mixed2"};

	(void)state;
	for (uint32_t i = 0; i < 3; i++) {
		const struct quality_method plain = {.name = "plain",
			.scored = true,
			.answer = quality_summary_answer,
			.recipe = recipes[i]};
		struct quality_entry entry = *find(names[i], 10);
		const struct quality_entry device = entry;

		entry.method = &plain;
		entry.staged_bytes = entry.read_bytes = 0.0;
		quality_measure_attention(&entry, 1, STRIDE);
		assert_true(fabs(entry.error - device.error) < 0.01 * device.error);
		assert_true(fabs(entry.mass - device.mass) < 1e-4);
		assert_true(fabs(entry.staged_bytes - device.staged_bytes) < 1.0);
	}
}

/* ---- the model --------------------------------------------------------------------------------- */

static void test_steps(void **state)
{
	struct quality_entry *of[] = {find("full", 100), find("mixed2", 20), find("clusters", 2)};

	(void)state;
	quality_measure_steps(of, 3, model);
	assert_true(of[0]->has_steps);
	assert_true(fabs(of[0]->kl) < 1e-6);
	assert_true(of[0]->top1 == 1.0);
	assert_true(of[1]->kl > 0.0);
	assert_true(of[2]->kl > 2 * of[1]->kl);
	assert_true(of[2]->top1 < 1.0);
	assert_true(fabs(of[1]->nll - of[0]->nll) < 0.5);
}

/* ---- dumps ------------------------------------------------------------------------------------- */

static void dump_path(char path[256])
{
	const char *folder = getenv("TMPDIR");

	snprintf(path, 256, "%s/quality", folder ? folder : "/tmp");
}

static void test_dump(void **state)
{
	const struct kvr_geometry *geometry = &input.prompt.geometry;
	const size_t queries =
		(size_t)TAIL * geometry->layer_count * geometry->query_heads * geometry->key_dim;
	struct quality_input back;
	char path[256];

	(void)state;
	dump_path(path);
	quality_dump_write(path, &input);
	quality_dump_read(path, &back);
	assert_int_equal(back.context_tokens, CONTEXT);
	assert_int_equal(back.prompt.token_count, CONTEXT - TAIL);
	assert_int_equal(back.tail.token_count, TAIL);
	assert_memory_equal(back.queries, input.queries, queries * sizeof(float));
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(geometry); lane++)
		for (uint32_t t = 0; t < CONTEXT - TAIL; t += 7) {
			float key[KVR_DIM_MAX], same[KVR_DIM_MAX];

			quality_rows_get_key(&input.prompt, lane, t, key);
			quality_rows_get_key(&back.prompt, lane, t, same);
			assert_memory_equal(key, same, geometry->key_dim * sizeof(float));
		}
	assert_memory_equal(back.prompt.value_floats, input.prompt.value_floats,
		(size_t)kvr_geometry_lanes(geometry) * (CONTEXT - TAIL) * geometry->value_dim *
			sizeof(float));
	quality_input_close(&back);
}

/* Whether reading the dump ends the process as a refusal does. */
static bool refused(const char *path)
{
	const pid_t child = fork();
	struct quality_input back;
	int status;

	assert_true(child >= 0);
	if (child == 0) {
		if (!freopen("/dev/null", "w", stderr))
			_exit(3);
		quality_dump_read(path, &back);
		_exit(0);
	}
	assert_int_equal(waitpid(child, &status, 0), child);
	return WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

static void write_npy(const char *path, const char *which, const uint64_t shape[4], float first)
{
	struct kvr_npy_error error;
	struct kvr_npy npy;
	char name[300];

	snprintf(name, sizeof(name), "%s_%s.npy", path, which);
	assert_int_equal(kvr_npy_create(name, KVR_NPY_F4, shape, 4, &npy, &error), 0);
	memcpy(npy.data.data, &first, sizeof(first));
	assert_int_equal(kvr_npy_commit(&npy, &error), 0);
}

static void test_refused(void **state)
{
	static const uint64_t k[4] = {1, 1, 100, 8}, v[4] = {1, 1, 100, 8}, q[4] = {1, 2, 4, 8};
	static const struct {
		uint64_t k[4], v[4], q[4];
		float first;
	} bad[] = {
		{{1, 1, 100, 8}, {1, 1, 99, 8}, {1, 2, 4, 8}, 0},    /* tokens of V */
		{{1, 1, 100, 8}, {1, 1, 100, 8}, {1, 2, 4, 16}, 0},  /* dimension of Q */
		{{1, 2, 100, 8}, {1, 2, 100, 8}, {1, 3, 4, 8}, 0},   /* heads that form no groups */
		{{1, 1, 100, 8}, {1, 1, 100, 8}, {1, 17, 4, 8}, 0},  /* too many of them */
		{{1, 1, 100, 8}, {1, 1, 100, 8}, {1, 2, 90, 8}, 0},  /* no prompt is left */
		{{1, 1, 100, 4}, {1, 1, 100, 4}, {1, 2, 4, 4}, 0},   /* too few dimensions */
		{{1, 1, 100, 8}, {1, 1, 100, 8}, {1, 2, 4, 8}, NAN}, /* not finite */
	};
	char path[256];

	(void)state;
	dump_path(path);
	strncat(path, "_bad", sizeof(path) - strlen(path) - 1);
	assert_true(refused(path)); /* nothing there */
	write_npy(path, "K", k, 1);
	write_npy(path, "V", v, 1);
	write_npy(path, "Q", q, 1);
	assert_false(refused(path));
	for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
		write_npy(path, "K", bad[i].k, bad[i].first);
		write_npy(path, "V", bad[i].v, 1);
		write_npy(path, "Q", bad[i].q, 1);
		assert_true(refused(path));
	}
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full),
		cmocka_unit_test(test_mass),
		cmocka_unit_test(test_orderings),
		cmocka_unit_test(test_budgets),
		cmocka_unit_test(test_merged),
		cmocka_unit_test(test_device),
		cmocka_unit_test(test_steps),
		cmocka_unit_test(test_dump),
		cmocka_unit_test(test_refused),
	};

	return cmocka_run_group_tests(tests, open_all, close_all);
}
