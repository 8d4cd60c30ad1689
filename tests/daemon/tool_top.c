/* SPDX-License-Identifier: Apache-2.0 */
/* tool_top.c: `kvrecall top`, and the quality of recalls in `kvrecall status`.
 *
 * Goal: a rate is what the daemon did between two samples, over the time between them; a daemon that goes away is shown
 * as away, and as attached again when it is back; Ctrl-C ends it cleanly; output is JSON by the line, plain text, or a
 * screen, whichever is asked for. What audits found stands in a table and, complete, in JSON.
 * Method: a real daemon that audits every recall, killed and started again; the real tool, in the foreground or as a
 * child in the background; recalls whose number and bytes the test knows. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "tests/daemon/tool_util.h"

#define TOKENS  700u
#define BUDGET  50u
#define RECALLS 4u /* runs of the tool between two samples */
#define STAGED \
	(RECALLS * 2u * 2u * BUDGET * (24u + 40u) * 2u) /* x layers, kv heads, rows, dims, bytes */

static char settings[96];
static const char *arguments[] = {"-m", "128MiB", "-c", settings, NULL};

static int start(void **state)
{
	const uint64_t keys[4] = {2, 2, TOKENS, 24};
	const uint64_t values[4] = {2, 2, TOKENS, 40};
	const uint64_t queries[4] = {2, 4, 1, 24};
	FILE *file;

	(void)state;
	tool_make_dir();
	snprintf(settings, sizeof(settings), "%s/conf", tool_dir);
	file = fopen(settings, "w");
	assert_non_null(file);
	fputs("telemetry: { audit_every = 1; };\n", file);
	assert_int_equal(fclose(file), 0);
	harness_start(&tool_daemon, arguments);
	tool_make_file("K.npy", keys, NULL);
	tool_make_file("V.npy", values, NULL);
	tool_make_file("Q.npy", queries, NULL);
	return 0;
}

/* ---- a tool in the background ---------------------------------------------------------------- */

/* Starts the tool; its output goes to the file `log` of the folder. */
static pid_t launch(const char *line)
{
	char command[1024];
	FILE *log;
	pid_t child;

	/* Emptied here: what an earlier one wrote is not to be taken for what this one says. */
	snprintf(command, sizeof(command), "%s/log", tool_dir);
	log = fopen(command, "w");
	assert_non_null(log);
	assert_int_equal(fclose(log), 0);
	child = fork();
	assert_true(child >= 0);
	if (child > 0)
		return child;
	snprintf(command, sizeof(command), "cd %s && exec '%s' --socket %s %s >log 2>&1", tool_dir,
		tool_program, tool_daemon.socket, line);
	execl("/bin/sh", "sh", "-c", command, (char *)NULL);
	_exit(127);
}

/* Waits until `part` stands in the log behind its first `from` bytes. Returns where it ends. */
static size_t await(const char *part, size_t from)
{
	static char text[TOOL_OUTPUT_MAX];
	const char *found;

	for (int i = 0; i < 3000; i++) {
		tool_read("log", text);
		found = strlen(text) > from ? strstr(text + from, part) : NULL;
		if (found)
			return (size_t)(found - text) + strlen(part);
		usleep(10000);
	}
	fail_msg("no '%s' within 30 s: %s", part, text);
	return 0;
}

static int status_of(pid_t child)
{
	int status;

	assert_int_equal(waitpid(child, &status, 0), child);
	assert_true(WIFEXITED(status));
	return WEXITSTATUS(status);
}

/* The sum over all lines of the log of what a counter grew by: rate times interval. */
static double sum_of(const char *rate)
{
	static char text[TOOL_OUTPUT_MAX];
	char key[64];
	double sum = 0;

	snprintf(key, sizeof(key), "\"%s\":", rate);
	tool_read("log", text);
	for (char *line = strtok(text, "\n"); line; line = strtok(NULL, "\n")) {
		const char *seconds = strstr(line, "\"interval_s\":");
		const char *value = strstr(line, key);

		assert_non_null(seconds);
		assert_non_null(value);
		sum += strtod(value + strlen(key), NULL) * strtod(seconds + 13, NULL);
	}
	return sum;
}

static void recall_some(void)
{
	for (uint32_t i = 0; i < RECALLS; i++)
		tool_run_well("recall -m m -K K.npy -V V.npy -Q Q.npy --dtype bf16 -b 50");
}

