/* SPDX-License-Identifier: Apache-2.0 */
/* daemon.c: opens the parts, runs the loop, closes the parts. Knows what there is, not what it does.
 *
 * One round of the loop: epoll; messages, finished jobs, attachments, signals; then what was touched
 * is settled, until nothing is left to do. */
#include "daemon/daemon.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "daemon/crypt.h"
#include "daemon/durable.h"
#include "daemon/log.h"
#include "daemon/notify.h"
#include "tiers/host.h"

#define RECEIVES_PER_ROUND 64
#define TICK_MS            50 /* while something waits: its deadline is kept to within this */

/* Jobs that ran inside submit are finished already; settling can start more. */
static void finish_round(struct kvr_daemon *daemon)
{
	do {
		kvr_durable_reap(daemon);
		kvr_works_reap(daemon->device);
		kvr_works_serve(&daemon->works);
		kvr_works_serve(&daemon->seal_works);
		kvr_works_serve(&daemon->fill_works);
		kvr_sequences_settle(&daemon->sequences);
		kvr_keep_settle(daemon);
		kvr_cache_settle(&daemon->cache);
		kvr_audit_step(&daemon->audit);
	} while (!kvr_list_empty(&daemon->sequences.dirty));
}

/* What a message has started and can be finished at once is finished before the next one is taken: a
 * client that has its reply finds its effects. */
static void net_ready(struct kvr_watch *watch)
{
	struct kvr_daemon *daemon = watch->owner;

	for (int i = 0; i < RECEIVES_PER_ROUND && kvr_calls_receive(daemon); i++)
		finish_round(daemon);
}

static void device_ready(struct kvr_watch *watch)
{
	const struct kvr_daemon *daemon = watch->owner;

	kvr_works_reap(daemon->device);
}

static void store_ready(struct kvr_watch *watch)
{
	kvr_durable_reap(watch->owner);
}

static void signal_ready(struct kvr_watch *watch)
{
	struct kvr_daemon *daemon = watch->owner;
	struct signalfd_siginfo info;

	if (read(watch->fd, &info, sizeof(info)) != (ssize_t)sizeof(info))
		return;
	if (daemon->stopping)
		return;
	daemon->signal = (int)info.ssi_signo;
	daemon->stopping = daemon->signal != SIGHUP;
	if (daemon->stopping)
		kvr_log(KVR_LOG_INFO, "stopping: signal %d", daemon->signal);
}

static void session_ended(void *context, struct kvr_session *session)
{
	struct kvr_list *node, *after;

	(void)context;
	KVR_ASSERT(session->state == KVR_SESSION_ENDING);
	kvr_calls_cancel(session);
	KVR_LIST_EACH_SAFE (node, after, &session->sequences)
		kvr_sequence_close(KVR_CONTAINER_OF(node, struct kvr_sequence, session_link), true);
}

/* ---- opening --------------------------------------------------------------------------------- */

static int watch(
	struct kvr_daemon *daemon, struct kvr_watch *it, int fd, void (*ready)(struct kvr_watch *))
{
	*it = (struct kvr_watch){.fd = fd, .ready = ready, .owner = daemon};
	return kvr_loop_add(&daemon->loop, it);
}

/* SIGTERM, SIGINT and SIGHUP arrive as reads. Blocked before any thread starts, so that all inherit it.
 * A log that nobody reads any more is no reason to die, nor is a file that may not grow: the write says so. */
static int open_signals(struct kvr_daemon *daemon)
{
	sigset_t set;
	int fd;

	if (signal(SIGPIPE, SIG_IGN) == SIG_ERR || signal(SIGXFSZ, SIG_IGN) == SIG_ERR)
		return -errno;
	sigemptyset(&set);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGHUP);
	if (sigprocmask(SIG_BLOCK, &set, NULL) < 0)
		return -errno;
	fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : watch(daemon, &daemon->signal_watch, fd, signal_ready);
}

/* A session costs three descriptors: as many as the system allows. */
static void raise_descriptors(void)
{
	struct rlimit limit;

	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	setrlimit(RLIMIT_NOFILE, &limit); /* else accept says when there are too few */
}

