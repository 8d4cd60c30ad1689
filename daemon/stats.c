/* SPDX-License-Identifier: Apache-2.0 */
/* stats.c: what the daemon knows of itself, as a list of metrics; docs/ARCHITECTURE.md explains each.
 *
 * Who may see what: tenant.* is the caller's own; all else is of the daemon, of all tenants together,
 * since an engine that decides what to send where must know how full it is. Nobody is told another
 * tenant's name or numbers.
 *
 * Names are group.name; _bytes, _count, _ratio, _ns and _s say the unit. Warnings come first. */
#include <stdio.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "daemon/daemon.h"
#include "tiers/arena.h"

#define METRICS_MAX 128u

struct list {
	struct kvr_wire_metric entries[METRICS_MAX];
	uint32_t count;
};

static void add_text(struct list *list, const char *name, const char *text)
{
	struct kvr_wire_metric *metric = &list->entries[list->count++];

	KVR_ASSERT(list->count <= METRICS_MAX);
	*metric = (struct kvr_wire_metric){0};
	snprintf(metric->name, sizeof(metric->name), "%s", name);
	snprintf(metric->text, sizeof(metric->text), "%s", text);
}

static void add(struct list *list, const char *name, double value)
{
	add_text(list, name, "");
	list->entries[list->count - 1].value = value;
}

static double ratio(double part, double whole)
{
	return whole > 0 ? part / whole : 0;
}

static void add_warnings(struct list *list, const struct kvr_arena_stat *arena)
{
	if (arena->pages == KVR_PAGES_SMALL)
		add_text(list, "warning.huge_pages",
			"host memory is in 4 KiB pages: reserve huge pages (vm.nr_hugepages) or "
			"allow "
			"transparent ones");
	if (arena->locked_bytes < arena->capacity_bytes)
		add_text(list, "warning.mlock",
			"host memory is not locked: raise LimitMEMLOCK above memory.host_bytes");
}

/* What the log said when the store was opened, and what became of puts since. */
static void add_store_warnings(struct list *list, const struct kvr_daemon *daemon)
{
	char text[KVR_TEXT_MAX];
	struct kvr_store_stat stat;

	kvr_store_stat(daemon->store, &stat);
	if (!stat.nvme.uring && stat.nvme.uring_error) {
		snprintf(text, sizeof(text),
			"%s: threads move data instead, slower; allow io_uring_setup and "
			"io_uring_enter, or set kernel.io_uring_disabled to 0",
			strerror(-stat.nvme.uring_error));
		add_text(list, "warning.io_uring", text);
	}
	if (!stat.nvme.direct)
		add_text(list, "warning.o_direct",
			"the store's file system has none: what is read takes memory twice; use "
			"ext4 or xfs");
	if (stat.nvme.uring && !stat.nvme.registered)
		add_text(list, "warning.registered",
			"read memory is not registered with the kernel: raise LimitMEMLOCK");
	if (daemon->keep.said_error && !kvr_list_empty(&daemon->keep.later)) {
		snprintf(text, sizeof(text), "new segments are in memory alone: %s; %s",
			strerror(-daemon->keep.said_error),
			kvr_keep_remedy(daemon->keep.said_error));
		add_text(list, "warning.store", text);
	}
}

static void add_daemon(struct list *list, const struct kvr_daemon *daemon)
{
	const struct kvr_sessions *sessions = &daemon->sessions;
	const struct kvr_daemon_counters *counters = &daemon->counters;

	add_text(list, "daemon.version", KVR_BUILD_VERSION);
	add_text(list, "daemon.device", kvr_device_name(daemon->device));
	add(list, "daemon.uptime_s", (double)(kvr_clock_ns() - daemon->start_ns) / 1e9);
	add(list, "daemon.requests_count", (double)counters->requests);
	add(list, "daemon.refusals_count", (double)counters->refusals);
	add(list, "daemon.malformed_count", (double)counters->malformed);
	add(list, "daemon.resent_count", (double)counters->resent);
	add(list, "daemon.timeouts_count", (double)counters->timeouts);
	add(list, "daemon.running_count", (double)daemon->calls.running);
	add(list, "session.attached_count", sessions->attached_count);
	add(list, "session.attached_total_count", (double)sessions->attached_total);
	add(list, "session.refused_count", (double)sessions->refused_total);
	add(list, "session.region_bytes", (double)sessions->region_bytes);
	add(list, "sequence.open_count", daemon->sequences.count);
}

