/* SPDX-License-Identifier: Apache-2.0 */
/* hit.c: how much of what recalls take a host tier of a part of the KV can serve, by policy.
 *
 * Goal: bytes served from the host tier over bytes recalled, for each policy of tiers/policy.h, beside
 * what the best of all policies, which knows the future, could serve.
 *
 * Method: tinylm decodes 1,000 tokens behind a prompt of 4,096 (hit_trace_util.h); which clusters each
 * request takes is the trace, and a policy is run over it. The budget is 1/32 of the context (as 1,024
 * tokens are of 32k), the host tier 10 % of the payload, a request asks for all layers. The lines
 * behind the first three each change one of these, or the text, for DECAY. --verbose crosses everything
 * with everything. A cluster counts with all its bytes, as it is read.
 *
 * Reference: after each request the bytes that are needed again soonest stay, of those that were there
 * and those that the request has read (Belady). It may decline, and keep parts of clusters: an upper
 * bound for every policy that keeps whole ones. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bench/bench_util.h"
#include "bench/hit_trace_util.h"
#include "bench/tiny.h"
#include "tiers/policy.h"

#define NEVER UINT32_MAX
#define STORY "examples/tinylm/text.txt"
#define PROSE "docs/PROTOCOL.md"
#define CODE  "kernels/recall.c"

static void *need(size_t count, size_t bytes)
{
	void *memory = calloc(count + 1, bytes);

	if (!memory)
		bench_fail("no memory for %zu bytes", count * bytes);
	return memory;
}

/* ---- the optimum ----------------------------------------------------------------------------- */

struct kept {
	uint32_t next; /* request that takes it again */
	uint32_t cluster;
	uint32_t bytes; /* of it, that are kept */
};

static int compare_next(const void *a, const void *b)
{
	const struct kept *x = a, *y = b;

	if (x->next != y->next)
		return x->next < y->next ? -1 : 1;
	return x->cluster < y->cluster ? -1 : 1; /* a cluster is there once */
}

/* For each cluster taken, the request that takes it again. */
static uint32_t *next_uses(const struct hit_trace *trace)
{
	uint32_t *next = need(trace->taken_count, sizeof(*next));
	uint32_t *seen = need(trace->cluster_count, sizeof(*seen));
	uint32_t at = trace->taken_count;

	for (uint32_t c = 0; c < trace->cluster_count; c++)
		seen[c] = NEVER;
	for (uint32_t r = trace->request_count; r-- > 0;)
		while (at > (r > 0 ? trace->ends[r - 1] : 0)) {
			at--;
			next[at] = seen[trace->taken[at]];
			seen[trace->taken[at]] = r;
		}
	free(seen);
	return next;
}

/* Bytes served. */
static uint64_t optimum(const struct hit_trace *trace, uint64_t capacity)
{
	uint32_t *next = next_uses(trace);
	struct kept *kept = need(2 * (size_t)trace->cluster_count, sizeof(*kept));
	uint64_t served = 0;
	uint32_t count = 0;

	for (uint32_t r = 0, at = 0; r < trace->request_count; r++) {
		uint64_t room = capacity;
		uint32_t left = 0;

		/* What is taken comes out of what is kept, and in again with its next use. */
		for (uint32_t i = 0; i < count; i++) {
			if (kept[i].next == r)
				served += kept[i].bytes;
			else
				kept[left++] = kept[i];
		}
		for (; at < trace->ends[r]; at++)
			if (next[at] != NEVER)
				kept[left++] = (struct kept){
					next[at], trace->taken[at], trace->bytes[trace->taken[at]]};
		qsort(kept, left, sizeof(*kept), compare_next);
		for (count = 0; count < left && room > 0; count++) {
			if (kept[count].bytes > room)
				kept[count].bytes = (uint32_t)room;
			room -= kept[count].bytes;
		}
	}
	free(next);
	free(kept);
	return served;
}

/* ---- a policy -------------------------------------------------------------------------------- */

struct tier {
	const struct hit_trace *trace;
	struct kvr_policy policy;
	uint64_t capacity, held;
	bool *here; /* [cluster], which is also the number of its entry */
};

static bool may_always(void *context, uint32_t entry)
{
	(void)context;
	(void)entry;
	return true;
}

/* Brings what was read in, if the policy wants it. */
static void bring_in(struct tier *tier, uint32_t cluster)
{
	const uint32_t bytes = tier->trace->bytes[cluster];

	if (tier->held + bytes > tier->capacity && !kvr_policy_wants(&tier->policy, cluster))
		return;
	while (tier->held + bytes > tier->capacity) {
		const uint32_t victim = kvr_policy_evict(&tier->policy, may_always, NULL);

		tier->here[victim] = false;
		tier->held -= tier->trace->bytes[victim];
	}
	kvr_policy_admit(&tier->policy, cluster, cluster, bytes);
	tier->here[cluster] = true;
	tier->held += bytes;
}

