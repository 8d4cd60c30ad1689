/* SPDX-License-Identifier: Apache-2.0 */
/* config.c: the one file that includes libconfig.
 *
 * Settings stand in a table, one line each: path, type, range, place. libconfig gives the line of a
 * wrong value; keys that no line of the table names are found by walking the tree. */
#include "daemon/config.h"

#include <errno.h>
#include <libconfig.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "daemon/crypt.h"

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
};

static const struct word log_words[] = {{"error", KVR_LOG_ERROR}, {"warning", KVR_LOG_WARNING},
	{"info", KVR_LOG_INFO}, {"debug", KVR_LOG_DEBUG}, {NULL, 0}};
static const struct word policy_words[] = {
	{"s3fifo", KVR_POLICY_S3FIFO}, {"lru", KVR_POLICY_LRU}, {NULL, 0}};
static const struct word isa_words[] = {{"best", KVR_ISA_BEST}, {"plain", KVR_ISA_PLAIN},
	{"avx2", KVR_ISA_AVX2}, {"avx512", KVR_ISA_AVX512}, {NULL, 0}};

#define PLACE(member) offsetof(struct kvr_config, member)

static const struct setting settings[] = {
	{"runtime_dir", SETTING_PATH, PLACE(runtime_dir), 1, KVR_CONFIG_PATH_MAX - 1, NULL},
	{"log_level", SETTING_WORD, PLACE(log_level), 0, 0, log_words},
	{"socket_mode", SETTING_MODE, PLACE(socket_mode), 0600, 0777, NULL},
	{"memory.host_bytes", SETTING_SIZE, PLACE(host_bytes), 4u << 20, 1ull << 46, NULL},
	{"memory.region_bytes_max", SETTING_SIZE, PLACE(region_bytes_max), 2u << 20,
		KVR_REGION_BYTES_MAX, NULL},
	{"memory.regions_bytes_max", SETTING_SIZE, PLACE(regions_bytes_max), 2u << 20, 1ull << 46,
		NULL},
	{"memory.policy", SETTING_WORD, PLACE(policy), 0, 0, policy_words},
	{"sessions.credits", SETTING_U32, PLACE(credits), 1, KVR_CREDITS_MAX, NULL},
	{"sessions.tenant_per_uid", SETTING_BOOL, PLACE(tenant_per_uid), 0, 1, NULL},
	{"device.threads", SETTING_U32, PLACE(device.threads), 0, KVR_THREADS_MAX, NULL},
	{"device.isa", SETTING_WORD, PLACE(device.isa), 0, 0, isa_words},
	{"device.spin_us", SETTING_U32, PLACE(device.spin_us), 0, 1000, NULL},
	{"device.inline_item_us", SETTING_U32, PLACE(device.inline_item_us), 0, 1000, NULL},
};

static const char *const tenant_keys[] = {"name", "uids", "gids", "quota_bytes", "salt"};

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* Where a message about the file goes. */
struct report {
	const char *path;
	char *error;
	uint32_t bytes;
};

__attribute__((format(printf, 3, 4))) static int fail(
	const struct report *report, const config_setting_t *at, const char *format, ...)
{
	char what[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(what, sizeof(what), format, arguments);
	va_end(arguments);
	snprintf(report->error, report->bytes, "%s:%u: %s", report->path,
		at ? (unsigned)config_setting_source_line(at) : 0u, what);
	return -EINVAL;
}

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
		.policy = KVR_POLICY_S3FIFO,
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

/* Integers and sizes. Returns 0, or -EINVAL where the value is no such number. A size is never a plain
 * integer: libconfig cuts one off at 32 bits, and does not say so. */
static int read_number(const config_setting_t *at, bool size, uint64_t *ret_value)
{
	int type = config_setting_type(at);

	if (!size && type == CONFIG_TYPE_INT && config_setting_get_int(at) >= 0) {
		*ret_value = (uint64_t)config_setting_get_int(at);
		return 0;
	}
	if (type == CONFIG_TYPE_INT64 && config_setting_get_int64(at) >= 0) {
		*ret_value = (uint64_t)config_setting_get_int64(at);
		return 0;
	}
	if (size && type == CONFIG_TYPE_STRING)
		return kvr_config_size(config_setting_get_string(at), ret_value);
	return -EINVAL;
}

static int apply_word(const struct setting *setting, const config_setting_t *at,
	const struct report *report, void *place)
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
	return fail(report, at, "%s must be one of: %s", setting->path, known);
}

