/* SPDX-License-Identifier: Apache-2.0 */
/* model.c: a table of models. Does not know what is stored for them. */
#include "daemon/model.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "daemon/crypt.h"

int kvr_models_open(struct kvr_models *models)
{
	*models = (struct kvr_models){0};
	models->entries = calloc(KVR_MODELS_MAX, sizeof(*models->entries));
	return models->entries ? 0 : -ENOMEM;
}

void kvr_models_close(struct kvr_models *models)
{
	free(models->entries);
	*models = (struct kvr_models){0};
}

/* What makes keys and values of two registrations interchangeable. The name is for people only. */
static void identify(const uint8_t digest[KVR_HASH_BYTES], const struct kvr_geometry *geometry,
	uint32_t rank, uint8_t ret_identity[KVR_HASH_BYTES])
{
	const uint32_t fields[] = {geometry->layer_count, geometry->query_heads, geometry->kv_heads,
		geometry->key_dim, geometry->value_dim, (uint32_t)geometry->dtype,
		geometry->segment_tokens, geometry->cluster_tokens, geometry->sink_tokens,
		geometry->merged, rank};
	const struct kvr_crypt_part parts[] = {
		{digest, KVR_HASH_BYTES},
		{fields, sizeof(fields)},
		{geometry->dense, sizeof(geometry->dense)},
	};

	kvr_crypt_hash(NULL, parts, 3, ret_identity);
}

static void root_of(const struct kvr_model *model, uint8_t ret_root[KVR_HASH_BYTES])
{
	kvr_crypt_hash(model->tenant->salt,
		&(struct kvr_crypt_part){model->identity, KVR_HASH_BYTES}, 1, ret_root);
}

/* Gives a model that is filled in its number and root. */
static void add(struct kvr_models *models, struct kvr_model *model)
{
	KVR_ASSERT(models->number_last < UINT32_MAX);
	KVR_ASSERT(model->users == 0);
	model->number = ++models->number_last; /* M1 */
	model->child_first = UINT32_MAX;
	root_of(model, model->root);
}

/* Of two unused slots: an empty one, else one of the tenant's own, so that nobody drives out others'
 * models by registering many, else the least recently registered. */
static bool better_slot(
	const struct kvr_model *slot, const struct kvr_model *than, const struct kvr_tenant *tenant)
{
	if (!than || !slot->number || !than->number)
		return !than || than->number;
	if ((slot->tenant == tenant) != (than->tenant == tenant))
		return slot->tenant == tenant;
	return slot->number < than->number;
}

int kvr_models_register(struct kvr_models *models, struct kvr_tenant *tenant, const char *name,
	const uint8_t digest[KVR_HASH_BYTES], const struct kvr_geometry *geometry, uint32_t rank,
	struct kvr_model **ret_model)
{
	struct kvr_model *free_slot = NULL;
	uint8_t identity[KVR_HASH_BYTES];
	uint32_t used = 0; /* by this tenant */

	KVR_ASSERT(kvr_geometry_valid(geometry));
	identify(digest, geometry, rank, identity);
	for (uint32_t i = 0; i < KVR_MODELS_MAX; i++) {
		struct kvr_model *model = &models->entries[i];

		if (model->number && model->tenant == tenant &&
			memcmp(model->identity, identity, sizeof(identity)) == 0) {
			*ret_model = model;
			return 0;
		}
		used += model->tenant == tenant && model->users > 0;
		if (model->users == 0 && better_slot(model, free_slot, tenant))
			free_slot = model;
	}
	if (!free_slot || used >= KVR_TENANT_MODELS_MAX)
		return -ENOSPC;
	KVR_ASSERT(free_slot->users == 0); /* M2 */
	*free_slot = (struct kvr_model){.tenant = tenant, .geometry = *geometry, .rank = rank};
	snprintf(free_slot->name, sizeof(free_slot->name), "%s", name);
	memcpy(free_slot->digest, digest, KVR_HASH_BYTES);
	memcpy(free_slot->identity, identity, KVR_HASH_BYTES);
	add(models, free_slot);
	*ret_model = free_slot;
	return 0;
}

int kvr_models_restore(struct kvr_models *models, struct kvr_tenant *tenant,
	const struct kvr_slab_model *stored, uint32_t number)
{
	struct kvr_model *slot = NULL;
	struct kvr_model fresh = {
		.tenant = tenant, .geometry = stored->geometry, .rank = stored->rank};

	for (uint32_t i = 0; i < KVR_MODELS_MAX; i++) {
		struct kvr_model *model = &models->entries[i];

		if (model->number && model->tenant == tenant &&
			memcmp(model->root, stored->root, KVR_HASH_BYTES) == 0)
			return 0;
		if (model->users == 0 && model->number <= number &&
			(!slot || model->number < slot->number))
			slot = model;
	}
	if (!kvr_geometry_valid(&stored->geometry)) /* from the disk */
		return -EINVAL;
	identify(stored->digest, &stored->geometry, stored->rank, fresh.identity);
	root_of(&fresh, fresh.root);
	if (memcmp(fresh.root, stored->root, KVR_HASH_BYTES) != 0)
		return -ENOENT;
	if (!slot)
		return -ENOSPC;
	KVR_ASSERT(slot->users == 0); /* M2 */
	KVR_ASSERT(slot->segment_count == 0);
	memcpy(fresh.name, stored->name, sizeof(fresh.name));
	memcpy(fresh.digest, stored->digest, KVR_HASH_BYTES);
	*slot = fresh;
	add(models, slot);
	return 0;
}

void kvr_model_name(const struct kvr_model *model, const uint8_t parent[KVR_HASH_BYTES],
	const uint32_t *tokens, uint32_t count, uint8_t ret_hash[KVR_HASH_BYTES])
{
	const struct kvr_crypt_part parts[] = {
		{model->identity, KVR_HASH_BYTES},
		{parent, KVR_HASH_BYTES},
		{tokens, count * sizeof(*tokens)},
	};

	kvr_crypt_hash(model->tenant->salt, parts, 3, ret_hash);
}

struct kvr_model *kvr_models_find(
	struct kvr_models *models, const struct kvr_tenant *tenant, uint32_t number)
{
	for (uint32_t i = 0; i < KVR_MODELS_MAX && number; i++) {
		struct kvr_model *model = &models->entries[i];

		if (model->number == number && model->tenant == tenant)
			return model;
	}
	return NULL;
}
