/* SPDX-License-Identifier: Apache-2.0 */
/* tool.c: the command line, as a user runs it.
 *
 * Goal: exit codes, clean stdout and errors are as documented; what put stores comes back from fetch
 * bit-identical and from recall row for row; a second put sends nothing; bench leaves nothing.
 * Method: one real daemon, the real `kvrecall` as child processes with captured output, .npy files
 * made here from a seeded generator. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdio.h>
#include <string.h>

#include "tests/daemon/tool_util.h"

#define LAYERS      2u
#define QUERY_HEADS 4u
#define KV_HEADS    2u
#define TOKENS      700u
#define KEY_DIM     24u
#define VALUE_DIM   40u
#define BUDGET      50u

static void assert_same_files(const char *a, const char *b)
{
	struct kvr_npy one = {0}, two = {0};

	tool_open_file(a, &one);
	tool_open_file(b, &two);
	assert_int_equal(one.file.bytes, two.file.bytes);
	assert_memory_equal(one.file.data, two.file.data, one.file.bytes);
	tool_close_file(&one);
	tool_close_file(&two);
}

static int start(void **state)
{
	static const char *const arguments[] = {"-m", "128MiB", NULL};
	const uint64_t keys[4] = {LAYERS, KV_HEADS, TOKENS, KEY_DIM};
	const uint64_t values[4] = {LAYERS, KV_HEADS, TOKENS, VALUE_DIM};
	const uint64_t queries[4] = {LAYERS, QUERY_HEADS, 3, KEY_DIM};

	(void)state;
	tool_make_dir();
	harness_start(&tool_daemon, arguments);
	tool_make_file("K.npy", keys, NULL);
	tool_make_file("V.npy", values, NULL);
	tool_make_file("Q.npy", queries, NULL);
	return 0;
}

/* ---- tests ----------------------------------------------------------------------------------- */

#define PUT "put -m m -K K.npy -V V.npy --dtype bf16 --query-heads 4 --segment-tokens 128 "

static void test_exit_codes(void **state)
{
	static const struct tool_case cases[] = {
		{"--help", 0, NULL},
		{"--version", 0, NULL},
		{"recall --help", 0, NULL},
		{"", 2, "no command"},
		{"fly", 2, "no such command: fly"},
		{"status --fly", 2, "--fly"},
		{"status now", 2, "unexpected argument: now"},
		{"put -m m -K K.npy", 2, "--values FILE is missing"},
		{"put -m m -K", 2, "needs a value"},
		{"bench --lanes many", 2, "'many'"},
		{"bench --lanes -1", 2, "'-1'"},
		{"drop --model m", 2, "--yes"},
		{"drop", 2, "either"},
		{"fetch -m m --out o", 2, "which tokens"},
		{"pin --segment xyz9", 2, "hexadecimal"},
		{"put -m m -K K.npy -V V.npy", 1, "--dtype bf16"},
		{"put -m m -K none.npy -V V.npy", 1, "none.npy"},
		{"put -m m -K K.npy -V Q.npy --dtype bf16", 1, "differ"},
		{PUT "--segment-tokens 100", 1, "remedy"},
		{"segments -m nothing", 1, "no model 'nothing'"},
		{"pin --segment abcdef", 1, "0 segments"},
	};

	(void)state;
	tool_refuses(cases, sizeof(cases) / sizeof(cases[0]));
	assert_int_equal(tool_run_at("/nowhere/attach.sock", "status"), 3);
	tool_says(tool_err, "no daemon at /nowhere/attach.sock");
}

static void test_errors_as_json(void **state)
{
	(void)state;
	assert_int_equal(tool_run_at("/nowhere/attach.sock", "--json status"), 3);
	assert_string_equal(tool_out, "");
	tool_says(tool_err, "{\"error\":{\"code\":0,\"name\":\"ENOENT\",\"subject\":\"no daemon");
	tool_says(tool_err, "\"remedy\":\"");
	tool_says(tool_err, "\"errno\":2}}\n");
	assert_int_equal(tool_run("status --fly --json"), 2);
	tool_says(tool_err, "\"name\":\"USAGE\"");
}

static void test_put_fetch(void **state)
{
	(void)state;
	tool_run_well(PUT "--tokens-out T.npy --json");
	tool_says(tool_out, "\"tokens\":700,\"matched_tokens\":0,\"appended_tokens\":700,"
			    "\"sealed_tokens\":700,");
	tool_run_well(PUT "--json");
	tool_says(tool_out, "\"matched_tokens\":700,\"appended_tokens\":0,");
	tool_run_well("fetch -m m -T T.npy --out copy");
	assert_same_files("copy_K.npy", "K.npy");
	assert_same_files("copy_V.npy", "V.npy");
	/* In several chunks, and found by content. */
	tool_run_well("fetch -m m -K K.npy -V V.npy --dtype bf16 --out again --region 1M");
	assert_same_files("again_K.npy", "K.npy");
	assert_int_equal(tool_run("fetch -m m -T T.npy --first 700 --out none"), 1);
	tool_says(tool_err, "700 are stored");
	tool_run_well("fetch -m m -T T.npy --first 100 --count 7 --out part");
	tool_run_well("models --json");
	tool_says(tool_out, "\"name\":\"m\",\"dtype\":\"bf16\",\"layers\":2,\"query_heads\":4,");
}

