/* SPDX-License-Identifier: Apache-2.0 */
/* figures.c: see figures.h. What each figure means stands in README.md. */
#include "examples/tinylm/figures.h"

#include <stdio.h>

static const char *const modes[TINYLM_MODES] = {"exact", "ahead", "mixed"};

static double mean(double sum, uint64_t count)
{
	return count ? sum / (double)count : 0;
}

static double milliseconds(uint64_t ns)
{
	return (double)ns / 1e6;
}

/* Bytes of keys and values staged per step. */
static double staged_bytes(const struct tinylm_engine *engine, const struct tinylm_run_figures *run)
{
	return mean((double)run->cost.staged_rows, run->cost.token_count) * 2 *
	       engine->model->head_dim * sizeof(uint16_t);
}

/* Rows per layer and kv head that were the engine's own, on average. */
static double own_rows(const struct tinylm_engine *engine, const struct tinylm_run_figures *run)
{
	return mean((double)run->cost.own_rows, run->cost.token_count) /
	       (engine->model->layer_count * engine->model->kv_heads);
}

static void run_print(const struct tinylm_engine *engine, const struct tinylm_figures *figures,
	const char *budget, const char *mode, const struct tinylm_run_figures *run)
{
	const double bytes = staged_bytes(engine, run);

	printf("  %-9s  %-6s %.6f  %.3f  %.4f  %5.0f KiB %5.1f %%  %8.0f  %7.2f  %7.2f\n", budget,
		mode, mean(run->quality.kl, run->quality.count),
		mean(run->quality.agree, run->quality.count),
		mean(run->quality.nll, run->quality.count), bytes / 1024,
		100 * bytes / figures->full_step_bytes, own_rows(engine, run),
		milliseconds(run->step_ns),
		mean(milliseconds(run->cost.source_ns), run->cost.token_count));
}

static void quality_print(const struct tinylm_engine *engine, const struct tinylm_figures *figures)
{
	printf("\nNext-token distributions of tokens %u to %u, recall against full attention\n"
	       "(full attention: NLL %.4f, %.0f KiB read per step, %.2f ms per step)\n\n",
		figures->prompt, figures->context - 1, mean(figures->full.nll, figures->full.count),
		figures->full_step_bytes / 1024, milliseconds(figures->full_step_ns));
	printf("  budget     mode   KL        top-1  NLL     staged/step        own rows  ms/step  "
	       "waiting\n");
	for (uint32_t b = 0; b < TINYLM_BUDGETS; b++)
		for (uint32_t m = 0; m < TINYLM_MODES; m++) {
			char budget[24];

			snprintf(budget, sizeof(budget), "%2u %% %4u", figures->percents[b],
				figures->budgets[b]);
			run_print(engine, figures, budget, modes[m], &figures->runs[b][m]);
		}
	run_print(engine, figures, "1 for 4", "merged", &figures->merged);
	printf("\n  exact: a request per layer with the layer's own queries; ahead: one request "
	       "per "
	       "token,\n  with the queries of the token before; mixed: as exact, and what was not "
	       "recalled is\n  estimated from its centroids; merged: rows that stand for 4 tokens "
	       "each, whatever the\n  query: staged once, read in every step. Own rows: sinks and "
	       "tail, which the engine holds.\n");
}

static void continuation_print(
	const struct tinylm_engine *engine, const struct tinylm_figures *figures)
{
	const uint32_t agreed = figures->agreed;
	const uint32_t left = figures->generate_count - agreed;

	printf("\nContinuation, %u tokens, greedy\n\n  full attention:  ", figures->generate_count);
	tinylm_engine_print(engine, figures->full_tokens, agreed);
	printf(left ? " >>" : "");
	tinylm_engine_print(engine, figures->full_tokens + agreed, left);
	printf("\n  recall at %2u %%:  ", figures->generate_percent);
	tinylm_engine_print(engine, figures->recall_tokens, agreed);
	printf(left ? " >>" : "");
	tinylm_engine_print(engine, figures->recall_tokens + agreed, left);
	if (left)
		printf("\n  the same for %u tokens; >> marks the first that differs\n", agreed);
	else
		printf("\n  the same to the last token\n");
}

