/* SPDX-License-Identifier: Apache-2.0 */
/* config.c: settings outside the list of tenants. Does not act on them.
 *
 * They stand in a table, one line each: path, type, range, place. libconfig gives the line of a wrong
 * value; keys that no line of the table names are found by walking the tree. */
#include "daemon/config.h"

#include <errno.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "daemon/config_file.h"

enum setting_type {
	SETTING_PATH,
	SETTING_U32,
	SETTING_SIZE,
	SETTING_BOOL,
	SETTING_MODE,
	SETTING_WORD
};

struct word {
	const char *text;
	int value;
};

struct setting {
	const char *path;
	enum setting_type type;
	size_t place; /* offset in struct kvr_config */
	uint64_t min, max;
	const struct word *words; /* SETTING_WORD: ends with NULL */
	bool live;                /* may change while the daemon runs */
};

static const struct word log_words[] = {{"error", KVR_LOG_ERROR}, {"warning", KVR_LOG_WARNING},
	{"info", KVR_LOG_INFO}, {"debug", KVR_LOG_DEBUG}, {NULL, 0}};
static const struct word policy_words[] = {{"s3fifo", KVR_POLICY_S3FIFO}, {"lru", KVR_POLICY_LRU},
	{"decay", KVR_POLICY_DECAY}, {NULL, 0}};
static const struct word isa_words[] = {{"best", KVR_ISA_BEST}, {"plain", KVR_ISA_PLAIN},
	{"avx2", KVR_ISA_AVX2}, {"avx512", KVR_ISA_AVX512}, {NULL, 0}};

static const struct word io_words[] = {{"auto", KVR_NVME_IO_AUTO}, {"uring", KVR_NVME_IO_URING},
	{"threads", KVR_NVME_IO_THREADS}, {NULL, 0}};

#define PLACE(member) offsetof(struct kvr_config, member)
#define LIVE          true
#define FIXED         false

static const struct setting settings[] = {
	{"runtime_dir", SETTING_PATH, PLACE(runtime_dir), 1, KVR_CONFIG_PATH_MAX - 1, NULL, FIXED},
	{"log_level", SETTING_WORD, PLACE(log_level), 0, 0, log_words, LIVE},
	{"socket_mode", SETTING_MODE, PLACE(socket_mode), 0600, 0777, NULL, FIXED},
	{"memory.host_bytes", SETTING_SIZE, PLACE(host_bytes), 4u << 20, 1ull << 46, NULL, FIXED},
	{"memory.region_bytes_max", SETTING_SIZE, PLACE(region_bytes_max), 2u << 20,
		KVR_REGION_BYTES_MAX, NULL, LIVE},
	{"memory.regions_bytes_max", SETTING_SIZE, PLACE(regions_bytes_max), 2u << 20, 1ull << 46,
		NULL, LIVE},
	{"memory.policy", SETTING_WORD, PLACE(policy), 0, 0, policy_words, FIXED},
	{"memory.populate", SETTING_BOOL, PLACE(populate), 0, 1, NULL, FIXED},
	{"store.dir", SETTING_PATH, PLACE(store_dir), 0, KVR_CONFIG_STORE_MAX - 1, NULL, FIXED},
	{"store.bytes", SETTING_SIZE, PLACE(store_bytes), 64u << 20, 1ull << 46, NULL, FIXED},
	{"store.catalog_bytes", SETTING_SIZE, PLACE(catalog_bytes), 16u << 20, 1ull << 42, NULL,
		FIXED},
	{"store.depth", SETTING_U32, PLACE(store_depth), 1, KVR_NVME_DEPTH_MAX, NULL, FIXED},
	{"store.batch", SETTING_U32, PLACE(store_batch), 1, KVR_NVME_DEPTH_MAX, NULL, FIXED},
	{"store.read_buffer_bytes", SETTING_SIZE, PLACE(read_buffer_bytes), 64u << 20, 16ull << 30,
		NULL, FIXED},
	{"store.write_bytes_per_day", SETTING_SIZE, PLACE(write_bytes_per_day), 0, 1ull << 50, NULL,
		LIVE},
	{"store.io", SETTING_WORD, PLACE(store_io), 0, 0, io_words, FIXED},
	{"sessions.credits", SETTING_U32, PLACE(credits), 1, KVR_CREDITS_MAX, NULL, FIXED},
	{"sessions.tenant_per_uid", SETTING_BOOL, PLACE(tenant_per_uid), 0, 1, NULL, LIVE},
	{"telemetry.audit_every", SETTING_U32, PLACE(audit_every), 0, 1000000000, NULL, LIVE},
	{"device.threads", SETTING_U32, PLACE(device.threads), 0, KVR_THREADS_MAX, NULL, FIXED},
	{"device.isa", SETTING_WORD, PLACE(device.isa), 0, 0, isa_words, FIXED},
	{"device.spin_us", SETTING_U32, PLACE(device.spin_us), 0, 1000, NULL, FIXED},
	{"device.inline_item_us", SETTING_U32, PLACE(device.inline_item_us), 0, 1000, NULL, FIXED},
};

