/* SPDX-License-Identifier: Apache-2.0 */
/* cli_quality.h: what audited recalls were worth, as a table: a row for each layer of each model.
 *
 * Out of the metrics quality.M.L.*; docs/ARCHITECTURE.md says what they mean.
 *
 * Threads: one. */
#ifndef KVR_CLIENT_CLI_QUALITY_H
#define KVR_CLIENT_CLI_QUALITY_H

#include "client/cli_metrics.h"

#define KVR_QUALITY_GROUP "quality"

/* Adds the table, if anything was audited; at most `rows_max` rows, and, with `full`, the histograms. Returns how many
 * rows were left out. */
uint32_t kvr_cli_quality_report(const struct kvr_cli_metrics *metrics, struct kvr_report *report,
	uint32_t rows_max, bool full);

#endif
