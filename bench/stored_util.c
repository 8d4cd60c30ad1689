/* SPDX-License-Identifier: Apache-2.0 */
/* stored_util.c: see stored_util.h. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "bench/bench_util.h"
#include "bench/stored_util.h"
#include "tiers/slab.h"

#define SEGMENT_TOKENS 1024u
#define SEGMENT_SHIFT  40u
#define DISK_BYTES     512u /* what reads are in multiples of */

struct segment {
	struct kvr_slab_head head;
	struct kvr_segment_view view;
	struct kvr_slab_layout layout;
	uint64_t id;
	uint32_t *parts; /* slab numbers */
};

struct bench_stored {
	int fd;
	uint32_t count; /* segments */
	struct segment segments[];
};

void bench_stored_path(const char *dir, char ret_path[96])
{
	snprintf(ret_path, 96, "%s/slabs.kvr", dir);
}

static void read_at(const struct bench_stored *stored, void *to, size_t bytes, uint64_t offset)
{
	if (pread(stored->fd, to, bytes, (off_t)offset) != (ssize_t)bytes)
		bench_fail("slabs.kvr: %s", strerror(errno));
}

static void read_stream(const struct bench_stored *stored, const struct segment *segment,
	uint8_t *to, uint64_t at, uint64_t bytes)
{
	while (bytes > 0) {
		uint32_t offset, left;
		const uint32_t part = kvr_slab_part(at, &offset, &left);
		const uint32_t some = bytes < left ? (uint32_t)bytes : left;

		read_at(stored, to, some, (uint64_t)segment->parts[part] * KVR_SLAB_BYTES + offset);
		to += some;
		at += some;
		bytes -= some;
	}
}

/* ---- finding --------------------------------------------------------------------------------- */

/* A slab that begins a segment of the sequence: notes the segment. The token ids come first in the summary. */
static void take_first(struct bench_stored *stored, uint32_t slab, uint32_t seed)
{
	const uint64_t at = (uint64_t)slab * KVR_SLAB_BYTES + KVR_SLAB_HEADER_BYTES;
	uint8_t bytes[KVR_SLAB_HEADER_BYTES];
	struct kvr_slab_head head;
	struct segment *segment;
	uint32_t token;

	read_at(stored, bytes, sizeof(bytes), at);
	read_at(stored, &token, sizeof(token), at + KVR_SLAB_HEADER_BYTES);
	if (kvr_slab_unpack_head(bytes, &head) < 0 || token >> 24 != seed ||
		head.token_count != SEGMENT_TOKENS ||
		head.token_first / SEGMENT_TOKENS >= stored->count)
		return;
	segment = &stored->segments[head.token_first / SEGMENT_TOKENS];
	segment->head = head;
	segment->id = head.segment;
	kvr_slab_layout(&segment->head.model.geometry, head.token_first, head.token_count,
		&segment->layout);
	segment->parts = calloc(segment->layout.part_count, sizeof(*segment->parts));
	if (!segment->parts)
		bench_fail("no memory");
}

static void take_part(
	struct bench_stored *stored, uint32_t slab, const struct kvr_slab_header *header)
{
	for (uint32_t i = 0; i < stored->count; i++) {
		struct segment *segment = &stored->segments[i];

		if (segment->id == header->segment && header->part < segment->layout.part_count)
			segment->parts[header->part] = slab;
	}
}

/* Segments' first slabs in one pass over the headers, the others in a second. */
static void scan(struct bench_stored *stored, uint32_t slabs, uint32_t seed)
{
	struct kvr_slab_header *headers = calloc(slabs, sizeof(*headers));
	uint8_t bytes[KVR_SLAB_HEADER_BYTES];

	if (!headers)
		bench_fail("no memory");
	for (uint32_t slab = 0; slab < slabs; slab++) {
		read_at(stored, bytes, sizeof(bytes), (uint64_t)slab * KVR_SLAB_BYTES);
		if (kvr_slab_unpack_header(bytes, &headers[slab]) < 0)
			headers[slab].segment = 0;
		else if (headers[slab].part == 0)
			take_first(stored, slab, seed);
	}
	for (uint32_t slab = 0; slab < slabs; slab++) {
		if (headers[slab].segment > 0)
			take_part(stored, slab, &headers[slab]);
	}
	free(headers);
}