static void put(void)
{
	tool_run_well("put -m m -K K.npy -V V.npy --dtype bf16 --query-heads 4 "
		      "--segment-tokens 128");
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_rates(void **state)
{
	static char text[TOOL_OUTPUT_MAX];
	pid_t child;

	(void)state;
	child = launch("top --json --interval 0.5");
	await("\"state\":\"attached\"", 0);
	put();
	recall_some();
	tool_read("log", text);
	/* The sample of the next line may be older than the last recall; that of the second is not. */
	await("}\n", await("}\n", strlen(text)));
	assert_int_equal(kill(child, SIGINT), 0);
	assert_int_equal(status_of(child), 0);
	assert_int_equal(lrint(sum_of("recalls_per_s")), RECALLS);
	assert_int_equal(lrint(sum_of("staged_bytes_per_s")), STAGED);
	assert_int_equal(lrint(sum_of("appended_tokens_per_s")), TOKENS);
	assert_int_equal(lrint(sum_of("seals_per_s")), 6);
	assert_int_equal(lrint(sum_of("refusals_per_s")), 0);
	assert_true(sum_of("requests_per_s") > RECALLS);
	await("\"recall_mean_ns\":null", 0); /* nothing was recalled in the first interval */
	await("\"tiers\":[{\"tier\":\"RAM\",\"used_bytes\":", 0);
	if (harness_stores())
		await("{\"tier\":\"disk\",\"used_bytes\":", 0);
}

static void test_quality(void **state)
{
	struct kvr_client *client = harness_connect(&tool_daemon, 1 << 20);

	(void)state;
	put();
	recall_some();
	for (int i = 0; harness_metric(client, "audit.done_count") < 1; i++) {
		assert_true(i < 3000);
		usleep(10000);
	}
	kvr_disconnect(client);
	tool_run_well("status");
	tool_says(tool_out, "MODEL  LAYER  HEADS");
	tool_says(tool_out, " up to ");
	assert_null(strstr(tool_out, "histogram"));
	assert_null(strstr(tool_out, "\nquality\n"));
	tool_run_well("status --json");
	tool_says(tool_out, "\"quality\":[{\"model\":1,\"layer\":");
	tool_says(tool_out, "\"mass_ratio\":0.");
	tool_says(tool_out, "\"mass_histogram\":\"0.3:");
	tool_says(tool_out, "\"error_histogram\":\"0.001:");
	tool_run_well("top --count 1 -i 0.1");
	tool_says(tool_out, "LOWEST MASS");
	tool_run_well("top --count 1 -i 0.1 --json");
	tool_says(tool_out, "\"quality\":[{\"model\":1,\"layer\":");
}

/* How often a line of a text begins with `word`. */
static uint32_t count_lines(const char *text, const char *word)
{
	uint32_t count = !strncmp(text, word, strlen(word));

	for (const char *at = text; (at = strchr(at, '\n')); at++)
		count += !strncmp(at + 1, word, strlen(word));
	return count;
}

static void test_piped(void **state)
{
	(void)state;
	tool_run_well("top --count 3 --interval 0.1");
	assert_int_equal(count_lines(tool_out, "TIME "), 3);
	assert_int_equal(count_lines(tool_out, "REQUESTS "), 3);
	assert_null(strchr(tool_out, '\033'));
	tool_run_well("top --count 3 --interval 0.1 --json");
	assert_int_equal(count_lines(tool_out, "{\"daemon\":{\"time\":\"20"), 3);
	tool_says(tool_out, "\"sessions\":1,");
}

/* Killed with SIGKILL, and back after a while. */
static void test_restart(void **state)
{
	pid_t child;
	size_t at;

	(void)state;
	child = launch("top --json --interval 0.2 --timeout 300");
	at = await("\"state\":\"attached\"", 0);
	harness_kill(&tool_daemon);
	at = await("\"state\":\"away\",\"reason\":\"", at);
	harness_restart(&tool_daemon, arguments);
	at = await("\"state\":\"attached again\"", at);
	at = await("\"requests_per_s\":null", at); /* nothing to compare with */
	await("\"state\":\"attached\",", at);
	assert_int_equal(kill(child, SIGTERM), 0);
	assert_int_equal(status_of(child), 0);
}

/* Away from the first sample on to the last: --count holds all the same. */
static void test_stays_away(void **state)
{
	pid_t child;

	(void)state;
	child = launch("top --interval 0.2 --timeout 200 --count 15");
	await("attached", 0);
	harness_kill(&tool_daemon);
	await("away", 0);
	assert_int_equal(status_of(child), 0);
	assert_int_equal(tool_run("top --count 1"), 3);
	tool_says(tool_err, "no daemon at ");
	harness_restart(&tool_daemon, arguments);
}

/* A screen replaces the last one, and fits: script(1) gives the tool a terminal. */
static void test_screen(void **state)
{
	char line[1024];

	(void)state;
	snprintf(line, sizeof(line),
		"cd %s && script -qec \"'%s' --socket %s top -n 2 -i 0.1\" /dev/null >log "
		"</dev/null",
		tool_dir, tool_program, tool_daemon.socket);
	if (system("command -v script >/dev/null")) { /* NOLINT(cert-env33-c) */
		print_message("skipped: script(1), which makes a terminal, is not installed\n");
		skip();
	}
	assert_int_equal(system(line), 0); /* NOLINT(cert-env33-c) */
	await("\033[H\033[2J", await("\033[H\033[2J", 0));
}

static void test_refusals(void **state)
{
	static const struct tool_case cases[] = {
		{"top --help", 0, NULL},
		{"top --interval 0", 2, "seconds from 0.05 to 86400, not '0'"},
		{"top --interval 1s", 2, "not '1s'"},
		{"top --interval nan", 2, "not 'nan'"},
		{"top --count -1", 2, "'-1'"},
		{"top now", 2, "unexpected argument: now"},
	};

	(void)state;
	tool_refuses(cases, sizeof(cases) / sizeof(cases[0]));
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(test_rates),
		cmocka_unit_test(test_quality),
		cmocka_unit_test(test_piped),
		cmocka_unit_test(test_restart),
		cmocka_unit_test(test_stays_away),
		cmocka_unit_test(test_screen),
		cmocka_unit_test(test_refusals),
	};

	return cmocka_run_group_tests_name("tool top", tests, start, tool_stop);
}
