/* SPDX-License-Identifier: Apache-2.0 */
/* damage_util.h: a store that was filled once, to be damaged while no daemon runs and put back; and a look at
 * everything that a daemon then serves, which must be right, or said to be missing. */
#ifndef KVR_TESTS_DAEMON_DAMAGE_H
#define KVR_TESTS_DAEMON_DAMAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "tests/daemon/harness_util.h"

#define DAMAGE_SEQUENCES  10u
#define DAMAGE_TOKENS     500u
#define DAMAGE_SLABS      64u
#define DAMAGE_REGION     (4u << 20)
#define DAMAGE_TEXT_BYTES 4096u

struct damage_world {
	struct harness_daemon daemon;
	struct kvr_model_config config;
	struct kvr_client *client;
	struct kvr_model *model;
	char whole[128]; /* a copy of the store as it was filled */
	uint32_t ids[DAMAGE_SEQUENCES][DAMAGE_TOKENS];
	bool damaged[DAMAGE_SEQUENCES]; /* may be */
	char text[DAMAGE_TEXT_BYTES];   /* what the last daemon wrote */
	uint32_t said;                  /* how often something was missing */
};

struct damage_slab {
	uint64_t offset;
	uint32_t bytes; /* in use */
	uint32_t sequence;
};

extern struct damage_world damage_world;
extern const char *const damage_arguments[];
extern struct damage_slab damage_slabs[DAMAGE_SLABS];
extern uint32_t damage_slab_count;

/* Fixtures of a group: fills the store, with no daemon running afterwards; removes it. Of a test: all is as it was. */
int damage_fill(void **state);
int damage_empty(void **state);
int damage_prepare(void **state);

/* Starts a daemon on the store. Returns 0 when it serves, or its exit status; its output is in damage_world.text. */
int damage_start(void);

/* A client with the model; ends the client and the daemon, which must end well. */
void damage_attach(void);
void damage_end(void);

/* Appends sequence `s` and waits until it is durable. */
void damage_put(uint32_t s);

/* Opens, recalls and fetches everything, then ends the daemon. What is not `damaged` must be all there. What is said to be unreadable
 * must not be matched again. */
void damage_look_at_all(void);

/* The same if a daemon starts; else it must have said what helps. Returns whether it has started. */
bool damage_start_or_refuse(void);

/* A start must be refused with both of these words. */
void damage_assert_refused(const char *one, const char *other);

void damage_path_of(const char *name, char *ret_path, size_t bytes);
uint64_t damage_file_bytes(const char *name);
void damage_cut(const char *name, uint64_t bytes);

/* Files are as they were: all; those of the catalog. */
void damage_put_back(void);
void damage_put_back_catalog(void);

#endif