static int apply_number(const struct setting *setting, const config_setting_t *at,
	const struct report *report, void *place)
{
	const bool size = setting->type == SETTING_SIZE;
	uint64_t value = 0;

	if (read_number(at, size, &value) < 0)
		return fail(report, at, "%s must be %s", setting->path,
			size ? "a size in quotes, like \"8 GiB\" or \"8589934592\""
			     : "a whole number");
	if (value < setting->min || value > setting->max)
		return fail(report, at, "%s is %llu; give %llu to %llu", setting->path,
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
	const struct report *report, void *place)
{
	const char *text = config_setting_get_string(at);
	char *end = NULL;
	unsigned long mode = text ? strtoul(text, &end, 8) : 0;

	if (!text || text[0] < '0' || text[0] > '7' || *end || mode < setting->min ||
		mode > setting->max)
		return fail(report, at, "%s must be octal digits in quotes, \"0600\" to \"0777\"",
			setting->path);
	memcpy(place, &(mode_t){(mode_t)mode}, sizeof(mode_t));
	return 0;
}

static int apply(struct kvr_config *config, const struct setting *setting,
	const config_setting_t *at, const struct report *report)
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
			return fail(report, at, "%s must be true or false", setting->path);
		*(bool *)place = config_setting_get_bool(at) != 0;
		return 0;
	case SETTING_PATH:
		if (!text || strlen(text) < setting->min || strlen(text) > setting->max)
			return fail(report, at, "%s must be a path of at most %llu characters",
				setting->path, (unsigned long long)setting->max);
		memcpy(place, text, strlen(text) + 1);
		return 0;
	}
	return -EINVAL;
}

/* ---- tenants --------------------------------------------------------------------------------- */

static int read_ids(const config_setting_t *tenant, const char *key, const struct report *report,
	uint32_t *ret_ids, uint32_t *ret_count)
{
	config_setting_t *list = config_setting_get_member(tenant, key);
	int count = list ? config_setting_length(list) : 0;

	if (list && !config_setting_is_array(list))
		return fail(
			report, list, "%s must be an array of numbers, like [ 1000, 1001 ]", key);
	if (count > (int)KVR_CONFIG_IDS_MAX)
		return fail(report, list, "%s: at most %u ids", key, KVR_CONFIG_IDS_MAX);
	for (int i = 0; i < count; i++) {
		uint64_t id = 0;

		if (read_number(config_setting_get_elem(list, (unsigned)i), false, &id) < 0 ||
			id >= UINT32_MAX)
			return fail(report, list, "%s must hold user or group numbers", key);
		ret_ids[i] = (uint32_t)id;
	}
	*ret_count = (uint32_t)count;
	return 0;
}

static int read_salt(
	const config_setting_t *at, const struct report *report, struct kvr_config_tenant *tenant)
{
	const char *text = config_setting_get_string(at);

	if (!text || strlen(text) != (size_t)2 * KVR_HASH_BYTES ||
		!kvr_crypt_from_hex(text, tenant->salt, KVR_HASH_BYTES))
		return fail(report, at, "salt must be %u hexadecimal digits (openssl rand -hex %u)",
			2 * KVR_HASH_BYTES, KVR_HASH_BYTES);
	tenant->has_salt = true;
	return 0;
}

static int check_tenant_keys(const config_setting_t *at, const struct report *report)
{
	for (int i = 0; i < config_setting_length(at); i++) {
		config_setting_t *member = config_setting_get_elem(at, (unsigned)i);
		bool known = false;

		for (size_t k = 0; k < COUNT(tenant_keys); k++)
			known |= strcmp(tenant_keys[k], config_setting_name(member)) == 0;
		if (!known)
			return fail(report, member,
				"unknown key %s; a tenant has name, uids, gids, quota_bytes, salt",
				config_setting_name(member));
	}
	return 0;
}

