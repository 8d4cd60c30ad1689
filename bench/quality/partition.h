/* SPDX-License-Identifier: Apache-2.0 */
/* partition.h: a lane's prompt cut into clusters, for methods in plain C (recipe.h).
 *
 * Threads: read-only once it is made. */
#ifndef QUALITY_PARTITION_H
#define QUALITY_PARTITION_H

#include "bench/quality/sealed.h"

struct quality_partition {
	uint32_t cluster_count; /* C */
	uint32_t *first;        /* [C + 1] */
	uint32_t *tokens;       /* those of cluster c are first[c] .. first[c + 1] - 1 */
	float *key_mean;        /* [C][Dk] */
	float *variance;        /* [C][Dk] of the keys, per channel */
	float *value_mean;      /* [C][Dv] */
};

/* The clusters of a sealed lane, with means and variances as its summary has them; or, `exact`, with
 * those of the rows in floats, which is all there is where keys were centred. */
void quality_partition_sealed(struct quality_partition *partition,
	const struct quality_sealed *sealed, uint32_t lane, bool exact);

/* Runs of `page_tokens` in token order, exact. */
void quality_partition_pages(struct quality_partition *partition, const struct quality_rows *rows,
	uint32_t lane, uint32_t page_tokens);

void quality_partition_close(struct quality_partition *partition);

#endif
