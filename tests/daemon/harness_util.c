/* SPDX-License-Identifier: Apache-2.0 */
/* harness_util.c: see harness_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/harness_util.h"

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon/process_util.h"
#include "tests/daemon/scratch_util.h"

#define ARGUMENTS_MAX 16
#define START_TRIES   1000 /* x 10 ms: sanitizers on a loaded machine are slow */
#define STOP_TRIES    6000 /* likewise */

void harness_program(const char *name, char *ret_path, size_t bytes)
{
	char self[512];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);
	char *end;

	assert_true(length > 0);
	self[length] = 0;
	for (int up = 0; up < 3; up++) { /* $(B)/tests/daemon/x */
		end = strrchr(self, '/');
		assert_non_null(end);
		*end = 0;
	}
	snprintf(ret_path, bytes, "%s/%s", self, name);
}

static bool answers(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	bool connected;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	connected = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
	close(fd);
	return connected;
}

void harness_launch(struct harness_daemon *daemon, const char *const *arguments)
{
	char program[600];
	const char *argv[ARGUMENTS_MAX] = {"kvrecalld", "-r", daemon->dir, "-l", "warning"};
	int count = 5;

	if (daemon->store[0]) {
		argv[count++] = "--store";
		argv[count++] = daemon->store;
		argv[count++] = "--store-bytes";
		argv[count++] = daemon->store_bytes;
	}
	harness_program("kvrecalld", program, sizeof(program));
	for (; arguments && *arguments; arguments++) {
		assert_true(count < ARGUMENTS_MAX - 1);
		argv[count++] = *arguments;
	}
	daemon->pid = fork();
	assert_true(daemon->pid >= 0);
	if (daemon->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that dies leaves nothing behind */
		execv(program, (char *const *)argv);
		perror(program);
		_exit(127);
	}
}

void harness_restart(struct harness_daemon *daemon, const char *const *arguments)
{
	harness_launch(daemon, arguments);
	for (int i = 0; i < START_TRIES; i++) {
		int status;

		if (answers(daemon->socket))
			return;
		if (waitpid(daemon->pid, &status, WNOHANG) == daemon->pid)
			fail_msg("the daemon ended at start with status %d", status);
		usleep(10000);
	}
	fail_msg("the daemon does not answer on %s", daemon->socket);
}

static void start(
	struct harness_daemon *daemon, const char *store_bytes, const char *const *arguments)
{
	snprintf(daemon->dir, sizeof(daemon->dir), "/tmp/kvrecall-test-XXXXXX");
	assert_non_null(mkdtemp(daemon->dir));
	snprintf(daemon->socket, sizeof(daemon->socket), "%s/attach.sock", daemon->dir);
	daemon->store[0] = '\0';
	daemon->store_bytes = store_bytes;
	if (store_bytes)
		scratch_make(daemon->store, sizeof(daemon->store));
	harness_restart(daemon, arguments);
}

bool harness_stores(void)
{
	return getenv("KVR_TEST_STORE") != NULL;
}

void harness_start(struct harness_daemon *daemon, const char *const *arguments)
{
	start(daemon, harness_stores() ? "2 GiB" : NULL, arguments);
}

void harness_start_stored(struct harness_daemon *daemon, const char *const *arguments)
{
	start(daemon, "2 GiB", arguments);
}

void harness_start_sized(
	struct harness_daemon *daemon, const char *store_bytes, const char *const *arguments)
{
	start(daemon, store_bytes, arguments);
}

void harness_kill(struct harness_daemon *daemon)
{
	int status;

	assert_int_equal(kill(daemon->pid, SIGKILL), 0);
	assert_int_equal(waitpid(daemon->pid, &status, 0), daemon->pid);
}

/* Its exit status, after SIGTERM. */
static int end(struct harness_daemon *daemon)
{
	int status = -1;

	assert_int_equal(kill(daemon->pid, SIGTERM), 0);
	for (int i = 0; waitpid(daemon->pid, &status, WNOHANG) == 0; i++) {
		if (i == STOP_TRIES) {
			harness_kill(daemon);
			fail_msg("the daemon does not end after SIGTERM");
		}
		usleep(10000);
	}
	return status;
}

