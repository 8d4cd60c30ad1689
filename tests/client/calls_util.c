/* SPDX-License-Identifier: Apache-2.0 */
/* calls_util.c: the fixture of calls.c and rows.c. */
#include "tests/client/calls_util.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

struct kvr_model_config calls_model_config(void)
{
	return (struct kvr_model_config){.name = "test",
		.digest = {1, 2, 3},
		.layers = LAYERS,
		.query_heads = HEADS,
		.kv_heads = KV_HEADS,
		.key_dim = KEY_DIM,
		.value_dim = VAL_DIM,
		.type = KVR_BF16,
		.sink_tokens = -1,
		.rank = 5};
}

int calls_setup(void **state)
{
	struct fixture *f = calloc(1, sizeof(*f));
	struct kvr_client_config config = {.region_bytes = 8u << 20, .timeout_ms = 3000};
	struct kvr_model_config model = calls_model_config();
	uint32_t matched;

	f->fake = fake_open();
	config.attach_path = fake_path(f->fake);
	config.name = "calls\ntest";
	assert_int_equal(kvr_connect(&config, &f->client), 0);
	f->region = kvr_region(f->client, &f->region_bytes);
	assert_int_equal(kvr_model_register(f->client, &model, &f->model), 0);
	assert_int_equal(kvr_open(f->model, NULL, 0, &f->sequence, &matched), 0);
	*state = f;
	return 0;
}

int calls_teardown(void **state)
{
	struct fixture *f = *state;

	assert_null(kvr_disconnect(f->client));
	fake_close(f->fake);
	free(f);
	return 0;
}

void calls_refused(struct fixture *f, int rc, int error, const char *word)
{
	const struct kvr_error *why = kvr_error(f->client);

	assert_int_equal(rc, -error);
	assert_int_equal(why->error, error);
	assert_int_equal(why->code, 0);
	assert_string_equal(why->name, "LIBRARY");
	if (!strstr(why->subject, word))
		fail_msg("\"%s\" does not name %s", why->subject, word);
	assert_true(strlen(why->remedy) > 0);
}
