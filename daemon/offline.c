/* SPDX-License-Identifier: Apache-2.0 */
/* offline.c: see offline.h. Reading and repairing are the store's own (tiers/store.h).
 *
 * The sizes of the files decide, not the settings: whoever looks after a store need not know with which bounds it was
 * made, and looking must not make it larger. */
#include "daemon/offline.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "tiers/store.h"

#define PROGRESS_NS     200000000u
#define JSON_DAMAGE_MAX 1000u /* lines of damage in a document; all are counted */

enum { EXIT_SOUND = 0, EXIT_DAMAGED = 1, EXIT_SETTINGS = 2, EXIT_CANNOT = 4 };

struct offline {
	const char *dir;
	const char *verb;
	bool json;
	bool terminal;     /* stderr is one: progress is shown */
	bool shown;        /* a line of progress stands there */
	uint64_t shown_ns; /* since when */
	FILE *damage;      /* JSON: the elements of an array, in memory */
	char *damage_text;
	size_t damage_bytes;
	uint32_t damage_count;
};

static void write_string(FILE *file, const char *text)
{
	fputc('"', file);
	for (; *text; text++) {
		const unsigned char byte = (unsigned char)*text;

		if (byte == '"' || byte == '\\')
			fprintf(file, "\\%c", byte);
		else if (byte < 0x20 || byte > 0x7e) /* a path may be anything */
			fprintf(file, "\\u%04x", byte);
		else
			fputc(byte, file);
	}
	fputc('"', file);
}

/* ---- while it runs --------------------------------------------------------------------------- */

static void clear_progress(struct offline *offline)
{
	if (offline->shown)
		fputs("\r\033[K", stderr);
	offline->shown = false;
}

static void progress(void *context, uint64_t done, uint64_t all)
{
	struct offline *offline = context;
	const uint64_t now = kvr_clock_ns();

	if (done > all) /* a damaged catalog may name a slab twice */
		done = all;
	KVR_ASSERT(!offline->shown || offline->terminal);
	if (!offline->terminal || now - offline->shown_ns < PROGRESS_NS)
		return;
	offline->shown_ns = now;
	offline->shown = true;
	fprintf(stderr, "\r\033[K%s: %llu of %llu MiB", offline->verb,
		(unsigned long long)(done >> 20), (unsigned long long)(all >> 20));
	fflush(stderr);
}

static void say(void *context, const char *line)
{
	struct offline *offline = context;

	KVR_ASSERT(line != NULL);
	clear_progress(offline);
	if (!offline->json) {
		fprintf(stderr, "kvrecalld: %s\n", line);
	} else if (offline->damage && offline->damage_count < JSON_DAMAGE_MAX) {
		if (offline->damage_count > 0)
			fputc(',', offline->damage);
		write_string(offline->damage, line);
	}
	offline->damage_count++;
}

/* ---- the result ------------------------------------------------------------------------------ */

static const char *verdict(enum kvr_offline what, bool sound)
{
	if (what == KVR_OFFLINE_REBUILD)
		return sound ? "a new catalog, of all that is stored"
			     : "a new catalog; what is damaged is left out, and will be "
			       "overwritten";
	return sound ? "sound"
		     : "damaged; `kvrecall rebuild` makes a catalog of what is not, and a daemon "
		       "leaves out what is";
}

static void print(const struct offline *offline, enum kvr_offline what, bool sound,
	const struct kvr_store_report *report)
{
	const struct {
		const char *label, *name;
		uint64_t value;
	} rows[] = {
		{"segments", "segments_count", report->segment_count},
		{"clusters", "clusters_count", report->cluster_count},
		{"merged sets", "merged_sets_count", report->merged_count},
		{"slabs", "slabs_count", report->slab_count},
		{"bytes read", "read_bytes", report->bytes_read},
		{"damaged segments", "damaged_segments_count", report->damaged_segment_count},
		{"damaged clusters", "damaged_clusters_count", report->damaged_cluster_count},
		{"damaged sets", "damaged_merged_sets_count", report->damaged_merged_count},
		{"stale slabs", "stale_slabs_count", report->stale_slab_count},
	};

	if (!offline->json) {
		printf("store %s: %s\n", offline->dir, verdict(what, sound));
		for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
			printf("  %-17s %llu\n", rows[i].label, (unsigned long long)rows[i].value);
		if (what == KVR_OFFLINE_VERIFY)
			printf("  %-17s %s\n", "catalog",
				report->catalog_damaged ? "damaged" : "sound");
		return;
	}
	fputs("{\"store\":", stdout);
	write_string(stdout, offline->dir);
	printf(",\"%s\":%s", what == KVR_OFFLINE_VERIFY ? "sound" : "complete",
		sound ? "true" : "false");
	for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
		printf(",\"%s\":%llu", rows[i].name, (unsigned long long)rows[i].value);
	if (what == KVR_OFFLINE_VERIFY)
		printf(",\"catalog_sound\":%s", report->catalog_damaged ? "false" : "true");
	printf(",\"damage\":[%s]}\n", offline->damage_text ? offline->damage_text : "");
}