static void add_paths(struct list *list, const struct kvr_daemon *daemon)
{
	const struct kvr_daemon_counters *counters = &daemon->counters;
	const struct kvr_directory *directory = &daemon->directory;

	add(list, "append.tokens_count", (double)counters->append_tokens);
	add(list, "append.copied_bytes", (double)counters->append_bytes);
	add(list, "recall.requests_count", (double)counters->recall_count);
	add(list, "recall.items_count", (double)counters->recall_items);
	add(list, "recall.staged_bytes", (double)counters->recall_bytes);
	add(list, "recall.mean_ns",
		ratio((double)counters->recall_ns, (double)counters->recall_count));
	add(list, "recall.missing_tokens_count", (double)counters->missing_tokens);
	add(list, "fetch.staged_bytes", (double)counters->fetch_bytes);
	add(list, "match.asked_tokens_count", (double)directory->asked_tokens);
	add(list, "match.matched_tokens_count", (double)directory->matched_tokens);
	add(list, "match.hit_ratio",
		ratio((double)directory->matched_tokens, (double)directory->asked_tokens));
	add(list, "audit.done_count", (double)daemon->audit.done_count);
	add(list, "audit.abandoned_count", (double)daemon->audit.abandoned_count);
	add(list, "seal.segments_count", (double)counters->sealed_segments);
	add(list, "seal.tokens_count", (double)counters->sealed_tokens);
	add(list, "seal.deduplicated_count", (double)counters->deduplicated_segments);
	add(list, "seal.failures_count", (double)counters->seal_failures);
}

static void add_memory(
	struct list *list, const struct kvr_daemon *daemon, const struct kvr_arena_stat *arena)
{
	const struct kvr_directory *directory = &daemon->directory;
	struct kvr_tier_stat host;

	kvr_tier_stat(daemon->host, &host);
	add(list, "segment.stored_count", directory->ready_count);
	add(list, "segment.payload_bytes", (double)directory->payload_bytes);
	add(list, "segment.summary_bytes", (double)directory->memory_bytes);
	add(list, "segment.metadata_ratio",
		ratio((double)directory->memory_bytes +
				directory->ready_count * (double)sizeof(struct kvr_segment) +
				(double)kvr_cache_metadata_bytes(&daemon->cache),
			(double)directory->payload_bytes));
	add(list, "segment.evicted_count", (double)directory->evicted_count);
	add(list, "segment.evicted_bytes", (double)directory->evicted_bytes);
	add_text(list, "host.pages",
		arena->pages == KVR_PAGES_HUGETLB       ? "2 MiB, reserved"
		: arena->pages == KVR_PAGES_TRANSPARENT ? "2 MiB, transparent"
							: "4 KiB");
	add(list, "host.capacity_bytes", (double)arena->capacity_bytes);
	add(list, "host.used_bytes", (double)arena->used_bytes);
	add(list, "host.requested_bytes", (double)arena->requested_bytes);
	add(list, "host.locked_bytes", (double)arena->locked_bytes);
	if (daemon->config->populate)
		add(list, "host.populated_bytes",
			(double)__atomic_load_n(&daemon->populate.done_bytes, __ATOMIC_RELAXED));
	add(list, "host.waste_ratio",
		ratio((double)(arena->used_bytes - arena->requested_bytes),
			(double)arena->used_bytes));
	if (arena->full_bytes) /* no refusal yet: nothing to tell */
		add(list, "host.full_ratio",
			ratio((double)arena->full_bytes, (double)arena->capacity_bytes));
	add(list, "host.allocations_count", (double)arena->allocation_count);
	add(list, "host.clusters_count", (double)host.place_count);
	add(list, "host.cluster_bytes", (double)host.reserved_bytes);
}

/* What clusters in memory save, and what the disk does. */
static void add_cache(struct list *list, const struct kvr_daemon *daemon)
{
	const struct kvr_cache *cache = &daemon->cache;

	add(list, "cache.clusters_count", (double)cache->kept_count);
	add(list, "cache.kept_bytes", (double)cache->kept_bytes);
	add(list, "cache.limbo_bytes", (double)cache->limbo_bytes);
	add(list, "cache.hit_bytes", (double)cache->hit_bytes);
	add(list, "cache.miss_bytes", (double)cache->miss_bytes);
	add(list, "cache.hit_ratio",
		ratio((double)cache->hit_bytes, (double)(cache->hit_bytes + cache->miss_bytes)));
	add(list, "cache.admitted_bytes", (double)cache->admitted_bytes);
	add(list, "cache.demoted_bytes", (double)cache->demoted_bytes);
	add(list, "cache.declined_bytes", (double)cache->declined_bytes);
	add(list, "nvme.reads_count", (double)daemon->reads.read_count);
	add(list, "nvme.read_bytes", (double)daemon->reads.read_bytes);
}

