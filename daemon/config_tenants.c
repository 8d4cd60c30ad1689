/* SPDX-License-Identifier: Apache-2.0 */
/* config_tenants.c: the list of tenants in the configuration file, and what config_file.h shares.
 *
 * A tenant's name is its identity in the store, which keeps its salt: names differ, and none looks like
 * those that the daemon gives to uids without a tenant. */
#include "daemon/config_file.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/crypt.h"

#define COUNT(array) (sizeof(array) / sizeof((array)[0]))

static const char *const tenant_keys[] = {
	"name", "uids", "gids", "quota_bytes", "store_quota_bytes", "salt"};

static int read_ids(const config_setting_t *tenant, const char *key,
	const struct kvr_config_report *report, uint32_t *ret_ids, uint32_t *ret_count)
{
	config_setting_t *list = config_setting_get_member(tenant, key);
	int count = list ? config_setting_length(list) : 0;

	if (list && !config_setting_is_array(list))
		return kvr_config_fail(
			report, list, "%s must be an array of numbers, like [ 1000, 1001 ]", key);
	if (count > (int)KVR_CONFIG_IDS_MAX)
		return kvr_config_fail(report, list, "%s: at most %u ids", key, KVR_CONFIG_IDS_MAX);
	for (int i = 0; i < count; i++) {
		uint64_t id = 0;

		if (kvr_config_number(config_setting_get_elem(list, (unsigned)i), false, &id) < 0 ||
			id >= UINT32_MAX)
			return kvr_config_fail(
				report, list, "%s must hold user or group numbers", key);
		ret_ids[i] = (uint32_t)id;
	}
	*ret_count = (uint32_t)count;
	return 0;
}

static int read_salt(const config_setting_t *at, const struct kvr_config_report *report,
	struct kvr_config_tenant *tenant)
{
	const char *text = config_setting_get_string(at);

	if (!text || strlen(text) != (size_t)2 * KVR_HASH_BYTES ||
		!kvr_crypt_from_hex(text, tenant->salt, KVR_HASH_BYTES))
		return kvr_config_fail(report, at,
			"salt must be %u hexadecimal digits (openssl rand -hex %u)",
			2 * KVR_HASH_BYTES, KVR_HASH_BYTES);
	tenant->has_salt = true;
	return 0;
}

static int check_tenant_keys(const config_setting_t *at, const struct kvr_config_report *report)
{
	for (int i = 0; i < config_setting_length(at); i++) {
		config_setting_t *member = config_setting_get_elem(at, (unsigned)i);
		bool known = false;

		for (size_t k = 0; k < COUNT(tenant_keys); k++)
			known |= strcmp(tenant_keys[k], config_setting_name(member)) == 0;
		if (!known)
			return kvr_config_fail(report, member,
				"unknown key %s; a tenant has name, uids, gids, quota_bytes, "
				"store_quota_bytes, salt",
				config_setting_name(member));
	}
	return 0;
}

static int read_quota(const config_setting_t *tenant, const char *key,
	const struct kvr_config_report *report, uint64_t *ret_bytes)
{
	const config_setting_t *at = config_setting_get_member(tenant, key);

	if (at && kvr_config_number(at, true, ret_bytes) < 0)
		return kvr_config_fail(
			report, at, "%s must be a size in quotes, like \"4 GiB\"", key);
	return 0;
}

static int read_name(const config_setting_t *at, const struct kvr_config_report *report,
	struct kvr_config_tenant *tenant)
{
	const char *name = NULL;

	if (!config_setting_lookup_string(at, "name", &name) || !name[0] ||
		strlen(name) >= KVR_NAME_MAX)
		return kvr_config_fail(report, at, "a tenant needs a name of at most %u characters",
			KVR_NAME_MAX - 1);
	if (strncmp(name, "uid#", 4) == 0)
		return kvr_config_fail(report, at,
			"tenant %s: names with uid# are those of uids without a tenant; give "
			"another",
			name);
	memcpy(tenant->name, name, strlen(name) + 1);
	return 0;
}

static int read_tenant(const config_setting_t *at, const struct kvr_config_report *report,
	struct kvr_config_tenant *ret_tenant)
{
	struct kvr_config_tenant tenant = {0};
	config_setting_t *salt;

	if (!config_setting_is_group(at))
		return kvr_config_fail(
			report, at, "tenants must be a list of groups: ( { name = ...; } )");
	if (check_tenant_keys(at, report) < 0 || read_name(at, report, &tenant) < 0 ||
		read_ids(at, "uids", report, tenant.uids, &tenant.uid_count) < 0 ||
		read_ids(at, "gids", report, tenant.gids, &tenant.gid_count) < 0 ||
		read_quota(at, "quota_bytes", report, &tenant.quota_bytes) < 0 ||
		read_quota(at, "store_quota_bytes", report, &tenant.store_quota_bytes) < 0)
		return -EINVAL;
	if (tenant.uid_count + tenant.gid_count == 0)
		return kvr_config_fail(
			report, at, "tenant %s admits nobody: give uids or gids", tenant.name);
	salt = config_setting_get_member(at, "salt");
	if (salt && read_salt(salt, report, &tenant) < 0)
		return -EINVAL;
	*ret_tenant = tenant;
	return 0;
}

