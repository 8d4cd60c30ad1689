/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a client that keeps to its credits gets exactly one reply to each request, whatever others do;
 * one that does not is refused beyond them, and harms nobody.
 * Method: client processes without the library, which would send again what got lost, keep as many
 * requests outstanding as they may (64, and of large replies what the library allows itself) and tick
 * off every reply. Pings, appends of one token each and stats; the daemon's count of tokens tells
 * whether an append was carried out twice. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/call.h"
#include "tests/daemon/process_util.h"
#include "tests/daemon/raw_util.h"

#define PROCESSES    4u
#define ALL_REQUESTS (200000u / PROCESS_SLOW)
#define REQUESTS     (ALL_REQUESTS / PROCESSES) /* of one process */
#define REGION       (2u << 20)
#define REPLY_MS     30000
#define STATS_AT_ONE (KVR_CLIENT_REPLY_BYTES / KVR_REPLY_BYTES_MAX)

static struct harness_daemon daemon_process;

/* ---- the part of a client -------------------------------------------------------------------- */

struct load {
	struct raw raw;
	struct kvr_wire_layer layer;
	uint32_t id; /* of the token to append */
	uint64_t sequence;
	uint32_t model, out, stats_out, appended;
	uint8_t *seen; /* by request id */
	enum kvr_request_kind *kinds;
};

static uint32_t register_tiny(struct raw *raw)
{
	struct kvr_request request = {.kind = KVR_REQUEST_MODEL_REGISTER};
	struct kvr_reply reply;

	memcpy(request.model_register.name, "tiny", 5);
	request.model_register.geometry = (struct kvr_geometry){
		.layer_count = 1,
		.query_heads = 1,
		.kv_heads = 1,
		.key_dim = 8,
		.value_dim = 8,
		.dtype = KVR_DTYPE_F16,
		.segment_tokens = 64,
		.cluster_tokens = 16,
	};
	assert_int_equal(raw_call(raw, &request, &reply), KVR_CODE_OK);
	return reply.model_registered.model;
}

static void open_tiny(struct load *load)
{
	struct kvr_request request = {.kind = KVR_REQUEST_OPEN};
	struct kvr_reply reply;

	request.open.model = load->model;
	assert_int_equal(raw_call(&load->raw, &request, &reply), KVR_CODE_OK);
	load->sequence = reply.opened.sequence;
}

static void send_one(struct load *load)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	const uint32_t dice = process_random(0, 9);

	if (dice < 4) {
		request.kind = KVR_REQUEST_APPEND;
		request.append.sequence = load->sequence;
		request.append.first = load->appended++;
		request.append.count = 1;
		request.append.tokens = (struct kvr_tokens){&load->id, 1, 0};
		request.append.layers = &load->layer;
		request.append.layer_count = 1;
		load->id = request.append.first;
	} else if (dice == 4 && load->stats_out < STATS_AT_ONE) {
		request.kind = KVR_REQUEST_STATS;
		load->stats_out++;
	}
	raw_send(&load->raw, raw_pack(&load->raw, &request));
	load->kinds[request.id] = request.kind;
	load->out++;
}

/* Takes one reply. Returns whether there was one within `timeout_ms`. */
static bool take_one(struct load *load, int timeout_ms)
{
	static uint8_t bytes[KVR_REPLY_BYTES_MAX];
	static struct kvr_reply reply;
	struct kvr_span into = {bytes, sizeof(bytes)};
	uint64_t id;

	into.bytes = raw_receive(&load->raw, into, timeout_ms);
	if (into.bytes == 0)
		return false;
	id = kvr_reply_id(into);
	assert_true(id >= 1 && id <= load->raw.id);
	if (load->seen[id]++)
		fail_msg("two replies to request %llu", (unsigned long long)id);
	assert_int_equal(kvr_reply_unpack(into, load->kinds[id], load->raw.arena, &reply), 0);
	if (reply.code)
		fail_msg("request %llu: code %u, %s", (unsigned long long)id, reply.code,
			reply.subject);
	load->stats_out -= load->kinds[id] == KVR_REQUEST_STATS;
	load->out--;
	return true;
}

static int play_load(const char *socket, uint32_t number)
{
	static struct load load;
	struct harness_daemon daemon = {0};
	struct kvr_request request = {.kind = KVR_REQUEST_SYNC};
	struct kvr_reply reply;

	(void)number;
	snprintf(daemon.socket, sizeof(daemon.socket), "%s", socket);
	raw_attach(&load.raw, &daemon, REGION);
	memset(load.raw.region.data, 0, 4096);
	load.layer = (struct kvr_wire_layer){0, 0, 1024};
	load.model = register_tiny(&load.raw);
	open_tiny(&load);
	load.seen = calloc(REQUESTS + 1000, sizeof(*load.seen));
	load.kinds = calloc(REQUESTS + 1000, sizeof(*load.kinds));
	assert_true(load.seen && load.kinds);
	for (uint32_t sent = 0; sent < REQUESTS || load.out;) {
		while (load.out < load.raw.welcome.credits && sent < REQUESTS) {
			send_one(&load);
			sent++;
		}
		if (!take_one(&load, REPLY_MS))
			fail_msg("%u requests without a reply", load.out);
	}
	assert_false(take_one(&load, 200)); /* nothing comes twice */
	request.sync.sequence = load.sequence;
	assert_int_equal(raw_call(&load.raw, &request, &reply), KVR_CODE_OK);
	assert_int_equal(reply.synced.sealed_tokens, load.appended / 64 * 64);
	free(load.seen);
	free(load.kinds);
	raw_detach(&load.raw);
	return 0;
}

