/* SPDX-License-Identifier: Apache-2.0 */
/* store_list.c: LIST: what is stored of a model, parents before their children.
 *
 *   root ─┬─ 1 ─┬─ 2 ─── 3      behind 3: it has no child; it has no sibling behind it, and 2 has one
 *         │     └─ 4            behind 4: nor 4, nor 1: 5
 *         └─ 5
 *
 * The next one follows from the last one and the table `child` alone: a page goes on where the one
 * before it ended, and no view of the catalog is kept in between.
 *
 * Threads: the reader's. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

/* The child of `parent` behind (tokens, id), into *at. A child begins where its parent ends, so that no
 * damage makes this go in circles. */
static int child(struct kvr_store_reader *reader, const uint8_t parent[KVR_HASH_BYTES],
	uint32_t end, uint32_t tokens, uint64_t id, struct kvr_store_segment *at)
{
	uint8_t hash[KVR_HASH_BYTES];
	struct kvr_store_segment found;
	int rc = kvr_catalog_child(reader->reader, parent, &tokens, &id, hash);

	if (rc < 0)
		return rc;
	rc = kvr_store_find(reader, hash, &found);
	if (rc < 0)
		return rc == -ENOENT ? -EBADMSG : rc;
	if (found.token_first != end || found.token_count == 0 ||
		memcmp(found.parent, parent, KVR_HASH_BYTES) != 0)
		return -EBADMSG;
	*at = found;
	return 0;
}

/* The one behind *at, which is in the catalog or the root. -ENOENT: that was the last one. */
static int next(struct kvr_store_reader *reader, const uint8_t root[KVR_HASH_BYTES],
	struct kvr_store_segment *at)
{
	int rc = child(reader, at->hash, at->token_first + at->token_count, 0, 0, at);

	while (rc == -ENOENT && memcmp(at->hash, root, KVR_HASH_BYTES) != 0) {
		const struct kvr_store_segment last = *at;

		rc = child(reader, last.parent, last.token_first, last.token_count, last.id, at);
		if (rc != -ENOENT || last.token_first == 0)
			break;
		rc = kvr_store_find(reader, last.parent, at);
		if (rc == 0)
			rc = at->token_first < last.token_first ? -ENOENT : -EBADMSG;
		else if (rc == -ENOENT)
			rc = -EBADMSG;
	}
	return rc;
}

/* Goes to where the page begins: behind `after`, or behind the first `skip`. */
static int go_to(struct kvr_store_reader *reader, const struct kvr_store_list *list,
	struct kvr_store_segment *at)
{
	static const uint8_t none[KVR_HASH_BYTES];
	int rc = -ENOENT;

	if (memcmp(list->after, none, KVR_HASH_BYTES) != 0)
		rc = kvr_store_find(reader, list->after, at);
	if (rc == 0 && memcmp(at->root, list->root, KVR_HASH_BYTES) == 0)
		return 0;
	*at = (struct kvr_store_segment){0};
	memcpy(at->hash, list->root, KVR_HASH_BYTES);
	rc = 0;
	for (uint32_t i = 0; i < list->skip && rc == 0; i++)
		rc = next(reader, list->root, at);
	return rc;
}

static int list_entries(struct kvr_store_reader *reader, struct kvr_store_list *list)
{
	struct kvr_store_segment at;
	int rc = go_to(reader, list, &at);

	while (rc == 0) {
		rc = next(reader, list->root, &at);
		if (rc == 0 && list->count == KVR_STORE_LIST_MAX) {
			list->more = true;
			return 0;
		}
		if (rc == 0)
			list->entries[list->count++] = at;
	}
	return rc == -ENOENT ? 0 : rc;
}

int kvr_store_list_run(struct kvr_store_reader *reader, struct kvr_store_list *list)
{
	int rc;

	list->count = 0;
	list->more = false;
	rc = kvr_catalog_read_begin(reader->reader);
	if (rc < 0)
		return rc;
	rc = list_entries(reader, list);
	kvr_catalog_read_end(reader->reader);
	KVR_ASSERT(list->count <= KVR_STORE_LIST_MAX);
	KVR_ASSERT(!list->more || list->count == KVR_STORE_LIST_MAX);
	return rc;
}
