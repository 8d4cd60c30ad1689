/* SPDX-License-Identifier: Apache-2.0 */
/* damage_util.c: see damage_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/damage_util.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/daemon/process_util.h"
#include "tests/daemon/scratch_util.h"
#include "tiers/slab.h"

#define SEGMENT       128u
#define START_WAIT_MS 60000u

const char *const damage_arguments[] = {"-m", "8 MiB", NULL};
struct damage_world damage_world;
struct damage_slab damage_slabs[DAMAGE_SLABS];
uint32_t damage_slab_count;

/* ---- daemons --------------------------------------------------------------------------------- */

void damage_attach(void)
{
	damage_world.client = harness_connect(&damage_world.daemon, DAMAGE_REGION);
	assert_int_equal(
		kvr_model_register(damage_world.client, &damage_world.config, &damage_world.model),
		0);
}

static int try_connect(void)
{
	const struct kvr_client_config config = {
		.attach_path = damage_world.daemon.socket, .region_bytes = 1 << 20};
	struct kvr_client *client;
	const int rc = kvr_connect(&config, &client);

	if (rc == 0)
		kvr_disconnect(client);
	return rc;
}

/* Starts a daemon on the store. Returns 0 when it serves, or its exit status; its output is in damage_world.text. */
int damage_start(void)
{
	const int out = memfd_create("output", MFD_CLOEXEC), saved = dup(STDERR_FILENO);
	int status = 0;
	ssize_t bytes;

	assert_true(out >= 0);
	dup2(out, STDERR_FILENO);
	harness_launch(&damage_world.daemon, damage_arguments);
	dup2(saved, STDERR_FILENO);
	close(saved);
	for (uint32_t ms = 0; try_connect() != 0; ms++) {
		if (waitpid(damage_world.daemon.pid, &status, WNOHANG) == damage_world.daemon.pid)
			break;
		assert_true(ms < START_WAIT_MS);
		process_sleep_us(1000);
	}
	bytes = pread(out, damage_world.text, sizeof(damage_world.text) - 1, 0);
	damage_world.text[bytes > 0 ? bytes : 0] = '\0';
	close(out);
	if (status == 0)
		return 0;
	if (!WIFEXITED(status) || WEXITSTATUS(status) != 1)
		fail_msg("the daemon ended with status %#x: %s", status, damage_world.text);
	return WEXITSTATUS(status);
}

void damage_end(void)
{
	kvr_disconnect(damage_world.client);
	harness_end(&damage_world.daemon);
}

void damage_path_of(const char *name, char *ret_path, size_t bytes)
{
	snprintf(ret_path, bytes, "%s/%s", damage_world.daemon.store, name);
}

/* Everything is as it was. */
void damage_put_back(void)
{
	scratch_copy(damage_world.whole, damage_world.daemon.store);
	memset(damage_world.damaged, 0, sizeof(damage_world.damaged));
}

void damage_put_back_catalog(void)
{
	char from[200], to[200];

	snprintf(from, sizeof(from), "%s/catalog", damage_world.whole);
	damage_path_of("catalog", to, sizeof(to));
	scratch_copy(from, to);
	memset(damage_world.damaged, 0, sizeof(damage_world.damaged));
}

/* A start must be refused with all of these words. */
void damage_assert_refused(const char *one, const char *other)
{
	assert_int_equal(damage_start(), 1);
	if (!strstr(damage_world.text, one) || !strstr(damage_world.text, other))
		fail_msg("not \"%s\" and \"%s\" but: %s", one, other, damage_world.text);
}

/* ---- the store ------------------------------------------------------------------------------- */

void damage_put(uint32_t s)
{
	struct kvr_sequence *sequence;
	uint32_t sealed = 0;

	harness_tokens(100 + s, damage_world.ids[s], DAMAGE_TOKENS);
	assert_int_equal(kvr_open(damage_world.model, NULL, 0, &sequence, &sealed), 0);
	for (uint32_t at = 0; at < DAMAGE_TOKENS; at += 250)
		assert_int_equal(harness_append(damage_world.client, sequence, &damage_world.config,
					 damage_world.ids[s], at, 250, 0),
			0);
	assert_int_equal(kvr_sync(sequence, true, &sealed), 0);
	assert_int_equal(sealed, DAMAGE_TOKENS);
	assert_int_equal(kvr_close(sequence, true), 0);
}

/* Whose slab this is, by the ids that stand in it: each segment of this model is one slab. */
static uint32_t sequence_of(const uint8_t *slab)
{
	const struct kvr_geometry *geometry;
	struct kvr_slab_layout layout;
	struct kvr_slab_head head;
	uint32_t first_id;

	assert_int_equal(kvr_slab_unpack_head(slab + KVR_SLAB_HEADER_BYTES, &head), 0);
	geometry = &head.model.geometry;
	kvr_slab_layout(geometry, head.token_first, head.token_count, &layout);
	assert_int_equal(layout.part_count, 1);
	memcpy(&first_id, slab + KVR_SLAB_HEADER_BYTES + layout.summary_at, sizeof(first_id));
	for (uint32_t s = 0; s < DAMAGE_SEQUENCES; s++) {
		if (damage_world.ids[s][head.token_first] == first_id)
			return s;
	}
	fail_msg("a slab of nobody");
	return 0;
}