#define COUNT(array)      (sizeof(array) / sizeof((array)[0]))
#define BUFFER_BYTES_UNIT (2u << 20) /* a large page */

void kvr_config_default(struct kvr_config *ret_config)
{
	*ret_config = (struct kvr_config){
		.runtime_dir = "/run/kvrecall",
		.log_level = KVR_LOG_INFO,
		.socket_mode = 0660,
		.host_bytes = 1ull << 30,
		.region_bytes_max = 4ull << 30,
		.regions_bytes_max = 16ull << 30,
		.credits = KVR_CREDITS_MAX,
		.audit_every = 1000,
		.policy = KVR_POLICY_DECAY,
		.store_bytes = 64ull << 30,
		.store_depth = 128,
		.store_batch = 16,
		.read_buffer_bytes = 64u << 20,
		.store_io = KVR_NVME_IO_AUTO,
		.device = {.threads = 0, .isa = KVR_ISA_BEST, .spin_us = 30, .inline_item_us = 25},
		.tenant_per_uid = true,
	};
}

int kvr_config_size(const char *text, uint64_t *ret_bytes)
{
	static const struct {
		const char *unit;
		uint32_t shift;
	} units[] = {{"", 0}, {"B", 0}, {"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
	char *end;
	unsigned long long number;

	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	errno = 0;
	number = strtoull(text, &end, 10);
	while (*end == ' ')
		end++;
	for (size_t i = 0; i < COUNT(units) && errno == 0; i++) {
		if (strcmp(end, units[i].unit) != 0)
			continue;
		if (number > UINT64_MAX >> units[i].shift)
			return -EINVAL;
		*ret_bytes = (uint64_t)number << units[i].shift;
		return 0;
	}
	return -EINVAL;
}

static int apply_word(const struct setting *setting, const config_setting_t *at,
	const struct kvr_config_report *report, void *place)
{
	const char *text = config_setting_type(at) == CONFIG_TYPE_STRING
				   ? config_setting_get_string(at)
				   : NULL;
	char known[128] = "";

	for (const struct word *word = setting->words; word->text; word++) {
		if (text && strcmp(word->text, text) == 0) {
			memcpy(place, &word->value, sizeof(word->value));
			return 0;
		}
		strncat(known, known[0] ? ", " : "", sizeof(known) - strlen(known) - 1);
		strncat(known, word->text, sizeof(known) - strlen(known) - 1);
	}
	return kvr_config_fail(report, at, "%s must be one of: %s", setting->path, known);
}

static int apply_number(const struct setting *setting, const config_setting_t *at,
	const struct kvr_config_report *report, void *place)
{
	const bool size = setting->type == SETTING_SIZE;
	uint64_t value = 0;

	if (kvr_config_number(at, size, &value) < 0)
		return kvr_config_fail(report, at, "%s must be %s", setting->path,
			size ? "a size in quotes, like \"8 GiB\" or \"8589934592\""
			     : "a whole number");
	if (value < setting->min || value > setting->max)
		return kvr_config_fail(report, at, "%s is %llu; give %llu to %llu", setting->path,
			(unsigned long long)value, (unsigned long long)setting->min,
			(unsigned long long)setting->max);
	if (size)
		memcpy(place, &value, sizeof(uint64_t));
	else
		memcpy(place, &(uint32_t){(uint32_t)value}, sizeof(uint32_t));
	return 0;
}

/* Octal digits in quotes: libconfig 1.5 has no octal numbers, and 660 would be another mode. */
static int apply_mode(const struct setting *setting, const config_setting_t *at,
	const struct kvr_config_report *report, void *place)
{
	const char *text = config_setting_get_string(at);
	char *end = NULL;
	unsigned long mode = text ? strtoul(text, &end, 8) : 0;

	if (!text || text[0] < '0' || text[0] > '7' || *end || mode < setting->min ||
		mode > setting->max)
		return kvr_config_fail(report, at,
			"%s must be octal digits in quotes, \"0600\" to \"0777\"", setting->path);
	memcpy(place, &(mode_t){(mode_t)mode}, sizeof(mode_t));
	return 0;
}

static int apply(struct kvr_config *config, const struct setting *setting,
	const config_setting_t *at, const struct kvr_config_report *report)
{
	void *place = (char *)config + setting->place;
	const char *text = config_setting_get_string(at);

	switch (setting->type) {
	case SETTING_WORD: return apply_word(setting, at, report, place);
	case SETTING_MODE: return apply_mode(setting, at, report, place);
	case SETTING_U32:
	case SETTING_SIZE: return apply_number(setting, at, report, place);
	case SETTING_BOOL:
		if (config_setting_type(at) != CONFIG_TYPE_BOOL)
			return kvr_config_fail(
				report, at, "%s must be true or false", setting->path);
		*(bool *)place = config_setting_get_bool(at) != 0;
		return 0;
	case SETTING_PATH:
		if (!text || strlen(text) < setting->min || strlen(text) > setting->max)
			return kvr_config_fail(report, at,
				"%s must be a path of at most %llu characters", setting->path,
				(unsigned long long)setting->max);
		memcpy(place, text, strlen(text) + 1);
		return 0;
	}
	return -EINVAL;
}

/* ---- the whole file -------------------------------------------------------------------------- */

/* Whether settings stand in a group of this name. */
static bool is_group(const char *name)
{
	const size_t length = strlen(name);

	for (size_t i = 0; i < COUNT(settings); i++) {
		if (strncmp(settings[i].path, name, length) == 0 && settings[i].path[length] == '.')
			return true;
	}
	return false;
}

/* Applies one member of the tree, descending into groups; `prefix` is its parent's path. */
static int read_member(struct kvr_config *config, const config_setting_t *member,
	const char *prefix, const struct kvr_config_report *report)
{
	char path[128];

	snprintf(path, sizeof(path), "%s%s%s", prefix, prefix[0] ? "." : "",
		config_setting_name(member));
	if (strcmp(path, "tenants") == 0)
		return kvr_config_tenants(config, member, report);
	for (size_t i = 0; i < COUNT(settings); i++) {
		if (strcmp(settings[i].path, path) == 0)
			return apply(config, &settings[i], member, report);
	}
	if (!config_setting_is_group(member) || prefix[0] || !is_group(path))
		return kvr_config_fail(
			report, member, "unknown key %s; kvrecalld --help lists them", path);
	for (int i = 0; i < config_setting_length(member); i++) {
		if (read_member(
			    config, config_setting_get_elem(member, (unsigned)i), path, report) < 0)
			return -EINVAL;
	}
	return 0;
}

int kvr_config_read(
	struct kvr_config *config, const char *path, char *ret_error, uint32_t error_bytes)
{
	const struct kvr_config_report report = {path, ret_error, error_bytes};
	config_t file;
	config_setting_t *root;
	int rc = 0;

	config_init(&file);
	if (access(path, R_OK) != 0) {
		rc = -errno;
		snprintf(ret_error, error_bytes, "%s: %s; give a readable file with --config", path,
			strerror(-rc));
	} else if (!config_read_file(&file, path)) {
		rc = -EINVAL;
		snprintf(ret_error, error_bytes, "%s:%d: %s; see kvrecalld --help for an example",
			path, config_error_line(&file), config_error_text(&file));
	} else {
		root = config_root_setting(&file);
		for (int i = 0; i < config_setting_length(root) && rc == 0; i++)
			rc = read_member(
				config, config_setting_get_elem(root, (unsigned)i), "", &report);
	}
	config_destroy(&file);
	return rc;
}

/* Whether `path` is `dir` or lies below it. */
static bool is_inside(const char *path, const char *dir)
{
	size_t length = strlen(dir);

	while (length > 1 && dir[length - 1] == '/')
		length--;
	return strncmp(path, dir, length) == 0 && (path[length] == 0 || path[length] == '/');
}

static const char *wrong_store(const struct kvr_config *config)
{
	if (!config->store_dir[0])
		return NULL;
	if (config->store_dir[0] != '/')
		return "store.dir is not absolute; give a path from / on";
	if (is_inside(config->store_dir, config->runtime_dir))
		return "store.dir lies in runtime_dir, which is removed when the daemon ends; "
		       "give a directory on a disk, like /var/lib/kvrecall";
	if (config->store_batch > config->store_depth)
		return "store.batch exceeds store.depth; lower it";
	return NULL;
}

static const char *wrong(const struct kvr_config *config)
{
	if (config->runtime_dir[0] != '/')
		return "runtime_dir is not absolute: clients run elsewhere; give a path from / on";
	if (config->region_bytes_max > config->regions_bytes_max)
		return "memory.region_bytes_max exceeds memory.regions_bytes_max; raise the latter";
	if (!config->tenant_per_uid && config->tenant_count == 0)
		return "nobody may attach: list tenants, or set sessions.tenant_per_uid = true";
	return wrong_store(config);
}

int kvr_config_complete(struct kvr_config *config, char *ret_error, uint32_t error_bytes)
{
	const char *what = wrong(config);

	if (what) {
		snprintf(ret_error, error_bytes, "%s", what);
		return -EINVAL;
	}
	KVR_ASSERT(config->credits >= 1);
	KVR_ASSERT(config->credits <= KVR_CREDITS_MAX);
	/* Caps are hard: what is no whole slab, or page, is left out rather than added. */
	config->store_bytes -= config->store_bytes % KVR_SLAB_BYTES;
	config->read_buffer_bytes -= config->read_buffer_bytes % BUFFER_BYTES_UNIT;
	if (config->catalog_bytes == 0)
		config->catalog_bytes = config->store_bytes / 64 + (64u << 20);
	KVR_ASSERT(config->store_bytes > 0);
	KVR_ASSERT(config->catalog_bytes >= 16u << 20);
	KVR_ASSERT(config->read_buffer_bytes > 0);
	return 0;
}

/* ---- other settings for a daemon that runs --------------------------------------------------- */

static size_t size_of(enum setting_type type)
{
	switch (type) {
	case SETTING_U32: return sizeof(uint32_t);
	case SETTING_SIZE: return sizeof(uint64_t);
	case SETTING_BOOL: return sizeof(bool);
	case SETTING_MODE: return sizeof(mode_t);
	case SETTING_WORD: return sizeof(int);
	case SETTING_PATH: break; /* a string, in room of its own size */
	}
	return 0;
}

void kvr_config_reload(struct kvr_config *running, const struct kvr_config *fresh,
	struct kvr_config_change *ret_change)
{
	*ret_change = (struct kvr_config_change){0};
	for (size_t i = 0; i < COUNT(settings); i++) {
		const struct setting *setting = &settings[i];
		char *to = (char *)running + setting->place;
		const char *from = (const char *)fresh + setting->place;
		const size_t bytes = size_of(setting->type);

		KVR_ASSERT(!setting->live || bytes > 0);
		if (bytes ? memcmp(to, from, bytes) == 0 : strcmp(to, from) == 0)
			continue;
		kvr_config_name(
			setting->live ? ret_change->taken : ret_change->kept, "%s", setting->path);
		if (setting->live)
			memcpy(to, from, bytes);
	}
	kvr_config_tenants_reload(running, fresh, ret_change);
}

void kvr_config_fini(struct kvr_config *config)
{
	free(config->tenants);
	config->tenants = NULL;
	config->tenant_count = 0;
}
