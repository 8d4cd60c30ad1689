/* SPDX-License-Identifier: Apache-2.0 */
/* plan.c: see plan.h. */
#include "bench/quality/plan.h"

const double quality_percents[QUALITY_BUDGETS] = {2, 5, 10, 20};
const double quality_swept_percents[QUALITY_SWEPT] = {5, 10};

/* A variant is the default but for what its line says. */
#define SEALING(segment, cluster)          \
	{                                  \
		segment, cluster, 0, false \
	}
#define CENTRED(segment, cluster)         \
	{                                 \
		segment, cluster, 0, true \
	}
#define RECIPE(order, estimate, part)                                 \
	{                                                             \
		.name = "variant", .says = "variant", .scored = true, \
		.answer = quality_summary_answer, .recipe = {         \
			order,                                        \
			estimate,                                     \
			part,                                         \
			false                                         \
		}                                                     \
	}
#define MIXED2 RECIPE(QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_SECOND, 1.0)

const struct quality_variant quality_variants[] = {
	{"default: segments 1024, clusters 16", SEALING(1024, 16), false, MIXED2},
	{"segments 512", SEALING(512, 16), false, MIXED2},
	{"segments 2048", SEALING(2048, 16), false, MIXED2},
	{"segments 4096", SEALING(4096, 16), false, MIXED2},
	{"segments 8192", SEALING(QUALITY_WHOLE, 16), false, MIXED2},
	{"clusters 8", SEALING(1024, 8), false, MIXED2},
	{"clusters 32", SEALING(1024, 32), false, MIXED2},
	{"exact means and variances", SEALING(1024, 16), true, MIXED2},
	{"centred", CENTRED(1024, 16), true, MIXED2},
	{"segments 8192, exact", SEALING(QUALITY_WHOLE, 16), true, MIXED2},
	{"segments 8192, centred", CENTRED(QUALITY_WHOLE, 16), true, MIXED2},
	{"order by second order", SEALING(1024, 16), false,
		RECIPE(QUALITY_ORDER_SECOND, QUALITY_ESTIMATE_SECOND, 1.0)},
	{"order by what an estimate would miss", SEALING(1024, 16), false,
		RECIPE(QUALITY_ORDER_DOUBT, QUALITY_ESTIMATE_SECOND, 1.0)},
	{"order by logit alone", SEALING(1024, 16), false,
		RECIPE(QUALITY_ORDER_LOGIT, QUALITY_ESTIMATE_SECOND, 1.0)},
	{"folding the best half", SEALING(1024, 16), false,
		RECIPE(QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_SECOND, 0.5)},
	{"folding the best quarter", SEALING(1024, 16), false,
		RECIPE(QUALITY_ORDER_SHARE, QUALITY_ESTIMATE_SECOND, 0.25)},
};
const uint32_t quality_variant_count = sizeof(quality_variants) / sizeof(quality_variants[0]);

_Static_assert(
	sizeof(quality_variants) / sizeof(quality_variants[0]) <= QUALITY_VARIANTS_MAX, "arrays");

static struct quality_entry make_entry(const struct quality_input *input,
	const struct quality_store *store, const struct quality_method *method, double percent)
{
	return (struct quality_entry){.input = input,
		.store = store,
		.method = method,
		.percent = percent,
		.budget_tokens = (uint32_t)(percent / 100 * input->context_tokens)};
}

uint32_t quality_plan_methods(const struct quality_input *input, const struct quality_store *store,
	struct quality_entry ret_entries[QUALITY_ENTRIES_MAX])
{
	uint32_t count = 0;

	for (uint32_t m = 0; m < quality_method_count; m++) {
		const struct quality_method *method = &quality_methods[m];

		if (method->fixed_percent > 0) {
			ret_entries[count++] =
				make_entry(input, store, method, method->fixed_percent);
			continue;
		}
		for (uint32_t b = 0; b < QUALITY_BUDGETS; b++)
			ret_entries[count++] =
				make_entry(input, store, method, quality_percents[b]);
	}
	return count;
}

void quality_plan_variant(const struct quality_input *input, const struct quality_store *store,
	const struct quality_variant *variant, struct quality_entry ret_entries[QUALITY_SWEPT])
{
	for (uint32_t b = 0; b < QUALITY_SWEPT; b++) {
		ret_entries[b] =
			make_entry(input, store, &variant->method, quality_swept_percents[b]);
		ret_entries[b].variant = variant->name;
		ret_entries[b].summary_part = quality_sealed_overhead(&store->ours);
	}
}
