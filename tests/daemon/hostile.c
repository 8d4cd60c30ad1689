/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: whatever numbers a recall has, it is answered, the daemon lives, and what a recall that was answered well has
 * written lies where it said; also while all of them are audited, and when the client goes away in the middle.
 * Method: a client without the library, and models drawn at random (dense lanes, merged sets, sinks), whose chains are cut
 * anywhere, into segments of one token, too. Recalls are drawn around such as are right; behind what each one may write
 * the region has a pattern that must stay. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "tests/daemon/process_util.h"
#include "tests/daemon/raw_util.h"

#define REGION       (1u << 20)
#define AT_OUT       (256u << 10) /* before it: what is appended, and queries */
#define AT_NOISE     (248u << 10) /* queries of any bytes: NaN, infinities */
#define PATTERN      0xa5
#define TOKENS_MAX   300u
#define CAPACITY_MAX 500u
#define MODELS       6u
#define RECALLS      150u /* of each */

static char path[] = "/tmp/kvrecall-test-conf-XXXXXX";
static struct harness_daemon daemon_process;
static struct raw raw;

/* A model and a sequence of it. */
struct world {
	struct kvr_geometry geometry;
	uint64_t sequence;
	uint32_t tokens;
	uint32_t covered[TOKENS_MAX]; /* where segments end */
	uint32_t segments;
};

static uint32_t one_of(uint32_t count)
{
	return process_random(0, count - 1);
}

static int start(void **state)
{
	static const char text[] = "telemetry: { audit_every = 1; };\n";
	const char *arguments[] = {"-c", path, "-m", "64MiB", NULL};
	const int fd = mkstemp(path);

	(void)state;
	process_seed_print();
	if (fd < 0 || write(fd, text, sizeof(text) - 1) != sizeof(text) - 1 || close(fd) < 0)
		return -1;
	harness_start_stored(&daemon_process, arguments);
	return 0;
}

static int stop(void **state)
{
	(void)state;
	harness_stop(&daemon_process);
	return unlink(path);
}

/* ---- models and sequences -------------------------------------------------------------------- */

static void register_model(struct world *world, uint32_t number, uint32_t *ret_model)
{
	struct kvr_request request = {.kind = KVR_REQUEST_MODEL_REGISTER};
	struct kvr_geometry *geometry = &request.model_register.geometry;
	struct kvr_reply reply;

	memcpy(request.model_register.name, "hostile", 8);
	memcpy(request.model_register.digest, &number, sizeof(number));
	*geometry = (struct kvr_geometry){
		.layer_count = process_random(1, 2),
		.kv_heads = process_random(1, 2),
		.key_dim = process_random(8, 24),
		.value_dim = process_random(8, 24),
		.dtype = process_random(KVR_DTYPE_F32, KVR_DTYPE_BF16),
		.segment_tokens = 64 * process_random(1, 2),
		.cluster_tokens = process_random(4, 20),
		.sink_tokens = one_of(2) ? 16 : process_random(0, 64),
		.merged = one_of(4) ? one_of(16) : 15,
	};
	geometry->query_heads = geometry->kv_heads * process_random(1, 3);
	for (uint32_t lane = 0; lane < kvr_geometry_lanes(geometry); lane++)
		geometry->dense[0] |= (uint64_t)(one_of(4) == 0) << lane;
	world->geometry = *geometry;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	*ret_model = reply.model_registered.model;
}

static void sync_tail(struct world *world)
{
	struct kvr_request request = {.kind = KVR_REQUEST_SYNC};
	struct kvr_reply reply;

	request.sync.sequence = world->sequence;
	request.sync.seal_tail = true;
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	if (reply.synced.sealed_tokens > 0)
		world->covered[world->segments++] = reply.synced.sealed_tokens;
}

/* Appends pieces, and cuts the chain behind some. Layers have the same tokens, but for the last piece. */
static void fill_sequence(struct world *world)
{
	const uint32_t pieces = one_of(6);
	uint32_t ids[TOKENS_MAX];

	for (uint32_t piece = 0; piece < pieces; piece++) {
		struct kvr_wire_layer layers[2] = {{0, 0, 4096}, {1, 8192, 512}};
		struct kvr_request request = {.kind = KVR_REQUEST_APPEND};
		struct kvr_reply reply;
		const uint32_t count = one_of(2) ? process_random(1, 3) : process_random(1, 60);

		harness_tokens(process_random(0, UINT32_MAX), ids, count);
		request.append.sequence = world->sequence;
		request.append.first = world->tokens;
		request.append.count = count;
		request.append.tokens.ids = ids;
		request.append.tokens.count = count;
		request.append.layers = layers;
		request.append.layer_count = world->geometry.layer_count;
		assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
		world->tokens += count;
		if (one_of(3))
			sync_tail(world);
	}
}