static const struct process_part parts[] = {{"load", play_load}, {NULL, NULL}};

/* ---- tests ----------------------------------------------------------------------------------- */

static int start(void **state)
{
	static const char *const arguments[] = {"-m", "128MiB", NULL};

	(void)state;
	harness_start(&daemon_process, arguments);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	harness_stop(&daemon_process);
	return 0;
}

static void test_full_credit(void **state)
{
	const uint32_t all = ALL_REQUESTS;
	pid_t pids[PROCESSES];
	struct kvr_client *client;

	(void)state;
	for (uint32_t i = 0; i < PROCESSES; i++)
		pids[i] = process_start("load", daemon_process.socket, i);
	for (uint32_t i = 0; i < PROCESSES; i++)
		assert_int_equal(process_wait(pids[i], 100000), 0);
	client = harness_connect(&daemon_process, REGION);
	assert_true(harness_metric(client, "daemon.requests_count") >= (double)all);
	assert_true(harness_metric(client, "daemon.resent_count") == 0);
	assert_true(harness_metric(client, "daemon.refusals_count") == 0);
	kvr_disconnect(client);
}

#define SLOW_TOKENS 4096u
#define SYNCS       200u

/* A sequence that takes long to seal: requests that wait for it use up credits. */
static struct kvr_sequence *open_slow(struct kvr_client *client, struct kvr_model_config *config)
{
	static uint32_t ids[SLOW_TOKENS];
	struct kvr_sequence *sequence;
	struct kvr_model *model;

	*config = harness_model();
	config->digest[0] = 77;
	config->layers = 4;
	config->segment_tokens = 8192;
	config->cluster_tokens = 4;
	harness_tokens(3, ids, SLOW_TOKENS);
	assert_int_equal(kvr_model_register(client, config, &model), 0);
	assert_int_equal(kvr_open(model, ids, 0, &sequence, &(uint32_t){0}), 0);
	assert_int_equal(harness_append(client, sequence, config, ids, 0, SLOW_TOKENS, 0), 0);
	return sequence;
}

static void test_more_than_credits(void **state)
{
	static struct raw raw;
	static uint8_t seen[SYNCS + 100], bytes[KVR_REPLY_BYTES_MAX];
	struct kvr_client *other = harness_connect(&daemon_process, 16u << 20);
	struct kvr_model_config config;
	struct kvr_sequence *slow = open_slow(other, &config);
	struct kvr_request request = {.kind = KVR_REQUEST_OPEN};
	uint32_t done = 0, refused = 0, ids[8];
	struct kvr_wire_layer layers[4];
	struct kvr_reply reply;
	uint64_t sequence, first;

	(void)state;
	raw_attach(&raw, &daemon_process, 16u << 20);
	memset(raw.region.data, 0, raw.region.bytes);
	request.kind = KVR_REQUEST_MODEL_LIST;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	request = (struct kvr_request){.kind = KVR_REQUEST_OPEN};
	for (uint32_t i = 0; i < reply.models.count; i++) {
		if (reply.models.entries[i].geometry.layer_count == 4)
			request.open.model = reply.models.entries[i].model;
	}
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	sequence = reply.opened.sequence;
	request = (struct kvr_request){.kind = KVR_REQUEST_APPEND};
	request.append.sequence = sequence;
	request.append.count = SLOW_TOKENS;
	request.append.tokens = (struct kvr_tokens){NULL, SLOW_TOKENS, 0};
	request.append.layers = layers;
	request.append.layer_count = 4;
	for (uint32_t i = 0; i < 4; i++)
		layers[i] = (struct kvr_wire_layer){i, 0, 0};
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	first = raw.id + 1;
	for (uint32_t i = 0; i < SYNCS; i++) {
		request = (struct kvr_request){.kind = KVR_REQUEST_SYNC};
		request.sync.sequence = sequence;
		request.sync.seal_tail = true;
		raw_send(&raw, raw_pack(&raw, &request));
	}
	for (uint32_t i = 0; i < SYNCS; i++) {
		struct kvr_span into = {bytes, sizeof(bytes)};

		into.bytes = raw_receive(&raw, into, REPLY_MS);
		assert_true(into.bytes > 0);
		assert_int_equal(kvr_reply_unpack(into, KVR_REQUEST_SYNC, raw.arena, &reply), 0);
		assert_true(reply.id >= first && reply.id < first + SYNCS);
		assert_int_equal(seen[reply.id - first]++, 0);
		done += reply.code == KVR_CODE_OK;
		refused += reply.code == KVR_CODE_CREDIT;
	}
	assert_int_equal(done + refused, SYNCS);
	assert_true(done >= raw.welcome.credits);
	assert_true(refused >= 1);
	assert_int_equal(raw_receive(&raw, (struct kvr_span){bytes, sizeof(bytes)}, 100), 0);
	request = (struct kvr_request){.kind = KVR_REQUEST_PING};
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	harness_tokens(3, ids, 8);
	harness_check_fetch(other, slow, &config, ids, 0, 8, 0);
	kvr_disconnect(other);
	raw_detach(&raw);
}

int main(int argc, char **argv)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_full_credit),
		cmocka_unit_test(test_more_than_credits),
	};

	process_part(argc, argv, parts);
	process_seed_print();
	return cmocka_run_group_tests_name("daemon credits", tests, start, stop);
}