static void add_store(
	struct list *list, const struct kvr_daemon *daemon, const struct kvr_tenant *tenant)
{
	struct kvr_store_stat stat;

	kvr_store_stat(daemon->store, &stat);
	add_cache(list, daemon);
	add_text(list, "nvme.mover",
		stat.nvme.uring         ? "io_uring"
		: stat.nvme.uring_error ? "threads: io_uring is not allowed here"
					: "threads, as store.io says");
	add_text(list, "nvme.cache", stat.nvme.direct ? "O_DIRECT" : "page cache");
	add(list, "nvme.depth", stat.nvme.depth);
	add(list, "store.capacity_bytes", (double)stat.capacity_bytes);
	add(list, "store.used_bytes", (double)stat.used_bytes);
	add(list, "store.segments_count", (double)stat.catalog.segment_count);
	add(list, "store.clusters_count", (double)stat.catalog.cluster_count);
	add(list, "store.merged_sets_count", (double)stat.catalog.merged_count);
	add(list, "store.catalog_bytes", (double)stat.catalog.used_bytes);
	add(list, "store.catalog_capacity_bytes", (double)stat.catalog.cap_bytes);
	add(list, "store.put_count", (double)stat.put_count);
	add(list, "store.put_bytes", (double)stat.put_bytes);
	add(list, "store.put_failures_count", (double)daemon->keep.failed_count);
	add(list, "store.evicted_count", (double)stat.evicted_count);
	add(list, "store.evicted_bytes", (double)stat.evicted_bytes);
	add(list, "store.dropped_count", (double)stat.dropped_count);
	add(list, "store.loads_count", (double)stat.load_count);
	add(list, "store.load_bytes", (double)stat.load_bytes);
	add(list, "store.errors_count", (double)stat.error_count);
	add(list, "store.quarantined_count", (double)daemon->counters.quarantined);
	if (stat.budget_left_bytes != UINT64_MAX)
		add(list, "store.budget_left_bytes", (double)stat.budget_left_bytes);
	if (tenant->store_quota_bytes != UINT64_MAX)
		add(list, "tenant.store_quota_bytes", (double)tenant->store_quota_bytes);
}

static void add_tenant(struct list *list, const struct kvr_tenant *tenant)
{
	add_text(list, "tenant.name", tenant->name);
	add(list, "tenant.held_bytes", (double)tenant->held_bytes);
	if (tenant->quota_bytes != UINT64_MAX)
		add(list, "tenant.quota_bytes", (double)tenant->quota_bytes);
	add(list, "tenant.quota_refused_count", (double)tenant->refused_count);
}

/* The index-th of all metrics: those of the list, then those of audits. */
static bool metric_at(const struct kvr_daemon *daemon, const struct kvr_call *call,
	const struct list *list, uint32_t index, struct kvr_wire_metric *ret_metric)
{
	if (index >= list->count)
		return kvr_audit_metric(
			&daemon->audit, call->session->tenant, index - list->count, ret_metric);
	*ret_metric = list->entries[index];
	return true;
}

enum kvr_outcome kvr_handle_stats(struct kvr_daemon *daemon, struct kvr_call *call)
{
	static struct list list; /* packed before the next call runs */
	static struct kvr_wire_metric page[KVR_LIST_ENTRIES_MAX];
	const uint32_t first = call->request.stats.first;
	struct kvr_wire_metric beyond;
	struct kvr_arena_stat arena;
	uint32_t count = 0;

	list.count = 0;
	kvr_arena_stat(daemon->arena, &arena);
	add_warnings(&list, &arena);
	if (daemon->store)
		add_store_warnings(&list, daemon);
	add_daemon(&list, daemon);
	add_tenant(&list, call->session->tenant);
	add_paths(&list, daemon);
	add_memory(&list, daemon, &arena);
	if (daemon->store)
		add_store(&list, daemon, call->session->tenant);
	call->reply.metrics.entries = page;
	while (count < KVR_LIST_ENTRIES_MAX &&
		metric_at(daemon, call, &list, first + count, &page[count]))
		count++;
	call->reply.metrics.count = count;
	if (metric_at(daemon, call, &list, first + count, &beyond))
		call->reply.metrics.next = first + count;
	return KVR_OUTCOME_DONE;
}