static int open_memory(struct kvr_daemon *daemon)
{
	const struct kvr_config *config = daemon->config;
	struct kvr_arena_stat stat;
	int rc = kvr_arena_open(config->host_bytes, &daemon->arena);

	if (rc == 0)
		rc = kvr_tier_open_host(daemon->arena, &daemon->host);
	if (rc < 0) {
		kvr_log(KVR_LOG_ERROR, "host memory of %llu bytes: %s; lower memory.host_bytes",
			(unsigned long long)config->host_bytes, strerror(-rc));
		return rc;
	}
	if (config->populate) {
		struct kvr_span all;

		all.data = kvr_arena_base(daemon->arena, &all.bytes);
		if (kvr_populate_start(&daemon->populate, all) < 0)
			kvr_log(KVR_LOG_WARNING, "memory.populate: no thread for it");
	}
	kvr_arena_stat(daemon->arena, &stat);
	if (stat.pages == KVR_PAGES_SMALL)
		kvr_log(KVR_LOG_WARNING,
			"host memory is in 4 KiB pages and slower for it; reserve huge pages "
			"(vm.nr_hugepages) or allow transparent ones");
	if (stat.locked_bytes < stat.capacity_bytes)
		kvr_log(KVR_LOG_WARNING,
			"%llu of %llu bytes of host memory are locked; raise "
			"LimitMEMLOCK",
			(unsigned long long)stat.locked_bytes,
			(unsigned long long)stat.capacity_bytes);
	return 0;
}

/* DECAY is for clusters, which recalls take again and again. */
static enum kvr_policy_kind segment_policy(const struct kvr_config *config)
{
	return config->policy == KVR_POLICY_LRU ? KVR_POLICY_LRU : KVR_POLICY_S3FIFO;
}

static int open_tables(struct kvr_daemon *daemon)
{
	const uint8_t *secret = daemon->store ? kvr_store_secret(daemon->store) : NULL;
	int rc = kvr_device_open_cpu(&daemon->config->device, &daemon->device);

	if (rc < 0) {
		kvr_log(KVR_LOG_ERROR, "CPU device: %s; check device.isa and device.threads",
			strerror(-rc));
		return rc;
	}
	if ((rc = kvr_tenants_open(&daemon->tenants, daemon->config, secret)) < 0 ||
		(rc = kvr_models_open(&daemon->models)) < 0 ||
		(rc = kvr_works_open(&daemon->works, daemon->device, KVR_WORKS_MAX)) < 0 ||
		(rc = kvr_works_open(&daemon->seal_works, daemon->device, KVR_SEAL_WORKS_MAX)) <
			0 ||
		(rc = kvr_works_open(&daemon->fill_works, daemon->device, KVR_FILL_WORKS_MAX)) <
			0 ||
		(rc = kvr_cache_open(&daemon->cache, daemon->config->policy, daemon->store != NULL,
			 daemon->arena, daemon->host, &daemon->works)) < 0 ||
		(rc = kvr_directory_open(&daemon->directory, segment_policy(daemon->config),
			 daemon->arena, &daemon->cache, daemon->store, &daemon->keep)) < 0 ||
		(rc = kvr_sequences_open(&daemon->sequences)) < 0 ||
		(rc = kvr_calls_open(&daemon->calls, daemon)) < 0 ||
		(rc = kvr_audit_open(&daemon->audit, daemon)) < 0)
		kvr_log(KVR_LOG_ERROR, "tables: %s", strerror(-rc));
	return rc;
}