static const struct kvr_config_tenant *find(const struct kvr_config *config, const char *name)
{
	for (uint32_t i = 0; i < config->tenant_count; i++) {
		if (strcmp(config->tenants[i].name, name) == 0)
			return &config->tenants[i];
	}
	return NULL;
}

static bool same_list(const struct kvr_config *one, const struct kvr_config *other)
{
	if (one->tenant_count != other->tenant_count)
		return false;
	for (uint32_t i = 0; i < one->tenant_count; i++) {
		if (strcmp(one->tenants[i].name, other->tenants[i].name) != 0)
			return false;
	}
	return true;
}

static bool same_ids(const struct kvr_config_tenant *one, const struct kvr_config_tenant *other)
{
	return one->uid_count == other->uid_count && one->gid_count == other->gid_count &&
	       memcmp(one->uids, other->uids, one->uid_count * sizeof(uid_t)) == 0 &&
	       memcmp(one->gids, other->gids, one->gid_count * sizeof(gid_t)) == 0;
}

static void reload_tenant(struct kvr_config_tenant *running, const struct kvr_config_tenant *fresh,
	struct kvr_config_change *change)
{
	const char *name = running->name;

	KVR_ASSERT(strcmp(name, fresh->name) == 0);
	KVR_ASSERT(fresh->uid_count <= KVR_CONFIG_IDS_MAX);
	KVR_ASSERT(fresh->gid_count <= KVR_CONFIG_IDS_MAX);
	if (running->quota_bytes != fresh->quota_bytes)
		kvr_config_name(change->taken, "quota_bytes of tenant %s", name);
	if (running->store_quota_bytes != fresh->store_quota_bytes)
		kvr_config_name(change->taken, "store_quota_bytes of tenant %s", name);
	if (!same_ids(running, fresh))
		kvr_config_name(change->taken, "uids and gids of tenant %s", name);
	running->quota_bytes = fresh->quota_bytes;
	running->store_quota_bytes = fresh->store_quota_bytes;
	memcpy(running->uids, fresh->uids, sizeof(running->uids));
	memcpy(running->gids, fresh->gids, sizeof(running->gids));
	running->uid_count = fresh->uid_count;
	running->gid_count = fresh->gid_count;
	/* What is stored was named with the salt. */
	if (running->has_salt != fresh->has_salt ||
		memcmp(running->salt, fresh->salt, sizeof(running->salt)) != 0)
		kvr_config_name(change->kept, "salt of tenant %s", name);
}

/* ---- for config.c ---------------------------------------------------------------------------- */

int kvr_config_fail(
	const struct kvr_config_report *report, const config_setting_t *at, const char *format, ...)
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

int kvr_config_number(const config_setting_t *at, bool size, uint64_t *ret_value)
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

int kvr_config_tenants(struct kvr_config *config, const config_setting_t *list,
	const struct kvr_config_report *report)
{
	int count = config_setting_length(list);

	if (!config_setting_is_list(list) || count > (int)KVR_TENANTS_MAX / 2)
		return kvr_config_fail(report, list, "tenants must be a list of at most %u groups",
			KVR_TENANTS_MAX / 2);
	free(config->tenants);
	config->tenant_count = 0;
	config->tenants = calloc((size_t)count + 1, sizeof(*config->tenants));
	if (!config->tenants)
		return kvr_config_fail(report, list, "out of memory");
	for (int i = 0; i < count; i++) {
		if (read_tenant(config_setting_get_elem(list, (unsigned)i), report,
			    &config->tenants[i]) < 0)
			return -EINVAL;
		if (find(config, config->tenants[i].name))
			return kvr_config_fail(report, config_setting_get_elem(list, (unsigned)i),
				"a second tenant %s; give another name", config->tenants[i].name);
		config->tenant_count++;
	}
	return 0;
}

void kvr_config_tenants_reload(struct kvr_config *running, const struct kvr_config *fresh,
	struct kvr_config_change *change)
{
	if (!same_list(running, fresh)) {
		kvr_config_name(change->kept, "tenants (their list)");
		return;
	}
	for (uint32_t i = 0; i < running->tenant_count; i++)
		reload_tenant(&running->tenants[i], &fresh->tenants[i], change);
}

void kvr_config_name(char names[KVR_CONFIG_NAMES_BYTES], const char *format, ...)
{
	const size_t length = strlen(names);
	size_t at = length;
	va_list arguments;

	KVR_ASSERT(length < KVR_CONFIG_NAMES_BYTES);
	if (length > 0)
		at += (size_t)snprintf(names + at, KVR_CONFIG_NAMES_BYTES - at, ", ");
	if (at >= KVR_CONFIG_NAMES_BYTES)
		return; /* a list this long ends with what there is room for */
	va_start(arguments, format);
	vsnprintf(names + at, KVR_CONFIG_NAMES_BYTES - at, format, arguments);
	va_end(arguments);
}