static void load(const struct bench_stored *stored, struct segment *segment)
{
	const size_t token_bytes = SEGMENT_TOKENS * sizeof(uint32_t);
	size_t bytes;

	kvr_segment_shape(&segment->view, &segment->head.model.geometry, segment->head.token_first,
		segment->head.token_count);
	bytes = kvr_segment_bind(&segment->view, NULL);
	if (bytes + token_bytes != segment->layout.summary_bytes)
		bench_fail("a summary of another size");
	kvr_segment_bind(&segment->view, aligned_alloc(64, bytes));
	if (!segment->view.memory)
		bench_fail("no memory");
	read_stream(stored, segment, segment->view.memory, segment->layout.summary_at + token_bytes,
		bytes);
}

struct bench_stored *bench_stored_open(const char *dir, uint32_t tokens, uint32_t seed)
{
	const uint32_t count = tokens / SEGMENT_TOKENS;
	struct bench_stored *stored = calloc(1, sizeof(*stored) + count * sizeof(struct segment));
	struct stat stat;
	char path[96];

	if (!stored)
		bench_fail("no memory");
	bench_stored_path(dir, path);
	stored->count = count;
	stored->fd = open(path, O_RDONLY | O_CLOEXEC);
	if (stored->fd < 0 || fstat(stored->fd, &stat) < 0)
		bench_fail("%s: %s", path, strerror(errno));
	/* Only headers are read of most slabs. */
	(void)posix_fadvise(stored->fd, 0, 0, POSIX_FADV_RANDOM);
	scan(stored, (uint32_t)((uint64_t)stat.st_size / KVR_SLAB_BYTES), seed);
	for (uint32_t i = 0; i < count; i++) {
		if (stored->segments[i].id == 0)
			bench_fail("%s: segment %u is not there", path, i);
		load(stored, &stored->segments[i]);
	}
	/* What is measured reads past the page cache, and so does the reference. */
	(void)posix_fadvise(stored->fd, 0, 0, POSIX_FADV_DONTNEED);
	return stored;
}

struct bench_stored *bench_stored_close(struct bench_stored *stored)
{
	for (uint32_t i = 0; i < stored->count; i++) {
		free(stored->segments[i].view.memory);
		free(stored->segments[i].parts);
	}
	close(stored->fd);
	free(stored);
	return NULL;
}

/* ---- what is where --------------------------------------------------------------------------- */

uint32_t bench_stored_segments(const struct bench_stored *stored)
{
	return stored->count;
}

/* Marks the clusters of a lane of a segment that some of the rows come from. */
static void mark(const struct segment *segment, uint32_t lane, const int32_t *positions,
	uint32_t rows, bool ret_taken[SEGMENT_TOKENS + 1])
{
	const struct kvr_segment_view *view = &segment->view;
	const uint16_t *row_first = kvr_segment_row_first(view, lane);
	const uint16_t *row_token = kvr_segment_row_token(view, lane);
	uint16_t cluster_of[SEGMENT_TOKENS];

	for (uint32_t c = 0; c <= view->cluster_count[lane]; c++) {
		ret_taken[c] = false;
		for (uint32_t i = row_first[c]; i < row_first[c + 1]; i++)
			cluster_of[row_token[i]] = (uint16_t)c;
	}
	for (uint32_t i = 0; i < rows; i++) {
		const uint32_t token = (uint32_t)positions[i] - view->token_first;

		if (token < SEGMENT_TOKENS)
			ret_taken[cluster_of[token]] = true;
	}
}

