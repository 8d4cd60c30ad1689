/* SPDX-License-Identifier: Apache-2.0 */
/* revive.c: see revive.h. Computes nothing of the prompt: all it knows of it comes from the daemon. */
#include "examples/tinylm/revive.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "examples/tinylm/second.h"

struct revival {
	struct tinylm_engine engine;
	struct tinylm_store *store;
	struct tinylm_source *source;
	struct tinylm_kept kept;
	uint32_t was[TINYLM_GENERATE_MAX], is[TINYLM_GENERATE_MAX]; /* the continuations */
	uint32_t matched, agreed;
	bool identical;
	double open_ms, fetch_ms, first_ms;
	double recalled_bytes, missed_bytes, read_bytes, missing_tokens; /* of the continuation */
};

int tinylm_kept_begin(FILE *file, const struct tinylm_kept *kept, const uint32_t *tokens)
{
	if (fwrite(kept, sizeof(*kept), 1, file) != 1 ||
		fwrite(tokens, sizeof(*tokens), kept->generate_count, file) != kept->generate_count)
		return -EIO;
	return 0;
}

static int kept_read(struct revival *revival, FILE *file)
{
	const struct tinylm_options *options = &revival->engine.options;
	struct tinylm_kept *kept = &revival->kept;

	if (fread(kept, sizeof(*kept), 1, file) != 1)
		return -EIO;
	if (kept->context != options->token_count ||
		kept->generate_count != options->generate_count || kept->batch == 0 ||
		kept->batch > TINYLM_BATCH || kept->generate_count > TINYLM_GENERATE_MAX)
		return -EINVAL; /* of a run with other options */
	return fread(revival->was, sizeof(*revival->was), kept->generate_count, file) ==
			       kept->generate_count
		       ? 0
		       : -EIO;
}

/* Every key and value, from the daemon and from the file. */
static int compare(struct revival *revival, FILE *file)
{
	const struct tinylm_model *model = revival->engine.model;
	const size_t row = (size_t)model->layer_count * model->kv_heads * model->head_dim;
	const size_t batch = 2 * row * revival->kept.batch;
	uint16_t *one = calloc(batch, sizeof(*one)), *other = calloc(batch, sizeof(*other));
	int error = one && other ? 0 : -ENOMEM;

	revival->identical = true;
	for (uint32_t first = 0; !error && first < revival->kept.context;) {
		const uint32_t left = revival->kept.context - first;
		const uint32_t count = left < revival->kept.batch ? left : revival->kept.batch;
		const size_t keys = row * count;

		error = tinylm_remote_fetch(revival->source, first, count, one, one + keys);
		if (!error && fread(other, sizeof(*other), 2 * keys, file) != 2 * keys)
			error = -EIO;
		if (!error && memcmp(one, other, 2 * keys * sizeof(*one)) != 0)
			revival->identical = false;
		first += count;
	}
	free(one);
	free(other);
	return error;
}

/* The text goes on from what the daemon found on its disk. */
static int go_on(struct revival *revival)
{
	struct tinylm_engine *engine = &revival->engine;
	const uint32_t context = revival->kept.context;
	const struct tinylm_pass last = {&engine->tokens[context - 1], context - 1, 1, true};
	const uint32_t budget = tinylm_engine_budget(engine, TINYLM_SECOND_PERCENT);
	const double missed = tinylm_store_metric(revival->store, "cache.miss_bytes");
	const double hit = tinylm_store_metric(revival->store, "cache.hit_bytes");
	const double read = tinylm_store_metric(revival->store, "nvme.read_bytes");
	const uint64_t start = tinylm_now_ns();
	struct tinylm_cache *cache = NULL;
	int error;

	tinylm_store_budget(revival->store, budget);
	error = tinylm_engine_recall_open(engine, revival->source, context, budget, false, &cache);
	if (!error)
		error = tinylm_forward_run(engine->forward, cache, &last, engine->logits, 1);
	revival->first_ms = (double)(tinylm_now_ns() - start) / 1e6;
	if (!error)
		error = tinylm_engine_generate(engine, cache, context, engine->logits, revival->is,
			revival->kept.generate_count);
	tinylm_cache_close(cache);
	revival->missed_bytes = tinylm_store_metric(revival->store, "cache.miss_bytes") - missed;
	revival->recalled_bytes = revival->missed_bytes - hit +
				  tinylm_store_metric(revival->store, "cache.hit_bytes");
	revival->read_bytes = tinylm_store_metric(revival->store, "nvme.read_bytes") - read;
	revival->missing_tokens =
		tinylm_store_metric(revival->store, "recall.missing_tokens_count");
	while (revival->agreed < revival->kept.generate_count &&
		revival->was[revival->agreed] == revival->is[revival->agreed])
		revival->agreed++;
	return error;
}

