/* SPDX-License-Identifier: Apache-2.0 */
/* crash_util.h: a store at work, what must be in it at each moment, and whether it is.
 *
 * The workload is a fixed list of steps: puts in chains, branches and groups, marks, evictions because slabs run out, drops,
 * a restart. A step ends when all its jobs were reaped: what they said is acknowledged.
 *
 *   beliefs after step k-1 ──── power goes in step k ────► beliefs after step k
 *          both say so: it must be so; they differ: one or the other, and wholly
 *
 * Threads: the test's own. */
#ifndef KVR_TESTS_TIERS_CRASH_UTIL_H
#define KVR_TESTS_TIERS_CRASH_UTIL_H

#include "tests/tiers/crash_disk_util.h"
#include "tests/tiers/store_util.h"

#define KVR_CRASH_SEGMENTS 13u
#define KVR_CRASH_STEPS    15u
#define KVR_CRASH_SLABS    10u
#define KVR_CRASH_PATH     128u

enum kvr_crash_there {
	KVR_CRASH_ABSENT,
	KVR_CRASH_PRESENT,
	KVR_CRASH_EITHER, /* a job that failed has left it so */
};

/* Of one segment. */
struct kvr_crash_belief {
	enum kvr_crash_there there;
	bool dropped;  /* ABSENT for good: a rebuild does not find it either */
	bool unmarked; /* flags and last use are not known */
	uint32_t flags;
	uint64_t used; /* 0: not known */
};

struct kvr_crash_beliefs {
	bool store; /* it was opened once: its secret is known */
	uint8_t secret[KVR_STORE_SECRET_BYTES];
	struct kvr_crash_belief segments[KVR_CRASH_SEGMENTS];
};

/* What a check also does, beside opening, reading everything and verify. */
enum kvr_crash_also {
	KVR_CRASH_FILL = 1,    /* puts until no slab is free */
	KVR_CRASH_REBUILD = 2, /* a new catalog, and all of it again */
};

struct kvr_crash_world {
	struct kvr_store_bed bed;
	char root[KVR_CRASH_PATH];      /* the disk's folder */
	char store[KVR_CRASH_PATH + 8]; /* the store in it */
	struct kvr_store_sealed *segments[KVR_CRASH_SEGMENTS];
	struct kvr_store_sealed *fillers[KVR_CRASH_SLABS];
	struct kvr_crash_beliefs now;
	bool tolerant; /* jobs may fail */
	char why[320]; /* of the last check that failed */
};

/* Segments, and a folder; not yet a store. */
void kvr_crash_world_init(struct kvr_crash_world *world);
void kvr_crash_world_fini(struct kvr_crash_world *world);

/* Works below this folder of the world's from now on; one for each process. */
void kvr_crash_world_move(struct kvr_crash_world *world, uint32_t number);

/* One step, 0 .. KVR_CRASH_STEPS - 1: the first opens the store, the last closes it. Beliefs follow. Unless tolerant, a
 * job that fails fails the test. */
void kvr_crash_step(struct kvr_crash_world *world, uint32_t step);

/* Whether all that a step changes goes with one commit. */
bool kvr_crash_is_atomic(uint32_t step);

/* How many of a step's flushes, from its first on, the store cannot do without. */
uint32_t kvr_crash_needed(uint32_t step, uint32_t flushes);

/* Opens the store that lies in the folder and looks at everything in it. False: world->why says what is wrong. */
bool kvr_crash_check(struct kvr_crash_world *world, const struct kvr_crash_beliefs *before,
	const struct kvr_crash_beliefs *after, bool atomic, unsigned int also);

#endif
