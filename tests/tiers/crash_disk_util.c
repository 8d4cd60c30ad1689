/* SPDX-License-Identifier: Apache-2.0 */
/* crash_disk_util.c: the disk's bytes and names, its pending events, and the coins. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "tests/tiers/crash_disk_util.h"

enum fate {
	LOST,
	KEPT,
	TORN,
};

/* ---- files ----------------------------------------------------------------------------------- */

static void *must(void *memory)
{
	KVR_ASSERT(memory);
	return memory;
}

static void need_pages(struct kvr_disk_node *node, uint64_t bytes)
{
	const uint32_t count = (uint32_t)((bytes + KVR_DISK_PAGE - 1) / KVR_DISK_PAGE);

	if (count <= node->page_count)
		return;
	node->pages = must(realloc(node->pages, count * sizeof(*node->pages)));
	memset(node->pages + node->page_count, 0,
		(count - node->page_count) * sizeof(*node->pages));
	node->page_count = count;
}

/* Copies bytes in; the file is as long as it was. */
static void put_bytes(struct kvr_disk_node *node, uint64_t at, const uint8_t *data, uint64_t bytes)
{
	need_pages(node, at + bytes);
	while (bytes > 0) {
		uint8_t **page = &node->pages[at / KVR_DISK_PAGE];
		const uint64_t offset = at % KVR_DISK_PAGE;
		const uint64_t left = KVR_DISK_PAGE - offset;
		const uint64_t some = bytes < left ? bytes : left;

		if (!*page)
			*page = must(calloc(1, KVR_DISK_PAGE));
		memcpy(*page + offset, data, some);
		at += some;
		data += some;
		bytes -= some;
	}
}

static void resize(struct kvr_disk_node *node, uint64_t bytes)
{
	for (uint64_t i = bytes / KVR_DISK_PAGE; i < node->page_count; i++) {
		const uint64_t keep = i == bytes / KVR_DISK_PAGE ? bytes % KVR_DISK_PAGE : 0;

		if (node->pages[i])
			memset(node->pages[i] + keep, 0, KVR_DISK_PAGE - keep);
	}
	node->bytes = bytes;
}

static void grow(struct kvr_disk_node *node, uint64_t bytes)
{
	if (bytes > node->bytes)
		node->bytes = bytes;
}

/* ---- names ----------------------------------------------------------------------------------- */

static struct kvr_disk_name *find_name(struct kvr_disk_node *folder, const char *text)
{
	for (uint32_t i = 0; i < folder->name_count; i++) {
		if (strcmp(folder->names[i].text, text) == 0)
			return &folder->names[i];
	}
	return NULL;
}

uint32_t kvr_disk_find(const struct kvr_disk *disk, uint32_t folder, const char *name)
{
	struct kvr_disk_node *node = (struct kvr_disk_node *)&disk->nodes[folder]; /* not changed */
	const struct kvr_disk_name *found = find_name(node, name);

	return found ? found->node : KVR_DISK_NONE;
}

static void unlink_name(struct kvr_disk_node *folder, const char *text)
{
	struct kvr_disk_name *name = find_name(folder, text);

	KVR_ASSERT(name);
	*name = folder->names[--folder->name_count];
}

static void link_name(struct kvr_disk_node *folder, const char *text, uint32_t node)
{
	struct kvr_disk_name *name = &folder->names[folder->name_count];

	KVR_ASSERT(!find_name(folder, text));
	KVR_ASSERT(folder->name_count < KVR_DISK_NAMES);
	snprintf(name->text, sizeof(name->text), "%s", text);
	name->node = node;
	folder->name_count++;
}

/* A file is there before its name is on the disk; without a name nobody finds it. */
static void make_node(struct kvr_disk *disk, const struct kvr_disk_event *event)
{
	KVR_ASSERT(event->target < KVR_DISK_NODES);
	if (event->target >= disk->node_count)
		disk->node_count = event->target + 1;
	disk->nodes[event->target].folder = event->folder;
}

static void apply_names(struct kvr_disk *disk, const struct kvr_disk_event *event)
{
	struct kvr_disk_node *folder = &disk->nodes[event->node];
	struct kvr_disk_name *name;
	uint32_t node;

	switch (event->op) {
	case KVR_DISK_LINK:
		make_node(disk, event);
		link_name(folder, event->name, event->target);
		break;
	case KVR_DISK_UNLINK: unlink_name(folder, event->name); break;
	case KVR_DISK_RENAME:
		node = kvr_disk_find(disk, event->node, event->name);
		if (find_name(folder, event->other))
			unlink_name(folder, event->other);
		unlink_name(folder, event->name);
		link_name(folder, event->other, node);
		break;
	default:
		KVR_ASSERT(event->op == KVR_DISK_EXCHANGE);
		name = find_name(folder, event->name);
		node = name->node;
		name->node = find_name(folder, event->other)->node;
		find_name(folder, event->other)->node = node;
		break;
	}
}

