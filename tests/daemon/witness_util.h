/* SPDX-License-Identifier: Apache-2.0 */
/* witness_util.h: a daemon, a good client whose bytes must stay what they are, and beside it a client
 * without the library that sends what it likes. */
#ifndef KVR_TESTS_DAEMON_WITNESS_H
#define KVR_TESTS_DAEMON_WITNESS_H

#include "tests/daemon/raw_util.h"

#define WITNESS_REGION (4u << 20)
#define WITNESS_TOKENS 600u

struct witness {
	struct harness_daemon daemon;
	struct kvr_client *client;
	struct kvr_sequence *sequence;
	struct kvr_model_config config;
	uint32_t ids[WITNESS_TOKENS];
	struct raw raw;        /* the other client; attached by witness_attach */
	uint32_t model_number; /* the witness's model, as raw knows it */
};

extern struct witness witness;

/* Fixtures of a group: start the daemon and the good client; end them. */
int witness_start(void **state);
int witness_stop(void **state);

/* Fixtures of a test. Attach: the raw client, with the witness's model registered. Check: the daemon
 * lives and the good client's bytes are what they were. Detach: both. */
int witness_attach(void **state);
int witness_check(void **state);
int witness_detach(void **state);

/* A request that is right: an append of 8 tokens to a new sequence of the witness's model. */
struct kvr_request witness_append(uint64_t sequence, struct kvr_wire_layer *layers);

/* Opens an empty sequence through the raw client. */
uint64_t witness_open(void);

#endif