static void world_open(struct world *world, uint32_t number)
{
	struct kvr_request request = {.kind = KVR_REQUEST_OPEN};
	struct kvr_reply reply;
	uint16_t *halves = (uint16_t *)(void *)raw.region.data;

	*world = (struct world){0};
	for (uint32_t i = 0; i < AT_OUT / 2; i++) /* small numbers, whatever the type */
		halves[i] = (uint16_t)(0x3c00 + one_of(0x380)) | (uint16_t)(one_of(2) << 15);
	for (uint32_t i = AT_NOISE; i < AT_OUT; i++)
		raw.region.data[i] = (uint8_t)one_of(256);
	register_model(world, number, &request.open.model);
	assert_int_equal(raw_call(&raw, &request, &reply), KVR_CODE_OK);
	world->sequence = reply.opened.sequence;
	fill_sequence(world);
}

/* ---- recalls --------------------------------------------------------------------------------- */

/* A recall, and where what it writes begins and ends. */
struct drawn {
	struct kvr_request request;
	struct kvr_wire_recall_item item;
	struct kvr_wire_budget budgets[8];
	uint64_t end;
};

/* An offset for so many bytes behind the last one. */
static uint64_t place(struct drawn *drawn, uint64_t bytes)
{
	const uint64_t at = drawn->end;

	drawn->end = (at + bytes + 3) & ~(uint64_t)3;
	return at;
}

static uint32_t heads_of(const struct drawn *drawn, const struct kvr_geometry *geometry)
{
	const bool per_query = drawn->request.recall.rank == KVR_RANK_INNER_PRODUCT &&
			       drawn->request.recall.form != KVR_FORM_MERGED;

	return per_query ? geometry->query_heads : geometry->kv_heads;
}

static void lay_out(struct drawn *drawn, const struct kvr_geometry *geometry)
{
	struct kvr_wire_recall_item *item = &drawn->item;
	const uint64_t heads = heads_of(drawn, geometry);
	const uint64_t rows = heads * drawn->request.recall.row_capacity;

	drawn->end = AT_OUT;
	item->keys = place(drawn, rows * kvr_geometry_key_bytes(geometry));
	item->values = place(drawn, rows * kvr_geometry_value_bytes(geometry));
	item->weights =
		place(drawn, (drawn->request.recall.centroid_rows ? geometry->query_heads : heads) *
				     4ull * drawn->request.recall.row_capacity);
	item->positions = place(drawn, rows * 4);
	item->outputs = place(drawn, geometry->query_heads * geometry->value_dim * 4ull);
	item->lse = place(drawn, geometry->query_heads * 4ull);
	item->table = place(drawn, heads * sizeof(struct kvr_wire_rows));
	assert_true(drawn->end <= REGION);
	if (one_of(3) > 0)
		return;
	for (uint32_t i = 0; i < heads; i++)
		drawn->budgets[i] = (struct kvr_wire_budget){
			one_of(100), one_of(2) ? 0 : (float)one_of(101) / 100};
	item->budgets = (struct kvr_span){(uint8_t *)drawn->budgets, heads * 8};
}

/* A recall that is right, but perhaps for its rows. */
static void draw(struct drawn *drawn, const struct world *world)
{
	static const float scales[] = {0, 1, 0.1f, -1, 1e30f, 1e-30f, 100};
	struct kvr_request *request = &drawn->request;

	*drawn = (struct drawn){.request = {.kind = KVR_REQUEST_RECALL}};
	request->recall.items = &drawn->item;
	request->recall.item_count = 1;
	request->recall.rank = process_random(KVR_RANK_SHARE, KVR_RANK_INNER_PRODUCT);
	request->recall.query_dtype = process_random(KVR_DTYPE_F32, KVR_DTYPE_BF16);
	request->recall.scale = scales[one_of(7)];
	request->recall.budget_tokens = one_of(2) ? one_of(20) : one_of(400);
	request->recall.budget_mass = one_of(2) ? 0 : (float)one_of(101) / 100;
	request->recall.row_capacity = one_of(4) ? CAPACITY_MAX : one_of(CAPACITY_MAX);
	request->recall.form = process_random(KVR_FORM_CLUSTERS, KVR_FORM_MIXED);
	request->recall.merged_set = one_of(KVR_MERGED_SETS);
	request->recall.sinks = one_of(2);
	request->recall.tail = one_of(2);
	request->recall.want_weights = one_of(4) > 0;
	request->recall.want_positions = one_of(2);
	request->recall.background = one_of(2);
	if (request->recall.form == KVR_FORM_MIXED && one_of(2)) {
		request->recall.centroid_rows = one_of(2) ? one_of(9) : KVR_SEQUENCE_TOKENS_MAX;
		request->recall.want_weights = true;
	}
	drawn->item.sequence = world->sequence;
	drawn->item.layer = one_of(world->geometry.layer_count);
	drawn->item.query_offset = one_of(1024) + (one_of(4) ? 0 : AT_NOISE);
	if (request->recall.form == KVR_FORM_MERGED && world->segments > 0 && one_of(2))
		drawn->item.first = world->covered[one_of(world->segments)];
	lay_out(drawn, &world->geometry);
}

