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

#include <sys/wait.h>

#include "client/cli_npy.c" /* NOLINT(bugprone-suspicious-include): no library holds it */
#include "tests/daemon/harness_util.h"

#define LAYERS      2u
#define QUERY_HEADS 4u
#define KV_HEADS    2u
#define TOKENS      700u
#define KEY_DIM     24u
#define VALUE_DIM   40u
#define BUDGET      50u
#define OUTPUT_MAX  65536u

static struct harness_daemon daemon_process;
static char out[OUTPUT_MAX], err[OUTPUT_MAX]; /* of the last run */
static char tool[600], dir[64];

/* ---- running it ------------------------------------------------------------------------------ */

static void read_back(const char *name, char *into)
{
	char path[128];
	FILE *file;
	size_t length;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	file = fopen(path, "r");
	assert_non_null(file);
	length = fread(into, 1, OUTPUT_MAX - 1, file);
	into[length] = 0;
	assert_int_equal(fclose(file), 0);
}

/* Runs the tool with the words of `arguments` in the folder of the files. Returns the exit code. */
static int run(const char *socket, const char *arguments)
{
	char line[2048];
	int status;

	/* The shell's part is the redirections; nothing here comes from outside. */
	snprintf(line, sizeof(line), "cd %s && '%s' --socket %s %s >out 2>err", dir, tool, socket,
		arguments);
	status = system(line); /* NOLINT(cert-env33-c) */
	assert_true(WIFEXITED(status));
	read_back("out", out);
	read_back("err", err);
	return WEXITSTATUS(status);
}

static void run_well(const char *arguments)
{
	int code = run(daemon_process.socket, arguments);

	if (code)
		fail_msg("kvrecall %s: %d, %s", arguments, code, err);
	assert_string_equal(err, "");
}

static void assert_says(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("'%s' lacks '%s'", text, part);
}

/* ---- files ----------------------------------------------------------------------------------- */

static void open_file(const char *name, struct kvr_npy *ret_npy)
{
	struct kvr_npy_error why = {{0}, NULL};
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	if (kvr_npy_open(path, ret_npy, &why))
		fail_msg("%s", why.subject);
}

/* Makes a file of finite numbers: bfloat16 between 0.5 and 1 with either sign. */
static void make_file_of(const char *name, const uint64_t shape[4])
{
	struct kvr_npy_error why = {{0}, NULL};
	struct kvr_npy npy = {0};
	uint32_t random = (uint32_t)name[0] * 2654435761u; /* the seed: the same in every run */
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	assert_int_equal(kvr_npy_create(path, KVR_NPY_U2, shape, 4, &npy, &why), 0);
	for (size_t i = 0; npy.data.data && i < npy.element_count; i++) {
		uint16_t number;

		random = random * 1664525u + 1013904223u;
		number = (uint16_t)(((random >> 16) & 0x807fu) | 0x3f00u);
		memcpy(npy.data.data + 2 * i, &number, 2);
	}
	assert_int_equal(kvr_npy_commit(&npy, &why), 0);
}

static void assert_same_files(const char *a, const char *b)
{
	struct kvr_npy one = {0}, two = {0};

	open_file(a, &one);
	open_file(b, &two);
	assert_int_equal(one.file.bytes, two.file.bytes);
	assert_memory_equal(one.file.data, two.file.data, one.file.bytes);
	kvr_npy_close(&one);
	kvr_npy_close(&two);
}

static int start(void **state)
{
	static const char *const arguments[] = {"-m", "128MiB", NULL};
	const uint64_t keys[4] = {LAYERS, KV_HEADS, TOKENS, KEY_DIM};
	const uint64_t values[4] = {LAYERS, KV_HEADS, TOKENS, VALUE_DIM};
	const uint64_t queries[4] = {LAYERS, QUERY_HEADS, 3, KEY_DIM};

	(void)state;
	snprintf(dir, sizeof(dir), "/tmp/kvrecall-tool-XXXXXX");
	assert_non_null(mkdtemp(dir));
	harness_program("kvrecall", tool, sizeof(tool));
	harness_start(&daemon_process, arguments);
	make_file_of("K.npy", keys);
	make_file_of("V.npy", values);
	make_file_of("Q.npy", queries);
	return 0;
}

static int stop(void **state)
{
	char line[128];

	(void)state;
	harness_stop(&daemon_process);
	snprintf(line, sizeof(line), "rm -r %s", dir);
	return system(line); /* NOLINT(cert-env33-c) */
}

/* ---- tests ----------------------------------------------------------------------------------- */

#define PUT "put -m m -K K.npy -V V.npy --dtype bf16 --query-heads 4 --segment-tokens 128 "

static void test_exit_codes(void **state)
{
	static const struct {
		const char *arguments;
		int code;
		const char *says; /* on stderr; NULL: on stdout, and stderr is empty */
	} cases[] = {
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
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		int code = run(daemon_process.socket, cases[i].arguments);

		if (code != cases[i].code)
			fail_msg("kvrecall %s: %d, %s", cases[i].arguments, code, err);
		assert_says(cases[i].says ? err : out, cases[i].says ? cases[i].says : "kvrecall");
		assert_string_equal(cases[i].says ? out : err, "");
	}
	assert_int_equal(run("/nowhere/attach.sock", "status"), 3);
	assert_says(err, "no daemon at /nowhere/attach.sock");
}

