/* SPDX-License-Identifier: Apache-2.0 */
/* tool_forms.c: `kvrecall recall --form`, `kvrecall put --merged` and what `kvrecall models` says of it.
 *
 * Goal: the files that a recall writes are enough to compute attention with, as the help says, for every form; each
 * option does what it says; what cannot be is refused with a remedy.
 * Method: one real daemon and the real tool. Tokens are alike such that a centroid, or a merged row, stands for its tokens
 * exactly; then attention over the files is attention over all keys and values, which the test computes in double. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <string.h>

#include "tests/daemon/attention_util.h"
#include "tests/daemon/tool_util.h"

#define LAYERS      2u
#define QUERY_HEADS 4u
#define KV_HEADS    2u
#define GROUP       (QUERY_HEADS / KV_HEADS)
#define TOKENS      700u /* five segments of 128 and one of 60 */
#define MERGED      512u /* the segment that ends at 640 has some of the newest 64 */
#define SINKS       16u
#define KEY_DIM     24u
#define VALUE_DIM   40u
/* What outputs may be off by, of the length of values, and log-sum-exps: centroids are scored with 8 bits; merged rows of
 * equal tokens are these. */
#define CLOSE_ESTIMATE 0.004
#define CLOSE_ROWS     1e-4

#define PUT(name, kind)                                                   \
	"put -m " name " -K K" kind ".npy -V V" kind ".npy --dtype bf16 " \
	"--query-heads 4 --segment-tokens 128 --cluster-tokens 8 --tokens-out T" kind ".npy "
#define RECALL(name, kind) "recall -m " name " -T T" kind ".npy --dtype bf16 -o r "

static const struct kvr_model_config config = {
	.key_dim = KEY_DIM, .value_dim = VALUE_DIM, .type = KVR_BF16};

/* Eight in a row: k-means begins with keys of all four, and no cluster has two kinds. */
static uint32_t of_four(uint32_t token)
{
	return token / 8 % 4;
}

static uint32_t in_pairs(uint32_t token)
{
	return token / 2;
}

static int start(void **state)
{
	static const char *const arguments[] = {"-m", "128MiB", NULL};
	const uint64_t keys[4] = {LAYERS, KV_HEADS, TOKENS, KEY_DIM};
	const uint64_t values[4] = {LAYERS, KV_HEADS, TOKENS, VALUE_DIM};
	const uint64_t queries[4] = {LAYERS, QUERY_HEADS, 1, KEY_DIM};

	(void)state;
	tool_make_dir();
	harness_start(&tool_daemon, arguments);
	tool_make_file("Kfour.npy", keys, of_four);
	tool_make_file("Vfour.npy", values, of_four);
	tool_make_file("Kpair.npy", keys, in_pairs);
	tool_make_file("Vpair.npy", values, in_pairs);
	tool_make_file("Q.npy", queries, NULL);
	tool_run_well(PUT("four", "four"));
	tool_run_well(PUT("pair", "pair") "--merged 2,8");
	return 0;
}

/* ---- attention over files -------------------------------------------------------------------- */

enum { K, V, WEIGHTS, POSITIONS, OUTPUTS, LSE, FILES };

/* The files that a recall wrote, and what they were taken from. */
struct files {
	struct kvr_npy keys, values, queries;
	struct kvr_npy rows[FILES];
};

static void open_files(struct files *files, const char *kind, bool folded)
{
	static const char *const names[FILES] = {
		"K", "V", "weights", "positions", "outputs", "lse"};
	char name[32];

	*files = (struct files){0};
	snprintf(name, sizeof(name), "K%s.npy", kind);
	tool_open_file(name, &files->keys);
	snprintf(name, sizeof(name), "V%s.npy", kind);
	tool_open_file(name, &files->values);
	tool_open_file("Q.npy", &files->queries);
	for (int i = 0; i < (folded ? FILES : OUTPUTS); i++) {
		snprintf(name, sizeof(name), "r_%s.npy", names[i]);
		tool_open_file(name, &files->rows[i]);
	}
}

