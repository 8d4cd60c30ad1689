/* SPDX-License-Identifier: Apache-2.0 */
/* family.h: the links between segments: by name, by id in the store, parent and children.
 *
 * Part of the directory module: it changes links and nothing else. Who may be removed when they change is counted in
 * directory.c (G6). Finding (kvr_directory_find and the like, directory.h) is here too. */
#ifndef KVR_DAEMON_FAMILY_H
#define KVR_DAEMON_FAMILY_H

#include "base/assert.h"
#include "daemon/directory.h"

#define KVR_FAMILY_BUCKETS ((size_t)2 * KVR_SEGMENTS_MAX)
KVR_STATIC_ASSERT((KVR_FAMILY_BUCKETS & (KVR_FAMILY_BUCKETS - 1)) == 0);

/* A segment with name and parent joins the tables; or leaves them. */
void kvr_family_link(struct kvr_directory *directory, uint32_t segment);
void kvr_family_unlink(struct kvr_directory *directory, uint32_t segment);

/* The same for its id. */
void kvr_family_link_id(struct kvr_directory *directory, uint32_t segment);
void kvr_family_unlink_id(struct kvr_directory *directory, uint32_t segment);

#endif
