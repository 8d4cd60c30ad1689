/* SPDX-License-Identifier: Apache-2.0 */
/* forms.c: what a recall asks for beside exact rows: MIXED, MERGED and budgets of single heads.
 *
 * Goal: what the caller asks for is what the daemon gets; what is wrong is refused before anything is
 * sent, by the argument's name.
 * Method: the library against the fake daemon, which shows the request as it came. */
#include <errno.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <string.h>

#include <cmocka.h>

#include "tests/client/calls_util.h"

#define AT_KEYS      65536u
#define AT_VALUES    131072u
#define AT_WEIGHTS   196608u
#define AT_POSITIONS 212992u
#define AT_ROWS      229376u
#define AT_OUTPUTS   231424u
#define AT_LSE       233472u
#define CAPACITY     8u

static struct kvr_recall_item item_of(struct fixture *f)
{
	return (struct kvr_recall_item){.sequence = f->sequence,
		.layer = 1,
		.query = f->region,
		.keys = f->region + AT_KEYS,
		.values = f->region + AT_VALUES,
		.weights = (float *)(void *)(f->region + AT_WEIGHTS),
		.positions = (int32_t *)(void *)(f->region + AT_POSITIONS),
		.rows = (struct kvr_rows *)(void *)(f->region + AT_ROWS),
		.outputs = (float *)(void *)(f->region + AT_OUTPUTS),
		.lse = (float *)(void *)(f->region + AT_LSE)};
}

static struct kvr_recall recall_of(struct kvr_recall_item *item, enum kvr_recall_form form)
{
	return (struct kvr_recall){.items = item,
		.item_count = 1,
		.query_type = KVR_BF16,
		.budget_tokens = CAPACITY,
		.row_capacity = CAPACITY,
		.form = form,
		.merged_divisor = form == KVR_RECALL_MERGED ? 5 : 0};
}

static void seen_of(struct fixture *f, struct kvr_recall *recall, struct fake_seen *ret_seen)
{
	assert_int_equal(kvr_recall(f->client, recall), 0);
	assert_true(fake_seen(f->fake, KVR_REQUEST_RECALL, ret_seen));
}

static void test_clusters_are_the_default(void **state)
{
	struct fixture *f = *state;
	struct kvr_recall_item item = item_of(f);
	struct kvr_recall recall = recall_of(&item, 0);
	struct fake_seen seen;

	item.outputs = NULL;
	item.lse = NULL;
	item.first = 7; /* of MERGED alone */
	seen_of(f, &recall, &seen);
	assert_int_equal(seen.request.recall.form, KVR_FORM_CLUSTERS);
	assert_int_equal(seen.items[0].first, 0);
	assert_null(seen.items[0].budgets.data);
}

static void test_mixed_folded(void **state)
{
	struct fixture *f = *state;
	struct kvr_recall_item item = item_of(f);
	struct kvr_recall recall = recall_of(&item, KVR_RECALL_MIXED);
	struct fake_seen seen;

	item.weights = NULL;
	seen_of(f, &recall, &seen);
	assert_int_equal(seen.request.recall.form, KVR_FORM_MIXED);
	assert_int_equal(seen.request.recall.centroid_rows, 0);
	assert_int_equal(seen.items[0].outputs, AT_OUTPUTS);
	assert_int_equal(seen.items[0].lse, AT_LSE);
}

static void test_mixed_rows(void **state)
{
	struct fixture *f = *state;
	struct kvr_recall_item item = item_of(f);
	struct kvr_recall recall = recall_of(&item, KVR_RECALL_MIXED);
	struct fake_seen seen;

	recall.centroid_rows = 3;
	item.outputs = NULL; /* nothing is folded */
	item.lse = NULL;
	seen_of(f, &recall, &seen);
	assert_int_equal(seen.request.recall.form, KVR_FORM_MIXED);
	assert_int_equal(seen.request.recall.centroid_rows, 3);
}

