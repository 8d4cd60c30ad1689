/* SPDX-License-Identifier: Apache-2.0 */
/* config.h: the daemon's settings, from a libconfig file and from flags that override it.
 *
 * Sizes are strings, with or without a unit ("8 GiB", "512MiB", "4194304"), modes octal strings. An unknown key, a wrong type
 * or a value out of range is an error that names file, line and remedy. */
#ifndef KVR_DAEMON_CONFIG_H
#define KVR_DAEMON_CONFIG_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "base/limits.h"
#include "daemon/log.h"
#include "kernels/device.h"
#include "tiers/nvme.h"
#include "tiers/policy.h"

#define KVR_CONFIG_PATH_MAX    80u /* with "/attach.sock" it fits sockaddr_un */
#define KVR_CONFIG_STORE_MAX   256u
#define KVR_CONFIG_IDS_MAX     64u
#define KVR_CONFIG_NAMES_BYTES 1024u

struct kvr_config_tenant {
	char name[KVR_NAME_MAX];
	uid_t uids[KVR_CONFIG_IDS_MAX];
	gid_t gids[KVR_CONFIG_IDS_MAX];
	uint32_t uid_count, gid_count;
	uint64_t quota_bytes;       /* of the arena; 0: none */
	uint64_t store_quota_bytes; /* of the store; 0: none */
	uint8_t salt[KVR_HASH_BYTES];
	bool has_salt; /* else random: kept in the store, or without one anew at every start */
};

struct kvr_config {
	char runtime_dir[KVR_CONFIG_PATH_MAX]; /* sockets; created if its parent exists */
	enum kvr_log_level log_level;
	mode_t socket_mode;         /* of both sockets */
	uint64_t host_bytes;        /* the arena */
	uint64_t region_bytes_max;  /* one session */
	uint64_t regions_bytes_max; /* all sessions */
	uint32_t credits;           /* requests outstanding per session */
	uint32_t
		audit_every; /* recalls between two that are audited (daemon/audit.h); 0: none is */
	enum kvr_policy_kind policy;
	bool populate; /* the arena's memory is taken from the system at start, in the background */
	char store_dir[KVR_CONFIG_STORE_MAX]; /* "": no store, RAM only */
	uint64_t store_bytes;                 /* cap of slabs.kvr, preallocated; whole slabs */
	uint64_t catalog_bytes;               /* cap of the catalog */
	uint64_t read_buffer_bytes;        /* registered memory that reads land in; whole 2 MiB */
	uint64_t write_bytes_per_day;      /* 0: no bound */
	uint32_t store_depth, store_batch; /* reads in flight; submitted at once, at most depth */
	enum kvr_nvme_io store_io;
	struct kvr_device_cpu_config device;
	bool tenant_per_uid; /* a uid that no tenant lists gets a tenant of its own; else it is refused */
	struct kvr_config_tenant *tenants;
	uint32_t tenant_count;
};

/* What the daemon runs with if nothing is said. */
void kvr_config_default(struct kvr_config *ret_config);

/* Reads a file over what `config` holds. On failure returns -errno and writes a message for people
 * (file, line, what, remedy) to `ret_error`. */
int kvr_config_read(
	struct kvr_config *config, const char *path, char *ret_error, uint32_t error_bytes);

/* Parses "8 GiB" and the like. Returns 0 or -EINVAL. */
int kvr_config_size(const char *text, uint64_t *ret_bytes);

/* To be called when all sources have been read: checks what only holds between settings, and fills in
 * what follows from others (the catalog's cap, whole slabs). As kvr_config_read on failure. */
int kvr_config_complete(struct kvr_config *config, char *ret_error, uint32_t error_bytes);

/* Names of settings that differ, separated by commas. */
struct kvr_config_change {
	char taken[KVR_CONFIG_NAMES_BYTES]; /* the running daemon has them now */
	char kept[KVR_CONFIG_NAMES_BYTES];  /* those need a restart */
};

/* Takes from `fresh`, which is complete, what may change while a daemon runs. Everything it has borrowed
 * from `running` (the array of tenants) stays where it is. */
void kvr_config_reload(struct kvr_config *running, const struct kvr_config *fresh,
	struct kvr_config_change *ret_change);

void kvr_config_fini(struct kvr_config *config);

#endif
