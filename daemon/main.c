/* SPDX-License-Identifier: Apache-2.0 */
/* main.c: kvrecalld's command line, and the same again at SIGHUP. Flags override the configuration file.
 *
 *   read file and flags ──► open ──► run ──┬── SIGTERM, SIGINT ──► close
 *                                    ▲     └── SIGHUP: read again, take what may change ──┐
 *                                    └────────────────────────────────────────────────────┘
 */
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/daemon.h"
#include "daemon/log.h"
#include "daemon/notify.h"
#include "daemon/offline.h"

static const char usage[] =
	"Usage: kvrecalld [options]\n"
	"\n"
	"Keeps the key/value cache of language models and serves the parts a query recalls.\n"
	"\n"
	"  -c, --config FILE         read settings from FILE\n"
	"  -r, --runtime-dir DIR     directory of the sockets (default /run/kvrecall)\n"
	"  -m, --host-bytes SIZE     host memory for keys and values (default 1 GiB)\n"
	"      --store DIR           directory on disk for keys and values (default: none)\n"
	"      --store-bytes SIZE    what they may take there (default 64 GiB)\n"
	"  -j, --threads N           worker threads (default: one per CPU but one)\n"
	"  -l, --log-level LEVEL     error, warning, info or debug\n"
	"      --check-config        check the settings and exit\n"
	"      --verify              read all of the store and check it, rather than serve\n"
	"      --rebuild             make a new catalog from what is stored, rather than serve\n"
	"      --json                their result as one JSON document\n"
	"      --version\n"
	"  -h, --help\n"
	"\n"
	"Settings, with their defaults (libconfig syntax; sizes and modes in quotes). Those with * "
	"change at\n"
	"SIGHUP, which reads the file again; the others at the next start:\n"
	"\n"
	"  runtime_dir = \"/run/kvrecall\";\n"
	"  log_level = \"info\";             # *\n"
	"  socket_mode = \"0660\";           # who may attach is the sockets' group's matter\n"
	"  memory: {\n"
	"    host_bytes = \"1 GiB\";          # never exceeded\n"
	"    region_bytes_max = \"4 GiB\";    # * shared with one client\n"
	"    regions_bytes_max = \"16 GiB\";  # * with all clients\n"
	"    policy = \"decay\";              # \"s3fifo\", \"lru\": what goes first\n"
	"    populate = false;              # take host_bytes from the system at start, in the "
	"background\n"
	"  };\n"
	"  store: {\n"
	"    dir = \"\";                      # none: RAM only\n"
	"    bytes = \"64 GiB\";              # preallocated, never exceeded\n"
	"    catalog_bytes = \"1088 MiB\";    # never exceeded; default: bytes / 64 + 64 MiB\n"
	"    depth = 128; batch = 16;       # reads in flight; submitted at once\n"
	"    read_buffer_bytes = \"64 MiB\";\n"
	"    write_bytes_per_day = \"0\";     # * a bound for SSD wear; 0: none\n"
	"    io = \"auto\";                   # \"uring\", \"threads\"\n"
	"  };\n"
	"  sessions: { credits = 64; tenant_per_uid = true /* * */; };\n"
	"  telemetry: { audit_every = 1000; };  # * recalls between two whose quality is measured; "
	"0: none\n"
	"  device: { threads = 0; isa = \"best\"; spin_us = 30; inline_item_us = 25; };\n"
	"  tenants = ( { name = \"chat\"; uids = [ 1000 ]; gids = [ ];\n"
	"                quota_bytes = \"4 GiB\"; store_quota_bytes = \"1 TiB\";\n"
	"                salt = \"64 hexadecimal digits\"; } );   # * but for names and salts\n"
	"\n"
	"Exit status: 0 after SIGTERM or SIGINT, 1 if it could not start, 2 for wrong settings; "
	"of\n"
	"--verify and --rebuild: 0 sound, 1 damage found, 2 wrong settings, 4 cannot be done.\n";

enum {
	OPTION_CHECK = 256,
	OPTION_VERSION,
	OPTION_STORE,
	OPTION_STORE_BYTES,
	OPTION_VERIFY,
	OPTION_REBUILD,
	OPTION_JSON,
};