static void close_files(struct files *files)
{
	tool_close_file(&files->keys);
	tool_close_file(&files->values);
	tool_close_file(&files->queries);
	for (int i = 0; i < FILES; i++)
		tool_close_file(&files->rows[i]);
}

static const uint8_t *element(const struct kvr_npy *array, uint64_t index)
{
	assert_true(index < array->element_count);
	return array->data.data + index * array->element_bytes;
}

static double float_at(const struct kvr_npy *array, uint64_t index)
{
	float value;

	memcpy(&value, element(array, index), sizeof(value));
	return (double)value;
}

/* Adds the rows of a query head, as the help says: those with weight -inf are none. Returns how many there are. */
static uint32_t add_rows(struct attention *attention, const struct files *files, uint32_t layer,
	uint32_t h, const float *query)
{
	const uint64_t heads = files->rows[K].shape[1], capacity = files->rows[K].shape[2];
	const uint64_t weight_heads = files->rows[WEIGHTS].shape[1];
	const uint64_t head = layer * heads + h / (QUERY_HEADS / heads);
	const uint64_t weights = layer * weight_heads + h / (QUERY_HEADS / weight_heads);
	uint32_t count = 0;

	for (uint64_t row = 0; row < capacity; row++) {
		const double weight = float_at(&files->rows[WEIGHTS], weights * capacity + row);

		if (isinf(weight))
			continue;
		attention_add(attention, &config, query,
			element(&files->rows[K], (head * capacity + row) * KEY_DIM),
			element(&files->rows[V], (head * capacity + row) * VALUE_DIM), weight);
		count++;
	}
	return count;
}

/* Asserts that attention over the files is attention over the tokens first .. end - 1, for every query head. Returns how
 * many rows the first head has. */