/* Says why it cannot be done. Returns the exit status. */
static int cannot(const struct offline *offline, int error, const char *text, const char *remedy)
{
	if (offline->json) {
		const char *name = strerrorname_np(error);

		fprintf(stderr, "{\"error\":{\"code\":0,\"name\":\"%s\",\"subject\":",
			name ? name : "UNKNOWN");
		write_string(stderr, text);
		fputs(",\"remedy\":", stderr);
		write_string(stderr, remedy);
		fprintf(stderr, ",\"errno\":%d}}\n", error);
	} else {
		fprintf(stderr, "kvrecalld: %s\n", text);
		if (remedy[0])
			fprintf(stderr, "  remedy: %s\n", remedy);
	}
	return EXIT_CANNOT;
}

/* ---- running --------------------------------------------------------------------------------- */

static uint64_t size_of(const char *dir, const char *name)
{
	char path[KVR_CONFIG_STORE_MAX + 32];
	struct stat status;

	snprintf(path, sizeof(path), "%s/%s", dir, name);
	return stat(path, &status) == 0 ? (uint64_t)status.st_size : 0;
}

/* Whole slabs that hold all of slabs.kvr, and a catalog as large as it is or would be for these. */
static void take_sizes(const struct kvr_config *config, struct kvr_store_config *store)
{
	const uint64_t catalog_bytes = size_of(store->dir, "catalog/data.mdb");

	KVR_STATIC_ASSERT(KVR_CATALOG_BYTES_MIN <= 64u << 20);
	store->bytes = (size_of(store->dir, "slabs.kvr") + KVR_SLAB_BYTES - 1) / KVR_SLAB_BYTES *
		       KVR_SLAB_BYTES;
	if (store->bytes < KVR_SLAB_BYTES)
		store->bytes = KVR_SLAB_BYTES;
	store->catalog_bytes = store->bytes / 64 + (64u << 20);
	if (store->catalog_bytes < config->catalog_bytes)
		store->catalog_bytes = config->catalog_bytes;
	if (store->catalog_bytes < 2 * catalog_bytes)
		store->catalog_bytes = 2 * catalog_bytes;
	KVR_ASSERT(store->bytes % KVR_SLAB_BYTES == 0);
	KVR_ASSERT(store->catalog_bytes >= KVR_CATALOG_BYTES_MIN);
}

/* Whether there is a store to look at. */
static int look(const struct offline *offline)
{
	char path[KVR_CONFIG_STORE_MAX + 32], text[KVR_CONFIG_STORE_MAX + 128];

	snprintf(path, sizeof(path), "%s/slabs.kvr", offline->dir);
	if (access(path, R_OK | W_OK) == 0)
		return 0;
	snprintf(text, sizeof(text), "%s: %s", path, strerror(errno));
	return cannot(offline, errno, text,
		errno == EACCES ? "run it as the daemon's user, or as root"
				: "name the directory of a store with --store, or a configuration "
				  "with --config");
}

static int run(struct offline *offline, struct kvr_store_config *store, enum kvr_offline what)
{
	struct kvr_store_report report = {0};
	char text[KVR_STORE_TEXT_MAX] = "";
	bool sound;
	int rc = what == KVR_OFFLINE_VERIFY ? kvr_store_verify(store, say, offline, &report, text)
					    : kvr_store_rebuild(store, say, offline, &report, text);

	clear_progress(offline);
	KVR_ASSERT(rc <= 0);
	KVR_ASSERT(what == KVR_OFFLINE_VERIFY || what == KVR_OFFLINE_REBUILD);
	if (rc == -EBUSY)
		return cannot(offline, EBUSY, text,
			"stop the daemon first (systemctl stop kvrecalld): this needs the store "
			"for itself");
	if (rc < 0 && (rc != -EBADMSG || what == KVR_OFFLINE_REBUILD))
		return cannot(offline, -rc, text, "");
	if (rc < 0) { /* a catalog that cannot even be opened */
		say(offline, text);
		report.catalog_damaged = true;
	}
	sound = report.damaged_segment_count == 0 && report.damaged_cluster_count == 0 &&
		report.damaged_merged_count == 0 && !report.catalog_damaged;
	if (offline->damage)
		fflush(offline->damage);
	print(offline, what, sound, &report);
	if (fflush(stdout) != 0)
		return cannot(offline, EIO, "the result cannot be written to stdout", "");
	return sound ? EXIT_SOUND : EXIT_DAMAGED;
}

int kvr_offline_run(const struct kvr_config *config, enum kvr_offline what, bool json)
{
	struct offline offline = {
		.dir = config->store_dir,
		.verb = what == KVR_OFFLINE_VERIFY ? "verify" : "rebuild",
		.json = json,
		.terminal = isatty(STDERR_FILENO) == 1 && !json,
	};
	struct kvr_store_config store = {
		.dir = config->store_dir,
		.io = config->store_io,
		.depth = config->store_depth,
		.batch = config->store_batch,
		.progress = progress,
		.progress_context = &offline,
	};
	int status;

	KVR_ASSERT(what != KVR_OFFLINE_NONE);
	if (!config->store_dir[0]) {
		cannot(&offline, EINVAL, "no store is named",
			"give --store DIR, or --config FILE with store.dir");
		return EXIT_SETTINGS;
	}
	status = look(&offline);
	if (status != 0)
		return status;
	take_sizes(config, &store);
	if (json)
		offline.damage = open_memstream(&offline.damage_text, &offline.damage_bytes);
	status = run(&offline, &store, what);
	if (offline.damage)
		fclose(offline.damage);
	free(offline.damage_text);
	return status;
}
