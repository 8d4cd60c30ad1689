/* SPDX-License-Identifier: Apache-2.0 */
/* config_file.h: what the two files that read libconfig share: errors with a line, numbers, tenants.
 *
 * Internal to the config module: config.c and config_tenants.c are one module in two files, and the only
 * ones that include libconfig. */
#ifndef KVR_DAEMON_CONFIG_FILE_H
#define KVR_DAEMON_CONFIG_FILE_H

#include <libconfig.h>
#include <stdbool.h>
#include <stdint.h>

#include "daemon/config.h"

/* Where a message about the file goes. */
struct kvr_config_report {
	const char *path;
	char *error;
	uint32_t bytes;
};

/* Writes "path:line: what" to the report. Returns -EINVAL. */
__attribute__((format(printf, 3, 4))) int kvr_config_fail(const struct kvr_config_report *report,
	const config_setting_t *at, const char *format, ...);

/* Integers and sizes. Returns 0, or -EINVAL where the value is no such number. A size is never a plain
 * integer: libconfig cuts one off at 32 bits, and does not say so. */
int kvr_config_number(const config_setting_t *at, bool size, uint64_t *ret_value);

/* Reads the list of tenants, in place of the one that `config` holds. Errors: -EINVAL, reported. */
int kvr_config_tenants(struct kvr_config *config, const config_setting_t *list,
	const struct kvr_config_report *report);

/* kvr_config_reload's part: takes quotas and ids where both list the same tenants in the same order. */
void kvr_config_tenants_reload(struct kvr_config *running, const struct kvr_config *fresh,
	struct kvr_config_change *change);

/* Adds a name to a list of names. */
__attribute__((format(printf, 2, 3))) void kvr_config_name(
	char names[KVR_CONFIG_NAMES_BYTES], const char *format, ...);

#endif
