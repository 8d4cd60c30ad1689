/* SPDX-License-Identifier: Apache-2.0 */
/* recipe.c: see recipe.h. */
#include "bench/quality/recipe.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"

/* What is worked out for one question. C clusters, G heads. */
struct work {
	const struct quality_recipe *recipe;
	const struct quality_partition *partition;
	const struct quality_question *question;
	float *logits;                 /* [G][C] */
	float *bonus;                  /* [G][C] log cosh sigma */
	float *sigma;                  /* [C] root mean square over the heads */
	struct quality_ranked *ranked; /* [C] in the order of choosing */
	uint32_t *left;                /* [C] tokens not taken */
	float *dropped; /* [G][C] log sum exp of those taken, and dropped again by their exact logits */
};

static int compare(const void *a, const void *b)
{
	const struct quality_ranked *x = a, *y = b;

	if (x->share != y->share)
		return x->share > y->share ? -1 : 1;
	return (x->number > y->number) - (x->number < y->number);
}

void quality_rank(struct quality_ranked *ranked, uint32_t count)
{
	qsort(ranked, count, sizeof(*ranked), compare);
}

/* log cosh x without overflow. */
static float log_cosh(float x)
{
	return x + log1pf(expf(-2.0f * x)) - (float)M_LN2;
}

static void score(struct work *work)
{
	const struct quality_partition *partition = work->partition;
	const struct quality_question *question = work->question;
	const uint32_t dim = question->rows->geometry.key_dim;
	const uint32_t clusters = partition->cluster_count;
	const bool second = work->recipe->order == QUALITY_ORDER_SECOND ||
			    work->recipe->order == QUALITY_ORDER_DOUBT ||
			    work->recipe->estimate == QUALITY_ESTIMATE_SECOND;

	for (uint32_t g = 0; g < question->group; g++) {
		const float *query = question->queries + (size_t)g * dim;

		for (uint32_t c = 0; c < clusters; c++) {
			const float *mean = partition->key_mean + (size_t)c * dim;
			const float *variance = partition->variance + (size_t)c * dim;
			float product = 0.0f, square = 0.0f;

			for (uint32_t d = 0; d < dim; d++)
				product += query[d] * mean[d];
			work->logits[(size_t)g * clusters + c] = question->scale * product;
			for (uint32_t d = 0; second && d < dim; d++)
				square += query[d] * query[d] * variance[d];
			square *= question->scale * question->scale;
			work->bonus[(size_t)g * clusters + c] =
				second ? log_cosh(sqrtf(square)) : 0.0f;
			work->sigma[c] += square / (float)question->group;
		}
	}
	for (uint32_t c = 0; c < clusters; c++)
		work->sigma[c] = sqrtf(work->sigma[c]);
}

/* log(exp a + exp b); either may be -INFINITY. */
static float log_sum(float a, float b)
{
	const float most = fmaxf(a, b);

	return most > -INFINITY ? most + log1pf(expf(fminf(a, b) - most)) : most;
}

static float weight_of(const struct work *work, uint32_t g, uint32_t c, uint32_t tokens)
{
	return work->logits[(size_t)g * work->partition->cluster_count + c] + logf((float)tokens);
}

/* Orders the clusters: shares are softmaxes of what the recipe says. */
static void order(struct work *work)
{
	const struct quality_partition *partition = work->partition;
	const uint32_t clusters = partition->cluster_count;
	const enum quality_order by = work->recipe->order;
	float *weights = quality_need(clusters, sizeof(float));

	for (uint32_t c = 0; c < clusters; c++)
		work->ranked[c] = (struct quality_ranked){0.0, c};
	for (uint32_t g = 0; g < work->question->group; g++) {
		float most = -INFINITY;
		double sum = 0.0;

		for (uint32_t c = 0; c < clusters; c++) {
			const uint32_t size = partition->first[c + 1] - partition->first[c];

			weights[c] = weight_of(work, g, c, by == QUALITY_ORDER_LOGIT ? 1 : size);
			if (by == QUALITY_ORDER_SECOND)
				weights[c] += work->bonus[(size_t)g * clusters + c];
			most = fmaxf(most, weights[c]);
		}
		for (uint32_t c = 0; c < clusters; c++)
			sum += exp((double)(weights[c] - most));
		for (uint32_t c = 0; c < clusters; c++)
			work->ranked[c].share += exp((double)(weights[c] - most)) / sum;
	}
	for (uint32_t c = 0; c < clusters && by == QUALITY_ORDER_DOUBT; c++)
		work->ranked[c].share *= sinh((double)work->sigma[c]);
	for (uint32_t c = 0; c < clusters && by != QUALITY_ORDER_LOGIT; c++)
		work->ranked[c].share /= partition->first[c + 1] - partition->first[c];
	quality_rank(work->ranked, clusters);
	free(weights);
}

