/* SPDX-License-Identifier: Apache-2.0 */
/* region.h: the memory shared with the daemon, at an address that never changes.
 *
 *   init ──reserve──► nothing behind the address ──map──► the daemon's memory ──map──► another
 *                     (inaccessible)                                                   daemon's
 *
 * Invariants:
 *   R1  base and bytes are those of init, until fini.
 *   R2  Memory is mapped only if its maker can neither shrink nor grow it: no access inside the
 *       region can raise SIGBUS.
 *
 * After a daemon is gone its memory stays mapped, until another daemon's takes its place: the
 * engine's pointers never dangle.
 *
 * Threads: owned by the client's thread. */
#ifndef KVR_CLIENT_REGION_H
#define KVR_CLIENT_REGION_H

#include <stdbool.h>
#include <stdint.h>

struct kvr_client_region {
	uint8_t *base; /* NULL before init */
	uint64_t bytes;
};

/* The daemon rounds regions up to this: the size of a huge page. */
#define KVR_CLIENT_REGION_ALIGN (UINT64_C(2) << 20)

/* Reserves addresses for `bytes`, rounded up to KVR_CLIENT_REGION_ALIGN. Errors: -ENOMEM. */
int kvr_client_region_init(struct kvr_client_region *region, uint64_t bytes);
void kvr_client_region_fini(struct kvr_client_region *region);

/* Maps the memory behind `fd` there. The caller keeps fd and may close it. Errors: -EPROTO (no
 * memfd with the seals F_SEAL_SHRINK and F_SEAL_GROW, or another size), -ENOMEM. */
int kvr_client_region_map(struct kvr_client_region *region, int fd);

/* Whether [pointer, pointer + bytes) lies inside, and then its offset. */
bool kvr_client_region_offset(const struct kvr_client_region *region, const void *pointer,
	uint64_t bytes, uint64_t *ret_offset);

#endif