static void find_slabs(void)
{
	static uint8_t bytes[KVR_SLAB_HEADER_BYTES + (256 << 10)];
	char path[200];
	int fd;

	damage_path_of("slabs.kvr", path, sizeof(path));
	fd = open(path, O_RDONLY | O_CLOEXEC);
	assert_true(fd >= 0);
	for (uint32_t i = 0; i < DAMAGE_SLABS; i++) {
		struct damage_slab *slab = &damage_slabs[damage_slab_count];
		struct kvr_slab_header header;

		slab->offset = (uint64_t)i * KVR_SLAB_BYTES;
		assert_true(pread(fd, bytes, sizeof(bytes), (off_t)slab->offset) ==
			    (ssize_t)sizeof(bytes));
		if (kvr_slab_unpack_header(bytes, &header) < 0)
			continue;
		slab->bytes = KVR_SLAB_HEADER_BYTES + header.body_bytes;
		slab->sequence = sequence_of(bytes);
		damage_slab_count++;
	}
	close(fd);
	assert_int_equal(
		damage_slab_count, DAMAGE_SEQUENCES * ((DAMAGE_TOKENS + SEGMENT - 1) / SEGMENT));
}

int damage_fill(void **state)
{
	(void)state;
	damage_world.config = harness_model();
	harness_start_sized(&damage_world.daemon, "64 MiB", damage_arguments);
	damage_attach();
	for (uint32_t s = 0; s < DAMAGE_SEQUENCES; s++)
		damage_put(s);
	damage_end();
	scratch_make(damage_world.whole, sizeof(damage_world.whole));
	scratch_copy(damage_world.daemon.store, damage_world.whole);
	find_slabs();
	return 0;
}

/* A test before may have failed anywhere. */
int damage_prepare(void **state)
{
	(void)state;
	if (waitpid(damage_world.daemon.pid, NULL, WNOHANG) == 0)
		harness_kill(&damage_world.daemon);
	damage_put_back();
	return 0;
}

int damage_empty(void **state)
{
	(void)state;
	damage_put_back();
	assert_int_equal(damage_start(), 0);
	harness_stop(&damage_world.daemon);
	scratch_remove(damage_world.whole);
	return 0;
}

/* ---- looking at everything ------------------------------------------------------------------- */

/* Recalls and fetches what was matched. Returns whether something was said to be unreadable. */
static bool look_once(uint32_t s, struct kvr_sequence *sequence, uint32_t matched)
{
	const struct kvr_recall recall = {
		.budget_tokens = DAMAGE_TOKENS, .row_capacity = DAMAGE_TOKENS + 16, .sinks = true};
	const bool recall_first = process_random(0, 1);
	bool said = false;

	for (int turn = 0; turn < 2; turn++) {
		uint32_t missing = 0;
		int rc = 0;

		if ((turn == 0) != recall_first) {
			rc = harness_try_fetch(damage_world.client, sequence, &damage_world.config,
				damage_world.ids[s], 0, matched, 0);
			assert_true(rc == 0 || rc == -EIO);
			if (rc < 0)
				assert_string_equal(
					kvr_error(damage_world.client)->name, "UNREADABLE");
		}
		for (uint32_t layer = 0; (turn == 0) == recall_first && layer < 2; layer++) {
			uint32_t lost;
			const int rows =
				harness_recall(damage_world.client, sequence, &damage_world.config,
					damage_world.ids[s], layer, recall, 0, NULL, &lost);

			assert_true(rows >= 0);
			/* The budget takes all there is: each token is a row, or said to be missing. */
			assert_int_equal(
				(uint32_t)rows + lost, matched * damage_world.config.kv_heads);
			missing += lost;
		}
		said |= rc < 0 || missing > 0;
	}
	return said;
}

/* Looks until nothing is said to be unreadable any more: each time the match must be shorter. */
static void look_at(uint32_t s)
{
	uint32_t before = DAMAGE_TOKENS + 1;
	bool said = true;

	while (said) {
		struct kvr_sequence *sequence;
		uint32_t matched = 0;

		assert_int_equal(kvr_open(damage_world.model, damage_world.ids[s], DAMAGE_TOKENS,
					 &sequence, &matched),
			0);
		if (!damage_world.damaged[s])
			assert_int_equal(matched, DAMAGE_TOKENS);
		assert_true(matched < before);
		said = matched > 0 && look_once(s, sequence, matched);
		if (said && !damage_world.damaged[s])
			fail_msg("sequence %u was left alone and is said to be unreadable", s);
		damage_world.said += said || matched < DAMAGE_TOKENS;
		before = matched;
		assert_int_equal(kvr_close(sequence, true), 0);
	}
}

void damage_look_at_all(void)
{
	damage_attach();
	for (uint32_t s = 0; s < DAMAGE_SEQUENCES; s++)
		look_at(s);
	damage_end();
}

uint64_t damage_file_bytes(const char *name)
{
	struct stat stat;
	char path[200];

	damage_path_of(name, path, sizeof(path));
	assert_int_equal(lstat(path, &stat), 0);
	return (uint64_t)stat.st_size;
}

/* Refused with the remedy, or served as far as it is right. */
bool damage_start_or_refuse(void)
{
	if (damage_start() == 0) {
		damage_look_at_all();
		return true;
	}
	if (!strstr(damage_world.text, "rebuild") && !strstr(damage_world.text, "newer version"))
		fail_msg("no remedy in: %s", damage_world.text);
	return false;
}

void damage_cut(const char *name, uint64_t bytes)
{
	char path[200];

	damage_path_of(name, path, sizeof(path));
	assert_int_equal(truncate(path, (off_t)bytes), 0);
}