/* Takes tokens in the order of clusters until the budget. Returns how many clusters were touched. */
static uint32_t take(struct work *work, uint32_t budget, struct quality_answer *answer)
{
	const struct quality_partition *partition = work->partition;
	uint32_t count = 0, rank = 0;

	for (; rank < partition->cluster_count && count < budget; rank++) {
		const uint32_t c = work->ranked[rank].number;
		const uint32_t first = partition->first[c];

		for (uint32_t i = first; i < partition->first[c + 1] && count < budget; i++) {
			answer->tokens[0][count++] = partition->tokens[i];
			work->left[c]--;
		}
	}
	answer->token_count[0] = count;
	return rank;
}

/* The first pass finds the largest, the second adds up. */
static void log_add(double x, int pass, double *most, double *sum)
{
	if (pass == 0)
		*most = fmax(*most, x);
	else
		*sum += exp(x - *most);
}

/* What a head's exact shares are measured against, as it is known after taking: sinks and tokens taken
 * exact, the rest estimated. A log sum of exp. */
static double estimate_lse(
	const struct work *work, uint32_t g, const struct quality_answer *candidates)
{
	const struct quality_question *question = work->question;
	const float *logits = question->logits + (size_t)g * question->rows->column_stride;
	const size_t row = (size_t)g * work->partition->cluster_count;
	double most = -INFINITY, sum = 0.0;

	for (int pass = 0; pass < 2; pass++) {
		for (uint32_t t = 0; t < question->rows->geometry.sink_tokens; t++)
			log_add((double)logits[t], pass, &most, &sum);
		for (uint32_t i = 0; i < candidates->token_count[0]; i++)
			log_add((double)logits[candidates->tokens[0][i]], pass, &most, &sum);
		for (uint32_t c = 0; c < work->partition->cluster_count; c++)
			if (work->left[c] > 0)
				log_add((double)(weight_of(work, g, c, work->left[c]) +
						 work->bonus[row + c]),
					pass, &most, &sum);
	}
	return most + log(sum);
}

/* Of the tokens taken, keeps the `budget` with the largest exact shares; the others are estimated with
 * their clusters, but with weights that are known by now. */
static void rescore(struct work *work, uint32_t budget, struct quality_answer *answer)
{
	const struct quality_question *question = work->question;
	const struct quality_partition *partition = work->partition;
	const uint32_t count = answer->token_count[0];
	struct quality_ranked *ranked = quality_need(count, sizeof(*ranked));
	uint32_t *cluster = quality_need(question->rows->token_count, sizeof(*cluster));

	for (uint32_t i = 0; i < count; i++)
		ranked[i].number = answer->tokens[0][i];
	for (uint32_t g = 0; g < question->group; g++) {
		const float *logits = question->logits + (size_t)g * question->rows->column_stride;
		const double lse = estimate_lse(work, g, answer);

		for (uint32_t i = 0; i < count; i++)
			ranked[i].share += exp((double)logits[ranked[i].number] - lse);
	}
	quality_rank(ranked, count);
	for (uint32_t c = 0; c < partition->cluster_count; c++)
		for (uint32_t i = partition->first[c]; i < partition->first[c + 1]; i++)
			cluster[partition->tokens[i]] = c;
	for (uint32_t i = 0; i < count; i++) {
		const uint32_t token = ranked[i].number;

		if (i < budget)
			answer->tokens[0][i] = token;
		for (uint32_t g = 0; i >= budget && g < question->group; g++) {
			float *dropped = work->dropped + (size_t)g * partition->cluster_count +
					 cluster[token];

			*dropped = log_sum(*dropped,
				question->logits[g * (size_t)question->rows->column_stride +
						 token]);
		}
	}
	answer->token_count[0] = count < budget ? count : budget;
	free(ranked);
	free(cluster);
}