void tinylm_figures_print(const struct tinylm_engine *engine, const struct tinylm_figures *figures)
{
	printf("\nThe text: %u tokens; the first %u prefilled in %.2f s (%.0f tokens/s)\n",
		figures->context, figures->prompt, milliseconds(figures->prefill_ns) / 1000,
		(double)figures->prompt / (milliseconds(figures->prefill_ns) / 1000));
	printf("Into kvrecalld: %u tokens, %.1f MiB appended in %.0f ms; sealed %.0f ms later; "
	       "read "
	       "back %s\n",
		figures->prompt - figures->matched, (double)figures->append_bytes / 1048576,
		milliseconds(figures->append_ns), milliseconds(figures->seal_ns),
		figures->identical ? "bit for bit" : "DIFFERENT");
	quality_print(engine, figures);
	continuation_print(engine, figures);
	printf("\nA second engine process opened the same %u tokens: matched %u, appended %u, "
	       "and continued %s.\n\n",
		figures->context, figures->second_matched, figures->second_appended,
		figures->second_same ? "with the same tokens" : "DIFFERENTLY");
}

static void run_json(const struct tinylm_engine *engine, const struct tinylm_run_figures *run)
{
	const uint64_t steps = run->cost.token_count;

	printf("{\"kl\":%.8f,\"top1\":%.4f,\"nll\":%.5f,\"staged_bytes\":%.0f,\"staged_rows\":%.1f,"
	       "\"own_rows\":%.1f,"
	       "\"missing_rows\":%llu,\"step_ms\":%.3f,\"waiting_ms\":%.3f}",
		mean(run->quality.kl, run->quality.count),
		mean(run->quality.agree, run->quality.count),
		mean(run->quality.nll, run->quality.count), staged_bytes(engine, run),
		mean((double)run->cost.staged_rows, steps), mean((double)run->cost.own_rows, steps),
		(unsigned long long)run->cost.missing_rows, milliseconds(run->step_ns),
		mean(milliseconds(run->cost.source_ns), steps));
}

static void tokens_json(const char *name, const uint32_t *tokens, uint32_t count)
{
	printf(",\"%s\":[", name);
	for (uint32_t i = 0; i < count; i++)
		printf("%s%u", i ? "," : "", tokens[i]);
	printf("]");
}

void tinylm_figures_json(const struct tinylm_engine *engine, const struct tinylm_figures *figures)
{
	printf("{\"context_tokens\":%u,\"prompt_tokens\":%u,\"steps\":%u,\"prefill_ms\":%.1f",
		figures->context, figures->prompt, figures->steps,
		milliseconds(figures->prefill_ns));
	printf(",\"prompt_matched\":%u,\"append_bytes\":%llu,\"append_ms\":%.1f,\"seal_ms\":%.1f,"
	       "\"sealed_tokens\":%u,\"fetched_identical\":%s",
		figures->matched, (unsigned long long)figures->append_bytes,
		milliseconds(figures->append_ns), milliseconds(figures->seal_ns), figures->sealed,
		figures->identical ? "true" : "false");
	printf(",\"full\":{\"nll\":%.5f,\"step_bytes\":%.0f,\"step_ms\":%.3f},\"recall\":[",
		mean(figures->full.nll, figures->full.count), figures->full_step_bytes,
		milliseconds(figures->full_step_ns));
	for (uint32_t b = 0; b < TINYLM_BUDGETS; b++) {
		printf("%s{\"percent\":%u,\"budget_tokens\":%u", b ? "," : "", figures->percents[b],
			figures->budgets[b]);
		for (uint32_t m = 0; m < TINYLM_MODES; m++) {
			printf(",\"%s\":", modes[m]);
			run_json(engine, &figures->runs[b][m]);
		}
		printf("}");
	}
	printf("],\"merged\":");
	run_json(engine, &figures->merged);
	printf(",\"continuation\":{\"percent\":%u,\"tokens\":%u,\"agreed\":%u",
		figures->generate_percent, figures->generate_count, figures->agreed);
	tokens_json("full", figures->full_tokens, figures->generate_count);
	tokens_json("recall", figures->recall_tokens, figures->generate_count);
	printf("},\"second_same\":%s,\"second\":%s}\n", figures->second_same ? "true" : "false",
		figures->second);
}