static bool is_of_names(const struct kvr_disk_event *event)
{
	return event->op >= KVR_DISK_LINK && event->op <= KVR_DISK_EXCHANGE;
}

/* ---- disks ----------------------------------------------------------------------------------- */

void kvr_disk_init(struct kvr_disk *disk)
{
	memset(disk, 0, sizeof(*disk));
	disk->nodes[KVR_DISK_ROOT].folder = true;
	disk->node_count = 1;
}

void kvr_disk_copy(struct kvr_disk *to, const struct kvr_disk *from)
{
	*to = *from;
	for (uint32_t i = 0; i < to->node_count; i++) {
		struct kvr_disk_node *node = &to->nodes[i];
		uint8_t **pages = node->pages;

		if (!pages)
			continue;
		node->pages = must(calloc(node->page_count, sizeof(*node->pages)));
		for (uint32_t k = 0; k < node->page_count; k++) {
			if (pages[k]) {
				node->pages[k] = must(malloc(KVR_DISK_PAGE));
				memcpy(node->pages[k], pages[k], KVR_DISK_PAGE);
			}
		}
	}
}

void kvr_disk_fini(struct kvr_disk *disk)
{
	for (uint32_t i = 0; i < disk->node_count; i++) {
		for (uint32_t k = 0; k < disk->nodes[i].page_count; k++)
			free(disk->nodes[i].pages[k]);
		free(disk->nodes[i].pages);
	}
	memset(disk, 0, sizeof(*disk));
}

void kvr_disk_apply(struct kvr_disk *disk, const struct kvr_disk_event *event)
{
	struct kvr_disk_node *node = &disk->nodes[event->node];

	switch (event->op) {
	case KVR_DISK_WRITE:
		put_bytes(node, event->at, event->data, event->bytes);
		grow(node, event->at + event->bytes);
		break;
	case KVR_DISK_RESIZE: resize(node, event->bytes); break;
	case KVR_DISK_FLUSH:
	case KVR_DISK_STEP: break;
	default: apply_names(disk, event); break;
	}
}

/* ---- logs ------------------------------------------------------------------------------------ */

void kvr_disk_log_add(struct kvr_disk_log *log, const struct kvr_disk_event *event)
{
	struct kvr_disk_event *added;

	if (log->count == log->room) {
		log->room = log->room > 0 ? 2 * log->room : 256;
		log->events = must(realloc(log->events, log->room * sizeof(*log->events)));
	}
	added = &log->events[log->count++];
	*added = *event;
	if (event->op == KVR_DISK_WRITE && event->bytes > 0) {
		added->data = must(malloc(event->bytes));
		memcpy(added->data, event->data, event->bytes);
	}
}

void kvr_disk_log_fini(struct kvr_disk_log *log)
{
	for (uint32_t i = 0; i < log->count; i++) {
		if (log->events[i].op == KVR_DISK_WRITE)
			free(log->events[i].data);
	}
	free(log->events);
	*log = (struct kvr_disk_log){0};
}

/* ---- cuts ------------------------------------------------------------------------------------ */

static bool is_flush(const struct kvr_disk_event *event)
{
	return event->op == KVR_DISK_FLUSH || (event->op == KVR_DISK_WRITE && event->through);
}

static bool overlap(const struct kvr_disk_event *one, const struct kvr_disk_event *other)
{
	const uint64_t first = other->at / KVR_DISK_PAGE * KVR_DISK_PAGE;
	const uint64_t end =
		(other->at + other->bytes + KVR_DISK_PAGE - 1) / KVR_DISK_PAGE * KVR_DISK_PAGE;

	return one->op == KVR_DISK_WRITE && one->at < end && one->at + one->bytes > first;
}

/* Makes durable what a flush covers (D2, D3, D4). */
static void take_effect(struct kvr_disk_cut *cut, const struct kvr_disk_event *flush)
{
	uint32_t kept = 0;

	for (uint32_t i = 0; i < cut->pending_count; i++) {
		const struct kvr_disk_event *event = &cut->log->events[cut->pending[i]];

		if (event->node == flush->node &&
			(flush->op == KVR_DISK_FLUSH || overlap(event, flush)))
			kvr_disk_apply(&cut->durable, event);
		else
			cut->pending[kept++] = cut->pending[i];
	}
	cut->pending_count = kept;
	kvr_disk_apply(&cut->durable, flush);
}

/* Goes on to the next flush from `next` on. */
static void seek(struct kvr_disk_cut *cut)
{
	while (cut->next < cut->log->count) {
		const struct kvr_disk_event *event = &cut->log->events[cut->next];

		if (is_flush(event))
			return;
		if (event->op == KVR_DISK_LINK)
			make_node(&cut->durable, event);
		if (event->op == KVR_DISK_STEP)
			cut->step++;
		else
			cut->pending[cut->pending_count++] = cut->next;
		cut->next++;
	}
}

