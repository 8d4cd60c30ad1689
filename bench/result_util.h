/* SPDX-License-Identifier: Apache-2.0 */
/* result_util.h: what a bench says: one JSON object per line on stdout; nothing else goes there.
 *
 * Knows nothing of client or daemon.
 *
 * Threads: one. */
#ifndef KVR_BENCH_RESULT_UTIL_H
#define KVR_BENCH_RESULT_UTIL_H

struct bench_result {
	const char *bench;
	double value;
	const char *unit;
	const char *reference;
	double reference_value;
	double ratio;
};

void bench_print(struct bench_result result);

#endif
