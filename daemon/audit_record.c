/* SPDX-License-Identifier: Apache-2.0 */
/* audit_record.c: see audit_record.h. */
#include "daemon/audit_record.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/assert.h"
#include "daemon/model.h"
#include "proto/message.h"

const double kvr_audit_mass_edges[KVR_AUDIT_BINS] = {
	0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999, 1};
const double kvr_audit_error_edges[KVR_AUDIT_BINS] = {
	0.001, 0.003, 0.01, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1};

#define LAYER_METRICS 5u

static void start_record(struct kvr_audit_model *record, const struct kvr_model *model)
{
	free(record->layers);
	*record = (struct kvr_audit_model){
		.number = model->number,
		.layer_count = model->geometry.layer_count,
		.tenant = model->tenant,
		.layers = calloc(model->geometry.layer_count, sizeof(*record->layers)),
	};
	if (!record->layers)
		record->number = 0;
}

struct kvr_audit_layer *kvr_audit_layer_of(
	struct kvr_audit *audit, const struct kvr_model *model, uint32_t layer)
{
	struct kvr_audit_model *oldest = &audit->models[0];
	struct kvr_audit_model *found = NULL;

	for (uint32_t i = 0; i < KVR_AUDIT_MODELS_MAX && !found; i++) {
		struct kvr_audit_model *record = &audit->models[i];

		if (record->number == model->number)
			found = record;
		else if (record->age < oldest->age)
			oldest = record;
	}
	if (!found) {
		found = oldest;
		start_record(found, model);
	}
	found->age = audit->done_count + 1;
	KVR_ASSERT(!found->layers || layer < found->layer_count);
	return found->layers ? &found->layers[layer] : NULL;
}

static uint32_t bin_of(const double edges[KVR_AUDIT_BINS], double value)
{
	uint32_t bin = 0;

	while (bin + 1 < KVR_AUDIT_BINS && value > edges[bin])
		bin++;
	return bin;
}

void kvr_audit_add(struct kvr_audit_layer *layer, double mass, double error)
{
	mass = isfinite(mass) ? fmin(mass, 1) : 0; /* rounding may pass 1 */
	error = isfinite(error) ? error : kvr_audit_error_edges[KVR_AUDIT_BINS - 1];
	layer->count++;
	layer->mass_sum += mass;
	layer->error_sum += error;
	layer->mass[bin_of(kvr_audit_mass_edges, mass)]++;
	layer->error[bin_of(kvr_audit_error_edges, error)]++;
}

void kvr_audit_forget(struct kvr_audit *audit)
{
	for (uint32_t i = 0; i < KVR_AUDIT_MODELS_MAX; i++)
		free(audit->models[i].layers);
}

/* ---- metrics --------------------------------------------------------------------------------- */

/* "0.3:0 0.5:2 ...": up to that edge so many. */
static void print_bins(
	char text[KVR_TEXT_MAX], const double edges[KVR_AUDIT_BINS], const uint32_t *bins)
{
	size_t at = 0;

	for (uint32_t i = 0; i < KVR_AUDIT_BINS && at < KVR_TEXT_MAX; i++)
		at += (size_t)snprintf(
			text + at, KVR_TEXT_MAX - at, "%s%g:%u", i ? " " : "", edges[i], bins[i]);
}

static void layer_metric(const struct kvr_audit_model *model, uint32_t layer, uint32_t which,
	struct kvr_wire_metric *into)
{
	static const char *const names[LAYER_METRICS] = {
		"heads_count", "mass_mean", "error_mean", "mass_histogram", "error_histogram"};
	const struct kvr_audit_layer *records = &model->layers[layer];

	*into = (struct kvr_wire_metric){0};
	snprintf(into->name, sizeof(into->name), "quality.%u.%u.%s", model->number, layer,
		names[which]);
	switch (which) {
	case 0: into->value = records->count; break;
	case 1: into->value = records->mass_sum / records->count; break;
	case 2: into->value = records->error_sum / records->count; break;
	case 3: print_bins(into->text, kvr_audit_mass_edges, records->mass); break;
	default: print_bins(into->text, kvr_audit_error_edges, records->error); break;
	}
}

bool kvr_audit_metric(const struct kvr_audit *audit, const struct kvr_tenant *tenant,
	uint32_t index, struct kvr_wire_metric *ret_metric)
{
	for (uint32_t i = 0; i < KVR_AUDIT_MODELS_MAX; i++) {
		const struct kvr_audit_model *model = &audit->models[i];

		if (model->number == 0 || model->tenant != tenant)
			continue;
		for (uint32_t layer = 0; layer < model->layer_count; layer++) {
			if (model->layers[layer].count == 0)
				continue;
			if (index < LAYER_METRICS) {
				layer_metric(model, layer, index, ret_metric);
				return true;
			}
			index -= LAYER_METRICS;
		}
	}
	return false;
}
