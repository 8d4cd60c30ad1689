/* SPDX-License-Identifier: Apache-2.0 */
/* second.h: an engine process beside the demo's, to show what two processes share.
 *
 *   start ─► waits on its standard input ── go ─► opens the text, continues it, prints JSON ─► collect
 *
 * It is started before anything of the daemon's is open in this process: libkvrecall must not be
 * carried over fork.
 *
 * Threads: one. */
#ifndef TINYLM_SECOND_H
#define TINYLM_SECOND_H

#include <stddef.h>
#include <sys/types.h>

#include "examples/tinylm/engine.h"

#define TINYLM_SECOND_PERCENT 10u /* budget of continuations, here and in the demo */

struct tinylm_second {
	pid_t pid;    /* 0: not running */
	int to, from; /* its standard input and output; -1: closed */
};

/* Starts `tinylm second` with the same options. Returns 0 or -errno. */
int tinylm_second_start(const struct tinylm_options *options, struct tinylm_second *ret_second);

/* Lets it run, waits for its end, and writes its last line, terminated. Errors: -EPIPE (it failed, or
 * printed nothing that fits). */
int tinylm_second_collect(struct tinylm_second *second, char *ret_line, size_t max);

/* Ends it if it is still waiting. */
void tinylm_second_stop(struct tinylm_second *second);

#endif