/* Makes one number of it wrong, or at least odd. Returns whether what it says of places still holds. */
static bool spoil(struct drawn *drawn)
{
	uint64_t *const offsets[] = {&drawn->item.keys, &drawn->item.values, &drawn->item.weights,
		&drawn->item.positions, &drawn->item.outputs, &drawn->item.lse, &drawn->item.table,
		&drawn->item.query_offset};
	const uint64_t values[] = {UINT64_MAX - one_of(64), REGION - one_of(4096), REGION,
		(uint64_t)1 << one_of(64), AT_OUT + one_of(4096)};
	const uint32_t kind = one_of(14);

	switch (kind) {
	case 0: drawn->item.first = one_of(TOKENS_MAX); return true;
	case 1: drawn->item.first = UINT32_MAX - one_of(2); return true;
	case 2: drawn->item.layer = one_of(4); return true;
	case 3: drawn->request.recall.row_capacity = UINT32_MAX - one_of(9); return true;
	case 4: drawn->item.sequence ^= (uint64_t)1 << one_of(64); return true;
	case 5:
		drawn->item.budgets =
			(struct kvr_span){(uint8_t *)drawn->budgets, 8 * process_random(1, 8)};
		return true;
	default: *offsets[kind - 6] = values[one_of(5)]; return false;
	}
}

/* Counts keep to what was asked for, and an estimate is one of numbers, whatever the query. */
static void check_reply(const struct drawn *drawn, const struct kvr_geometry *geometry)
{
	const bool folded = drawn->request.recall.form == KVR_FORM_MIXED &&
			    drawn->request.recall.centroid_rows == 0;
	const uint32_t heads = heads_of(drawn, geometry);

	for (uint32_t head = 0; head < heads; head++) {
		struct kvr_wire_rows rows;

		memcpy(&rows, raw.region.data + drawn->item.table + head * sizeof(rows),
			sizeof(rows));
		assert_true(rows.row_count <= drawn->request.recall.row_capacity);
		assert_true(rows.centroid_count <= rows.row_count);
		assert_true(rows.centroid_count <= drawn->request.recall.centroid_rows);
		assert_int_equal(rows.token_missing, 0);
		assert_true(rows.mass >= 0 && rows.mass <= 1);
	}
	for (uint32_t head = 0; folded && head < geometry->query_heads; head++) {
		float lse, out;

		memcpy(&lse, raw.region.data + drawn->item.lse + head * sizeof(lse), sizeof(lse));
		assert_true(lse < INFINITY); /* neither that nor NaN */
		for (uint32_t i = 0; i < geometry->value_dim; i++) {
			memcpy(&out,
				raw.region.data + drawn->item.outputs +
					(head * geometry->value_dim + i) * sizeof(out),
				sizeof(out));
			assert_true(isfinite(out));
		}
	}
}

/* Recalls; returns the code. */
static uint32_t recall(const struct world *world)
{
	struct drawn drawn;
	struct kvr_reply reply;
	bool placed = true;
	uint32_t code;

	draw(&drawn, world);
	if (one_of(3) == 0)
		placed = spoil(&drawn);
	memset(raw.region.data + AT_OUT, PATTERN, REGION - AT_OUT);
	code = raw_call(&raw, &drawn.request, &reply);
	if (code == KVR_CODE_OK && placed)
		check_reply(&drawn, &world->geometry);
	for (uint64_t at = placed ? drawn.end : REGION; at < REGION; at++)
		assert_int_equal(raw.region.data[at], PATTERN);
	return code;
}

static void test_numbers(void **state)
{
	uint32_t answered = 0, refused = 0;

	(void)state;
	for (uint32_t number = 0; number < MODELS; number++) {
		struct world world;

		raw_attach(&raw, &daemon_process, REGION);
		world_open(&world, number);
		for (uint32_t i = 0; i < RECALLS; i++) {
			if (recall(&world) == KVR_CODE_OK)
				answered++;
			else
				refused++;
		}
		raw_detach(&raw); /* in the middle of an audit */
	}
	harness_assert_alive(&daemon_process);
	assert_true(answered > 0);
	assert_true(refused > 0);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_numbers),
	};

	return cmocka_run_group_tests_name("daemon hostile", tests, start, stop);
}
