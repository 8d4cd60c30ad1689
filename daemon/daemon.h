/* SPDX-License-Identifier: Apache-2.0 */
/* daemon.h: everything the core thread owns, in one struct.
 *
 *   net ──► call ──► sequence ─┬─► recall, fetch ──► work ──► device
 *                              ├─► append ─────────► work ──► device
 *                              └─► seal ───────────► work ──► device, directory
 *   attach ──► session ──► region
 *
 * Threads: the core thread runs main(), the loop and everything declared in daemon/. The only other
 * threads are nanomsg's worker, the device's, the store's, and those that take memory from the system or give it back
 * (populate.h, region.h). */
#ifndef KVR_DAEMON_DAEMON_H
#define KVR_DAEMON_DAEMON_H

#include <stdbool.h>
#include <stdint.h>

#include "daemon/audit.h"
#include "daemon/cache.h"
#include "daemon/call.h"
#include "daemon/config.h"
#include "daemon/directory.h"
#include "daemon/find.h"
#include "daemon/keep.h"
#include "daemon/loop.h"
#include "daemon/model.h"
#include "daemon/net.h"
#include "daemon/populate.h"
#include "daemon/reads.h"
#include "daemon/sequence.h"
#include "daemon/session.h"
#include "daemon/stage.h"
#include "daemon/tenant.h"
#include "daemon/work.h"

struct kvr_daemon_counters {
	uint64_t requests, refusals, malformed, resent, timeouts;
	uint64_t append_tokens, append_bytes;
	uint64_t recall_items, recall_bytes, recall_ns, recall_count;
	uint64_t fetch_bytes;
	uint64_t sealed_segments, sealed_tokens, seal_failures, deduplicated_segments;
	uint64_t missing_tokens, quarantined;
};

struct kvr_daemon {
	const struct kvr_config *config;
	uint64_t start_ns;
	struct kvr_loop loop;
	struct kvr_tenants tenants;
	struct kvr_models models;
	struct kvr_arena *arena;
	struct kvr_tier *host;
	struct kvr_populate populate;
	struct kvr_device *device;
	struct kvr_directory directory;
	struct kvr_works works, seal_works, fill_works;
	struct kvr_cache cache;
	/* With a store; NULL and empty without. */
	struct kvr_arena *read_arena; /* what the disk writes to */
	struct kvr_store *store;
	struct kvr_reads reads;
	struct kvr_stages stages;
	struct kvr_keep keep;
	uint32_t asks_running; /* calls that wait for an answer of the store */
	struct kvr_sequences sequences;
	struct kvr_sessions sessions;
	struct kvr_calls calls;
	struct kvr_audit audit;
	struct kvr_net *net;
	struct kvr_watch net_watch, device_watch, signal_watch, store_watch, reads_watch;
	int directory_fd; /* runtime_dir, locked: one daemon serves it */
	struct kvr_daemon_counters counters;
	uint64_t tick_ns; /* when deadlines are looked at next */
	int signal;       /* that ended kvr_daemon_run; 0 while it serves */
	bool stopping;
};

/* Opens everything `config` asks for, which is borrowed. Logs what it finds and what fails. */
int kvr_daemon_open(struct kvr_daemon *daemon, const struct kvr_config *config);

/* Serves until a signal comes, and returns it: SIGHUP asks for other settings, and the daemon may be run
 * again; SIGTERM and SIGINT ask for the end, and running requests are finished in kvr_daemon_close. */
int kvr_daemon_run(struct kvr_daemon *daemon);

/* `config` has changed, as kvr_config_reload allows: tells those that keep a copy. */
void kvr_daemon_reload(struct kvr_daemon *daemon);

/* Takes a half-opened daemon. */
void kvr_daemon_close(struct kvr_daemon *daemon);

#endif
