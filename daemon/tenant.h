/* SPDX-License-Identifier: Apache-2.0 */
/* tenant.h: who may use the daemon, and how much of it.
 *
 * A tenant is found by the kernel's word for the peer's uid and gid (SO_PEERCRED), never by anything
 * the client says. It has a salt, which keys every chain hash, so that equal content of two tenants
 * never has the same name, and a quota of arena bytes.
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_TENANT_H
#define KVR_DAEMON_TENANT_H

#include <stdint.h>
#include <sys/types.h>

#include "daemon/config.h"

struct kvr_tenant {
	char name[KVR_NAME_MAX];
	uint8_t salt[KVR_HASH_BYTES];
	uint64_t quota_bytes;   /* UINT64_MAX: none */
	uint64_t held_bytes;    /* tails, summaries and payloads of its sequences and segments */
	uint64_t refused_count; /* requests refused for the quota */
};

struct kvr_tenants {
	struct kvr_tenant *entries; /* KVR_TENANTS_MAX; never removed, so that pointers hold */
	uint32_t count;
	const struct kvr_config *config; /* borrowed */
};

/* Errors: -ENOMEM. */
int kvr_tenants_open(struct kvr_tenants *tenants, const struct kvr_config *config);
void kvr_tenants_close(struct kvr_tenants *tenants);

/* The tenant of a peer: the first that lists its uid, else the first that lists its gid, else one of
 * the uid's own. Errors: -EACCES, -ENOSPC (KVR_TENANTS_MAX are known). */
int kvr_tenants_find(
	struct kvr_tenants *tenants, uid_t uid, gid_t gid, struct kvr_tenant **ret_tenant);

#endif
