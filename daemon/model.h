/* SPDX-License-Identifier: Apache-2.0 */
/* model.h: the models that clients have registered.
 *
 * A model belongs to one tenant: the same weights registered by two tenants are two models, with
 * different numbers and disjoint segments. Registering is idempotent. When the table is full, a model
 * that no sequence and no segment uses makes room: one of the same tenant, or else anybody's.
 *
 * Invariants:
 *   M1  A number names at most one model for the daemon's life.
 *   M2  A model with users is never removed: its geometry is borrowed by views.
 *
 * Threads: the core thread's; the geometry is read by device workers. */
#ifndef KVR_DAEMON_MODEL_H
#define KVR_DAEMON_MODEL_H

#include <stdbool.h>
#include <stdint.h>

#include "base/geometry.h"
#include "daemon/tenant.h"
#include "tiers/slab.h"

struct kvr_model {
	uint32_t number; /* 0: the slot is free */
	struct kvr_tenant *tenant;
	char name[KVR_NAME_MAX];
	uint8_t digest[KVR_HASH_BYTES];   /* the client's, of weights and RoPE */
	uint8_t identity[KVR_HASH_BYTES]; /* ours: digest, rank and geometry */
	uint8_t root
		[KVR_HASH_BYTES]; /* chain hash of no tokens: identity, keyed by the tenant's salt */
	struct kvr_geometry geometry;
	uint32_t rank;
	uint32_t users;       /* sequences and segments */
	uint32_t child_first; /* first segments of sequences (daemon/directory.h) */
	/* Sealed segments that are in memory alone: the store counts the others. */
	uint32_t segment_count;
	uint64_t stored_bytes; /* keys and values of their tokens */
};

struct kvr_models {
	struct kvr_model *entries; /* KVR_MODELS_MAX */
	uint32_t number_last;
};

/* Errors: -ENOMEM. */
int kvr_models_open(struct kvr_models *models);
void kvr_models_close(struct kvr_models *models);

/* Finds or adds a model. The geometry is valid and complete. Errors: -ENOSPC. */
int kvr_models_register(struct kvr_models *models, struct kvr_tenant *tenant, const char *name,
	const uint8_t digest[KVR_HASH_BYTES], const struct kvr_geometry *geometry, uint32_t rank,
	struct kvr_model **ret_model);

/* Makes a model known that the store has. It takes an empty place, or that of the unused one which is known longest, but
 * of none behind `number`, so that what one list makes known stays. Errors: -ENOENT (not of this tenant, as its salt is
 * now), -EINVAL (geometry), -ENOSPC. */
int kvr_models_restore(struct kvr_models *models, struct kvr_tenant *tenant,
	const struct kvr_slab_model *stored, uint32_t number);

/* The name of the segment that follows the one of name `parent` (or the model's root) with these token ids:
 * BLAKE2b-256 keyed by the tenant's salt over model identity, parent and ids. For any thread. */
void kvr_model_name(const struct kvr_model *model, const uint8_t parent[KVR_HASH_BYTES],
	const uint32_t *tokens, uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES]);

/* The tenant's model of this number, or NULL. Other tenants' models do not exist for it. */
struct kvr_model *kvr_models_find(
	struct kvr_models *models, const struct kvr_tenant *tenant, uint32_t number);

#endif