void kvr_disk_cut_init(
	struct kvr_disk_cut *cut, const struct kvr_disk *base, const struct kvr_disk_log *log)
{
	memset(cut, 0, sizeof(*cut));
	cut->log = log;
	kvr_disk_copy(&cut->durable, base);
	cut->pending = must(calloc(log->count + 1, sizeof(*cut->pending)));
	seek(cut);
}

bool kvr_disk_cut_next(struct kvr_disk_cut *cut)
{
	if (cut->next == cut->log->count)
		return false;
	take_effect(cut, &cut->log->events[cut->next]);
	cut->next++;
	cut->flush++;
	seek(cut);
	return true;
}

void kvr_disk_cut_fini(struct kvr_disk_cut *cut)
{
	kvr_disk_fini(&cut->durable);
	free(cut->pending);
	memset(cut, 0, sizeof(*cut));
}

/* ---- coins ----------------------------------------------------------------------------------- */

static uint64_t mix(uint64_t a, uint64_t b)
{
	uint64_t z = (a ^ (b + 0x9e3779b97f4a7c15ull + (a << 6))) * 0xbf58476d1ce4e5b9ull;

	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

/* What happens to one event. Seeds lean to one side or the other, so that also single losses and single survivors occur. */
static enum fate throw(uint64_t seed, uint64_t coin) {
	static const uint8_t shares[4][2] = {{33, 33}, {10, 80}, {80, 10},
		{15, 15}}; /* lost, kept */
	const uint8_t *share = shares[mix(seed, 1) % 4];
	const uint64_t percent = mix(coin, 2) % 100;

	if (seed < 2) return seed == 0 ? LOST : KEPT;
	return percent < share[0]                        ? LOST
	       : percent < (uint64_t)share[0] + share[1] ? KEPT
							 : TORN;
}

/* D1, D5. */
static void tear_write(
	struct kvr_disk_node *node, const struct kvr_disk_event *event, uint64_t coin)
{
	uint64_t at = event->at;

	while (at < event->at + event->bytes) {
		const uint64_t sector = at / KVR_DISK_SECTOR;
		const uint64_t left = event->at + event->bytes - at;
		uint64_t some = (sector + 1) * KVR_DISK_SECTOR - at;

		some = left < some ? left : some;
		if (mix(coin, sector) & 1) {
			put_bytes(node, at, event->data + (at - event->at), some);
			grow(node, at + some);
		}
		at += some;
	}
	if (mix(coin, 3) & 1)
		grow(node, event->at + event->bytes);
}

static void apply_pending(
	struct kvr_disk *disk, const struct kvr_disk_event *event, uint64_t seed, uint64_t coin)
{
	const enum fate fate = throw(seed, coin);

	if (fate == KEPT) {
		kvr_disk_apply(disk, event);
	} else if (fate == TORN && event->op == KVR_DISK_WRITE) {
		tear_write(&disk->nodes[event->node], event, coin);
	} else if (fate == TORN && event->bytes > disk->nodes[event->node].bytes) {
		const uint64_t now = disk->nodes[event->node].bytes;

		resize(&disk->nodes[event->node], now + mix(coin, 4) % (event->bytes - now));
	} else if (seed > 1 && event->op == KVR_DISK_WRITE && mix(coin, 5) % 4 == 0) {
		grow(&disk->nodes[event->node], event->at + event->bytes); /* D5 */
	}
}

/* A coin per event, the same whatever came before it from other threads: the how-manieth it is of those alike decides. */
static uint64_t coin_of(const struct kvr_disk_cut *cut, uint32_t index, uint64_t seed)
{
	const struct kvr_disk_event *event = &cut->log->events[cut->pending[index]];
	uint64_t alike = 0;

	for (uint32_t i = 0; i < index; i++) {
		const struct kvr_disk_event *other = &cut->log->events[cut->pending[i]];

		alike += other->node == event->node && other->op == event->op &&
			 other->at == event->at;
	}
	return mix(mix(mix(seed, cut->flush), event->node), mix(event->at, alike + event->op));
}

void kvr_disk_cut_image(const struct kvr_disk_cut *cut, uint64_t seed, struct kvr_disk *ret_disk)
{
	bool stopped[KVR_DISK_NODES] = {false};

	kvr_disk_copy(ret_disk, &cut->durable);
	for (uint32_t i = 0; i < cut->pending_count; i++) {
		const struct kvr_disk_event *event = &cut->log->events[cut->pending[i]];
		const uint64_t coin = coin_of(cut, i, seed);

		if (!is_of_names(event)) {
			apply_pending(ret_disk, event, seed, coin);
			continue;
		}
		/* D3: the first that is lost takes all behind it along. */
		stopped[event->node] |= seed == 0 || (seed > 1 && mix(coin, 6) % 4 == 0);
		if (!stopped[event->node])
			kvr_disk_apply(ret_disk, event);
	}
	if (cut->next == cut->log->count)
		return;
	/* A write through that the power interrupts. */
	if (cut->log->events[cut->next].op == KVR_DISK_WRITE)
		apply_pending(ret_disk, &cut->log->events[cut->next], seed, mix(seed, cut->flush));
}
