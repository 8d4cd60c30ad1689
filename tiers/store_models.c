/* SPDX-License-Identifier: Apache-2.0 */
/* store_models.c: which models something is stored of, and how much, for whoever may not ask the
 * disk.
 *
 *   open: rows of the catalog ─► entries ◄── put: one more   removed: one less, the last frees it
 *
 * The catalog is the truth; this is what it says, in memory. Models beyond KVR_STORE_MODELS_MAX are
 * stored and found like all others, but not listed. What is damaged in the catalog ends the count at
 * open, and is the affair of verify.
 *
 * Threads: all, under the store's mutex, but open. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

/* ---- the table: under the mutex --------------------------------------------------------------- */

/* The model's place, or `end`. Roots stand apart, since this runs through all of them. */
static uint32_t find(const struct kvr_store_models *models, const uint8_t root[KVR_HASH_BYTES])
{
	uint32_t at = 0;

	while (at < models->end && memcmp(models->roots[at], root, KVR_HASH_BYTES) != 0)
		at++;
	KVR_ASSERT(models->end <= KVR_STORE_MODELS_MAX);
	return at;
}

/* A place for a new one, or KVR_STORE_MODELS_MAX. */
static uint32_t take(struct kvr_store_models *models)
{
	uint32_t at = 0;

	while (at < models->end && models->entries[at].segment_count > 0)
		at++;
	if (at == models->end && models->end < KVR_STORE_MODELS_MAX)
		models->end++;
	return at;
}

void kvr_store_models_add(
	struct kvr_store_models *models, const struct kvr_slab_model *model, uint32_t token_count)
{
	uint32_t at = find(models, model->root);

	if (at == models->end) {
		at = take(models);
		if (at == KVR_STORE_MODELS_MAX)
			return;
		models->entries[at] = (struct kvr_store_model){.model = *model};
		memcpy(models->roots[at], model->root, KVR_HASH_BYTES);
	}
	models->entries[at].segment_count++;
	models->entries[at].token_count += token_count;
}

void kvr_store_models_sub(
	struct kvr_store_models *models, const uint8_t root[KVR_HASH_BYTES], uint32_t token_count)
{
	const uint32_t at = find(models, root);
	struct kvr_store_model *entry = &models->entries[at];

	/* None or too few: there was no place, or a damaged row ended the count at open. */
	if (at == models->end || entry->segment_count == 0 || entry->token_count < token_count)
		return;
	entry->segment_count--;
	entry->token_count -= token_count;
	if (entry->segment_count == 0)
		memset(models->roots[at], 0, KVR_HASH_BYTES);
}

/* ---- opening ---------------------------------------------------------------------------------- */

/* The catalog's models, in the order of their roots, none of them counted yet. */
static int read_models(
	struct kvr_catalog_reader *reader, struct kvr_store_models *models, uint32_t *ret_count)
{
	uint8_t root[KVR_HASH_BYTES] = {0};
	uint32_t count = 0;
	int rc = 0;

	while (rc == 0 && count < KVR_STORE_MODELS_MAX) {
		rc = kvr_catalog_model_next(reader, root, &models->entries[count].model);
		if (rc == 0)
			memcpy(models->roots[count++], root, KVR_HASH_BYTES);
	}
	*ret_count = count;
	return rc == -ENOENT ? 0 : rc;
}

static void count_segments(struct kvr_catalog_reader *reader, struct kvr_store_models *models)
{
	struct kvr_catalog_segment segment = {0};
	uint8_t hash[KVR_HASH_BYTES] = {0};

	while (kvr_catalog_segment_next(reader, hash, NULL, 0, &segment) == 0) {
		/* Ascending roots: LMDB's order. */
		uint32_t low = 0;
		uint32_t high = models->end;

		while (low < high) {
			const uint32_t middle = low + (high - low) / 2;

			if (memcmp(models->roots[middle], segment.root, KVR_HASH_BYTES) < 0)
				low = middle + 1;
			else
				high = middle;
		}
		if (low == models->end ||
			memcmp(models->roots[low], segment.root, KVR_HASH_BYTES) != 0)
			continue;
		models->entries[low].segment_count++;
		models->entries[low].token_count += segment.token_count;
	}
}

int kvr_store_models_open(struct kvr_store_models *models, struct kvr_catalog_reader *reader)
{
	int rc;

	models->entries = calloc(KVR_STORE_MODELS_MAX, sizeof(*models->entries));
	models->roots = calloc(KVR_STORE_MODELS_MAX, sizeof(*models->roots));
	if (!models->entries || !models->roots)
		return -ENOMEM;
	rc = kvr_catalog_read_begin(reader);
	if (rc < 0)
		return rc;
	if (read_models(reader, models, &models->end) == 0)
		count_segments(reader, models);
	kvr_catalog_read_end(reader);
	return 0;
}

void kvr_store_models_close(struct kvr_store_models *models)
{
	free(models->entries);
	free(models->roots);
	*models = (struct kvr_store_models){0};
}

/* ---- the core thread -------------------------------------------------------------------------- */

bool kvr_store_model_next(struct kvr_store *store, const char *tenant, uint32_t *at,
	struct kvr_store_model *ret_model)
{
	const struct kvr_store_models *models = &store->models;
	bool found = false;

	pthread_mutex_lock(&store->mutex);
	for (; !found && *at < models->end; ++*at) {
		const struct kvr_store_model *entry = &models->entries[*at];

		found = entry->segment_count > 0 && strcmp(entry->model.tenant, tenant) == 0;
		if (found)
			*ret_model = *entry;
	}
	pthread_mutex_unlock(&store->mutex);
	return found;
}

void kvr_store_model_count(struct kvr_store *store, const uint8_t root[KVR_HASH_BYTES],
	uint64_t *ret_segments, uint64_t *ret_tokens)
{
	const struct kvr_store_models *models = &store->models;
	uint32_t at;

	pthread_mutex_lock(&store->mutex);
	at = find(models, root);
	*ret_segments = at < models->end ? models->entries[at].segment_count : 0;
	*ret_tokens = at < models->end ? models->entries[at].token_count : 0;
	pthread_mutex_unlock(&store->mutex);
}
