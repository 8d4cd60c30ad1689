/* SPDX-License-Identifier: Apache-2.0 */
/* sealed.h: a prompt sealed by the device, as the daemon seals it: segments, clusters, rows.
 *
 * Threads: read-only once it is open; any. */
#ifndef QUALITY_SEALED_H
#define QUALITY_SEALED_H

#include "bench/quality/worker.h"

#define QUALITY_WHOLE KVR_SEGMENT_TOKENS_MAX /* segment_tokens of one clustering of all tokens */

struct quality_sealing {
	uint32_t segment_tokens;
	uint32_t cluster_tokens;
	uint32_t merged; /* sets to make: bits, kvr_merged_divisors */
	/* Keys are clustered less their mean over the segment. Then only row_first and row_token are
	 * what they would be: means and rows are those of such keys, and there is no recall from it. */
	bool centred;
};

struct quality_sealed {
	const struct quality_rows *rows; /* borrowed */
	struct kvr_geometry geometry;
	uint32_t segment_count;
	struct kvr_segment_view *views;
	const struct kvr_segment_view **segments; /* of `views`, as a recall takes them */
	uint8_t **payloads;                       /* [segment] the rows of all units */
};

/* The last segment is shorter where the prompt is no multiple. */
void quality_sealed_open(struct quality_sealed *sealed, const struct quality_rows *rows,
	const struct quality_sealing *sealing, struct quality_worker *worker);
void quality_sealed_close(struct quality_sealed *sealed);

/* Clusters of a lane in all segments. */
uint32_t quality_sealed_clusters(const struct quality_sealed *sealed, uint32_t lane);

/* Bytes of the summaries of all lanes over those of their keys and values. */
double quality_sealed_overhead(const struct quality_sealed *sealed);

#endif