static uint32_t check_files(const char *kind, bool folded, uint32_t first, uint32_t end)
{
	const double close = strcmp(kind, "four") ? CLOSE_ROWS : CLOSE_ESTIMATE;
	struct files files;
	uint32_t count = 0;

	open_files(&files, kind, folded);
	for (uint32_t i = 0; i < LAYERS * QUERY_HEADS; i++) {
		const uint64_t lane = i / GROUP;
		struct attention all, given;
		float query[KEY_DIM];
		uint32_t rows;

		for (uint32_t d = 0; d < KEY_DIM; d++)
			query[d] = (float)attention_element(
				&config, element(&files.queries, i * KEY_DIM), d);
		attention_start(&all);
		attention_start(&given);
		for (uint64_t t = lane * TOKENS + first; t < lane * TOKENS + end; t++)
			attention_add(&all, &config, query, element(&files.keys, t * KEY_DIM),
				element(&files.values, t * VALUE_DIM), 0);
		rows = add_rows(&given, &files, i / QUERY_HEADS, i % QUERY_HEADS, query);
		count = i ? count : rows;
		if (folded)
			attention_merge(&given, VALUE_DIM,
				(const float *)(const void *)element(
					&files.rows[OUTPUTS], i * VALUE_DIM),
				float_at(&files.rows[LSE], i));
		assert_true(
			attention_apart(&given, &all, VALUE_DIM) < close * 0.75 * sqrt(VALUE_DIM));
		assert_true(fabs(attention_lse(&given) - attention_lse(&all)) < close);
	}
	close_files(&files);
	return count;
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_mixed_folded(void **state)
{
	(void)state;
	tool_run_well(RECALL("four", "four") "-Q Q.npy -b 40 --sinks --form mixed --json");
	tool_says(tool_out, "\"form\":\"mixed\",\"matched_tokens\":700,\"covered_tokens\":700,");
	tool_says(tool_out, "\"centroid_rows\":0,\"row_capacity\":56,");
	tool_says(tool_out, "\"attention\":\"softmax(q.K / sqrt(dim) + weights) V, merged");
	tool_says(tool_out, "\"rows\":56,\"clusters\":");
	tool_says(tool_out, "\"centroids\":0,");
	tool_says(tool_out, "{\"file\":\"r_outputs.npy\",\"axes\":\"[layer][query head][dim]\","
			    "\"shape\":\"2x4x40\",\"type\":\"<f4\"}");
	tool_says(tool_out, "\"file\":\"r_lse.npy\"");
	assert_int_equal(check_files("four", true, 0, TOKENS), 56);
	tool_run_well(RECALL("four", "four") "-Q Q.npy -b 40 --sinks --form mixed "
					     "--rank inner-product --region 1M");
	assert_int_equal(check_files("four", true, 0, TOKENS), 56);
}

static void test_mixed_rows(void **state)
{
	(void)state;
	tool_run_well(
		RECALL("four", "four") "-Q Q.npy -b 40 --sinks --form mixed --centroids 60 --json");
	tool_says(tool_out, "\"centroid_rows\":60,\"row_capacity\":116,");
	tool_says(tool_out, "weights of the query head");
	tool_says(tool_out, "{\"file\":\"r_weights.npy\",\"axes\":\"[layer][query head][row]\","
			    "\"shape\":\"2x4x116\",\"type\":\"<f4\"}");
	tool_says(tool_out, "\"axes\":\"[layer][kv head][row][dim]\",\"shape\":\"2x2x116x24\"");
	assert_null(strstr(tool_out, "r_outputs"));
	assert_true(check_files("four", false, 0, TOKENS) > 56);
	tool_run_well(RECALL("four", "four") "-Q Q.npy -b 40 --sinks --form mixed --centroids 60 "
					     "--rank inner-product");
	assert_true(check_files("four", false, 0, TOKENS) > 56);
}

static void test_merged(void **state)
{
	(void)state;
	tool_run_well(RECALL("pair", "pair") "--form merged --tokens-per-row 2 --sinks --json");
	tool_says(tool_out, "\"form\":\"merged\",\"matched_tokens\":700,\"covered_tokens\":512,"
			    "\"first_token\":0,\"tokens_per_row\":2,");
	tool_says(tool_out, "\"merged_sets\":4,");
	assert_int_equal(check_files("pair", false, 0, MERGED), SINKS + (MERGED - SINKS) / 2);
	/* All of it, and what has come since. */
	tool_run_well(RECALL("pair", "pair") "--form merged --tokens-per-row 2 --sinks --tail");
	assert_int_equal(check_files("pair", false, 0, TOKENS),
		SINKS + (MERGED - SINKS) / 2 + TOKENS - MERGED);
	tool_run_well(RECALL("pair", "pair") "--form merged --tokens-per-row 2 --first 256");
	assert_int_equal(check_files("pair", false, 256, MERGED), (MERGED - 256) / 2);
	tool_run_well(RECALL("pair", "pair") "--form merged --tokens-per-row 8 --sinks");
	tool_says(tool_out, "tokens per row  8\n");
	/* Nothing new. */
	tool_run_well(RECALL("pair", "pair") "--form merged --tokens-per-row 2 --first 512 --json");
	tool_says(tool_out, "\"rows\":0,");
}

/* A model keeps the sets that it was put with, and with others it is another model. */
static void test_sets_of_models(void **state)
{
	(void)state;
	tool_run_well("models --json");
	tool_says(tool_out, "\"rank\":0,\"merged\":\"-\",\"segments\":6,");
	tool_says(tool_out, "\"rank\":0,\"merged\":\"2,8\",\"segments\":6,");
	tool_run_well("models");
	tool_says(tool_out, "MERGED");
	tool_run_well(PUT("every", "pair") "--merged all");
	tool_run_well("models --json");
	tool_says(tool_out, "\"rank\":0,\"merged\":\"2,4,5,8\",\"segments\":6,");
	tool_run_well(RECALL("every", "pair") "--form merged --tokens-per-row 5");
	tool_run_well(PUT("one", "pair") "--merged 4");
	tool_run_well(RECALL("one", "pair") "--form merged --json"); /* the only set */
	tool_says(tool_out, "\"tokens_per_row\":4,");
	/* fetch finds a model that keeps sets, too. */
	tool_run_well("fetch -m one -T Tpair.npy --out copy");
}

/* Dense layers are exact; as the daemon does, the tool has to make room for them. */
static void test_merged_dense(void **state)
{
	(void)state;
	tool_run_well(PUT("dense", "pair") "--merged 2 --dense 1");
	tool_run_well(RECALL("dense", "pair") "--dense 1 --form merged --sinks --tail --json");
	tool_says(tool_out, "{\"layer\":1,\"head\":1,\"rows\":700,");
	check_files("pair", false, 0, TOKENS);
}

static void test_refusals(void **state)
{
#define MIXED_OF  "recall -m four -T Tfour.npy -Q Q.npy --dtype bf16 -b 40 "
#define MERGED_OF "recall -m pair -T Tpair.npy --form merged --dtype bf16 "
	static const struct tool_case cases[] = {
		{"recall -m four -T Tfour.npy --form sum", 2, "clusters, mixed or merged"},
		{"recall -m four -T Tfour.npy -b 40", 2, "--queries FILE is missing"},
		{"recall -m four -T Tfour.npy -Q Q.npy --form mixed", 2, "--budget is missing"},
		{"recall -m four -T Tfour.npy -Q Q.npy -b 0", 2, "--budget is missing"},
		{MIXED_OF "--centroids 3", 2, "--centroids says nothing with --form clusters"},
		{MIXED_OF "--form mixed --first 3", 2, "--first says nothing with --form mixed"},
		{MIXED_OF "--form mixed --tail", 2, "--tail says nothing"},
		{MIXED_OF "--form mixed --tokens-per-row 2", 2, "--tokens-per-row says nothing"},
		{MIXED_OF "--form mixed --centroids many", 2, "'many'"},
		{MIXED_OF "--form mixed --rows 20", 1, "ROWS"},
		{MIXED_OF "--form mixed --centroids 4000000", 1, "--region"},
		{MERGED_OF "-Q Q.npy", 2, "--queries says nothing with --form merged"},
		{MERGED_OF "-q 0", 2, "--query says nothing"},
		{MERGED_OF "-b 3", 2, "--budget says nothing"},
		{MERGED_OF "--mass 0.5", 2, "--mass says nothing"},
		{MERGED_OF "--rank share", 2, "--rank says nothing"},
		{MERGED_OF "--centroids 5", 2, "--centroids says nothing with --form merged"},
		{MERGED_OF "--tokens-per-row 3", 2, "2, 4, 5 or 8, not 3"},
		{MERGED_OF, 2, "--tokens-per-row takes one of 2,8"},
		{MERGED_OF "--tokens-per-row 4", 1, "keeps the merged sets 2,8: not that of 4"},
		{MERGED_OF "--tokens-per-row 2 --first 100", 1, "first 100"},
		{MERGED_OF "--tokens-per-row 2 --first 701", 2, "700 tokens are stored"},
		{MERGED_OF "--tokens-per-row 2 --rows 100", 1, "ROWS"},
		{"recall -m four -T Tfour.npy --form merged", 1, "keeps no merged sets"},
		{PUT("wrong", "pair") "--merged 3", 2, "--merged takes all, or some of 2,4,5,8"},
		{PUT("wrong", "pair") "--merged 2,2", 2, "not '2,2'"},
		{PUT("wrong", "pair") "--merged 2,", 2, "not '2,'"},
		{PUT("wrong", "pair") "--merged 24", 2, "not '24'"},
	};

	(void)state;
	tool_refuses(cases, sizeof(cases) / sizeof(cases[0]));
	tool_says(tool_err, "see kvrecall put --help");
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_mixed_folded),
		cmocka_unit_test(test_mixed_rows),
		cmocka_unit_test(test_merged),
		cmocka_unit_test(test_sets_of_models),
		cmocka_unit_test(test_merged_dense),
		cmocka_unit_test(test_refusals),
	};

	return cmocka_run_group_tests_name("tool and forms", tests, start, tool_stop);
}
