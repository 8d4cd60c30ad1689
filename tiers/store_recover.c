/* SPDX-License-Identifier: Apache-2.0 */
/* store_recover.c: at open: table `slab` says which slabs are taken, and which a crash left between
 * two owners.
 *
 *   owner's id  claimed
 *   0           freed, its header maybe not wiped yet: wiped now, and free. Which of a segment's
 *               slabs was the first is not known any more, so each is wiped.
 *
 * New ids go on behind all that the catalog has, whatever it says about boots: a rebuilt catalog has
 * counted only its own, and an id never comes again.
 *
 * Slabs without a row are free, whatever is in them: images of puts that were never committed.
 *
 * Threads: the opener's, before the others run. */
#include <errno.h>
#include <string.h>

#include "base/assert.h"
#include "tiers/store_private.h"

#define HEADERS_LOOKED 8u /* some may be damaged; one good one tells whose slabs these are */

/* Reads a claimed slab's header. Returns 1 where it says that all is well, 0 where it says
 * nothing. */
static int check_header(struct kvr_store *store, uint32_t slab, char *ret_text)
{
	uint8_t *memory = store->memory.base;
	struct kvr_store_transfer transfer = {0};
	struct kvr_slab_header header;
	int rc;

	kvr_store_start(store->writer.tier, &transfer, KVR_TIER_READ, 0,
		(uint64_t)slab * KVR_SLAB_BYTES, (struct kvr_span){memory, KVR_SLAB_HEADER_BYTES});
	if (kvr_store_await(store->writer.tier, &transfer) < 0)
		return 0;
	rc = kvr_slab_unpack_header(memory, &header);
	if (rc == -EPROTONOSUPPORT)
		return kvr_store_say_version(
			ret_text, store->path, kvr_slab_version(memory), KVR_SLAB_VERSION);
	if (rc < 0)
		return 0;
	if (memcmp(header.store, store->meta.uuid, KVR_SLAB_UUID_BYTES) != 0)
		return kvr_store_say_why(ret_text, -EXDEV, store->path,
			"slabs.kvr is of one store and catalog of another: put back what belongs "
			"together, or run `kvrecall rebuild`");
	return 1;
}

static int claim(struct kvr_store *store, uint32_t slab, char *ret_text)
{
	if (kvr_nvme_claim(store->nvme, slab) == 0)
		return 0;
	return kvr_store_say_why(ret_text, -EFBIG, store->path,
		"slab %u is in use and lies behind the end: give it as many bytes as before", slab);
}

/* Claims all slabs. Freed ones are counted. */
static int claim_all(
	struct kvr_store *store, uint64_t *ret_freed, uint64_t *ret_highest, char *ret_text)
{
	struct kvr_catalog_reader *reader = store->writer.reader;
	uint32_t slab = UINT32_MAX;
	uint32_t looked = 0;
	uint64_t id;
	int rc = kvr_catalog_read_begin(reader);

	*ret_freed = 0;
	*ret_highest = 0;
	if (rc < 0)
		return kvr_store_say_why(
			ret_text, rc, store->path, "cannot read its catalog (%s)", strerror(-rc));
	while ((rc = kvr_catalog_slab_next(reader, &slab, &id)) == 0) {
		rc = claim(store, slab, ret_text);
		if (rc == 0 && id != 0 && looked < HEADERS_LOOKED) {
			rc = check_header(store, slab, ret_text);
			looked = rc == 1 ? HEADERS_LOOKED : looked + 1;
		}
		if (rc < 0)
			break;
		*ret_freed += id == 0;
		*ret_highest = id > *ret_highest ? id : *ret_highest;
	}
	kvr_catalog_read_end(reader);
	if (rc == -EBADMSG)
		return kvr_store_say_why(ret_text, rc, store->path,
			"its catalog is damaged: run `kvrecall rebuild`");
	return rc == -ENOENT ? 0 : rc;
}

/* The next freed slabs behind *slab, into the writer's list. */
static int collect_freed(struct kvr_store_writer *writer, uint32_t *slab)
{
	uint64_t id;
	int rc = kvr_catalog_read_begin(writer->reader);

	if (rc < 0)
		return rc;
	writer->wiped_count = 0;
	while (writer->wiped_count < KVR_SLAB_PARTS_MAX &&
		(rc = kvr_catalog_slab_next(writer->reader, slab, &id)) == 0) {
		if (id == 0)
			writer->wiped[writer->wiped_count++] = *slab;
	}
	kvr_catalog_read_end(writer->reader);
	return rc == -ENOENT ? 0 : rc;
}

/* Wipes what is freed. What cannot be wiped or committed now stays claimed until the next open. */
static int finish_wipes(struct kvr_store_writer *writer)
{
	uint32_t slab = UINT32_MAX;

	for (;;) {
		int rc = collect_freed(writer, &slab);
		uint32_t count = writer->wiped_count;

		if (rc < 0 || count == 0)
			return rc;
		rc = kvr_store_wipe(writer->tier, writer->zeros, writer->wiped, count, NULL);
		if (rc == 0)
			rc = kvr_store_sync(writer->tier);
		if (rc == 0) {
			/* The list is emptied by the flush; the scratch of victims keeps it. */
			memcpy(writer->victim_parts, writer->wiped, count * sizeof(*writer->wiped));
			rc = kvr_store_wiped_flush(writer);
		}
		if (rc == 0)
			kvr_store_release_slabs(writer, writer->victim_parts, count);
		else
			writer->store->counters.error_count++;
		writer->wiped_count = 0;
	}
}

/* Counts the boot up until no id of it is in use. */
static int go_on_behind(struct kvr_store *store, uint64_t highest, char *ret_text)
{
	const uint64_t boot = highest >> KVR_STORE_BOOT_SHIFT;

	if (boot < store->meta.boot)
		return 0;
	if (boot + 1 >= (uint64_t)1 << (64 - KVR_STORE_BOOT_SHIFT))
		return kvr_store_say_why(ret_text, -EBADMSG, store->path,
			"its catalog is damaged: run `kvrecall rebuild`");
	store->meta.boot = boot + 1;
	store->writer.id_next = store->meta.boot << KVR_STORE_BOOT_SHIFT | 1;
	return 0;
}

int kvr_store_recover(struct kvr_store *store, char *ret_text)
{
	uint64_t highest;
	uint64_t freed;
	int rc = claim_all(store, &freed, &highest, ret_text);

	if (rc == 0)
		rc = go_on_behind(store, highest, ret_text);
	if (rc < 0 || freed == 0)
		return rc;
	rc = finish_wipes(&store->writer);
	if (rc < 0)
		return kvr_store_say_why(
			ret_text, rc, store->path, "cannot read its catalog (%s)", strerror(-rc));
	return 0;
}
