/* SPDX-License-Identifier: Apache-2.0 */
/* cli_merged.h: merged sets on the command line: which there are, which a model keeps, how many rows they have.
 *
 * A set is named by the tokens that one of its rows stands for: 2, 4, 5 or 8.
 *
 * Threads: one. */
#ifndef KVR_CLIENT_CLI_MERGED_H
#define KVR_CLIENT_CLI_MERGED_H

#include "client/cli.h"

#define KVR_MERGED_TEXT 16u /* holds what kvr_cli_merged_text writes */

/* Reads "all", or sets like "2,4", each at most once. Returns 0, or -EINVAL. */
int kvr_cli_merged_read(const char *text, uint32_t *ret_sets);

/* The same the other way round; "-" for none. */
void kvr_cli_merged_text(uint32_t sets, char into[KVR_MERGED_TEXT]);

/* Chooses the set of one row for `wanted` tokens; with 0 the one that the model keeps, if it is the only one. Reports
 * what is wrong. */
int kvr_cli_merged_choose(struct kvr_cli *cli, const struct kvr_model_info *model, uint32_t wanted,
	uint32_t *ret_divisor);

/* How many rows a head can have at most, of the merged tokens first .. end - 1 of any sequence of the model: rounded
 * up in every segment. Asks the daemon; reports errors. */
int kvr_cli_merged_rows(struct kvr_cli *cli, const struct kvr_model_info *model, uint32_t first,
	uint32_t end, uint32_t divisor, uint32_t *ret_rows);

#endif