/* An order of the clusters: by chance, or as they are. */
static void draw_order(uint16_t *ret_order, uint32_t count, uint32_t seed)
{
	uint32_t random = seed;

	for (uint32_t i = 0; i < count; i++) {
		uint32_t other;

		random = random * 1664525u + 1013904223u;
		ret_order[i] = 0; /* read back where other is i itself */
		other = seed ? (uint32_t)((uint64_t)random * (i + 1) >> 32) : i;
		ret_order[i] = ret_order[other];
		ret_order[other] = (uint16_t)i;
	}
}

uint32_t bench_stored_shuffled(const struct bench_stored *stored, uint32_t lane,
	const int32_t *positions, uint32_t rows, uint32_t seed, struct kvr_plan_piece *ret_pieces)
{
	bool taken[SEGMENT_TOKENS + 1] = {false};
	uint16_t order[SEGMENT_TOKENS + 1] = {0};
	uint32_t count = 0;

	for (uint32_t s = 0; s < stored->count; s++) {
		const struct segment *segment = &stored->segments[s];
		const uint32_t clusters = segment->view.cluster_count[lane] + 1u;
		uint32_t bytes;
		uint64_t at = kvr_slab_unit_at(&segment->layout, &segment->view, lane, 0, &bytes);

		mark(segment, lane, positions, rows, taken);
		draw_order(order, clusters, seed ? seed + s * 7919u + lane : 0);
		for (uint32_t i = 0; i < clusters; i++, at += bytes) {
			kvr_slab_unit_at(&segment->layout, &segment->view, lane, order[i], &bytes);
			if (taken[order[i]])
				ret_pieces[count++] = (struct kvr_plan_piece){
					(uint64_t)s << SEGMENT_SHIFT | at, bytes, 0};
		}
	}
	return count;
}

uint32_t bench_stored_pieces(const struct bench_stored *stored, uint32_t lane,
	const int32_t *positions, uint32_t rows, struct kvr_plan_piece *ret_pieces)
{
	return bench_stored_shuffled(stored, lane, positions, rows, 0, ret_pieces);
}

struct kvr_plan_piece bench_stored_lanes(
	const struct bench_stored *stored, uint32_t segment, uint32_t lane_first, uint32_t lanes)
{
	const struct kvr_slab_layout *layout = &stored->segments[segment].layout;
	const uint64_t lane_bytes =
		layout->payload_bytes / kvr_geometry_lanes(stored->segments[segment].view.geometry);

	return (struct kvr_plan_piece){
		(uint64_t)segment << SEGMENT_SHIFT | (layout->payload_at + lane_first * lane_bytes),
		(uint32_t)(lanes * lane_bytes), 0};
}

uint32_t bench_stored_extents(const struct bench_stored *stored, uint64_t offset, uint32_t bytes,
	uint32_t max_bytes, struct bench_extent *ret_extents, uint32_t max)
{
	const struct segment *segment = &stored->segments[offset >> SEGMENT_SHIFT];
	uint64_t at = offset & (((uint64_t)1 << SEGMENT_SHIFT) - 1);
	const uint64_t end = (at + bytes + DISK_BYTES - 1) & ~(uint64_t)(DISK_BYTES - 1);
	uint32_t count = 0;

	at &= ~(uint64_t)(DISK_BYTES - 1);
	while (at < end) {
		uint32_t in_slab, some;
		const uint32_t part = kvr_slab_part(at, &in_slab, &some);

		if (some > end - at)
			some = (uint32_t)(end - at);
		if (max_bytes > 0 && some > max_bytes)
			some = max_bytes;
		if (count == max)
			bench_fail("more extents than there is room for");
		ret_extents[count++] = (struct bench_extent){
			(uint64_t)segment->parts[part] * KVR_SLAB_BYTES + in_slab, some};
		at += some;
	}
	return count;
}