static const struct option options[] = {
	{"config", required_argument, NULL, 'c'},
	{"runtime-dir", required_argument, NULL, 'r'},
	{"host-bytes", required_argument, NULL, 'm'},
	{"store", required_argument, NULL, OPTION_STORE},
	{"store-bytes", required_argument, NULL, OPTION_STORE_BYTES},
	{"threads", required_argument, NULL, 'j'},
	{"log-level", required_argument, NULL, 'l'},
	{"check-config", no_argument, NULL, OPTION_CHECK},
	{"verify", no_argument, NULL, OPTION_VERIFY},
	{"rebuild", no_argument, NULL, OPTION_REBUILD},
	{"json", no_argument, NULL, OPTION_JSON},
	{"version", no_argument, NULL, OPTION_VERSION},
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

static const char short_options[] = "c:r:m:j:l:h";

static int wrong(const char *flag, const char *value, const char *remedy)
{
	fprintf(stderr, "kvrecalld: %s %s: %s\n", flag, value, remedy);
	return -1;
}

static int set_log_level(struct kvr_config *config, const char *value)
{
	static const struct {
		const char *word;
		enum kvr_log_level level;
	} levels[] = {{"error", KVR_LOG_ERROR}, {"warning", KVR_LOG_WARNING},
		{"info", KVR_LOG_INFO}, {"debug", KVR_LOG_DEBUG}};

	for (size_t i = 0; i < sizeof(levels) / sizeof(levels[0]); i++) {
		if (strcmp(value, levels[i].word) == 0) {
			config->log_level = levels[i].level;
			return 0;
		}
	}
	return wrong("--log-level", value, "give error, warning, info or debug");
}

/* One flag over the settings of the file. Returns 0 or -1 after a message. */
static int apply_flag(struct kvr_config *config, int flag, const char *value)
{
	char *end;
	unsigned long threads;

	if (!value)
		return 0; /* a flag without a value is not a setting */
	switch (flag) {
	case 'r':
		if (!value[0] || strlen(value) >= sizeof(config->runtime_dir))
			return wrong(
				"--runtime-dir", value, "give a path of at most 79 characters");
		memcpy(config->runtime_dir, value, strlen(value) + 1);
		return 0;
	case 'm':
		if (kvr_config_size(value, &config->host_bytes) < 0 ||
			config->host_bytes < 4u << 20 || config->host_bytes > 1ull << 46)
			return wrong("--host-bytes", value, "give a size from 4MiB on, like 8GiB");
		return 0;
	case OPTION_STORE:
		if (strlen(value) >= sizeof(config->store_dir))
			return wrong("--store", value, "give a path of at most 255 characters");
		memcpy(config->store_dir, value, strlen(value) + 1);
		return 0;
	case OPTION_STORE_BYTES:
		if (kvr_config_size(value, &config->store_bytes) < 0 ||
			config->store_bytes < 64u << 20 || config->store_bytes > 1ull << 46)
			return wrong(
				"--store-bytes", value, "give a size from 64MiB on, like 64GiB");
		return 0;
	case 'j':
		threads = strtoul(value, &end, 10);
		if (value[0] < '0' || value[0] > '9' || *end || threads > KVR_THREADS_MAX)
			return wrong("--threads", value, "give 0 (one per CPU but one) to 64");
		config->device.threads = (uint32_t)threads;
		return 0;
	case 'l': return set_log_level(config, value);
	default: return 0;
	}
}

/* The settings that the file and then the flags give. Returns 0, or -1 with a message. */
static int read_settings(struct kvr_config *config, const char *path, int argc, char **argv,
	char *ret_error, uint32_t error_bytes)
{
	int flag;

	kvr_config_default(config);
	if (path && kvr_config_read(config, path, ret_error, error_bytes) < 0)
		return -1;
	optind = 1;
	while ((flag = getopt_long(argc, argv, short_options, options, NULL)) >= 0) {
		if (apply_flag(config, flag, optarg) < 0) {
			ret_error[0] = 0; /* said already */
			return -1;
		}
	}
	return kvr_config_complete(config, ret_error, error_bytes) < 0 ? -1 : 0;
}

/* What is done instead of serving. */
struct instead {
	enum kvr_offline offline;
	bool json;
};

/* Reads file and flags. Returns 0 to go on, 1 to exit with success, -1 to exit with 2. */
static int configure(struct kvr_config *config, const char **ret_path, struct instead *instead,
	int argc, char **argv)
{
	const char *path = NULL;
	char error[512];
	bool check = false;
	int flag;

	while ((flag = getopt_long(argc, argv, short_options, options, NULL)) >= 0) {
		switch (flag) {
		case 'c': path = optarg; break;
		case OPTION_CHECK: check = true; break;
		case OPTION_VERIFY: instead->offline = KVR_OFFLINE_VERIFY; break;
		case OPTION_REBUILD: instead->offline = KVR_OFFLINE_REBUILD; break;
		case OPTION_JSON: instead->json = true; break;
		case OPTION_VERSION: puts("kvrecalld " KVR_BUILD_VERSION); return 1;
		case 'h': fputs(usage, stdout); return 1;
		case '?': fputs("kvrecalld: --help lists the options\n", stderr); return -1;
		default: break;
		}
	}
	if (optind < argc)
		return wrong("argument", argv[optind], "--help lists the options");
	if (read_settings(config, path, argc, argv, error, sizeof(error)) < 0) {
		if (error[0])
			fprintf(stderr, "kvrecalld: %s\n", error);
		return -1;
	}
	if (check)
		puts("configuration ok");
	*ret_path = path;
	return check;
}

/* Takes what may change from the file as it is now. A file with a mistake changes nothing. */
static void reload(struct kvr_daemon *daemon, struct kvr_config *running, const char *path,
	int argc, char **argv)
{
	struct kvr_config_change change;
	struct kvr_config fresh;
	char error[512];

	kvr_notify_reloading();
	if (read_settings(&fresh, path, argc, argv, error, sizeof(error)) < 0) {
		kvr_log(KVR_LOG_ERROR, "settings stay as they were: %s", error);
		kvr_notify_status("the last reload failed: %s", error);
		kvr_config_fini(&fresh);
		kvr_notify_ready();
		return;
	}
	kvr_config_reload(running, &fresh, &change);
	kvr_config_fini(&fresh);
	kvr_log_set_level(running->log_level);
	kvr_daemon_reload(daemon);
	kvr_log(KVR_LOG_INFO, "settings read again%s%s", change.taken[0] ? "; changed: " : "",
		change.taken);
	if (change.kept[0])
		kvr_log(KVR_LOG_WARNING, "changed in the file, but needs a restart: %s",
			change.kept);
	kvr_notify_status("serving %s%s%s", running->runtime_dir,
		change.kept[0] ? "; needs a restart: " : "", change.kept);
	kvr_notify_ready();
}

static void serve(struct kvr_daemon *daemon, struct kvr_config *config, const char *path, int argc,
	char **argv)
{
	kvr_notify_status("serving %s", config->runtime_dir);
	kvr_notify_ready();
	while (kvr_daemon_run(daemon) == SIGHUP)
		reload(daemon, config, path, argc, argv);
	kvr_notify_status("stopping");
	kvr_notify_stopping();
}

int main(int argc, char **argv)
{
	static struct kvr_daemon daemon;
	struct kvr_config config = {0};
	const char *path = NULL;
	struct instead instead = {0};
	int rc = configure(&config, &path, &instead, argc, argv);

	if (rc != 0) {
		kvr_config_fini(&config);
		return rc < 0 ? 2 : 0;
	}
	kvr_log_set_level(config.log_level);
	if (instead.offline != KVR_OFFLINE_NONE) {
		rc = kvr_offline_run(&config, instead.offline, instead.json);
		kvr_config_fini(&config);
		return rc;
	}
	rc = kvr_notify_open();
	if (rc < 0)
		kvr_log(KVR_LOG_WARNING,
			"the service manager is not notified: %s; check "
			"NOTIFY_SOCKET and WATCHDOG_USEC",
			strerror(-rc));
	rc = kvr_daemon_open(&daemon, &config);
	if (rc == 0) {
		serve(&daemon, &config, path, argc, argv);
		kvr_daemon_close(&daemon);
		kvr_log(KVR_LOG_INFO, "stopped");
	}
	kvr_notify_close();
	kvr_config_fini(&config);
	return rc < 0 ? 1 : 0;
}
