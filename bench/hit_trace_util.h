/* SPDX-License-Identifier: Apache-2.0 */
/* hit_trace_util.h: which clusters tinylm's recalls take while it reads a text.
 *
 * The first HIT_PROMPT tokens of the text are sealed in segments of 1,024 by the device's CLUSTER and
 * PACK; the next HIT_STEPS are decoded one by one, with attention over the rows that the device's
 * RECALL stages. Everything comes from the project: model, text, kernels. Ends the bench if it cannot.
 *
 * Threads: a bench's main thread. */
#ifndef KVR_BENCH_HIT_TRACE_H
#define KVR_BENCH_HIT_TRACE_H

#include <stdbool.h>
#include <stdint.h>

#include "bench/tiny.h"

#define HIT_PROMPT   BENCH_SIZE(4096u, 1024u)
#define HIT_STEPS    BENCH_SIZE(1000u, 20u)
#define HIT_LANES    64u                   /* at most */
#define HIT_CLUSTERS (HIT_PROMPT / 16 + 4) /* of a lane, at most */

struct hit_setting {
	const char *text;
	uint32_t budget; /* tokens per lane */
	bool layers;     /* a request per layer with its own queries; else one for all layers, with
	                    the queries of the token before */
};

struct hit_trace {
	uint32_t cluster_count;
	uint32_t bytes[HIT_LANES * HIT_CLUSTERS]; /* of a cluster */
	uint64_t total_bytes;                     /* of all clusters */
	uint64_t taken_bytes; /* by all requests, whole clusters: as they are read */
	uint32_t *taken;      /* clusters, of one request after the other */
	uint32_t taken_count, taken_max;
	uint32_t *ends; /* of each request, in `taken` */
	uint32_t request_count, request_max;
};

struct hit_trace *hit_trace_make(const struct hit_setting *setting);
struct hit_trace *hit_trace_free(struct hit_trace *trace);

#endif
