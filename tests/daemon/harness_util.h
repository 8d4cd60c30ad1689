/* SPDX-License-Identifier: Apache-2.0 */
/* harness_util.h: a real daemon in a directory of its own, and keys and values that can be told apart.
 *
 * Every element of every tensor is a function of (token id, position, layer, kv head, K or V, dim), so
 * that any row the daemon hands out can be checked against what was appended, bit for bit. */
#ifndef KVR_TESTS_DAEMON_HARNESS_H
#define KVR_TESTS_DAEMON_HARNESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#include "client/kvrecall.h"

struct harness_daemon {
	pid_t pid;
	char dir[64];
	char socket[80];
	char store[80];          /* "": none */
	const char *store_bytes; /* its size */
};

/* Starts $(B)/kvrecalld with `arguments` (NULL-terminated, may be NULL) and waits until it serves. */
void harness_start(struct harness_daemon *daemon, const char *const *arguments);

/* The same with a store of 2 GiB beside it (scratch_util.h), which harness_restart uses again. All tests run so with
 * KVR_TEST_STORE in the environment. */
void harness_start_stored(struct harness_daemon *daemon, const char *const *arguments);
bool harness_stores(void); /* whether they do */

/* The same with a store of another size, like "64 MiB". */
void harness_start_sized(
	struct harness_daemon *daemon, const char *store_bytes, const char *const *arguments);

/* SIGTERM; asserts exit status 0; removes the directories. */
void harness_stop(struct harness_daemon *daemon);

/* SIGTERM (asserts exit status 0) or SIGKILL; the directories stay, for harness_restart. */
void harness_end(struct harness_daemon *daemon);
void harness_kill(struct harness_daemon *daemon);
void harness_restart(struct harness_daemon *daemon, const char *const *arguments);

/* As harness_restart, but does not wait until it serves. */
void harness_launch(struct harness_daemon *daemon, const char *const *arguments);

/* Runs a daemon that is expected to end by itself, beside `daemon`, on the store `store`. Returns its exit status; what it
 * wrote is in `ret_output`. */
int harness_run(
	const struct harness_daemon *daemon, const char *store, char *ret_output, size_t bytes);

/* Asserts that the daemon runs, and answers a new client. */
void harness_assert_alive(struct harness_daemon *daemon);

struct kvr_client *harness_connect(const struct harness_daemon *daemon, uint64_t region_bytes);

/* The path of a program built beside the tests. */
void harness_program(const char *name, char *ret_path, size_t bytes);

/* The number of open descriptors and of mappings of a process. */
void harness_resources(pid_t pid, uint32_t *ret_fds, uint32_t *ret_maps);

/* The value of a metric; fails the test if there is none. */
double harness_metric(struct kvr_client *client, const char *name);

/* ---- content --------------------------------------------------------------------------------- */

/* A small model: L 2, H 4, K 2, Dk 32, Dv 24, bf16, S 128, 8 tokens per cluster, 16 sinks. */
struct kvr_model_config harness_model(void);

size_t harness_row_bytes(const struct kvr_model_config *config, bool value);

/* Writes the key (or value) row of one token in one lane. */
void harness_row(const struct kvr_model_config *config, uint32_t token, uint32_t position,
	uint32_t layer, uint32_t head, bool value, void *ret_row);

/* Token ids: ids[i] depends on seed and i. */
void harness_tokens(uint32_t seed, uint32_t *ret_ids, uint32_t count);

/* Appends tokens first .. first + count - 1 of all layers, from region bytes `at` on. Returns what
 * kvr_append returned. */
int harness_append(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t first, uint32_t count,
	size_t at);

/* Fetches tokens first .. first + count - 1 of all layers and asserts that they are those of `ids`. */
void harness_check_fetch(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t first, uint32_t count,
	size_t at);

/* The same, but returns the error if the fetch fails. */
int harness_try_fetch(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t first, uint32_t count,
	size_t at);

/* Recalls one layer with random queries and asserts that every staged row is the row of its position.
 * `recall` gives the budget and flags; items, outputs and capacity are set here. Returns rows staged,
 * all heads together, or the error. */
int harness_check_recall(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t layer,
	struct kvr_recall recall, size_t at, uint32_t *ret_covered);

/* The same, but tokens that could not be read are counted instead of asserted not to be. */
int harness_recall(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t layer,
	struct kvr_recall recall, size_t at, uint32_t *ret_covered, uint32_t *ret_missing);

#endif
