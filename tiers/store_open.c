/* SPDX-License-Identifier: Apache-2.0 */
/* store_open.c: builds a store up and tears it down.
 *
 *   directory, lock, secret ─► catalog ─► memory ─► slabs.kvr ─► channels
 *   ─► claims, wipes (store_recover.c) ─► threads
 *
 * The catalog is made before slabs.kvr, so that slabs without a catalog are never a store that was
 * just being made, but one that has lost its catalog.
 *
 * Threads: the opener's. */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include "base/assert.h"
#include "tiers/store_private.h"

/* Registered memory: images, slots, and a huge page more, of which a page of zeros is used. */
#define ZEROS_AT     ((size_t)(KVR_STORE_IMAGES_MAX + KVR_STORE_SLOTS_MAX) * KVR_SLAB_BYTES)
#define MEMORY_BYTES (ZEROS_AT + KVR_MAPPING_ALIGNMENT)

_Static_assert(ZEROS_AT % KVR_MAPPING_ALIGNMENT == 0, "a mapping is of whole huge pages");

static int open_catalog(
	struct kvr_store *store, const struct kvr_store_config *config, char *ret_text)
{
	char path[KVR_STORE_PATH_MAX];
	struct kvr_catalog_config catalog = {.dir = path, .bytes = config->catalog_bytes};
	const bool slabs = kvr_store_exists(store->path, "slabs.kvr");
	struct kvr_catalog_stat stat;
	int rc = kvr_store_path(store->path, "catalog", path);

	if (rc < 0)
		return kvr_store_say_why(ret_text, rc, store->path, "the path is too long");
	if (slabs && !kvr_store_exists(store->path, "catalog"))
		return kvr_store_say_why(ret_text, -EBADMSG, store->path,
			"slabs.kvr is there without its catalog: run `kvrecall rebuild`");
	store->meta.slabs_bytes = config->bytes;
	rc = kvr_catalog_open(&catalog, &store->meta, &store->catalog);
	switch (rc) {
	case 0: break;
	case -EBADMSG:
		return kvr_store_say_why(ret_text, rc, store->path,
			"its catalog is damaged: run `kvrecall rebuild`");
	case -EPROTONOSUPPORT:
		return kvr_store_say_version(
			ret_text, store->path, store->meta.version, KVR_CATALOG_VERSION);
	case -EFBIG:
		return kvr_store_say_why(ret_text, rc, store->path,
			"its catalog is larger than the bound: raise that");
	case -EBUSY:
		return kvr_store_say_why(ret_text, rc, store->path,
			"another process uses its catalog: end that one");
	default:
		return kvr_store_say_why(
			ret_text, rc, store->path, "cannot open its catalog (%s)", strerror(-rc));
	}
	kvr_catalog_stat(store->catalog, &stat);
	if (!slabs && stat.slab_count > 0)
		return kvr_store_say_why(ret_text, -ENOENT, store->path,
			"slabs.kvr is missing: put it back, or remove the store to begin anew");
	if (store->meta.boot >= (uint64_t)1 << (64 - KVR_STORE_BOOT_SHIFT))
		return kvr_store_say_why(ret_text, -EBADMSG, store->path,
			"its catalog is damaged: run `kvrecall rebuild`");
	return 0;
}

static int open_nvme(struct kvr_store *store, const struct kvr_store_config *config, char *ret_text)
{
	char path[KVR_STORE_PATH_MAX];
	const struct kvr_span buffers[2] = {
		{store->memory.base, store->memory.bytes}, config->read_memory};
	const struct kvr_nvme_config nvme = {
		.path = path,
		.bytes = config->bytes,
		.io = config->io,
		.depth = config->depth,
		.batch = config->batch,
		.buffers = buffers,
		.buffer_count = config->read_memory.bytes > 0 ? 2 : 1,
	};
	int rc = kvr_store_path(store->path, "slabs.kvr", path);

	if (rc == 0)
		rc = kvr_nvme_open(&nvme, &store->nvme);
	if (rc == -EFBIG)
		return kvr_store_say_why(ret_text, rc, store->path,
			"slabs.kvr is larger than the bound: raise that, or remove the store");
	if (rc == -ENOSPC)
		return kvr_store_say_why(ret_text, rc, store->path,
			"the file system has no %llu bytes for slabs.kvr: free some, or lower the "
			"bound",
			(unsigned long long)config->bytes);
	if (rc < 0)
		return kvr_store_say_why(
			ret_text, rc, store->path, "cannot open slabs.kvr (%s)", strerror(-rc));
	return 0;
}

static int open_channel(struct kvr_store *store, const struct kvr_store_hooks *hooks, int which,
	struct kvr_tier **ret_tier)
{
	int rc = kvr_tier_open_nvme(store->nvme, ret_tier);

	if (rc == 0 && hooks && hooks->wrap)
		*ret_tier = hooks->wrap(hooks->context, *ret_tier, which);
	return rc;
}

static int open_rest(
	struct kvr_store *store, enum kvr_store_mode mode, const struct kvr_store_hooks *hooks)
{
	int rc = open_channel(store, hooks, 0, &store->core_tier);

	if (rc == 0)
		rc = open_channel(store, hooks, 1, &store->writer.tier);
	if (rc == 0)
		rc = open_channel(store, hooks, 2, &store->reader.tier);
	if (rc == 0)
		rc = kvr_store_holds_open(&store->holds);
	store->event_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	if (rc == 0 && store->event_fd < 0)
		rc = -errno;
	store->writer.zeros = store->memory.base + ZEROS_AT;
	if (rc == 0 && mode != KVR_STORE_REBUILD)
		rc = kvr_store_writer_open(&store->writer, store);
	if (rc == 0 && mode != KVR_STORE_REBUILD)
		rc = kvr_store_reader_open(&store->reader, store);
	return rc;
}

