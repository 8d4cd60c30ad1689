/* SPDX-License-Identifier: Apache-2.0 */
/* witness_util.c: see witness_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/witness_util.h"

#include <string.h>

struct witness witness;

int witness_start(void **state)
{
	static const char *const arguments[] = {"-m", "64MiB", NULL};
	struct kvr_model *model;

	(void)state;
	harness_tokens(1, witness.ids, WITNESS_TOKENS);
	harness_start(&witness.daemon, arguments);
	witness.config = harness_model();
	witness.client = harness_connect(&witness.daemon, WITNESS_REGION);
	assert_int_equal(kvr_model_register(witness.client, &witness.config, &model), 0);
	assert_int_equal(kvr_open(model, witness.ids, 0, &witness.sequence, &(uint32_t){0}), 0);
	for (uint32_t at = 0; at < WITNESS_TOKENS; at += 200)
		assert_int_equal(harness_append(witness.client, witness.sequence, &witness.config,
					 witness.ids, at, 200, 0),
			0);
	/* From here on the daemon's counts change for others' sake alone. */
	assert_int_equal(kvr_sync(witness.sequence, false, NULL), 0);
	return 0;
}

int witness_stop(void **state)
{
	(void)state;
	kvr_disconnect(witness.client);
	harness_stop(&witness.daemon);
	return 0;
}

int witness_check(void **state)
{
	(void)state;
	harness_check_fetch(witness.client, witness.sequence, &witness.config, witness.ids, 0,
		WITNESS_TOKENS, 0);
	harness_assert_alive(&witness.daemon);
	return 0;
}

int witness_attach(void **state)
{
	struct kvr_request request = {.kind = KVR_REQUEST_MODEL_REGISTER};
	struct kvr_reply reply;

	(void)state;
	raw_attach(&witness.raw, &witness.daemon, WITNESS_REGION);
	memset(witness.raw.region.data, 0, 1 << 20);
	memcpy(request.model_register.name, "test", 5);
	memcpy(request.model_register.digest, witness.config.digest, 32);
	request.model_register.geometry = (struct kvr_geometry){
		.layer_count = 2,
		.query_heads = 4,
		.kv_heads = 2,
		.key_dim = 32,
		.value_dim = 24,
		.dtype = KVR_DTYPE_BF16,
		.segment_tokens = 128,
		.cluster_tokens = 8,
		.sink_tokens = UINT32_MAX,
	};
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
	witness.model_number = reply.model_registered.model;
	return 0;
}

int witness_detach(void **state)
{
	raw_detach(&witness.raw);
	return witness_check(state);
}

struct kvr_request witness_append(uint64_t sequence, struct kvr_wire_layer *layers)
{
	struct kvr_request request = {.kind = KVR_REQUEST_APPEND};

	layers[0] = (struct kvr_wire_layer){0, 0, 1024};
	layers[1] = (struct kvr_wire_layer){1, 2048, 3072};
	request.append.sequence = sequence;
	request.append.count = 8;
	request.append.tokens.ids = witness.ids;
	request.append.tokens.count = 8;
	request.append.layers = layers;
	request.append.layer_count = 2;
	return request;
}

uint64_t witness_open(void)
{
	struct kvr_request request = {.kind = KVR_REQUEST_OPEN};
	struct kvr_reply reply;

	request.open.model = witness.model_number;
	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
	return reply.opened.sequence;
}