static int read_tenant(const config_setting_t *at, const struct report *report,
	struct kvr_config_tenant *ret_tenant)
{
	struct kvr_config_tenant tenant = {0};
	config_setting_t *quota, *salt;
	const char *name = NULL;

	if (!config_setting_is_group(at))
		return fail(report, at, "tenants must be a list of groups: ( { name = ...; } )");
	if (check_tenant_keys(at, report) < 0)
		return -EINVAL;
	if (!config_setting_lookup_string(at, "name", &name) || !name[0] ||
		strlen(name) >= KVR_NAME_MAX)
		return fail(report, at, "a tenant needs a name of at most %u characters",
			KVR_NAME_MAX - 1);
	memcpy(tenant.name, name, strlen(name) + 1);
	if (read_ids(at, "uids", report, tenant.uids, &tenant.uid_count) < 0 ||
		read_ids(at, "gids", report, tenant.gids, &tenant.gid_count) < 0)
		return -EINVAL;
	if (tenant.uid_count + tenant.gid_count == 0)
		return fail(report, at, "tenant %s admits nobody: give uids or gids", name);
	quota = config_setting_get_member(at, "quota_bytes");
	if (quota && read_number(quota, true, &tenant.quota_bytes) < 0)
		return fail(report, quota, "quota_bytes must be a size in quotes, like \"4 GiB\"");
	salt = config_setting_get_member(at, "salt");
	if (salt && read_salt(salt, report, &tenant) < 0)
		return -EINVAL;
	*ret_tenant = tenant;
	return 0;
}

static int read_tenants(
	struct kvr_config *config, const config_setting_t *list, const struct report *report)
{
	int count = config_setting_length(list);

	if (!config_setting_is_list(list) || count > (int)KVR_TENANTS_MAX / 2)
		return fail(report, list, "tenants must be a list of at most %u groups",
			KVR_TENANTS_MAX / 2);
	free(config->tenants);
	config->tenant_count = 0;
	config->tenants = calloc((size_t)count + 1, sizeof(*config->tenants));
	if (!config->tenants)
		return fail(report, list, "out of memory");
	for (int i = 0; i < count; i++) {
		if (read_tenant(config_setting_get_elem(list, (unsigned)i), report,
			    &config->tenants[i]) < 0)
			return -EINVAL;
		config->tenant_count++;
	}
	return 0;
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
	const char *prefix, const struct report *report)
{
	char path[128];

	snprintf(path, sizeof(path), "%s%s%s", prefix, prefix[0] ? "." : "",
		config_setting_name(member));
	if (strcmp(path, "tenants") == 0)
		return read_tenants(config, member, report);
	for (size_t i = 0; i < COUNT(settings); i++) {
		if (strcmp(settings[i].path, path) == 0)
			return apply(config, &settings[i], member, report);
	}
	if (!config_setting_is_group(member) || prefix[0] || !is_group(path))
		return fail(report, member, "unknown key %s; kvrecalld --help lists them", path);
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
	const struct report report = {path, ret_error, error_bytes};
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

int kvr_config_check(const struct kvr_config *config, char *ret_error, uint32_t error_bytes)
{
	if (config->runtime_dir[0] != '/') {
		snprintf(ret_error, error_bytes,
			"runtime_dir %s is not absolute: clients run elsewhere; give a path from / "
			"on",
			config->runtime_dir);
		return -EINVAL;
	}
	if (config->region_bytes_max > config->regions_bytes_max) {
		snprintf(ret_error, error_bytes,
			"memory.region_bytes_max exceeds memory.regions_bytes_max; raise the "
			"latter");
		return -EINVAL;
	}
	if (!config->tenant_per_uid && config->tenant_count == 0) {
		snprintf(ret_error, error_bytes,
			"nobody may attach: list tenants, or set sessions.tenant_per_uid = true");
		return -EINVAL;
	}
	KVR_ASSERT(config->credits >= 1);
	KVR_ASSERT(config->credits <= KVR_CREDITS_MAX);
	return 0;
}

void kvr_config_fini(struct kvr_config *config)
{
	free(config->tenants);
	config->tenants = NULL;
	config->tenant_count = 0;
}
