/* SPDX-License-Identifier: Apache-2.0 */
/* plan.h: which entries are made: methods and budgets, and the sweeps that the defaults are chosen from.
 *
 * Threads: one. */
#ifndef QUALITY_PLAN_H
#define QUALITY_PLAN_H

#include "bench/quality/entry.h"

#define QUALITY_BUDGETS      4u
#define QUALITY_ENTRIES_MAX  (QUALITY_METHODS_MAX * QUALITY_BUDGETS) /* of one input */
#define QUALITY_VARIANTS_MAX 24u
#define QUALITY_SWEPT        2u /* budgets that variants are measured with */

extern const double quality_percents[QUALITY_BUDGETS];
extern const double quality_swept_percents[QUALITY_SWEPT];

/* A way of sealing and of answering that is not the default. */
struct quality_variant {
	const char *name;
	struct quality_sealing sealing;
	bool exact; /* means and variances in floats, not as a summary has them */
	struct quality_method method;
};

extern const struct quality_variant quality_variants[];
extern const uint32_t quality_variant_count;

/* Every method with every budget, or with its own. Returns how many. */
uint32_t quality_plan_methods(const struct quality_input *input, const struct quality_store *store,
	struct quality_entry ret_entries[QUALITY_ENTRIES_MAX]);

/* One variant with each of the budgets of sweeps. `store` is the variant's own. */
void quality_plan_variant(const struct quality_input *input, const struct quality_store *store,
	const struct quality_variant *variant, struct quality_entry ret_entries[QUALITY_SWEPT]);

#endif