static void test_merged(void **state)
{
	struct fixture *f = *state;
	struct kvr_recall_item item = item_of(f);
	struct kvr_recall recall = recall_of(&item, KVR_RECALL_MERGED);
	struct fake_seen seen;

	item.query = NULL;
	item.first = 900;
	recall.query_type = 0;
	recall.rank =
		KVR_BY_INNER_PRODUCT; /* nothing is chosen: the heads are kv heads all the same */
	item.keys = f->region + f->region_bytes - KV_HEADS * CAPACITY * KEY_DIM * 2;
	seen_of(f, &recall, &seen);
	assert_int_equal(seen.request.recall.form, KVR_FORM_MERGED);
	assert_int_equal(kvr_merged_divisors[seen.request.recall.merged_set], 5);
	assert_int_equal(seen.items[0].first, 900);
	assert_null(seen.items[0].query.data);
}

static void test_budgets(void **state)
{
	static const struct kvr_budget budgets[HEADS] = {{5, 0}, {6, 0.5f}};
	struct fixture *f = *state;
	struct kvr_recall_item item = item_of(f);
	struct kvr_recall recall = recall_of(&item, KVR_RECALL_CLUSTERS);
	struct fake_seen seen;

	item.budgets = budgets;
	seen_of(f, &recall, &seen);
	assert_int_equal(seen.items[0].budgets.bytes, KV_HEADS * sizeof(*budgets));
	recall.rank = KVR_BY_INNER_PRODUCT;
	seen_of(f, &recall, &seen);
	assert_int_equal(seen.items[0].budgets.bytes, HEADS * sizeof(*budgets));
}

static void test_refused(void **state)
{
	static const struct kvr_budget wrong[HEADS] = {{5, 0}, {5, 1.5f}};
	struct fixture *f = *state;
	struct kvr_recall_item item;
	struct kvr_recall recall;
	const uint32_t sent = fake_requests(f->fake);
	uint8_t *end = f->region + f->region_bytes;

#define REFUSED(form, change, error, word)                                     \
	do {                                                                   \
		item = item_of(f);                                             \
		recall = recall_of(&item, form);                               \
		change;                                                        \
		calls_refused(f, kvr_recall(f->client, &recall), error, word); \
	} while (0)

	REFUSED((enum kvr_recall_form)4, (void)0, EINVAL, "form");
	REFUSED(KVR_RECALL_CLUSTERS, recall.centroid_rows = 1, EINVAL, "centroid_rows");
	REFUSED(KVR_RECALL_MERGED, recall.centroid_rows = 1, EINVAL, "centroid_rows");
	REFUSED(KVR_RECALL_MIXED, recall.centroid_rows = UINT32_MAX, EINVAL, "centroid_rows");
	REFUSED(KVR_RECALL_MERGED, recall.merged_divisor = 3, EINVAL, "merged_divisor");
	REFUSED(KVR_RECALL_MERGED, recall.merged_divisor = 0, EINVAL, "merged_divisor");
	REFUSED(KVR_RECALL_MERGED, item.weights = NULL, EINVAL, "weights");
	REFUSED(KVR_RECALL_MIXED, (recall.centroid_rows = 1, item.weights = NULL), EINVAL,
		"weights");
	REFUSED(KVR_RECALL_MIXED, item.query = NULL, EINVAL, "query");
	REFUSED(KVR_RECALL_MIXED, item.outputs = NULL, EFAULT, "outputs");
	REFUSED(KVR_RECALL_MIXED, item.lse = NULL, EFAULT, "lse");
	REFUSED(KVR_RECALL_MIXED, item.outputs = (float *)(void *)(end - HEADS * VAL_DIM * 4 + 4),
		EFAULT, "outputs");
	REFUSED(KVR_RECALL_MIXED, item.lse = (float *)(void *)(end - HEADS * 4 + 4), EFAULT, "lse");
	REFUSED(KVR_RECALL_MIXED, item.lse = (float *)(void *)(f->region + 2), EINVAL, "aligned");
	/* A weight for each query head. */
	REFUSED(KVR_RECALL_MIXED,
		(recall.centroid_rows = 1,
			item.weights = (float *)(void *)(end - HEADS * CAPACITY * 4 + 4)),
		EFAULT, "weights");
	REFUSED(KVR_RECALL_CLUSTERS, item.budgets = wrong, EINVAL, "budgets[1]");
#undef REFUSED
	assert_int_equal(fake_requests(f->fake), sent);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, calls_setup, calls_teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_clusters_are_the_default),
		TEST(test_mixed_folded),
		TEST(test_mixed_rows),
		TEST(test_merged),
		TEST(test_budgets),
		TEST(test_refused),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
