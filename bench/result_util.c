/* SPDX-License-Identifier: Apache-2.0 */
/* result_util.c: see result_util.h. */
#include "bench/result_util.h"

#include <stdio.h>

void bench_print(struct bench_result result)
{
	printf("{\"bench\":\"%s\",\"value\":%.6g,\"unit\":\"%s\",\"reference\":\"%s\","
	       "\"reference_value\":%.6g,\"ratio\":%.3f}\n",
		result.bench, result.value, result.unit, result.reference, result.reference_value,
		result.ratio);
	fflush(stdout);
}
