/* SPDX-License-Identifier: Apache-2.0 */
/* tool_util.c: see tool_util.h. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <sys/wait.h>

#include "client/cli_npy.c" /* NOLINT(bugprone-suspicious-include): no library holds it */
#include "tests/daemon/tool_util.h"

struct harness_daemon tool_daemon;
char tool_out[TOOL_OUTPUT_MAX], tool_err[TOOL_OUTPUT_MAX];
char tool_dir[64], tool_program[600];

void tool_make_dir(void)
{
	snprintf(tool_dir, sizeof(tool_dir), "/tmp/kvrecall-tool-XXXXXX");
	assert_non_null(mkdtemp(tool_dir));
	harness_program("kvrecall", tool_program, sizeof(tool_program));
}

int tool_remove_dir(void)
{
	char line[128];

	snprintf(line, sizeof(line), "rm -r %s", tool_dir);
	return system(line); /* NOLINT(cert-env33-c) */
}

int tool_stop(void **state)
{
	(void)state;
	harness_stop(&tool_daemon);
	return tool_remove_dir();
}

void tool_read(const char *name, char *ret_text)
{
	char path[128];
	FILE *file;
	size_t length;

	snprintf(path, sizeof(path), "%s/%s", tool_dir, name);
	file = fopen(path, "r");
	assert_non_null(file);
	length = fread(ret_text, 1, TOOL_OUTPUT_MAX - 1, file);
	ret_text[length] = 0;
	assert_int_equal(fclose(file), 0);
}

int tool_run_at(const char *socket, const char *arguments)
{
	char line[2048];
	int status;

	/* The shell's part is the redirections; nothing here comes from outside. */
	snprintf(line, sizeof(line), "cd %s && '%s' --socket %s %s >out 2>err", tool_dir,
		tool_program, socket, arguments);
	status = system(line); /* NOLINT(cert-env33-c) */
	assert_true(WIFEXITED(status));
	tool_read("out", tool_out);
	tool_read("err", tool_err);
	return WEXITSTATUS(status);
}

int tool_run(const char *arguments)
{
	return tool_run_at(tool_daemon.socket, arguments);
}

void tool_run_well(const char *arguments)
{
	int code = tool_run(arguments);

	if (code)
		fail_msg("kvrecall %s: %d, %s", arguments, code, tool_err);
	assert_string_equal(tool_err, "");
}

void tool_says(const char *text, const char *part)
{
	if (!strstr(text, part))
		fail_msg("'%s' lacks '%s'", text, part);
}

void tool_refuses(const struct tool_case *cases, size_t count)
{
	for (size_t i = 0; i < count; i++) {
		int code = tool_run(cases[i].arguments);

		if (code != cases[i].code)
			fail_msg("kvrecall %s: %d, %s", cases[i].arguments, code, tool_err);
		tool_says(cases[i].says ? tool_err : tool_out,
			cases[i].says ? cases[i].says : "kvrecall");
		assert_string_equal(cases[i].says ? tool_out : tool_err, "");
	}
}

void tool_open_file(const char *name, struct kvr_npy *ret_npy)
{
	struct kvr_npy_error why = {{0}, NULL};
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", tool_dir, name);
	if (kvr_npy_open(path, ret_npy, &why))
		fail_msg("%s", why.subject);
}

void tool_close_file(struct kvr_npy *npy)
{
	kvr_npy_close(npy);
}

void tool_make_file(const char *name, const uint64_t shape[4], uint32_t (*kind_of)(uint32_t token))
{
	struct kvr_npy_error why = {{0}, NULL};
	struct kvr_npy npy = {0};
	char path[128];

	snprintf(path, sizeof(path), "%s/%s", tool_dir, name);
	assert_int_equal(kvr_npy_create(path, KVR_NPY_U2, shape, 4, &npy, &why), 0);
	for (size_t row = 0; npy.data.data && row < npy.element_count / shape[3]; row++) {
		const uint32_t token = (uint32_t)(row % shape[2]);
		const uint32_t lane = (uint32_t)(row / shape[2]);
		/* The seed: the same in every run. */
		uint32_t random = ((uint32_t)name[0] * 64 + lane) * 2654435761u +
				  (kind_of ? kind_of(token) : token) * 40503u;

		for (size_t i = 0; i < shape[3]; i++) {
			uint16_t number;

			random = random * 1664525u + 1013904223u;
			number = (uint16_t)(((random >> 16) & 0x807fu) | 0x3f00u);
			memcpy(npy.data.data + 2 * (row * shape[3] + i), &number, 2);
		}
	}
	assert_int_equal(kvr_npy_commit(&npy, &why), 0);
}