/* Bytes served. */
static uint64_t serve(const struct hit_trace *trace, uint64_t capacity, enum kvr_policy_kind kind)
{
	struct tier tier = {.trace = trace, .capacity = capacity};
	const uint32_t count = trace->cluster_count;
	struct kvr_policy_entry *entries = need(count, sizeof(*entries));
	uint32_t *missed = need(count, sizeof(*missed));
	struct kvr_policy_ghost *ghosts;
	uint32_t ghost_max = KVR_POLICY_GHOST_MIN;
	uint64_t served = 0;

	while (ghost_max < count * capacity / trace->total_bytes)
		ghost_max *= 2;
	ghosts = need(ghost_max, sizeof(*ghosts));
	tier.here = need(count, sizeof(*tier.here));
	kvr_policy_init(&tier.policy, kind, entries, count, kind == KVR_POLICY_LRU ? NULL : ghosts,
		kind == KVR_POLICY_LRU ? 0 : ghost_max);
	for (uint32_t r = 0, at = 0; r < trace->request_count; r++) {
		uint32_t missed_count = 0;
		uint64_t bytes = 0;

		for (uint32_t i = at; i < trace->ends[r]; i++)
			bytes += trace->bytes[trace->taken[i]];
		kvr_policy_advance(&tier.policy, bytes);
		for (; at < trace->ends[r]; at++) {
			const uint32_t cluster = trace->taken[at];

			if (tier.here[cluster]) {
				kvr_policy_touch(&tier.policy, cluster, 0);
				served += trace->bytes[cluster];
			} else {
				kvr_policy_note(&tier.policy, cluster);
				missed[missed_count++] = cluster;
			}
		}
		for (uint32_t i = 0; i < missed_count; i++)
			bring_in(&tier, missed[i]);
	}
	free(entries);
	free(ghosts);
	free(missed);
	free(tier.here);
	return served;
}

/* ---- the lines ------------------------------------------------------------------------------- */

static void report(const char *bench, const struct hit_trace *trace, uint32_t percent,
	enum kvr_policy_kind kind)
{
	const uint64_t capacity = trace->total_bytes * percent / 100;
	const double taken = (double)trace->taken_bytes;
	const double value = (double)serve(trace, capacity, kind) / taken;
	const double best = (double)optimum(trace, capacity) / taken;

	bench_print((struct bench_result){.bench = bench,
		.value = value,
		.unit = "bytes served/byte recalled",
		.reference = "Belady's optimum, an upper bound",
		.reference_value = best,
		.ratio = value / best});
}

/* All policies, host tiers of 5, 10 and 20 %. */
static void report_all(const char *name, const struct hit_trace *trace)
{
	static const uint32_t percents[] = {5, 10, 20};
	static const char *const names[] = {[KVR_POLICY_S3FIFO] = "s3fifo",
		[KVR_POLICY_LRU] = "lru",
		[KVR_POLICY_DECAY] = "decay"};
	char bench[80];

	for (int i = 0; i < 3; i++)
		for (int kind = KVR_POLICY_S3FIFO; kind <= KVR_POLICY_DECAY; kind++) {
			snprintf(bench, sizeof(bench), "hit_%s_host_%u_%s", name, percents[i],
				names[kind]);
			report(bench, trace, percents[i], (enum kvr_policy_kind)kind);
		}
}

static void everything(void)
{
	static const struct {
		const char *name, *text;
	} texts[] = {{"story", STORY}, {"prose", PROSE}, {"code", CODE}};
	static const uint32_t budgets[] = {
		HIT_PROMPT / 32, HIT_PROMPT / 20, HIT_PROMPT / 10, HIT_PROMPT / 5};
	char name[48];

	for (int t = 0; t < 3; t++)
		for (int b = 0; b < 4; b++)
			for (int layers = 0; layers < 2; layers++) {
				const struct hit_setting setting = {
					texts[t].text, budgets[b], layers != 0};
				struct hit_trace *trace = hit_trace_make(&setting);

				snprintf(name, sizeof(name), "%s_budget_%u%s", texts[t].name,
					budgets[b], layers ? "_layers" : "");
				report_all(name, trace);
				hit_trace_free(trace);
			}
}

int main(int argc, char **argv)
{
	static const struct {
		const char *bench;
		struct hit_setting setting;
	} others[] = {
		{"hit_layers", {STORY, HIT_PROMPT / 32, true}},
		{"hit_prose", {PROSE, HIT_PROMPT / 32, false}},
		{"hit_code", {CODE, HIT_PROMPT / 32, false}},
		{"hit_budget_5", {STORY, HIT_PROMPT / 20, false}},
		{"hit_budget_10", {STORY, HIT_PROMPT / 10, false}},
	};
	const struct hit_setting setting = {STORY, HIT_PROMPT / 32, false};
	struct hit_trace *trace;

	if (bench_verbose(argc, argv)) {
		everything();
		return 0;
	}
	trace = hit_trace_make(&setting);
	report("hit", trace, 10, KVR_POLICY_DECAY);
	report("hit_s3fifo", trace, 10, KVR_POLICY_S3FIFO);
	report("hit_lru", trace, 10, KVR_POLICY_LRU);
	report("hit_host_5", trace, 5, KVR_POLICY_DECAY);
	report("hit_host_20", trace, 20, KVR_POLICY_DECAY);
	hit_trace_free(trace);
	for (size_t i = 0; i < BENCH_SIZE(sizeof(others) / sizeof(others[0]), 1); i++) {
		trace = hit_trace_make(&others[i].setting);
		report(others[i].bench, trace, 10, KVR_POLICY_DECAY);
		hit_trace_free(trace);
	}
	return 0;
}