static void assert_ended(int status)
{
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 0)
		fail_msg("the daemon ended with status %#x", status);
}

void harness_end(struct harness_daemon *daemon)
{
	assert_ended(end(daemon));
}

void harness_stop(struct harness_daemon *daemon)
{
	const int status = end(daemon);

	scratch_remove_tree(daemon->dir);
	if (daemon->store[0])
		scratch_remove(daemon->store);
	assert_ended(status);
}

int harness_run(
	const struct harness_daemon *daemon, const char *store, char *ret_output, size_t bytes)
{
	char dir[80];
	const char *const arguments[] = {"-r", dir, "-l", "warning", "--store", store,
		"--store-bytes", daemon->store_bytes, NULL};
	int status;

	snprintf(dir, sizeof(dir), "%s-run", daemon->dir);
	status = process_run("kvrecalld", arguments, ret_output, bytes);
	scratch_remove_tree(dir);
	return status;
}

struct kvr_client *harness_connect(const struct harness_daemon *daemon, uint64_t region_bytes)
{
	const struct kvr_client_config config = {
		.attach_path = daemon->socket,
		.region_bytes = region_bytes,
		.timeout_ms = 60000,
		.name = "test",
	};
	struct kvr_client *client = NULL;
	int rc = kvr_connect(&config, &client);

	if (rc != 0)
		fail_msg("kvr_connect: %s", strerror(-rc));
	return client;
}

void harness_assert_alive(struct harness_daemon *daemon)
{
	struct kvr_client *client;
	int status;

	if (waitpid(daemon->pid, &status, WNOHANG) != 0)
		fail_msg("the daemon is gone, status %#x", status);
	client = harness_connect(daemon, 1 << 20);
	assert_int_equal(kvr_ping(client), 0);
	kvr_disconnect(client);
}

void harness_resources(pid_t pid, uint32_t *ret_fds, uint32_t *ret_maps)
{
	char path[64];
	DIR *list;
	FILE *maps;
	int byte;

	snprintf(path, sizeof(path), "/proc/%d/fd", (int)pid);
	list = opendir(path);
	assert_non_null(list);
	*ret_fds = 0;
	while (readdir(list))
		++*ret_fds;
	closedir(list);
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)pid);
	maps = fopen(path, "r");
	assert_non_null(maps);
	*ret_maps = 0;
	while ((byte = fgetc(maps)) != EOF)
		*ret_maps += byte == '\n';
	fclose(maps);
}

double harness_metric(struct kvr_client *client, const char *name)
{
	static struct kvr_metric metrics[128];
	int count = kvr_stats(client, 0, metrics, 128);

	assert_true(count > 0);
	for (int i = 0; i < count; i++) {
		if (strcmp(metrics[i].name, name) == 0)
			return metrics[i].value;
	}
	fail_msg("no metric %s", name);
	return 0;
}

/* ---- content --------------------------------------------------------------------------------- */

struct kvr_model_config harness_model(void)
{
	return (struct kvr_model_config){
		.name = "test",
		.digest = {1, 2, 3},
		.layers = 2,
		.query_heads = 4,
		.kv_heads = 2,
		.key_dim = 32,
		.value_dim = 24,
		.type = KVR_BF16,
		.segment_tokens = 128,
		.cluster_tokens = 8,
		.sink_tokens = -1,
	};
}

size_t harness_row_bytes(const struct kvr_model_config *config, bool value)
{
	return (value ? config->value_dim : config->key_dim) * (config->type == KVR_F32 ? 4u : 2u);
}

