/* SPDX-License-Identifier: Apache-2.0 */
/* figure.c: see figure.h. */
#include "bench/quality/figure.h"

#include <stddef.h>
#include <string.h>

#include "bench/quality/entry.h"
#include "bench/result_util.h"

/* What is compared. */
enum column {
	COLUMN_ERROR,
	COLUMN_KL,
	COLUMN_TOP1,
};

struct side {
	const char *method;
	const char *variant; /* instead of a method, or NULL */
	double percent;
};

struct figure {
	const char *bench;
	enum column column;
	struct side value, reference;
	const char *reference_name;
};

static const struct figure figures[] = {
	{"mixed2_vs_oracle_5", COLUMN_ERROR, {"mixed2", NULL, 5}, {"oracle", NULL, 5},
		"exact top-k tokens, same budget"},
	{"mixed2_vs_clusterkv_5", COLUMN_ERROR, {"mixed2", NULL, 5}, {"clusterkv", NULL, 5},
		"ClusterKV, same budget per head"},
	{"mixed2_kl_10", COLUMN_KL, {"mixed2", NULL, 10}, {"clusterkv", NULL, 10},
		"ClusterKV, same budget per head"},
	{"mixed2_top1_10", COLUMN_TOP1, {"mixed2", NULL, 10}, {"full", NULL, 100},
		"full attention"},
	{"segments_vs_global_5", COLUMN_ERROR, {NULL, "default: segments 1024, clusters 16", 5},
		{NULL, "segments 8192", 5}, "one clustering of all tokens"},
	{"centroid_kl_4", COLUMN_KL, {"centroid_4", NULL, 25}, {"clusterkv", NULL, 10},
		"ClusterKV at 10 %"},
};
static const char *const units[] = {"relative error", "nats", "of positions"};

static const struct quality_entry *find(const struct quality_entry *entries, uint32_t count,
	const struct side *side, const struct quality_input *input)
{
	for (uint32_t i = 0; i < count; i++) {
		const struct quality_entry *entry = &entries[i];
		const char *name = side->variant ? side->variant : side->method;
		const char *has = side->variant ? entry->variant : entry->method->name;

		if (entry->input == input && has && !strcmp(has, name) &&
			(side->variant != NULL) == (entry->variant != NULL) &&
			entry->percent == side->percent)
			return entry;
	}
	return NULL;
}

static double column_of(const struct quality_entry *entry, enum column column)
{
	return column == COLUMN_ERROR ? entry->error
	       : column == COLUMN_KL  ? entry->kl
				      : entry->top1;
}

static void print(const struct quality_entry *entries, uint32_t count, const struct figure *figure)
{
	double value = 0.0, reference = 0.0;
	uint32_t inputs = 0;

	/* Each input once: by the entry of it that is the value. */
	for (uint32_t i = 0; i < count; i++) {
		const struct quality_entry *ours =
			find(entries, count, &figure->value, entries[i].input);
		const struct quality_entry *theirs =
			find(entries, count, &figure->reference, entries[i].input);

		if (ours != &entries[i] || !theirs || !ours->input->counted)
			continue;
		if (figure->column != COLUMN_ERROR && (!ours->has_steps || !theirs->has_steps))
			continue;
		value += column_of(ours, figure->column);
		reference += column_of(theirs, figure->column);
		inputs++;
	}
	if (inputs > 0)
		bench_print(
			(struct bench_result){figure->bench, value / inputs, units[figure->column],
				figure->reference_name, reference / inputs, value / reference});
}

void quality_figures_print(const struct quality_entry *entries, uint32_t count)
{
	for (size_t i = 0; i < sizeof(figures) / sizeof(figures[0]); i++)
		print(entries, count, &figures[i]);
}
