/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: a disk that fails while the daemon runs costs what is on it, and nothing else: what can be read is right, what
 * cannot is said to be missing, what cannot be written is said not to be stored, memory goes on being served, and the daemon
 * lives, ends well, and stores again when the disk is back.
 * Method: slabs.kvr is cut short under a running daemon; its largest file size is lowered, so that writes fail; and, as root, a
 * file system in a file is shut down under it, after which the kernel answers all its I/O with EIO. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "daemon/keep.h"
#include "tests/daemon/damage_util.h"
#include "tests/daemon/process_util.h"
#include "tests/daemon/scratch_util.h"

#define AGAIN_MS      20000u
#define COMMAND_MS    20000u
#define SHUTDOWN      _IOR('X', 125, uint32_t) /* EXT4_IOC_SHUTDOWN */
#define SHUTDOWN_FLAG 2u                       /* at once, nothing is written any more */

static const struct kvr_recall recalled = {
	.budget_tokens = DAMAGE_TOKENS, .row_capacity = DAMAGE_TOKENS + 16, .sinks = true};

/* ---- reads ----------------------------------------------------------------------------------- */

static void test_cut_while_running(void **state)
{
	struct damage_world *world = &damage_world;

	(void)state;
	for (uint32_t round = 0; round < (PROCESS_SLOW == 1 ? 6 : 2); round++) {
		world->said = 0;
		memset(world->damaged, true, sizeof(world->damaged));
		assert_int_equal(damage_start(), 0);
		damage_cut("slabs.kvr", round == 0 ? 0 : process_random(1, 40u << 20));
		damage_look_at_all(); /* ends well */
		assert_true(round > 0 || world->said > 0);
		damage_put_back();
	}
}

/* ---- writes ---------------------------------------------------------------------------------- */

static void limit_files(rlim_t bytes)
{
	const struct rlimit limit = {bytes, RLIM_INFINITY};

	assert_int_equal(prlimit(damage_world.daemon.pid, RLIMIT_FSIZE, &limit, NULL), 0);
}

static void check_fresh(struct kvr_sequence *sequence, const uint32_t *ids)
{
	struct damage_world *world = &damage_world;

	for (uint32_t layer = 0; layer < world->config.layers; layer++)
		assert_true(harness_check_recall(world->client, sequence, &world->config, ids,
				    layer, recalled, 0, NULL) > 0);
	harness_check_fetch(world->client, sequence, &world->config, ids, 0, DAMAGE_TOKENS, 0);
}

/* Sync says that it is not stored, and why; it is served from memory all the same. */
static struct kvr_sequence *put_in_vain(uint32_t *ret_ids)
{
	struct damage_world *world = &damage_world;
	struct kvr_sequence *sequence;

	harness_tokens(process_random(1000, 1000000), ret_ids, DAMAGE_TOKENS);
	assert_int_equal(kvr_open(world->model, NULL, 0, &sequence, &(uint32_t){0}), 0);
	assert_int_equal(harness_append(world->client, sequence, &world->config, ret_ids, 0,
				 DAMAGE_TOKENS, 0),
		0);
	assert_int_equal(kvr_sync(sequence, true, NULL), -EDQUOT);
	assert_string_equal(kvr_error(world->client)->name, "NOT_STORED");
	assert_non_null(strstr(kvr_error(world->client)->subject, "disk failed"));
	check_fresh(sequence, ret_ids);
	return sequence;
}

static void test_writes_fail(void **state)
{
	struct damage_world *world = &damage_world;
	static uint32_t ids[DAMAGE_TOKENS];
	struct kvr_sequence *sequence, *other;
	uint32_t ms = 0, matched = 0;
	int rc;

	(void)state;
	assert_int_equal(damage_start(), 0);
	damage_attach();
	limit_files(64 << 10);
	sequence = put_in_vain(ids);
	assert_true(harness_metric(world->client, "store.put_failures_count") > 0);
	/* The catalog cannot be told of a last use either. */
	assert_int_equal(kvr_open(world->model, world->ids[0], DAMAGE_TOKENS, &other, &matched), 0);
	assert_int_equal(matched, DAMAGE_TOKENS);
	check_fresh(other, world->ids[0]);
	assert_int_equal(kvr_close(other, true), 0);
	process_sleep_us(3 * KVR_KEEP_TICK_MS * 1000);
	assert_int_equal(kvr_ping(world->client), 0);
	limit_files(RLIM_INFINITY);
	harness_assert_alive(&world->daemon);
	while ((rc = kvr_sync(sequence, false, NULL)) != 0) { /* it tries again by itself */
		assert_int_equal(rc, -EDQUOT);
		assert_true(ms < AGAIN_MS);
		process_sleep_us(50000);
		ms += 50;
	}
	harness_kill(&world->daemon);
	kvr_disconnect(world->client);
	assert_int_equal(damage_start(), 0);
	damage_attach();
	assert_int_equal(kvr_open(world->model, ids, DAMAGE_TOKENS, &sequence, &matched), 0);
	assert_int_equal(matched, DAMAGE_TOKENS);
	check_fresh(sequence, ids);
	kvr_disconnect(world->client);
	assert_int_equal(waitpid(world->daemon.pid, NULL, WNOHANG), 0);
	harness_kill(&world->daemon);
	assert_int_equal(damage_start(), 0);
	damage_look_at_all();
}

