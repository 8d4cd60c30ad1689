/* SPDX-License-Identifier: Apache-2.0 */
/* process_util.c: see process_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/process_util.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/daemon/harness_util.h"

#define PART_SECONDS  120
#define RUN_MS        60000
#define ARGUMENTS_MAX 16

uint64_t process_seed = 1;

void process_part(int argc, char **argv, const struct process_part *parts)
{
	if (argc != 4)
		return;
	for (; parts->name; parts++) {
		if (strcmp(parts->name, argv[1]) != 0)
			continue;
		alarm(PART_SECONDS);
		process_seed = 0x9e3779b97f4a7c15u * (strtoul(argv[3], NULL, 10) + 1);
		exit(parts->play(argv[2], (uint32_t)strtoul(argv[3], NULL, 10)));
	}
	fprintf(stderr, "no part %s\n", argv[1]);
	exit(2);
}

pid_t process_start(const char *name, const char *socket, uint32_t number)
{
	char text[16];
	pid_t pid;

	snprintf(text, sizeof(text), "%u", number);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a test that dies leaves nothing behind */
		execl("/proc/self/exe", "part", name, socket, text, (char *)NULL);
		_exit(127);
	}
	return pid;
}

int process_wait(pid_t pid, uint32_t timeout_ms)
{
	int status = 0;

	for (uint32_t ms = 0; waitpid(pid, &status, WNOHANG) == 0; ms++) {
		if (ms >= timeout_ms) {
			process_kill(pid);
			fail_msg("a child did not end within %u ms", timeout_ms);
		}
		process_sleep_us(1000);
	}
	return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

void process_kill(pid_t pid)
{
	kill(pid, SIGKILL);
	assert_int_equal(waitpid(pid, NULL, 0), pid);
}

/* Reads until the child has closed its outputs, or for RUN_MS. */
static void read_all(int fd, char *into, size_t bytes)
{
	struct pollfd poller = {fd, POLLIN, 0};
	char rest[512];
	size_t at = 0;

	while (poll(&poller, 1, RUN_MS) > 0) {
		char *to = at + 1 < bytes ? into + at : rest;
		ssize_t got = read(fd, to, to == rest ? sizeof(rest) : bytes - 1 - at);

		if (got <= 0)
			break;
		if (to != rest)
			at += (size_t)got;
	}
	into[at] = 0;
}

int process_run(const char *name, const char *const *arguments, char *ret_output, size_t bytes)
{
	const char *argv[ARGUMENTS_MAX] = {name};
	int ends[2], count = 1;
	char path[600];
	pid_t pid;

	harness_program(name, path, sizeof(path));
	for (; arguments && *arguments; arguments++) {
		assert_true(count < ARGUMENTS_MAX - 1);
		argv[count++] = *arguments;
	}
	assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
	pid = fork();
	assert_true(pid >= 0);
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL);
		dup2(ends[1], STDOUT_FILENO);
		dup2(ends[1], STDERR_FILENO);
		execv(path, (char *const *)argv);
		_exit(127);
	}
	close(ends[1]);
	read_all(ends[0], ret_output, bytes);
	close(ends[0]);
	return process_wait(pid, RUN_MS);
}

uint32_t process_random(uint32_t first, uint32_t last)
{
	process_seed ^= process_seed << 13;
	process_seed ^= process_seed >> 7;
	process_seed ^= process_seed << 17;
	return first + (uint32_t)((process_seed >> 16) % (last - first + 1ull));
}

void process_seed_print(void)
{
	const char *given = getenv("KVR_TEST_SEED");
	struct timespec now;

	clock_gettime(CLOCK_REALTIME, &now);
	process_seed = given ? strtoull(given, NULL, 10)
			     : (uint64_t)now.tv_sec * 1000000u + (uint64_t)now.tv_nsec / 1000u;
	if (process_seed == 0)
		process_seed = 1;
	printf("seed: KVR_TEST_SEED=%llu\n", (unsigned long long)process_seed);
	fflush(stdout);
}

void process_sleep_us(uint32_t us)
{
	const struct timespec time = {us / 1000000, (long)(us % 1000000) * 1000};

	nanosleep(&time, NULL);
}
