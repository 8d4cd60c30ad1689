/* SPDX-License-Identifier: Apache-2.0 */
/* bench_util.c: see bench_util.h. */
#include "bench/bench_util.h"

#include <dirent.h>
#include <errno.h>
#include <ftw.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#define START_TRIES  20000
#define START_TRY_US 500 /* a part of what restart measures */
#define HUGE_BYTES   ((uint64_t)2 << 20)
#define TIMEOUT_MS   120000u

/* The daemon to end, whichever way the bench does. */
static struct bench_daemon *running;

void bench_fail(const char *format, ...)
{
	va_list arguments;

	fprintf(stderr, "%s: ", program_invocation_short_name);
	va_start(arguments, format);
	vfprintf(stderr, format, arguments);
	va_end(arguments);
	fputc('\n', stderr);
	exit(1);
}

/* ---- directories ----------------------------------------------------------------------------- */

static int remove_one(const char *path, const struct stat *status, int kind, struct FTW *walk)
{
	(void)status;
	(void)kind;
	(void)walk;
	return remove(path);
}

/* Waits, in a process of its own, for the end of the bench and of all that it has started, then removes the directory. A
 * bench that is killed leaves no gigabytes behind. */
static void clean_up_behind(const char *path)
{
	int ends[2];
	pid_t pid;
	char byte;

	if (pipe(ends) < 0)
		bench_fail("pipe: %s", strerror(errno));
	pid = fork();
	if (pid < 0)
		bench_fail("fork: %s", strerror(errno));
	if (pid == 0) {
		setsid(); /* what ends the bench's group does not end this */
		close(ends[1]);
		while (read(ends[0], &byte, 1) < 0 && errno == EINTR)
			;
		(void)nftw(path, remove_one, 16, FTW_DEPTH | FTW_PHYS);
		_exit(0);
	}
	close(ends[0]); /* the other end stays open as long as somebody who may write there lives */
}

void bench_dir(char ret_path[64])
{
	const char *folder = getenv("TMPDIR");

	if (snprintf(ret_path, 64, "%s/kvr-bench-XXXXXX", folder ? folder : "/var/tmp") >= 64)
		bench_fail("TMPDIR is too long");
	if (!mkdtemp(ret_path))
		bench_fail("%s: %s", ret_path, strerror(errno));
	clean_up_behind(ret_path);
}

/* ---- the daemon ------------------------------------------------------------------------------ */

static void remove_dir(const char *dir)
{
	DIR *list = opendir(dir);
	struct dirent *entry;
	char path[400];

	while (list && (entry = readdir(list))) {
		snprintf(path, sizeof(path), "%s/%s", dir, entry->d_name);
		unlink(path);
	}
	if (list)
		closedir(list);
	rmdir(dir);
}

void bench_stop(struct bench_daemon *daemon)
{
	int status = -1;

	running = NULL;
	kill(daemon->pid, SIGTERM);
	waitpid(daemon->pid, &status, 0);
	remove_dir(daemon->dir);
	if (status != 0)
		fprintf(stderr, "%s: the daemon ended with status %#x\n",
			program_invocation_short_name, (unsigned)status);
}

static void stop_running(void)
{
	if (running)
		bench_stop(running);
}

static bool answers(const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	bool connected;

	snprintf(address.sun_path, sizeof(address.sun_path), "%s", path);
	connected = connect(fd, (struct sockaddr *)&address, sizeof(address)) == 0;
	close(fd);
	return connected;
}

/* $(B)/kvrecalld, seen from $(B)/bench/x. */
static void find_program(char *ret_path, size_t bytes)
{
	char self[512];
	ssize_t length = readlink("/proc/self/exe", self, sizeof(self) - 1);

	if (length <= 0)
		bench_fail("/proc/self/exe: %s", strerror(errno));
	self[length] = 0;
	for (int up = 0; up < 2; up++) {
		char *end = strrchr(self, '/');

		if (end)
			*end = 0;
	}
	snprintf(ret_path, bytes, "%s/kvrecalld", self);
}

/* Settings that no flag sets. */
static void write_settings(const char *path, const struct bench_setup *setup)
{
	FILE *file = fopen(path, "w");

	if (!file)
		bench_fail("%s: %s", path, strerror(errno));
	fprintf(file, "memory: { populate = %s; };\n", setup->populate ? "true" : "false");
	if (fclose(file) != 0)
		bench_fail("%s: %s", path, strerror(errno));
}

void bench_start(struct bench_daemon *daemon, const char *host_bytes)
{
	const struct bench_setup setup = {.host_bytes = host_bytes};

	bench_start_with(daemon, &setup);
}

