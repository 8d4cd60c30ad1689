/* SPDX-License-Identifier: Apache-2.0 */
/* bench_util.h: what the benches of the whole path share: a real daemon, a client, and results.
 *
 * A bench that cannot go on says why on stderr and exits with 1; the daemon ends with it. Results are
 * one JSON object per line on stdout; nothing else goes there.
 *
 * Threads: a bench's main thread. */
#ifndef KVR_BENCH_UTIL_H
#define KVR_BENCH_UTIL_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include "bench/result_util.h"
#include "client/kvrecall.h"

struct bench_daemon {
	pid_t pid;
	char dir[64];
	char socket[80];
};

/* What differs from the default settings. */
struct bench_setup {
	const char *host_bytes;
	bool populate; /* memory is taken from the system at start: bench_populated waits for it */
	const char *store;       /* a directory of bench_dir; NULL: RAM only */
	const char *store_bytes; /* with a store */
};

/* Starts the kvrecalld that was built beside the benches, in a directory of its own, and waits until it
 * serves. At most one at a time. */
void bench_start(struct bench_daemon *daemon, const char *host_bytes);
void bench_start_with(struct bench_daemon *daemon, const struct bench_setup *setup);
void bench_stop(struct bench_daemon *daemon);

/* A directory on a disk, under TMPDIR or /var/tmp, that goes with all that is in it when the bench ends, however
 * it does. */
void bench_dir(char ret_path[64]);

/* Waits until the daemon has all of the memory that it was set up with. */
void bench_populated(struct kvr_client *client);

struct kvr_client *bench_connect(const struct bench_daemon *daemon, uint64_t region_bytes);

/* Exits with `what` and the client's error if rc is negative; else returns it. */
int bench_need(struct kvr_client *client, int rc, const char *what);

__attribute__((noreturn, format(printf, 1, 2))) void bench_fail(const char *format, ...);

/* Memory in 2 MiB pages where the system gives them, touched. */
void *bench_memory(uint64_t bytes);

/* The value of a metric of the daemon. */
double bench_metric(struct kvr_client *client, const char *name);

/* Resident bytes of a process. */
double bench_resident(pid_t pid);

/* Sorts. */
double bench_median(double *values, uint32_t count);

/* CPUs that the bench may use: on as many the daemon runs a request. */
uint32_t bench_cpus(void);

/* Whether --verbose was given; other arguments end the bench. */
bool bench_verbose(int argc, char **argv);

#endif