static uint64_t mix(uint64_t x)
{
	x ^= x >> 30;
	x *= 0xbf58476d1ce4e5b9u;
	x ^= x >> 27;
	x *= 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

/* Bits of a finite number of moderate size in any of the types. */
static uint32_t element(enum kvr_type type, uint64_t random)
{
	switch (type) {
	case KVR_F32:
		return (uint32_t)(0x3f000000u + (random & 0x00ffffffu)) |
		       (uint32_t)(random >> 63 << 31);
	case KVR_F16:
		return (uint32_t)(0x3800u + (random & 0x07ffu)) | (uint32_t)(random >> 63 << 15);
	case KVR_BF16:
		return (uint32_t)(0x3f00u + (random & 0x00ffu)) | (uint32_t)(random >> 63 << 15);
	}
	return 0;
}

void harness_row(const struct kvr_model_config *config, uint32_t token, uint32_t position,
	uint32_t layer, uint32_t head, bool value, void *ret_row)
{
	const uint32_t dim = value ? config->value_dim : config->key_dim;
	const uint64_t lane = (layer * 1000ull + head) * 2 + value;
	uint8_t *row = ret_row;

	for (uint32_t d = 0; d < dim; d++) {
		const uint32_t bits = element(config->type,
			mix(mix((uint64_t)token << 32 | position) ^ mix(lane << 16 | d)));

		memcpy(row, &bits, config->type == KVR_F32 ? 4 : 2);
		row += config->type == KVR_F32 ? 4 : 2;
	}
}

void harness_tokens(uint32_t seed, uint32_t *ret_ids, uint32_t count)
{
	for (uint32_t i = 0; i < count; i++)
		ret_ids[i] = (uint32_t)mix((uint64_t)seed << 32 | i) % 50000;
}

static uint8_t *part(struct kvr_client *client, size_t at)
{
	size_t bytes;
	uint8_t *region = kvr_region(client, &bytes);

	assert_true(at <= bytes);
	return region + at;
}

int harness_append(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t first, uint32_t count,
	size_t at)
{
	const size_t key_bytes = harness_row_bytes(config, false);
	const size_t value_bytes = harness_row_bytes(config, true);
	struct kvr_append_layer layers[256];
	uint8_t *memory = part(client, at);
	struct kvr_append append = {.sequence = sequence,
		.first = first,
		.count = count,
		.tokens = ids + first,
		.layers = layers,
		.layer_count = config->layers};

	for (uint32_t layer = 0; layer < config->layers; layer++) {
		uint8_t *keys = memory, *values = keys + count * config->kv_heads * key_bytes;

		layers[layer] = (struct kvr_append_layer){layer, keys, values};
		for (uint32_t i = 0; i < count * config->kv_heads; i++) {
			const uint32_t position = first + i / config->kv_heads;
			const uint32_t head = i % config->kv_heads;

			harness_row(config, ids[position], position, layer, head, false,
				keys + i * key_bytes);
			harness_row(config, ids[position], position, layer, head, true,
				values + i * value_bytes);
		}
		memory = values + count * config->kv_heads * value_bytes;
	}
	return kvr_append(client, &append, NULL);
}

static void assert_row(const struct kvr_model_config *config, const uint32_t *ids,
	uint32_t position, uint32_t layer, uint32_t head, bool value, const uint8_t *row)
{
	uint8_t expected[576 * 4];

	harness_row(config, ids[position], position, layer, head, value, expected);
	if (memcmp(row, expected, harness_row_bytes(config, value)) != 0)
		fail_msg("wrong %s: position %u, layer %u, head %u", value ? "value" : "key",
			position, layer, head);
}

int harness_try_fetch(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t first, uint32_t count,
	size_t at)
{
	const size_t key_bytes = harness_row_bytes(config, false);
	const size_t value_bytes = harness_row_bytes(config, true);
	struct kvr_fetch_layer layers[256];
	uint8_t *memory = part(client, at);
	const struct kvr_fetch fetch = {sequence, first, count, layers, config->layers};
	int rc;

	for (uint32_t layer = 0; layer < config->layers; layer++) {
		layers[layer].layer = layer;
		layers[layer].keys = memory;
		memory += count * config->kv_heads * key_bytes;
		layers[layer].values = memory;
		memory += count * config->kv_heads * value_bytes;
	}
	memset(part(client, at), 0xaa, (size_t)(memory - part(client, at)));
	rc = kvr_fetch(client, &fetch);
	if (rc != 0)
		return rc;
	for (uint32_t layer = 0; layer < config->layers; layer++) {
		for (uint32_t i = 0; i < count * config->kv_heads; i++) {
			const uint32_t position = first + i / config->kv_heads;
			const uint32_t head = i % config->kv_heads;

			assert_row(config, ids, position, layer, head, false,
				(const uint8_t *)layers[layer].keys + i * key_bytes);
			assert_row(config, ids, position, layer, head, true,
				(const uint8_t *)layers[layer].values + i * value_bytes);
		}
	}
	return 0;
}

void harness_check_fetch(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t first, uint32_t count,
	size_t at)
{
	int rc = harness_try_fetch(client, sequence, config, ids, first, count, at);

	if (rc != 0)
		fail_msg("kvr_fetch: %s: %s", strerror(-rc), kvr_error(client)->subject);
}

int harness_recall(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t layer,
	struct kvr_recall recall, size_t at, uint32_t *ret_covered, uint32_t *ret_missing)
{
	const uint32_t heads =
		recall.rank == KVR_BY_INNER_PRODUCT ? config->query_heads : config->kv_heads;
	const uint32_t per_kv = heads / config->kv_heads;
	const size_t key_bytes = harness_row_bytes(config, false);
	const size_t value_bytes = harness_row_bytes(config, true);
	const size_t rows = (size_t)heads * recall.row_capacity;
	float query[256 * 64];
	struct kvr_recall_item item = {.sequence = sequence, .layer = layer, .query = query};
	uint8_t *memory = part(client, at);
	int staged = 0, rc;

	for (uint32_t i = 0; i < config->query_heads * config->key_dim; i++)
		query[i] = (float)(mix(layer * 7777u + i) % 2001) / 1000.0f - 1.0f;
	item.positions = (int32_t *)(void *)memory;
	item.weights = (float *)(void *)(item.positions + rows);
	item.rows = (struct kvr_rows *)(void *)(item.weights + rows);
	item.keys = item.rows + heads;
	item.values = (uint8_t *)item.keys + rows * key_bytes;
	recall.items = &item;
	recall.item_count = 1;
	recall.query_type = KVR_F32;
	rc = kvr_recall(client, &recall);
	if (rc < 0)
		return rc;
	*ret_missing = 0;
	for (uint32_t head = 0; head < heads; head++) {
		uint8_t seen[1 << 17] = {0};

		assert_true(item.rows[head].row_count <= recall.row_capacity);
		*ret_missing += item.rows[head].missing_tokens;
		for (uint32_t r = 0; r < item.rows[head].row_count; r++) {
			const size_t row = (size_t)head * recall.row_capacity + r;
			const uint32_t position = (uint32_t)item.positions[row];

			assert_true(position < item.token_count);
			assert_true(seen[position] == 0);
			seen[position] = 1;
			assert_true(item.weights[row] == 0.0f);
			assert_row(config, ids, position, layer, head / per_kv, false,
				(const uint8_t *)item.keys + row * key_bytes);
			assert_row(config, ids, position, layer, head / per_kv, true,
				(const uint8_t *)item.values + row * value_bytes);
		}
		staged += (int)item.rows[head].row_count;
	}
	if (ret_covered)
		*ret_covered = item.covered_tokens;
	return staged;
}

int harness_check_recall(struct kvr_client *client, struct kvr_sequence *sequence,
	const struct kvr_model_config *config, const uint32_t *ids, uint32_t layer,
	struct kvr_recall recall, size_t at, uint32_t *ret_covered)
{
	uint32_t missing = 0;
	const int rc = harness_recall(
		client, sequence, config, ids, layer, recall, at, ret_covered, &missing);

	assert_int_equal(missing, 0);
	return rc;
}
