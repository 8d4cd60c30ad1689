/* SPDX-License-Identifier: Apache-2.0 */
/* second.c: see second.h. */
#include "examples/tinylm/second.h"

#include <errno.h>
#include <fcntl.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

/* ---- the parent's side ------------------------------------------------------------------------ */

static int spawn(const struct tinylm_options *options, int input, int output, pid_t *ret_pid)
{
	char numbers[3][16];
	const char *const arguments[] = {"tinylm", "second", "--wait", "--json-only", "--model",
		options->model, "--text", options->text, "--tokens", numbers[0], "--generate",
		numbers[1], "--segment-tokens", numbers[2], options->socket ? "--socket" : NULL,
		options->socket, NULL};
	posix_spawn_file_actions_t actions;
	int error;

	snprintf(numbers[0], sizeof(numbers[0]), "%u", options->token_count);
	snprintf(numbers[1], sizeof(numbers[1]), "%u", options->generate_count);
	snprintf(numbers[2], sizeof(numbers[2]), "%u", options->segment_tokens);
	error = posix_spawn_file_actions_init(&actions);
	if (error)
		return -error;
	error = posix_spawn_file_actions_adddup2(&actions, input, STDIN_FILENO);
	if (!error)
		error = posix_spawn_file_actions_adddup2(&actions, output, STDOUT_FILENO);
	if (!error)
		error = posix_spawn(ret_pid, "/proc/self/exe", &actions, NULL,
			(char *const *)(const void *)arguments, environ);
	posix_spawn_file_actions_destroy(&actions);
	return -error;
}

int tinylm_second_start(const struct tinylm_options *options, struct tinylm_second *ret_second)
{
	struct tinylm_second second = {0, -1, -1};
	int to[2], from[2];
	int error;

	if (pipe2(to, O_CLOEXEC) < 0)
		return -errno;
	if (pipe2(from, O_CLOEXEC) < 0) {
		error = -errno;
		close(to[0]);
		close(to[1]);
		return error;
	}
	second.to = to[1];
	second.from = from[0];
	error = spawn(options, to[0], from[1], &second.pid);
	close(to[0]);
	close(from[1]);
	if (error) {
		tinylm_second_stop(&second);
		return error;
	}
	*ret_second = second;
	return 0;
}

int tinylm_second_collect(struct tinylm_second *second, char *ret_line, size_t max)
{
	size_t bytes = 0;
	ssize_t got = 0;
	int status = 1;

	if (write(second->to, "g", 1) != 1)
		return -EPIPE;
	do {
		bytes += (size_t)got;
		got = read(second->from, ret_line + bytes, max - 1 - bytes);
	} while (got > 0);
	ret_line[bytes] = '\0';
	while (waitpid(second->pid, &status, 0) < 0 && errno == EINTR)
		;
	second->pid = 0;
	tinylm_second_stop(second);
	if (status != 0 || bytes < 2 || ret_line[bytes - 1] != '\n')
		return -EPIPE;
	ret_line[bytes - 1] = '\0';
	return ret_line[0] == '{' ? 0 : -EPIPE;
}

void tinylm_second_stop(struct tinylm_second *second)
{
	/* The end of its input, where "go" should be, ends it. */
	if (second->to >= 0)
		close(second->to);
	if (second->from >= 0)
		close(second->from);
	second->to = second->from = -1;
	if (second->pid > 0)
		waitpid(second->pid, NULL, 0);
	second->pid = 0;
}

/* ---- the process itself ----------------------------------------------------------------------- */

/* Opens the text and continues it. Whatever the daemon does not have is computed and appended. */
static int continue_text(struct tinylm_engine *engine, struct tinylm_store *store,
	uint32_t *ret_matched, double *ret_first_ms, uint32_t *ret_tokens)
{
	const uint32_t count = engine->options.token_count;
	const uint32_t budget = tinylm_engine_budget(engine, TINYLM_SECOND_PERCENT);
	const uint64_t start = tinylm_now_ns();
	struct tinylm_source *source = NULL;
	struct tinylm_cache *cache = NULL;
	int error;

	tinylm_store_budget(store, budget);
	error = tinylm_remote_open(store, engine->tokens, count, &source, ret_matched);
	if (!error)
		error = tinylm_engine_recall_open(
			engine, source, *ret_matched, budget, false, &cache);
	if (!error && *ret_matched < count)
		error = tinylm_forward_prefill(engine->forward, cache,
			engine->tokens + *ret_matched, *ret_matched, count - *ret_matched,
			engine->logits);
	else if (!error)
		error = tinylm_forward_run(engine->forward, cache,
			&(struct tinylm_pass){&engine->tokens[count - 1], count - 1, 1, true},
			engine->logits, 1);
	*ret_first_ms = (double)(tinylm_now_ns() - start) / 1e6;
	if (!error)
		error = tinylm_engine_generate(engine, cache, count, engine->logits, ret_tokens,
			engine->options.generate_count);
	tinylm_cache_close(cache);
	tinylm_remote_close(source, true);
	return error;
}

static void second_print(const struct tinylm_engine *engine, uint32_t matched, double first_ms,
	const uint32_t *tokens)
{
	const struct tinylm_options *options = &engine->options;

	if (!options->json_only) {
		printf("opened %u tokens: matched %u, appended %u; first new token after %.1f ms\n",
			options->token_count, matched, options->token_count - matched, first_ms);
		tinylm_engine_print(engine, tokens, options->generate_count);
		printf("\n");
	}
	printf("{\"matched_tokens\":%u,\"appended_tokens\":%u,\"first_token_ms\":%.2f,\"tokens\":[",
		matched, options->token_count - matched, first_ms);
	for (uint32_t i = 0; i < options->generate_count; i++)
		printf("%s%u", i ? "," : "", tokens[i]);
	printf("]}\n");
}

int tinylm_second(const struct tinylm_options *options)
{
	struct tinylm_engine engine = {0};
	struct tinylm_store *store = NULL;
	uint32_t tokens[TINYLM_GENERATE_MAX];
	uint32_t matched = 0;
	double first_ms = 0;
	char go;
	int error;

	if (options->wait && read(STDIN_FILENO, &go, 1) != 1)
		return 1;
	error = tinylm_engine_open(options, &engine);
	if (!error)
		error = tinylm_engine_connect(&engine, TINYLM_SECOND_PERCENT, &store);
	if (!error) {
		error = continue_text(&engine, store, &matched, &first_ms, tokens);
		if (error)
			fprintf(stderr, "tinylm second: %s: %s\n", tinylm_store_error(store),
				strerror(-error));
		else
			second_print(&engine, matched, first_ms, tokens);
	}
	tinylm_store_close(store);
	tinylm_engine_close(&engine);
	return error ? 1 : 0;
}
