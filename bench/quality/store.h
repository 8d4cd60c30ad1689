/* SPDX-License-Identifier: Apache-2.0 */
/* store.h: everything that is made of a prompt once, before it is asked about.
 *
 * Threads: read-only once it is open; any. */
#ifndef QUALITY_STORE_H
#define QUALITY_STORE_H

#include "bench/quality/partition.h"

#define QUALITY_PAGE_TOKENS      16u
#define QUALITY_CLUSTERKV_TOKENS 80u /* per cluster, as published: L / 80 clusters */
#define QUALITY_RETRO_TOKENS     16u /* per centroid, as published, in segments of 8,192 */

/* Of each page, the least and the most of each channel of its keys. */
struct quality_bounds {
	uint32_t page_count;
	float *least, *most; /* [page][Dk] */
};

struct quality_store {
	const struct quality_rows *rows;   /* borrowed */
	struct quality_sealed ours;        /* default segments and clusters, all merged sets */
	struct quality_sealed clusterkv;   /* one clustering */
	struct quality_partition *summary; /* [lane] of `ours`, as its summary has it */
	struct quality_partition *pages;   /* [lane] */
	struct quality_partition *retro;   /* [lane] centred keys, segments of 8,192 */
	struct quality_bounds *bounds;     /* [lane] */
};

void quality_store_open(struct quality_store *store, const struct quality_rows *rows,
	struct quality_worker *worker);
/* Only `ours` and `summary`, sealed otherwise, for quality_summary_answer (method.h). `exact`: means and
 * variances are not as a summary has them. */
void quality_store_open_variant(struct quality_store *store, const struct quality_rows *rows,
	const struct quality_sealing *sealing, bool exact, struct quality_worker *worker);

void quality_store_close(struct quality_store *store);

#endif
