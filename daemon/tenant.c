/* SPDX-License-Identifier: Apache-2.0 */
/* tenant.c: uid and gid to tenant. Does not know sessions or segments. */
#include "daemon/tenant.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/crypt.h"

static struct kvr_tenant *add(struct kvr_tenants *tenants, const char *name)
{
	struct kvr_tenant *tenant = &tenants->entries[tenants->count++];

	KVR_ASSERT(tenants->count <= KVR_TENANTS_MAX);
	*tenant = (struct kvr_tenant){.quota_bytes = UINT64_MAX, .store_quota_bytes = UINT64_MAX};
	snprintf(tenant->name, sizeof(tenant->name), "%s", name);
	if (tenants->secret)
		kvr_crypt_hash(tenants->secret,
			&(struct kvr_crypt_part){tenant->name, strlen(tenant->name)}, 1,
			tenant->salt);
	else
		kvr_crypt_random(tenant->salt, sizeof(tenant->salt));
	return tenant;
}

int kvr_tenants_open(
	struct kvr_tenants *tenants, const struct kvr_config *config, const uint8_t *secret)
{
	KVR_ASSERT(config->tenant_count <= KVR_TENANTS_MAX);
	*tenants = (struct kvr_tenants){.config = config, .secret = secret};
	tenants->entries = calloc(KVR_TENANTS_MAX, sizeof(*tenants->entries));
	if (!tenants->entries)
		return -ENOMEM;
	/* Configured tenants come first and in order: their index is that of the configuration. */
	for (uint32_t i = 0; i < config->tenant_count; i++) {
		const struct kvr_config_tenant *from = &config->tenants[i];
		struct kvr_tenant *tenant = add(tenants, from->name);

		if (from->has_salt)
			memcpy(tenant->salt, from->salt, sizeof(tenant->salt));
	}
	kvr_tenants_reload(tenants);
	return 0;
}

void kvr_tenants_close(struct kvr_tenants *tenants)
{
	free(tenants->entries);
	*tenants = (struct kvr_tenants){0};
}

void kvr_tenants_reload(struct kvr_tenants *tenants)
{
	const struct kvr_config *config = tenants->config;

	KVR_ASSERT(config->tenant_count <= tenants->count);
	for (uint32_t i = 0; i < config->tenant_count; i++) {
		const uint64_t bytes = config->tenants[i].quota_bytes;
		const uint64_t store_bytes = config->tenants[i].store_quota_bytes;

		KVR_ASSERT(strcmp(tenants->entries[i].name, config->tenants[i].name) == 0);
		tenants->entries[i].quota_bytes = bytes ? bytes : UINT64_MAX;
		tenants->entries[i].store_quota_bytes = store_bytes ? store_bytes : UINT64_MAX;
	}
}

static bool lists_uid(const struct kvr_config_tenant *tenant, uid_t uid)
{
	for (uint32_t i = 0; i < tenant->uid_count; i++) {
		if (tenant->uids[i] == uid)
			return true;
	}
	return false;
}

static bool lists_group(
	const struct kvr_config_tenant *tenant, const gid_t *groups, uint32_t group_count)
{
	for (uint32_t i = 0; i < tenant->gid_count; i++) {
		for (uint32_t g = 0; g < group_count; g++) {
			if (tenant->gids[i] == groups[g])
				return true;
		}
	}
	return false;
}

int kvr_tenants_find(struct kvr_tenants *tenants, uid_t uid, const gid_t *groups,
	uint32_t group_count, struct kvr_tenant **ret_tenant)
{
	const struct kvr_config *config = tenants->config;
	char name[KVR_NAME_MAX];

	for (uint32_t pass = 0; pass < 2; pass++) {
		for (uint32_t i = 0; i < config->tenant_count; i++) {
			const struct kvr_config_tenant *tenant = &config->tenants[i];

			if (pass == 0 ? lists_uid(tenant, uid)
				      : lists_group(tenant, groups, group_count)) {
				*ret_tenant = &tenants->entries[i];
				return 0;
			}
		}
	}
	if (!config->tenant_per_uid || uid == KVR_TENANT_UID_UNKNOWN)
		return -EACCES;
	/* '#' keeps these names apart from configured ones only by custom: they are compared only
	 * with names behind the configured entries. */
	snprintf(name, sizeof(name), "uid#%u", (unsigned)uid);
	for (uint32_t i = config->tenant_count; i < tenants->count; i++) {
		if (strcmp(tenants->entries[i].name, name) == 0) {
			*ret_tenant = &tenants->entries[i];
			return 0;
		}
	}
	if (tenants->count == KVR_TENANTS_MAX)
		return -ENOSPC;
	*ret_tenant = add(tenants, name);
	return 0;
}
