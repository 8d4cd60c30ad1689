/* SPDX-License-Identifier: Apache-2.0 */
/* recipe.h: how an answer is made of a partition, in plain C.
 *
 * Logits of clusters are scale * q . key_mean. One selection serves the G heads of a lane: shares are
 * means over the heads.
 *
 * Threads: no state. */
#ifndef QUALITY_RECIPE_H
#define QUALITY_RECIPE_H

#include "bench/quality/partition.h"

enum quality_order {
	QUALITY_ORDER_SHARE,  /* softmax(logit + log n), per token: what the device does */
	QUALITY_ORDER_SECOND, /* softmax(logit + log n + log cosh sigma), per token */
	/* What an estimate would be off by: the first shares, times sinh of the heads' mean sigma. */
	QUALITY_ORDER_DOUBT,
	QUALITY_ORDER_LOGIT, /* softmax(logit): how large a cluster is does not count */
};

enum quality_estimate {
	QUALITY_ESTIMATE_NONE,
	QUALITY_ESTIMATE_FIRST,  /* log n of the tokens not taken */
	QUALITY_ESTIMATE_SECOND, /* log n + log cosh sigma, sigma^2 = scale^2 sum q_j^2 variance_j */
};

struct quality_recipe {
	enum quality_order order;
	enum quality_estimate estimate;
	double estimate_part; /* of the clusters, the next in order, at most; 1: all */
	/* Twice the budget is taken, and of it the tokens with the largest exact shares are kept. The
	 * others are estimated with what their logits are known to weigh, and their cluster's mean value. */
	bool rescored;
};

/* The answer to a question whose logits are there. The last cluster is trimmed to its first rows. */
void quality_recipe_answer(const struct quality_recipe *recipe,
	const struct quality_partition *partition, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer);

/* Sorts by falling share; of equals, the lower number first. */
struct quality_ranked {
	double share;
	uint32_t number;
};
void quality_rank(struct quality_ranked *ranked, uint32_t count);

#endif
