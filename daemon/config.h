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
#include "tiers/policy.h"

#define KVR_CONFIG_PATH_MAX 80u /* with "/attach.sock" it fits sockaddr_un */
#define KVR_CONFIG_IDS_MAX  64u

struct kvr_config_tenant {
	char name[KVR_NAME_MAX];
	uid_t uids[KVR_CONFIG_IDS_MAX];
	gid_t gids[KVR_CONFIG_IDS_MAX];
	uint32_t uid_count, gid_count;
	uint64_t quota_bytes; /* 0: none */
	uint8_t salt[KVR_HASH_BYTES];
	bool has_salt; /* else random, anew at every start */
};

struct kvr_config {
	char runtime_dir[KVR_CONFIG_PATH_MAX]; /* sockets; created if its parent exists */
	enum kvr_log_level log_level;
	mode_t socket_mode;         /* of both sockets */
	uint64_t host_bytes;        /* the arena */
	uint64_t region_bytes_max;  /* one session */
	uint64_t regions_bytes_max; /* all sessions */
	uint32_t credits;           /* requests outstanding per session */
	enum kvr_policy_kind policy;
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

/* Checks what only holds between settings. As kvr_config_read on failure. */
int kvr_config_check(const struct kvr_config *config, char *ret_error, uint32_t error_bytes);

void kvr_config_fini(struct kvr_config *config);

#endif
