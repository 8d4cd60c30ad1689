/* SPDX-License-Identifier: Apache-2.0 */
/* cli_metrics.c: all metrics of the daemon at one moment; see cli_metrics.h. Knows none by name.
 *
 * Threads: one. */
#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "client/cli_metrics.h"

#define FIRST       256u
#define METRICS_MAX 65536u /* against a daemon that never stops listing */

static int make_room(struct kvr_cli_metrics *metrics)
{
	uint32_t max = metrics->max ? 2 * metrics->max : FIRST;
	struct kvr_metric *entries;

	if (metrics->count < metrics->max)
		return 0;
	entries = reallocarray(metrics->entries, max, sizeof(*entries));
	if (!entries)
		return -ENOMEM;
	metrics->entries = entries;
	metrics->max = max;
	return 0;
}

int kvr_cli_metrics_load(struct kvr_client *client, struct kvr_cli_metrics *metrics)
{
	int got = 1;

	metrics->count = 0;
	while (got > 0 && metrics->count < METRICS_MAX) {
		got = make_room(metrics);
		if (!got)
			got = kvr_stats(client, metrics->count, metrics->entries + metrics->count,
				metrics->max - metrics->count);
		KVR_ASSERT(got <= (int)(metrics->max - metrics->count));
		metrics->count += got > 0 ? (uint32_t)got : 0;
	}
	if (got >= 0)
		return 0;
	metrics->count = 0;
	return got;
}

void kvr_cli_metrics_free(struct kvr_cli_metrics *metrics)
{
	free(metrics->entries);
	*metrics = (struct kvr_cli_metrics){0};
}

const struct kvr_metric *kvr_cli_metrics_find(
	const struct kvr_cli_metrics *metrics, const char *name)
{
	for (uint32_t i = 0; i < metrics->count; i++)
		if (!strcmp(metrics->entries[i].name, name))
			return &metrics->entries[i];
	return NULL;
}

double kvr_cli_metrics_value(const struct kvr_cli_metrics *metrics, const char *name)
{
	const struct kvr_metric *metric = kvr_cli_metrics_find(metrics, name);

	return metric ? metric->value : (double)NAN;
}

bool kvr_cli_metrics_in(const struct kvr_metric *metric, const char *group)
{
	size_t length = strlen(group);

	return !strncmp(metric->name, group, length) && metric->name[length] == '.';
}
