/* SPDX-License-Identifier: Apache-2.0 */
/* tool_util.h: the command line as a user runs it: a child process with captured output, in a folder with .npy files.
 *
 * One daemon and one folder at a time: both are global. */
#ifndef KVR_TESTS_DAEMON_TOOL_H
#define KVR_TESTS_DAEMON_TOOL_H

#include "client/cli_npy.h"
#include "tests/daemon/harness_util.h"

#define TOOL_OUTPUT_MAX 65536u

extern struct harness_daemon tool_daemon;
extern char tool_out[TOOL_OUTPUT_MAX], tool_err[TOOL_OUTPUT_MAX]; /* of the last run */
extern char tool_dir[64], tool_program[600];

void tool_make_dir(void);
int tool_remove_dir(void);   /* 0, or not */
int tool_stop(void **state); /* the end of a group: the daemon, then the folder */

/* Reads a file of the folder as a text of at most TOOL_OUTPUT_MAX - 1 bytes. */
void tool_read(const char *name, char *ret_text);

/* Runs the tool with the words of `arguments` in the folder. Returns the exit code. */
int tool_run_at(const char *socket, const char *arguments);
int tool_run(const char *arguments); /* at tool_daemon */

/* Asserts that it exits with 0 and is silent on stderr. */
void tool_run_well(const char *arguments);

/* Asserts that `part` stands in a text. */
void tool_says(const char *text, const char *part);

struct tool_case {
	const char *arguments;
	int code;
	const char *says; /* on stderr; NULL: on stdout, and stderr is empty */
};

/* Runs each; asserts the code, what it says, and that the other stream is empty. */
void tool_refuses(const struct tool_case *cases, size_t count);

void tool_open_file(const char *name, struct kvr_npy *ret_npy);
void tool_close_file(struct kvr_npy *npy);

/* Makes a file of finite numbers, bfloat16 between 0.5 and 1 with either sign: [lanes][tokens][dim]. Rows of tokens of
 * one kind are equal (NULL: each is of its own); the name's first letter is a part of the seed. */
void tool_make_file(const char *name, const uint64_t shape[4], uint32_t (*kind_of)(uint32_t token));

#endif