/* Makes the directory if need be and locks it, so that of two daemons that start at once one stops. */
static int open_directory(struct kvr_daemon *daemon)
{
	const char *path = daemon->config->runtime_dir;
	int rc = 0;

	if (mkdir(path, 0755) < 0 && errno != EEXIST)
		rc = -errno;
	if (rc == 0) {
		daemon->directory_fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
		if (daemon->directory_fd < 0)
			rc = -errno;
	}
	if (rc < 0) {
		kvr_log(KVR_LOG_ERROR, "%s: %s; give a directory that can be made with runtime_dir",
			path, strerror(-rc));
		return rc;
	}
	if (flock(daemon->directory_fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK) {
		kvr_log(KVR_LOG_ERROR,
			"%s: another daemon serves it: stop it or use another runtime_dir", path);
		return -EADDRINUSE;
	}
	return 0;
}

static int open_sockets(struct kvr_daemon *daemon)
{
	const struct kvr_config *config = daemon->config;
	char attach_path[KVR_CONFIG_PATH_MAX + 16], net_path[KVR_CONFIG_PATH_MAX + 16];
	int rc;

	umask(0177); /* sockets get their mode when they are ready */
	snprintf(attach_path, sizeof(attach_path), "%s/attach.sock", config->runtime_dir);
	snprintf(net_path, sizeof(net_path), "%s/request.sock", config->runtime_dir);
	/* The attach socket first: it tells whether another daemon is at home here. */
	rc = kvr_sessions_open(
		&daemon->sessions, config, &daemon->loop, &daemon->tenants, attach_path, NULL);
	if (rc < 0) {
		kvr_log(KVR_LOG_ERROR, "%s: %s; %s", attach_path, strerror(-rc),
			rc == -EADDRINUSE
				? "another daemon serves it: stop it or use another runtime_dir"
				: "check runtime_dir and its permissions");
		return rc;
	}
	daemon->sessions.ended = session_ended;
	rc = kvr_net_open(net_path, config->socket_mode, &daemon->net);
	if (rc < 0) {
		kvr_log(KVR_LOG_ERROR, "%s: %s; check runtime_dir and its permissions", net_path,
			strerror(-rc));
		return rc;
	}
	daemon->sessions.url = kvr_net_url(daemon->net);
	return watch(daemon, &daemon->net_watch, kvr_net_fd(daemon->net), net_ready);
}

int kvr_daemon_open(struct kvr_daemon *daemon, const struct kvr_config *config)
{
	int rc;

	*daemon = (struct kvr_daemon){
		.config = config,
		.start_ns = kvr_clock_ns(),
		.loop = {-1},
		.net_watch = {.fd = -1},
		.device_watch = {.fd = -1},
		.store_watch = {.fd = -1},
		.reads_watch = {.fd = -1},
		.signal_watch = {.fd = -1},
		.directory_fd = -1,
		.sessions = {.listener = {.fd = -1}, .listener_fd = -1},
	};
	raise_descriptors();
	rc = kvr_crypt_init();
	if (rc == 0)
		rc = kvr_loop_open(&daemon->loop);
	if (rc == 0)
		rc = open_signals(daemon);
	if (rc == 0)
		rc = open_memory(daemon);
	if (rc == 0)
		rc = open_directory(daemon); /* before the store: whose lock would say less */
	if (rc == 0)
		rc = kvr_durable_open(daemon);
	if (rc == 0)
		rc = open_tables(daemon);
	if (rc == 0 && daemon->store)
		rc = watch(daemon, &daemon->store_watch, kvr_store_fd(daemon->store), store_ready);
	if (rc == 0 && daemon->store)
		rc = watch(daemon, &daemon->reads_watch, kvr_tier_fd(kvr_store_tier(daemon->store)),
			store_ready);
	if (rc == 0)
		rc = watch(
			daemon, &daemon->device_watch, kvr_device_fd(daemon->device), device_ready);
	if (rc == 0)
		rc = open_sockets(daemon);
	if (rc < 0) {
		kvr_daemon_close(daemon);
		return rc;
	}
	kvr_log(KVR_LOG_INFO, "kvrecalld %s serves %s; %s; %llu MiB of host memory",
		KVR_BUILD_VERSION, config->runtime_dir, kvr_device_name(daemon->device),
		(unsigned long long)(config->host_bytes >> 20));
	return 0;
}

/* ---- running --------------------------------------------------------------------------------- */

/* Stops listening to the net while no call is free, so that the loop can sleep. */
static void pace(struct kvr_daemon *daemon)
{
	const bool full = kvr_list_empty(&daemon->calls.free);

	if (full && daemon->net_watch.fd >= 0)
		kvr_loop_remove(&daemon->loop, &daemon->net_watch);
	else if (!full && daemon->net_watch.fd < 0 &&
		 watch(daemon, &daemon->net_watch, kvr_net_fd(daemon->net), net_ready) < 0)
		daemon->net_watch.fd = -1; /* short of kernel memory: at the next tick */
}

/* Deadlines, not at every round: under load there are thousands in a second. */
static void tick(struct kvr_daemon *daemon)
{
	const uint64_t now = kvr_clock_ns();

	if (now < daemon->tick_ns)
		return;
	daemon->tick_ns = now + TICK_MS / 2 * 1000000ull;
	kvr_calls_tick(daemon, now);
	kvr_sessions_tick(&daemon->sessions, now);
	finish_round(daemon);
}

static void round_once(struct kvr_daemon *daemon)
{
	const bool waiting = !kvr_list_empty(&daemon->calls.waiting) ||
			     daemon->sessions.greeting_count > 0 ||
			     daemon->sessions.listener_paused || daemon->net_watch.fd < 0;

	/* While a request runs, this thread does a part of it rather than sleep, and looks after
	 * its descriptors in between. */
	if (daemon->works.running + daemon->fill_works.running > 0 &&
		kvr_device_help(daemon->device))
		kvr_loop_round(&daemon->loop, 0);
	else
		kvr_loop_round(&daemon->loop,
			kvr_notify_wait_ms(waiting ? TICK_MS : kvr_keep_wait_ms(&daemon->keep)));
	finish_round(daemon);
	if (waiting)
		tick(daemon);
	pace(daemon);
	kvr_notify_tick();
}

int kvr_daemon_run(struct kvr_daemon *daemon)
{
	KVR_ASSERT(!daemon->stopping);
	daemon->signal = 0;
	while (daemon->signal == 0)
		round_once(daemon);
	KVR_ASSERT(daemon->stopping || daemon->signal == SIGHUP);
	return daemon->signal;
}

void kvr_daemon_reload(struct kvr_daemon *daemon)
{
	KVR_ASSERT(!daemon->stopping);
	kvr_tenants_reload(&daemon->tenants);
	if (daemon->store)
		kvr_store_budget(daemon->store, daemon->config->write_bytes_per_day);
}

/* Ends sessions, then lets the device finish what it has. */
static void drain(struct kvr_daemon *daemon)
{
	kvr_sessions_stop(&daemon->sessions);
	kvr_audit_stop(&daemon->audit);
	while (daemon->sequences.count > 0 || daemon->works.running > 0 ||
		daemon->seal_works.running > 0 || daemon->fill_works.running > 0 ||
		kvr_durable_busy(daemon)) {
		finish_round(daemon);
		if (daemon->works.running > 0 || daemon->seal_works.running > 0 ||
			daemon->fill_works.running > 0 || kvr_durable_busy(daemon))
			kvr_loop_round(&daemon->loop, TICK_MS);
	}
	kvr_sessions_close(&daemon->sessions);
}

void kvr_daemon_close(struct kvr_daemon *daemon)
{
	if (daemon->net_watch.fd >= 0)
		kvr_loop_remove(&daemon->loop, &daemon->net_watch);
	if (daemon->sessions.entries)
		drain(daemon);
	daemon->net = kvr_net_close(daemon->net);
	kvr_audit_close(&daemon->audit);
	kvr_calls_close(&daemon->calls);
	kvr_sequences_close(&daemon->sequences);
	kvr_works_close(&daemon->works);
	kvr_works_close(&daemon->seal_works);
	kvr_works_close(&daemon->fill_works);
	if (daemon->store_watch.fd >= 0)
		kvr_loop_remove(&daemon->loop, &daemon->store_watch);
	if (daemon->reads_watch.fd >= 0)
		kvr_loop_remove(&daemon->loop, &daemon->reads_watch);
	kvr_loop_remove(&daemon->loop, &daemon->device_watch);
	daemon->device = kvr_device_close(daemon->device);
	kvr_models_close(&daemon->models);
	kvr_tenants_close(&daemon->tenants);
	kvr_directory_close(&daemon->directory);
	kvr_cache_close(&daemon->cache);
	kvr_durable_close(daemon);
	daemon->host = kvr_tier_close(daemon->host);
	kvr_populate_stop(&daemon->populate);
	daemon->arena = kvr_arena_close(daemon->arena);
	if (daemon->signal_watch.fd >= 0)
		close(daemon->signal_watch.fd);
	if (daemon->directory_fd >= 0)
		close(daemon->directory_fd);
	kvr_loop_close(&daemon->loop);
}