static void test_errors_as_json(void **state)
{
	(void)state;
	assert_int_equal(run("/nowhere/attach.sock", "--json status"), 3);
	assert_string_equal(out, "");
	assert_says(err, "{\"error\":{\"code\":0,\"name\":\"ENOENT\",\"subject\":\"no daemon");
	assert_says(err, "\"remedy\":\"");
	assert_says(err, "\"errno\":2}}\n");
	assert_int_equal(run(daemon_process.socket, "status --fly --json"), 2);
	assert_says(err, "\"name\":\"USAGE\"");
}

static void test_put_fetch(void **state)
{
	(void)state;
	run_well(PUT "--tokens-out T.npy --json");
	assert_says(out, "\"tokens\":700,\"matched_tokens\":0,\"appended_tokens\":700,"
			 "\"sealed_tokens\":700,");
	run_well(PUT "--json");
	assert_says(out, "\"matched_tokens\":700,\"appended_tokens\":0,");
	run_well("fetch -m m -T T.npy --out copy");
	assert_same_files("copy_K.npy", "K.npy");
	assert_same_files("copy_V.npy", "V.npy");
	/* In several chunks, and found by content. */
	run_well("fetch -m m -K K.npy -V V.npy --dtype bf16 --out again --region 1M");
	assert_same_files("again_K.npy", "K.npy");
	assert_int_equal(
		run(daemon_process.socket, "fetch -m m -T T.npy --first 700 --out none"), 1);
	assert_says(err, "700 are stored");
	run_well("fetch -m m -T T.npy --first 100 --count 7 --out part");
	run_well("models --json");
	assert_says(out, "\"name\":\"m\",\"dtype\":\"bf16\",\"layers\":2,\"query_heads\":4,");
}

/* Every row that recall wrote is the row of its position; the rest is marked absent. */
static void check_rows(const char *name, uint32_t dim, const char *source_name, uint32_t heads)
{
	struct kvr_npy rows = {0}, positions = {0}, weights = {0}, source = {0};
	size_t bytes = (size_t)dim * 2;
	char path[64];
	uint32_t found = 0;

	snprintf(path, sizeof(path), "r_%s.npy", name);
	open_file(path, &rows);
	open_file("r_positions.npy", &positions);
	open_file("r_weights.npy", &weights);
	open_file(source_name, &source);
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
	kvr_npy_close(&rows);
	kvr_npy_close(&positions);
	kvr_npy_close(&weights);
	kvr_npy_close(&source);
}

static void test_recall(void **state)
{
	(void)state;
	run_well(PUT "--tokens-out T.npy");
	run_well("recall -m m -T T.npy -Q Q.npy --dtype bf16 --budget 50 --out r --json");
	assert_says(out, "\"matched_tokens\":700,\"covered_tokens\":700,\"query\":2,");
	assert_says(out, "\"heads\":[{\"layer\":0,\"head\":0,\"rows\":50,");
	check_rows("K", KEY_DIM, "K.npy", KV_HEADS);
	check_rows("V", VALUE_DIM, "V.npy", KV_HEADS);
	run_well("recall -m m -T T.npy -Q Q.npy --dtype bf16 -b 50 -q 0 --rank inner-product -o r");
	check_rows("K", KEY_DIM, "K.npy", QUERY_HEADS);
	assert_int_equal(run(daemon_process.socket,
				 "recall -m m -T T.npy -Q Q.npy --dtype bf16 -b 50 --query 3"),
		2);
	assert_int_equal(
		run(daemon_process.socket, "recall -m m -T T.npy -Q K.npy --dtype bf16 -b 50"), 1);
}

static void test_pin_and_drop(void **state)
{
	char hash[13], line[128];
	const char *first;

	(void)state;
	run_well(PUT);
	run_well("segments -m m --json");
	assert_says(out, "\"parent\":\"-\"");
	assert_says(out, "\"first_token\":640,\"tokens\":60,");
	first = strstr(out, "\"hash\":\"");
	assert_non_null(first);
	snprintf(hash, sizeof(hash), "%.12s", first + 8); /* the first digits do */
	snprintf(line, sizeof(line), "pin --json --segment %s", hash);
	run_well(line);
	assert_string_equal(out, "{\"pinned_segments\":1}\n");
	run_well("drop -m m --yes --json");
	assert_says(out, "{\"dropped_segments\":5,");
	assert_says(out, "\"kept_segments\":1}");
	snprintf(line, sizeof(line), "unpin --segment %s", hash);
	run_well(line);
	run_well("drop -m m --yes --json");
	assert_says(out, "{\"dropped_segments\":1,");
	run_well("segments -m m --json");
	assert_string_equal(out, "{\"segments\":[]}\n");
}

static void test_bench_cleans_up(void **state)
{
	(void)state;
	run_well("bench --lanes 2 --dim 16 --tokens 3000 --budget 100 -n 5 --json");
	assert_says(out, "\"ping_ns_p50\":");
	run_well("segments -m kvrecall-bench --json");
	assert_string_equal(out, "{\"segments\":[]}\n");
}

static void test_status(void **state)
{
	(void)state;
	run_well("status --json");
	assert_says(out, "{\"");
	run_well("status");
	assert_says(out, "\n  ");
	assert_null(strstr(out, "\033")); /* no colour where there is no terminal */
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

	return cmocka_run_group_tests(tests, start, stop);
}