/* ---- the whole disk -------------------------------------------------------------------------- */

/* Runs a program with its output thrown away. Returns whether it succeeded. */
static bool ran_well(const char *const *argv)
{
	const pid_t pid = fork();
	int fd;

	assert_true(pid >= 0);
	if (pid == 0) {
		fd = open("/dev/null", O_RDWR | O_CLOEXEC);
		dup2(fd, STDOUT_FILENO);
		dup2(fd, STDERR_FILENO);
		execvp(argv[0], (char *const *)argv);
		_exit(127);
	}
	return process_wait(pid, COMMAND_MS) == 0;
}

/* A file system in a file, seen by this process and its children alone. Returns why it cannot be, or NULL. */
static const char *mount_disk(const char *folder)
{
	char image[200], disk[200];
	const char *const format[] = {"mkfs.ext4", "-q", "-F", image, "256M", NULL};
	const char *const attach[] = {"mount", "-o", "loop", image, disk, NULL};

	snprintf(image, sizeof(image), "%s/image", folder);
	snprintf(disk, sizeof(disk), "%s/disk", folder);
	if (geteuid() != 0)
		return "it takes root to mount a file system";
	if (unshare(CLONE_NEWNS) < 0 || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL) < 0)
		return "mount namespaces are not allowed here";
	assert_int_equal(mkdir(disk, 0700), 0);
	return ran_well(format) && ran_well(attach) ? NULL
						    : "mkfs.ext4 or mount -o loop fails here";
}

static void shut_down(const char *folder)
{
	const uint32_t flag = SHUTDOWN_FLAG;
	char path[200];
	int fd;

	snprintf(path, sizeof(path), "%s/disk", folder);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	assert_true(fd >= 0);
	assert_int_equal(ioctl(fd, SHUTDOWN, &flag), 0);
	close(fd);
}

static void test_disk_removed(void **state)
{
	struct damage_world *world = &damage_world;
	char home[sizeof(world->daemon.store)], folder[sizeof(home)], disk[sizeof(home) + 16];
	static uint32_t ids[DAMAGE_TOKENS];
	struct kvr_sequence *sequence;
	const char *why;

	(void)state;
	scratch_make(folder, sizeof(folder));
	why = mount_disk(folder);
	if (why) {
		print_message("skipped: %s\n", why);
		scratch_remove(folder);
		skip();
	}
	snprintf(disk, sizeof(disk), "%s/disk/store", folder);
	assert_int_equal(mkdir(disk, 0700), 0);
	scratch_copy(world->whole, disk);
	memcpy(home, world->daemon.store, sizeof(home));
	assert_true(strlen(disk) < sizeof(world->daemon.store));
	memcpy(world->daemon.store, disk, strlen(disk) + 1);
	assert_int_equal(damage_start(), 0);
	damage_attach();
	assert_int_equal(
		kvr_open(world->model, world->ids[0], DAMAGE_TOKENS, &sequence, &(uint32_t){0}), 0);
	check_fresh(sequence, world->ids[0]); /* from here on in memory */
	shut_down(folder);
	check_fresh(sequence, world->ids[0]);
	kvr_disconnect(world->client);
	memset(world->damaged, true, sizeof(world->damaged));
	world->said = 0;
	damage_attach();
	kvr_close(put_in_vain(ids), true);
	kvr_disconnect(world->client);
	damage_look_at_all();
	assert_true(world->said > 0);
	memcpy(world->daemon.store, home, sizeof(home));
	snprintf(disk, sizeof(disk), "%s/disk", folder);
	assert_int_equal(umount2(disk, MNT_DETACH), 0);
	scratch_remove(folder);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_cut_while_running, damage_prepare),
		cmocka_unit_test_setup(test_writes_fail, damage_prepare),
		cmocka_unit_test_setup(test_disk_removed, damage_prepare),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon damage, disk", tests, damage_fill, damage_empty);
}