void bench_start_with(struct bench_daemon *daemon, const struct bench_setup *setup)
{
	static bool registered;
	char program[600], settings[80];
	const char *const argv[] = {"kvrecalld", "-c", settings, "-r", daemon->dir, "-m",
		setup->host_bytes, "-l", "error", setup->store ? "--store" : NULL, setup->store,
		"--store-bytes", setup->store_bytes, NULL};
	int status;

	find_program(program, sizeof(program));
	snprintf(daemon->dir, sizeof(daemon->dir), "/tmp/kvrecall-bench-XXXXXX");
	if (!mkdtemp(daemon->dir))
		bench_fail("%s: %s", daemon->dir, strerror(errno));
	snprintf(daemon->socket, sizeof(daemon->socket), "%s/attach.sock", daemon->dir);
	snprintf(settings, sizeof(settings), "%s/settings", daemon->dir);
	write_settings(settings, setup);
	daemon->pid = fork();
	if (daemon->pid < 0)
		bench_fail("fork: %s", strerror(errno));
	if (daemon->pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGKILL); /* a bench that dies leaves nothing behind */
		execv(program, (char *const *)argv);
		perror(program);
		_exit(127);
	}
	running = daemon;
	if (!registered)
		atexit(stop_running);
	registered = true;
	for (int i = 0; i < START_TRIES && !answers(daemon->socket); i++) {
		if (waitpid(daemon->pid, &status, WNOHANG) == daemon->pid) {
			running = NULL;
			bench_fail("%s ended at start with status %#x", program, (unsigned)status);
		}
		usleep(START_TRY_US);
	}
}

struct kvr_client *bench_connect(const struct bench_daemon *daemon, uint64_t region_bytes)
{
	const struct kvr_client_config config = {
		.attach_path = daemon->socket,
		.region_bytes = region_bytes,
		.timeout_ms = TIMEOUT_MS,
		.name = program_invocation_short_name,
	};
	struct kvr_client *client = NULL;
	int rc = kvr_connect(&config, &client);

	if (rc < 0)
		bench_fail("kvr_connect: %s", strerror(-rc));
	return client;
}

int bench_need(struct kvr_client *client, int rc, const char *what)
{
	const struct kvr_error *error = kvr_error(client);

	if (rc < 0)
		bench_fail("%s: %s: %s; %s", what, strerror(-rc), error->subject, error->remedy);
	return rc;
}

double bench_metric(struct kvr_client *client, const char *name)
{
	static struct kvr_metric metrics[128];
	int count = bench_need(client, kvr_stats(client, 0, metrics, 128), "kvr_stats");

	for (int i = 0; i < count; i++) {
		if (strcmp(metrics[i].name, name) == 0)
			return metrics[i].value;
	}
	bench_fail("no metric %s", name);
}

void bench_populated(struct kvr_client *client)
{
	const double all = bench_metric(client, "host.capacity_bytes");

	while (bench_metric(client, "host.populated_bytes") < all)
		usleep(10000);
}

double bench_resident(pid_t pid)
{
	char path[64], line[256];
	double kib = -1;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/status", (int)pid);
	file = fopen(path, "r");
	if (!file)
		bench_fail("%s: %s", path, strerror(errno));
	while (fgets(line, sizeof(line), file) && strncmp(line, "VmRSS:", 6) != 0)
		;
	kib = strtod(line + 6, NULL);
	fclose(file);
	return kib * 1024;
}

/* ---- the rest -------------------------------------------------------------------------------- */

void *bench_memory(uint64_t bytes)
{
	const uint64_t whole = (bytes + 2 * HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES;
	uint8_t *memory =
		mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		bench_fail("no memory for %llu bytes", (unsigned long long)bytes);
	memory = (uint8_t *)(((uintptr_t)memory + HUGE_BYTES - 1) & ~(uintptr_t)(HUGE_BYTES - 1));
	madvise(memory, bytes, MADV_HUGEPAGE);
	memset(memory, 1, bytes);
	return memory;
}

static int compare(const void *a, const void *b)
{
	const double x = *(const double *)a, y = *(const double *)b;

	return (x > y) - (x < y);
}

double bench_median(double *values, uint32_t count)
{
	qsort(values, count, sizeof(*values), compare);
	return values[count / 2];
}

uint32_t bench_cpus(void)
{
	cpu_set_t allowed;

	if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0)
		bench_fail("sched_getaffinity: %s", strerror(errno));
	return (uint32_t)CPU_COUNT(&allowed);
}

bool bench_verbose(int argc, char **argv)
{
	if (argc > 2 || (argc == 2 && strcmp(argv[1], "--verbose") != 0))
		bench_fail("usage: %s [--verbose]", program_invocation_short_name);
	return argc == 2;
}