/* Every row that recall wrote is the row of its position; the rest is marked absent. */
static void check_rows(const char *name, uint32_t dim, const char *source_name, uint32_t heads)
{
	struct kvr_npy rows = {0}, positions = {0}, weights = {0}, source = {0};
	size_t bytes = (size_t)dim * 2;
	char path[64];
	uint32_t found = 0;

	snprintf(path, sizeof(path), "r_%s.npy", name);
	tool_open_file(path, &rows);
	tool_open_file("r_positions.npy", &positions);
	tool_open_file("r_weights.npy", &weights);
	tool_open_file(source_name, &source);
	if (!rows.data.data || !positions.data.data || !weights.data.data || !source.data.data)
		return; /* not reached: open_file fails the test */
	assert_int_equal(rows.element_count, (uint64_t)LAYERS * heads * BUDGET * dim);
	for (uint32_t i = 0; i < LAYERS * heads * BUDGET; i++) {
		uint64_t lane = (uint64_t)i / BUDGET / (heads / KV_HEADS);
		int32_t position;
		float weight;

		memcpy(&position, positions.data.data + 4 * (size_t)i, 4);
		memcpy(&weight, weights.data.data + 4 * (size_t)i, 4);
		if (position < 0) {
			assert_true(weight < -1e30f);
			continue;
		}
		assert_true(position < (int32_t)TOKENS);
		assert_true(weight == 0);
		assert_memory_equal(rows.data.data + i * bytes,
			source.data.data + (lane * TOKENS + (uint32_t)position) * bytes, bytes);
		found++;
	}
	assert_true(found > 0);
	tool_close_file(&rows);
	tool_close_file(&positions);
	tool_close_file(&weights);
	tool_close_file(&source);
}

static void test_recall(void **state)
{
	(void)state;
	tool_run_well(PUT "--tokens-out T.npy");
	tool_run_well("recall -m m -T T.npy -Q Q.npy --dtype bf16 --budget 50 --out r --json");
	tool_says(tool_out, "\"matched_tokens\":700,\"covered_tokens\":700,\"query\":2,");
	tool_says(tool_out, "\"heads\":[{\"layer\":0,\"head\":0,\"rows\":50,");
	check_rows("K", KEY_DIM, "K.npy", KV_HEADS);
	check_rows("V", VALUE_DIM, "V.npy", KV_HEADS);
	tool_run_well(
		"recall -m m -T T.npy -Q Q.npy --dtype bf16 -b 50 -q 0 --rank inner-product -o r");
	check_rows("K", KEY_DIM, "K.npy", QUERY_HEADS);
	assert_int_equal(tool_run("recall -m m -T T.npy -Q Q.npy --dtype bf16 -b 50 --query 3"), 2);
	assert_int_equal(tool_run("recall -m m -T T.npy -Q K.npy --dtype bf16 -b 50"), 1);
}

static void test_pin_and_drop(void **state)
{
	char hash[13], line[128];
	const char *first;

	(void)state;
	tool_run_well(PUT);
	tool_run_well("segments -m m --json");
	tool_says(tool_out, "\"parent\":\"-\"");
	tool_says(tool_out, "\"first_token\":640,\"tokens\":60,");
	first = strstr(tool_out, "\"hash\":\"");
	assert_non_null(first);
	snprintf(hash, sizeof(hash), "%.12s", first + 8); /* the first digits do */
	snprintf(line, sizeof(line), "pin --json --segment %s", hash);
	tool_run_well(line);
	assert_string_equal(tool_out, "{\"pinned_segments\":1}\n");
	tool_run_well("drop -m m --yes --json");
	tool_says(tool_out, "{\"dropped_segments\":5,");
	tool_says(tool_out, "\"kept_segments\":1}");
	snprintf(line, sizeof(line), "unpin --segment %s", hash);
	tool_run_well(line);
	tool_run_well("drop -m m --yes --json");
	tool_says(tool_out, "{\"dropped_segments\":1,");
	tool_run_well("segments -m m --json");
	assert_string_equal(tool_out, "{\"segments\":[]}\n");
}

static void test_bench_cleans_up(void **state)
{
	(void)state;
	tool_run_well("bench --lanes 2 --dim 16 --tokens 3000 --budget 100 -n 5 --json");
	tool_says(tool_out, "\"ping_ns_p50\":");
	tool_run_well("segments -m kvrecall-bench --json");
	assert_string_equal(tool_out, "{\"segments\":[]}\n");
}

static void test_status(void **state)
{
	(void)state;
	tool_run_well("status --json");
	tool_says(tool_out, "{\"");
	tool_run_well("status");
	tool_says(tool_out, "\n  ");
	assert_null(strstr(tool_out, "\033")); /* no colour where there is no terminal */
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_exit_codes),
		cmocka_unit_test(test_errors_as_json),
		cmocka_unit_test(test_put_fetch),
		cmocka_unit_test(test_recall),
		cmocka_unit_test(test_pin_and_drop),
		cmocka_unit_test(test_bench_cleans_up),
		cmocka_unit_test(test_status),
	};

	return cmocka_run_group_tests(tests, start, tool_stop);
}
