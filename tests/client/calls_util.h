/* SPDX-License-Identifier: Apache-2.0 */
/* calls_util.h: a client with a model and a sequence at a fake daemon, for calls.c and rows.c. */
#ifndef KVR_TESTS_CLIENT_CALLS_UTIL_H
#define KVR_TESTS_CLIENT_CALLS_UTIL_H

#include "tests/client/fake_util.h"

#define LAYERS   3u
#define HEADS    4u
#define KV_HEADS 2u
#define KEY_DIM  64u
#define VAL_DIM  32u

struct fixture {
	struct fake *fake;
	struct kvr_client *client;
	struct kvr_model *model;
	struct kvr_sequence *sequence;
	uint8_t *region;
	size_t region_bytes;
};

struct kvr_model_config calls_model_config(void);
int calls_setup(void **state);
int calls_teardown(void **state);

/* The library refused by itself: the errno, and a subject in kvr_error that has `word` in it. */
void calls_refused(struct fixture *f, int rc, int error, const char *word);

#endif
