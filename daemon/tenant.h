/* SPDX-License-Identifier: Apache-2.0 */
/* tenant.h: who may use the daemon, and how much of it.
 *
 * A tenant is found by the kernel's word for the peer's uid and groups (SO_PEERCRED, SO_PEERGROUPS),
 * never by anything the client says. It has a salt, which keys every chain hash, so that equal content of two tenants
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
	uint64_t quota_bytes;       /* UINT64_MAX: none */
	uint64_t store_quota_bytes; /* likewise, of the store's slabs */
	uint64_t held_bytes;      /* tails, summaries and payloads of its sequences and segments */
	uint64_t refused_count;   /* requests refused for the quota */
	uint32_t removable_count; /* of its segments, those that may go (daemon/directory.h) */
};

struct kvr_tenants {
	struct kvr_tenant *entries; /* KVR_TENANTS_MAX; never removed, so that pointers hold */
	uint32_t count;
	const struct kvr_config *config; /* borrowed */
	const uint8_t *secret;           /* borrowed */
};

/* Salts that the configuration does not give come from `secret`, KVR_HASH_BYTES that the store keeps; NULL: they
 * are random. Errors: -ENOMEM. */
int kvr_tenants_open(
	struct kvr_tenants *tenants, const struct kvr_config *config, const uint8_t *secret);
void kvr_tenants_close(struct kvr_tenants *tenants);

/* Takes the quotas that the configuration has now. Who holds more than that loses segments of its own when it asks
 * for more. */
void kvr_tenants_reload(struct kvr_tenants *tenants);

/* The tenant of a peer: the first that lists its uid, else the first that lists one of its groups, else
 * one of the uid's own; but KVR_TENANT_UID_UNKNOWN, which the kernel says of every user that has no
 * number here (another user namespace's), gets none of its own: it may be several people.
 * Errors: -EACCES, -ENOSPC (KVR_TENANTS_MAX are known). */
#define KVR_TENANT_UID_UNKNOWN 65534u
int kvr_tenants_find(struct kvr_tenants *tenants, uid_t uid, const gid_t *groups,
	uint32_t group_count, struct kvr_tenant **ret_tenant);

#endif