static int start_threads(struct kvr_store *store)
{
	int rc = pthread_create(&store->write_thread, NULL, kvr_store_writer_run, &store->writer);

	store->write_started = rc == 0;
	if (rc == 0)
		rc = pthread_create(
			&store->read_thread, NULL, kvr_store_reader_run, &store->reader);
	store->read_started = store->write_started && rc == 0;
	return -rc;
}

static int build(struct kvr_store *store, const struct kvr_store_config *config,
	enum kvr_store_mode mode, const struct kvr_store_hooks *hooks, char *ret_text)
{
	const bool online = mode == KVR_STORE_ONLINE;
	int rc = kvr_store_lock(store->path, online, &store->lock_fd, ret_text);

	if (rc == 0)
		rc = kvr_store_secret_load(store->path, online, store->secret, ret_text);
	if (rc == 0 &&
		getrandom(store->meta.uuid, KVR_SLAB_UUID_BYTES, 0) != (ssize_t)KVR_SLAB_UUID_BYTES)
		rc = kvr_store_say_why(
			ret_text, -EIO, store->path, "the system has no random bytes");
	if (rc == 0 && mode != KVR_STORE_REBUILD)
		rc = open_catalog(store, config, ret_text);
	if (rc < 0)
		return rc;
	if (!online && !kvr_store_exists(store->path, "slabs.kvr"))
		return kvr_store_say_why(
			ret_text, -ENOENT, store->path, "slabs.kvr is not there: put it back");
	rc = kvr_mapping_open(MEMORY_BYTES, &store->memory);
	if (rc == 0)
		rc = open_nvme(store, config, ret_text);
	else
		(void)kvr_store_say_why(ret_text, rc, store->path, "no memory for its buffers");
	if (rc < 0)
		return rc;
	store->meta.slabs_bytes = config->bytes;
	rc = open_rest(store, mode, hooks);
	if (rc < 0)
		return kvr_store_say_why(
			ret_text, rc, store->path, "cannot start (%s)", strerror(-rc));
	if (online)
		rc = kvr_store_recover(store, ret_text);
	if (rc == 0 && online) {
		rc = kvr_store_models_open(&store->models, store->reader.reader);
		if (rc < 0)
			return kvr_store_say_why(ret_text, rc, store->path,
				"cannot read its catalog (%s)", strerror(-rc));
	}
	if (rc == 0 && online) {
		rc = start_threads(store);
		if (rc < 0)
			return kvr_store_say_why(ret_text, rc, store->path,
				"cannot start its threads (%s)", strerror(-rc));
	}
	return rc;
}

int kvr_store_open_mode(const struct kvr_store_config *config, enum kvr_store_mode mode,
	const struct kvr_store_hooks *hooks, struct kvr_store **ret_store, char *ret_text)
{
	struct kvr_store *store = calloc(1, sizeof(*store));
	int rc;

	ret_text[0] = 0;
	if (!store)
		return kvr_store_say_why(ret_text, -ENOMEM, config->dir, "no memory");
	pthread_mutex_init(&store->mutex, NULL);
	kvr_list_init(&store->done);
	kvr_store_queue_open(&store->write_queue);
	kvr_store_queue_open(&store->read_queue);
	store->lock_fd = -1;
	store->event_fd = -1;
	store->write_bytes_per_day = config->write_bytes_per_day;
	store->budget_wanted = config->write_bytes_per_day;
	if (strlen(config->dir) >= sizeof(store->path)) {
		rc = kvr_store_say_why(
			ret_text, -ENAMETOOLONG, config->dir, "the path is too long");
		goto fail;
	}
	memcpy(store->path, config->dir, strlen(config->dir) + 1);
	rc = build(store, config, mode, hooks, ret_text);
	if (rc < 0)
		goto fail;
	*ret_store = store;
	return 0;
fail:
	kvr_store_close(store);
	return rc;
}

int kvr_store_open(
	const struct kvr_store_config *config, struct kvr_store **ret_store, char *ret_text)
{
	return kvr_store_open_mode(config, KVR_STORE_ONLINE, NULL, ret_store, ret_text);
}

struct kvr_store *kvr_store_close(struct kvr_store *store)
{
	if (!store)
		return NULL;
	kvr_store_queue_stop(&store->write_queue);
	kvr_store_queue_stop(&store->read_queue);
	if (store->write_started)
		pthread_join(store->write_thread, NULL);
	if (store->read_started)
		pthread_join(store->read_thread, NULL);
	kvr_store_writer_close(&store->writer);
	kvr_store_reader_close(&store->reader);
	kvr_tier_close(store->core_tier);
	kvr_nvme_close(store->nvme);
	kvr_catalog_close(store->catalog);
	kvr_mapping_close(&store->memory);
	kvr_store_holds_close(&store->holds);
	kvr_store_models_close(&store->models);
	if (store->event_fd >= 0)
		close(store->event_fd);
	kvr_store_queue_close(&store->write_queue);
	kvr_store_queue_close(&store->read_queue);
	pthread_mutex_destroy(&store->mutex);
	/* The lock goes last: whoever gets it finds everything closed. */
	if (store->lock_fd >= 0)
		close(store->lock_fd);
	free(store);
	return NULL;
}