static int run(struct revival *revival, FILE *file)
{
	const struct tinylm_options *options = &revival->engine.options;
	uint64_t start = tinylm_now_ns();
	int error = tinylm_remote_open(revival->store, revival->engine.tokens, options->token_count,
		&revival->source, &revival->matched);

	revival->open_ms = (double)(tinylm_now_ns() - start) / 1e6;
	if (!error && revival->matched != options->token_count)
		error = -ENODATA;
	/* First the continuation, while nothing of it is in the daemon's memory. */
	if (!error)
		error = go_on(revival);
	revival->source = tinylm_remote_close(revival->source, true);
	if (!error)
		error = tinylm_remote_open(revival->store, revival->engine.tokens,
			options->token_count, &revival->source, &revival->matched);
	start = tinylm_now_ns();
	if (!error)
		error = compare(revival, file);
	revival->fetch_ms = (double)(tinylm_now_ns() - start) / 1e6;
	revival->source = tinylm_remote_close(revival->source, true);
	return error;
}

static void print(const struct revival *revival)
{
	const double mebi = 1048576;

	if (!revival->engine.options.json_only) {
		printf("kvrecalld was killed (SIGKILL) and started again on its store.\n");
		printf("  By its %u token ids the text was found: matched %u, in %.1f ms; nothing "
		       "was "
		       "computed again.\n",
			revival->kept.context, revival->matched, revival->open_ms);
		printf("  Recalled from NVMe: %.1f MiB of clusters, of these %.1f MiB not in RAM "
		       "(%.1f MiB read); first new token after %.1f ms.\n",
			revival->recalled_bytes / mebi, revival->missed_bytes / mebi,
			revival->read_bytes / mebi, revival->first_ms);
		printf("  Continuation: %s. All keys and values read back: %s, in %.0f ms.\n\n",
			revival->agreed == revival->kept.generate_count
				? "the same tokens as before"
				: "DIFFERENT",
			revival->identical ? "bit for bit what was stored" : "DIFFERENT",
			revival->fetch_ms);
	}
	printf("{\"matched_tokens\":%u,\"open_ms\":%.2f,\"first_token_ms\":%.2f,"
	       "\"recalled_bytes\":%.0f,\"missed_bytes\":%.0f,\"read_bytes\":%.0f,"
	       "\"missing_tokens\":%.0f,\"agreed\":%u,\"tokens\":%u,\"fetched_identical\":%s,"
	       "\"fetch_ms\":%.1f}\n",
		revival->matched, revival->open_ms, revival->first_ms, revival->recalled_bytes,
		revival->missed_bytes, revival->read_bytes, revival->missing_tokens,
		revival->agreed, revival->kept.generate_count,
		revival->identical ? "true" : "false", revival->fetch_ms);
}

int tinylm_revive(const struct tinylm_options *options)
{
	static struct revival revival;
	FILE *file = fopen(options->kept ? options->kept : "", "rb");
	int error = file ? 0 : -errno;

	if (!error)
		error = tinylm_engine_open(options, &revival.engine);
	if (!error)
		error = kept_read(&revival, file);
	if (!error)
		error = tinylm_engine_connect(
			&revival.engine, TINYLM_SECOND_PERCENT, &revival.store);
	if (!error)
		error = run(&revival, file);
	if (error)
		fprintf(stderr, "tinylm revive: %s%s%s\n",
			revival.store ? tinylm_store_error(revival.store) : "",
			revival.store && tinylm_store_error(revival.store)[0] ? ": " : "",
			strerror(-error));
	else
		print(&revival);
	/* Wrong bytes are a failure, whatever the figures say. */
	if (!error && (!revival.identical || revival.agreed != revival.kept.generate_count ||
			      revival.missed_bytes <= 0 || revival.missing_tokens > 0))
		error = -EPROTO;
	if (file)
		fclose(file);
	tinylm_store_close(revival.store);
	tinylm_engine_close(&revival.engine);
	return error ? 1 : 0;
}
