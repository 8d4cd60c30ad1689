/* SPDX-License-Identifier: Apache-2.0 */
/* cli_metrics.h: all metrics of the daemon at one moment, for status and top.
 *
 * Threads: one. */
#ifndef KVR_CLIENT_CLI_METRICS_H
#define KVR_CLIENT_CLI_METRICS_H

#include "client/cli.h"
#include "client/cli_report.h"

struct kvr_cli_metrics {
	struct kvr_metric *entries; /* [max], in the daemon's order */
	uint32_t count, max;
};

/* Asks the daemon for all of them, in place of those that are there. Works on zeroed memory. Reports nothing: returns 0,
 * what kvr_stats returned, or -ENOMEM. After a failure there are none. */
int kvr_cli_metrics_load(struct kvr_client *client, struct kvr_cli_metrics *metrics);

void kvr_cli_metrics_free(struct kvr_cli_metrics *metrics);

/* NULL: there is none of that name. */
const struct kvr_metric *kvr_cli_metrics_find(
	const struct kvr_cli_metrics *metrics, const char *name);

/* Its value; NAN: there is none. */
double kvr_cli_metrics_value(const struct kvr_cli_metrics *metrics, const char *name);

/* Whether a metric is of a group: "host" of "host.used_bytes". */
bool kvr_cli_metrics_in(const struct kvr_metric *metric, const char *group);

#endif