/* Adds the clusters from rank `from` on, and what is left of those before. */
static void estimate(struct work *work, uint32_t touched, struct quality_answer *answer)
{
	const struct quality_partition *partition = work->partition;
	const uint32_t clusters = partition->cluster_count;
	const uint32_t part = (uint32_t)(work->recipe->estimate_part * clusters + 0.5);
	const uint32_t end = touched + part < clusters ? touched + part : clusters;
	float *weights = quality_need(clusters, sizeof(float));

	for (uint32_t g = 0; g < work->question->group; g++) {
		for (uint32_t c = 0; c < clusters; c++)
			weights[c] = -INFINITY;
		for (uint32_t rank = 0; rank < end; rank++) {
			const uint32_t c = work->ranked[rank].number;
			const size_t at = (size_t)g * clusters + c;

			if (work->left[c] > 0)
				weights[c] = weight_of(work, g, c, work->left[c]);
			if (work->recipe->estimate == QUALITY_ESTIMATE_SECOND)
				weights[c] += work->bonus[at];
			weights[c] = log_sum(weights[c], work->dropped[at]);
		}
		quality_answer_estimate(
			work->question, g, weights, partition->value_mean, clusters, answer);
	}
	free(weights);
}

/* Of the summary one byte per element of a key mean or variance and two of a value mean; a rescored
 * candidate costs its key, a token handed on its key and value. */
static void count_bytes(const struct work *work, uint32_t candidates, struct quality_answer *answer)
{
	const struct quality_rows *rows = work->question->rows;
	const struct kvr_geometry *geometry = &rows->geometry;
	const bool second = work->recipe->order == QUALITY_ORDER_SECOND ||
			    work->recipe->order == QUALITY_ORDER_DOUBT ||
			    work->recipe->estimate == QUALITY_ESTIMATE_SECOND;
	const bool folded = work->recipe->estimate != QUALITY_ESTIMATE_NONE;
	const double summary = geometry->key_dim * (second ? 2.0 : 1.0) +
			       (folded ? 2.0 * geometry->value_dim : 0.0);
	const double rows_bytes = answer->token_count[0] * quality_token_bytes(rows);

	answer->staged_bytes = rows_bytes;
	if (folded)
		answer->staged_bytes += work->question->group * (geometry->value_dim + 1) * 4.0;
	answer->read_bytes =
		work->partition->cluster_count * summary + rows_bytes +
		(candidates - answer->token_count[0]) * (double)kvr_geometry_key_bytes(geometry);
}

void quality_recipe_answer(const struct quality_recipe *recipe,
	const struct quality_partition *partition, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	const uint32_t clusters = partition->cluster_count;
	struct work work = {recipe, partition, question,
		quality_need((size_t)question->group * clusters, sizeof(float)),
		quality_need((size_t)question->group * clusters, sizeof(float)),
		quality_need(clusters, sizeof(float)),
		quality_need(clusters, sizeof(struct quality_ranked)),
		quality_need(clusters, sizeof(uint32_t)),
		quality_need((size_t)question->group * clusters, sizeof(float))};
	uint32_t touched, candidates;

	for (uint32_t c = 0; c < clusters; c++)
		work.left[c] = partition->first[c + 1] - partition->first[c];
	for (uint32_t i = 0; i < question->group * clusters; i++)
		work.dropped[i] = -INFINITY;
	score(&work);
	order(&work);
	touched = take(&work, recipe->rescored ? 2 * budget_tokens : budget_tokens, answer);
	candidates = answer->token_count[0];
	if (recipe->rescored)
		rescore(&work, budget_tokens, answer);
	quality_answer_share(question, answer);
	for (uint32_t g = 0; g < question->group; g++)
		quality_answer_attend(question, g, answer);
	if (recipe->estimate != QUALITY_ESTIMATE_NONE)
		estimate(&work, touched, answer);
	count_bytes(&work, candidates, answer);
	free(work.logits);
	free(work.bonus);
	free(work.sigma);
	free(work.ranked);
	free(work.left);
	free(work.dropped);
}
