/* SPDX-License-Identifier: Apache-2.0 */
/* stored_util.c: see stored_util.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include "tests/daemon/stored_util.h"

#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define REGION (32u << 20)

char stored_out[STORED_OUTPUT_MAX], stored_err[STORED_OUTPUT_MAX];

static const char *const arguments[] = {"-m", "64 MiB", NULL};

struct kvr_model *stored_model(struct stored *world)
{
	struct kvr_model *model;

	assert_int_equal(kvr_model_register(world->client, &world->config, &model), 0);
	return model;
}

struct kvr_sequence *stored_open(struct stored *world, uint32_t which, uint32_t *ret_matched)
{
	struct kvr_sequence *sequence;

	assert_int_equal(kvr_open(stored_model(world), world->ids[which], STORED_TOKENS, &sequence,
				 ret_matched),
		0);
	return sequence;
}

void stored_start(struct stored *world)
{
	uint32_t matched, sealed;

	world->config = harness_model();
	harness_tokens(1, world->ids[0], STORED_TOKENS);
	harness_tokens(2, world->ids[1], STORED_TOKENS);
	memcpy(world->ids[1], world->ids[0], STORED_BRANCH * 128 * sizeof(uint32_t));
	harness_start_stored(&world->daemon, arguments);
	world->client = harness_connect(&world->daemon, REGION);
	for (uint32_t i = 0; i < 2; i++) {
		struct kvr_sequence *sequence = stored_open(world, i, &matched);

		assert_int_equal(matched, i * STORED_BRANCH * 128);
		assert_int_equal(harness_append(world->client, sequence, &world->config,
					 world->ids[i], matched, STORED_TOKENS - matched, 0),
			0);
		assert_int_equal(kvr_sync(sequence, true, &sealed), 0);
		assert_int_equal(sealed, STORED_TOKENS);
		assert_int_equal(kvr_close(sequence, true), 0);
	}
}

void stored_end(struct stored *world)
{
	harness_kill(&world->daemon);
	kvr_disconnect(world->client);
}

void stored_start_again(struct stored *world)
{
	harness_restart(&world->daemon, arguments);
	world->client = harness_connect(&world->daemon, REGION);
}

void stored_restart(struct stored *world)
{
	stored_end(world);
	stored_start_again(world);
}

void stored_stop(struct stored *world)
{
	kvr_disconnect(world->client);
	harness_stop(&world->daemon);
}

void stored_check(struct stored *world)
{
	for (uint32_t i = 0; i < 2; i++) {
		uint32_t matched;
		struct kvr_sequence *sequence = stored_open(world, i, &matched);

		assert_int_equal(matched, STORED_TOKENS);
		harness_check_fetch(world->client, sequence, &world->config, world->ids[i], 0,
			STORED_TOKENS, 0);
		assert_int_equal(kvr_close(sequence, true), 0);
	}
}

/* Flips a bit in each of 8 pages of the first slab, behind header and head. */
void stored_flip(const struct stored *world)
{
	char path[128];
	uint8_t byte;
	int fd;

	snprintf(path, sizeof(path), "%s/slabs.kvr", world->daemon.store);
	fd = open(path, O_RDWR);
	assert_true(fd >= 0);
	for (off_t at = 9000; at < 9000 + 8 * 4096; at += 4096) {
		assert_int_equal(pread(fd, &byte, 1, at), 1);
		byte ^= 4;
		assert_int_equal(pwrite(fd, &byte, 1, at), 1);
	}
	close(fd);
}

void stored_list(struct stored *world, struct kvr_segment_info segments[STORED_ALL])
{
	struct kvr_segment_info none;

	assert_int_equal(kvr_segment_list(world->client, 0, 0, segments, STORED_ALL), STORED_ALL);
	assert_int_equal(kvr_segment_list(world->client, 0, STORED_ALL, &none, 1), 0);
}

/* ---- the tool --------------------------------------------------------------------------------- */

static void read_back(const struct stored *world, const char *name, char *into)
{
	char path[128];
	FILE *file;
	size_t length;

	snprintf(path, sizeof(path), "%s/%s", world->daemon.dir, name);
	file = fopen(path, "r");
	assert_non_null(file);
	length = fread(into, 1, STORED_OUTPUT_MAX - 1, file);
	into[length] = 0;
	assert_int_equal(fclose(file), 0);
}

/* Runs a line of the shell where $K is the tool and $S the store. Returns the exit code. */
static int run(const struct stored *world, const char *command)
{
	char line[2048], tool[600];
	int status;

	harness_program("kvrecall", tool, sizeof(tool));
	snprintf(line, sizeof(line), "cd %s; K='%s'; S=%s; { %s; } >out 2>err", world->daemon.dir,
		tool, world->daemon.store, command);
	status = system(line); /* NOLINT(cert-env33-c) */
	assert_true(WIFEXITED(status));
	read_back(world, "out", stored_out);
	read_back(world, "err", stored_err);
	return WEXITSTATUS(status);
}

void stored_run(const struct stored *world, const char *command, int code, const char *says)
{
	int got = run(world, command);

	if (got != code)
		fail_msg("%s: %d, not %d: %s%s", command, got, code, stored_out, stored_err);
	if (!strstr(stored_out, says) && !strstr(stored_err, says))
		fail_msg("%s: '%s%s' lacks '%s'", command, stored_out, stored_err, says);
}
