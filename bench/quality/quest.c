/* SPDX-License-Identifier: Apache-2.0 */
/* quest.c: pages of 16 tokens in the order of what their keys can give at most.
 *
 * A page is as good as sum over channels of max(q least, q most): no key in it has a larger product.
 * Each head chooses for itself, as published, and pays for its own rows. The last page is trimmed to the
 * budget. The two layers that the paper leaves dense are not: every method has the same layers.
 *
 * Source: Quest, arXiv 2406.10774, section 3. */
#include <stdlib.h>

#include "bench/quality/memory.h"
#include "bench/quality/method.h"

static void choose(const struct quality_bounds *bounds, const struct quality_question *question,
	uint32_t g, uint32_t budget, struct quality_answer *answer)
{
	const struct quality_rows *rows = question->rows;
	const uint32_t dim = rows->geometry.key_dim;
	const float *query = question->queries + (size_t)g * dim;
	struct quality_ranked *ranked = quality_need(bounds->page_count, sizeof(*ranked));
	uint32_t count = 0;

	for (uint32_t page = 0; page < bounds->page_count; page++) {
		const float *least = bounds->least + (size_t)page * dim;
		const float *most = bounds->most + (size_t)page * dim;
		float sum = 0.0f;

		for (uint32_t d = 0; d < dim; d++)
			sum += query[d] * (query[d] > 0.0f ? most[d] : least[d]);
		ranked[page] = (struct quality_ranked){(double)sum, page};
	}
	quality_rank(ranked, bounds->page_count);
	for (uint32_t i = 0; i < bounds->page_count && count < budget; i++) {
		uint32_t token =
			rows->geometry.sink_tokens + ranked[i].number * QUALITY_PAGE_TOKENS;

		for (uint32_t n = 0; n < QUALITY_PAGE_TOKENS && count < budget; n++, token++)
			if (token < rows->token_count)
				answer->tokens[g][count++] = token;
	}
	answer->token_count[g] = count;
	free(ranked);
}

void quality_quest_answer(const struct quality_method *method, struct quality_worker *worker,
	const struct quality_store *store, const struct quality_question *question,
	uint32_t budget_tokens, struct quality_answer *answer)
{
	const struct quality_bounds *bounds = &store->bounds[question->lane];

	(void)method;
	(void)worker;
	answer->staged_bytes = 0.0;
	for (uint32_t g = 0; g < question->group; g++) {
		choose(bounds, question, g, budget_tokens, answer);
		quality_answer_attend(question, g, answer);
		answer->staged_bytes +=
			answer->token_count[g] * quality_token_bytes(question->rows);
	}
	answer->read_bytes = 2.0 * bounds->page_count *
				     (double)kvr_geometry_key_bytes(&question->rows->geometry) +
			     answer->staged_bytes;
}
