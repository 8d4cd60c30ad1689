/* SPDX-License-Identifier: Apache-2.0 */
/* durable.c: see durable.h. What is done with the store is in find.c, keep.c, stage.c and fetch.c. */
#include "daemon/durable.h"

#include <string.h>

#include "base/assert.h"
#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/notify.h"

#define REAP_MAX 16u

static void say_found(const struct kvr_store_stat *stat, const char *dir)
{
	kvr_log(KVR_LOG_INFO,
		"store %s: %llu segments in %llu of %llu MiB; catalog %llu of %llu MiB; %s, depth "
		"%u",
		dir, (unsigned long long)stat->catalog.segment_count,
		(unsigned long long)(stat->used_bytes >> 20),
		(unsigned long long)(stat->capacity_bytes >> 20),
		(unsigned long long)(stat->catalog.used_bytes >> 20),
		(unsigned long long)(stat->catalog.cap_bytes >> 20),
		stat->nvme.uring ? "io_uring" : "threads", stat->nvme.depth);
	if (!stat->nvme.uring && stat->nvme.uring_error)
		kvr_log(KVR_LOG_WARNING,
			"io_uring: %s: preadv and pwritev in threads instead, slower; allow "
			"io_uring_setup "
			"and io_uring_enter in the seccomp filter, or set kernel.io_uring_disabled "
			"to 0",
			strerror(-stat->nvme.uring_error));
	if (!stat->nvme.direct)
		kvr_log(KVR_LOG_WARNING,
			"%s: its file system has no O_DIRECT: what is read takes memory twice; use "
			"ext4 or xfs",
			dir);
	if (stat->nvme.uring && !stat->nvme.registered)
		kvr_log(KVR_LOG_WARNING,
			"read memory is not registered with the kernel; raise LimitMEMLOCK");
}

int kvr_durable_open(struct kvr_daemon *daemon)
{
	const struct kvr_config *config = daemon->config;
	struct kvr_store_config store = {
		.dir = config->store_dir,
		.bytes = config->store_bytes,
		.catalog_bytes = config->catalog_bytes,
		.write_bytes_per_day = config->write_bytes_per_day,
		.io = config->store_io,
		.depth = config->store_depth,
		.batch = config->store_batch,
	};
	char text[KVR_STORE_TEXT_MAX] = "";
	struct kvr_store_stat stat;
	int rc;

	if (config->store_dir[0] == '\0')
		return kvr_reads_open(&daemon->reads, NULL, NULL);
	rc = kvr_arena_open(config->read_buffer_bytes, &daemon->read_arena);
	if (rc < 0) {
		kvr_log(KVR_LOG_ERROR,
			"read memory of %llu bytes: %s; lower store.read_buffer_bytes",
			(unsigned long long)config->read_buffer_bytes, strerror(-rc));
		return rc;
	}
	store.read_memory.data = kvr_arena_base(daemon->read_arena, &store.read_memory.bytes);
	kvr_notify_status("opening the store");
	rc = kvr_store_open(&store, &daemon->store, text);
	if (rc < 0) {
		kvr_log(KVR_LOG_ERROR, "%s", text);
		return rc;
	}
	kvr_store_stat(daemon->store, &stat);
	say_found(&stat, config->store_dir);
	rc = kvr_reads_open(&daemon->reads, kvr_store_tier(daemon->store), daemon->read_arena);
	if (rc == 0)
		rc = kvr_stages_open(&daemon->stages);
	if (rc == 0)
		rc = kvr_keep_open(&daemon->keep);
	if (rc < 0)
		kvr_log(KVR_LOG_ERROR, "tables of the store: %s", strerror(-rc));
	return rc;
}

void kvr_durable_reap(struct kvr_daemon *daemon)
{
	struct kvr_store_job *jobs[REAP_MAX];
	uint32_t count;

	if (!daemon->store)
		return;
	KVR_ASSERT(daemon->reads.tier);
	kvr_reads_reap(&daemon->reads);
	while ((count = kvr_store_reap(daemon->store, jobs, REAP_MAX)) > 0) {
		for (uint32_t i = 0; i < count; i++) {
			switch (jobs[i]->op) {
			case KVR_STORE_MARK:
				if (jobs[i]->owner != &daemon->keep) {
					kvr_pin_done(daemon, jobs[i]);
					break;
				} /* FALLTHROUGH */
			case KVR_STORE_PUT: kvr_keep_done(daemon, jobs[i]); break;
			case KVR_STORE_CHAIN: kvr_pin_done(daemon, jobs[i]); break;
			case KVR_STORE_MATCH:
			case KVR_STORE_LOAD: kvr_find_done(daemon, jobs[i]); break;
			case KVR_STORE_DROP:
				if (kvr_keep_owns(&daemon->keep, jobs[i])) {
					kvr_keep_done(daemon, jobs[i]);
					break;
				}
				/* fall through */
			case KVR_STORE_LIST: kvr_segment_done(daemon, jobs[i]); break;
			}
		}
	}
	kvr_directory_gone(&daemon->directory);
}

bool kvr_durable_busy(const struct kvr_daemon *daemon)
{
	return daemon->store && (kvr_keep_busy(&daemon->keep) || daemon->reads.running > 0 ||
					daemon->asks_running > 0);
}

void kvr_durable_close(struct kvr_daemon *daemon)
{
	if (daemon->keep.puts)
		kvr_keep_close(&daemon->keep);
	kvr_stages_close(&daemon->stages);
	if (daemon->reads.entries)
		kvr_reads_close(&daemon->reads);
	daemon->store = kvr_store_close(daemon->store);
	daemon->read_arena = kvr_arena_close(daemon->read_arena);
}
