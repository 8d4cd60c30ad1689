/* SPDX-License-Identifier: Apache-2.0 */
/* cli.c: `kvrecall`: finds the command, reports errors, ends with a documented code.
 *
 * What it does not do: anything that only one command needs.
 *
 * Invariants: C1 to C3 of cli.h.  Threads: one. */
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"
#include "client/cli_json.h"

static const struct kvr_cli_command *const commands[] = {
	&kvr_cli_status,
	&kvr_cli_top,
	&kvr_cli_models,
	&kvr_cli_segments,
	&kvr_cli_put,
	&kvr_cli_recall,
	&kvr_cli_fetch,
	&kvr_cli_drop,
	&kvr_cli_pin,
	&kvr_cli_unpin,
	&kvr_cli_verify,
	&kvr_cli_rebuild,
	&kvr_cli_bench,
};

#define COMMAND_COUNT (sizeof(commands) / sizeof(commands[0]))

void kvr_cli_overview(void)
{
	printf("kvrecall " KVR_VERSION ": look at, fill and query the KV cache of kvrecalld\n\n"
	       "Usage: kvrecall [OPTIONS] COMMAND [OPTIONS]\n\nCommands:\n");
	for (size_t i = 0; i < COMMAND_COUNT; i++)
		printf("  %-10s %s\n", commands[i]->name, commands[i]->summary);
	printf("\nOptions of every command:\n"
	       "  -s, --socket PATH    attach socket of the daemon; default $KVRECALL_SOCKET,\n"
	       "                       else /run/kvrecall/attach.sock\n"
	       "  -t, --timeout MS     deadline of every request; default 10000, of top 1000,\n"
	       "                       of put and bench 120000\n"
	       "      --region SIZE    memory shared with the daemon; default 64M\n"
	       "  -j, --json           one JSON document on stdout (of top: one an interval);\n"
	       "                       errors as JSON on stderr\n"
	       "  -h, --help           this text, or that of the command, with examples\n"
	       "      --version        the version\n"
	       "\nExit codes: 0 done, 1 refused or failed, 2 wrong usage, 3 no daemon there; "
	       "verify\n"
	       "and rebuild: 1 damage found, 4 cannot be done\n"
	       "\nExamples:\n"
	       "  kvrecall status\n"
	       "  kvrecall top --interval 5\n"
	       "  kvrecall put --model tiny --query-heads 4 --keys K.npy --values V.npy "
	       "--tokens-out T.npy\n"
	       "  kvrecall --json segments --model tiny | jq '.segments[].hash'\n");
}

static void report(const struct kvr_cli *cli, const struct kvr_error *error)
{
	if (cli->json) {
		struct kvr_json *json = kvr_json_open();

		kvr_json_object(json, "error");
		kvr_json_number(json, "code", error->code);
		kvr_json_text(json, "name", error->name);
		kvr_json_text(json, "subject", error->subject);
		kvr_json_text(json, "remedy", error->remedy);
		kvr_json_number(json, "errno", error->error);
		kvr_json_end(json);
		kvr_json_print(json, stderr);
		kvr_json_close(json);
		return;
	}
	fprintf(stderr, "kvrecall%s%s: %s (%s)\n", cli->command ? " " : "",
		cli->command ? cli->command->name : "", error->subject, error->name);
	if (error->remedy[0])
		fprintf(stderr, "  remedy: %s\n", error->remedy);
}

int kvr_cli_usage(struct kvr_cli *cli, const char *format, ...)
{
	char subject[512], remedy[64];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(subject, sizeof(subject), format, arguments);
	va_end(arguments);
	snprintf(remedy, sizeof(remedy), "see kvrecall %s%s--help",
		cli->command ? cli->command->name : "", cli->command ? " " : "");
	report(cli,
		&(struct kvr_error){
			.error = EINVAL, .name = "USAGE", .subject = subject, .remedy = remedy});
	cli->exit_code = KVR_CLI_USAGE; /* C3 */
	return -EINVAL;
}

int kvr_cli_refuse(struct kvr_cli *cli, int error, const char *remedy, const char *format, ...)
{
	const char *name = strerrorname_np(error);
	char subject[512];
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(subject, sizeof(subject), format, arguments);
	va_end(arguments);
	report(cli, &(struct kvr_error){.error = error,
			    .name = name ? name : "UNKNOWN",
			    .subject = subject,
			    .remedy = remedy});
	cli->exit_code = KVR_CLI_REFUSED; /* C3 */
	return -error;
}

int kvr_cli_refused(struct kvr_cli *cli, int error)
{
	struct kvr_error shown = *kvr_error(cli->client);

	if (!shown.name || !shown.name[0])
		shown.name = strerrorname_np(-error);
	if (!shown.name)
		shown.name = "UNKNOWN";
	if (!shown.subject || !shown.subject[0])
		shown.subject = strerror(-error);
	if (!shown.remedy)
		shown.remedy = "";
	shown.error = -error;
	report(cli, &shown);
	cli->exit_code = error == -ENOTCONN || error == -ECONNRESET ? KVR_CLI_NO_DAEMON
								    : KVR_CLI_REFUSED; /* C3 */
	return error;
}

static const char *connect_remedy(int error)
{
	switch (error) {
	case -ENOENT:
	case -ECONNREFUSED:
	case -ENOTCONN: return "start kvrecalld, or name its attach socket with --socket";
	case -EACCES:
		return "join the group of its sockets, or ask for a tenant that admits this user";
	case -E2BIG: return "ask for less with --region; memory.region_bytes_max is the bound";
	case -ENOSPC:
	case -ENOMEM: return "ask for less with --region, or end other clients";
	case -ENAMETOOLONG: return "give a shorter path with --socket";
	case -ETIMEDOUT: return "look at the daemon's log, or give more time with --timeout";
	case -EPROTONOSUPPORT: return "install daemon and tool of one release";
	default: return "look at the daemon's log";
	}
}

int kvr_cli_connect(struct kvr_cli *cli)
{
	struct kvr_client_config config = {
		.attach_path = cli->socket,
		.region_bytes = cli->region_bytes,
		.timeout_ms = cli->timeout_ms,
		.name = "kvrecall",
	};
	const char *path = cli->socket ? cli->socket : getenv("KVRECALL_SOCKET");
	int error = kvr_connect(&config, &cli->client);
	bool absent = error == -ENOENT || error == -ECONNREFUSED || error == -ENOTCONN;

	if (!error)
		return 0;
	if (!path || !path[0])
		path = "/run/kvrecall/attach.sock";
	kvr_cli_refuse(cli, -error, connect_remedy(error), "%s at %s: %s",
		absent ? "no daemon" : "cannot attach to the daemon", path, strerror(-error));
	if (absent)
		cli->exit_code = KVR_CLI_NO_DAEMON;
	return error;
}

int main(int argc, char **argv)
{
	struct kvr_cli cli = {0};
	int index = 0;

	/* Also an error in front of --json is told as JSON (C2). */
	for (int i = 1; i < argc; i++)
		cli.json |= !strcmp(argv[i], "--json") || !strcmp(argv[i], "-j");
	if (kvr_cli_parse_front(&cli, argc, argv, &index))
		return cli.exit_code;
	if (index == argc) {
		kvr_cli_usage(&cli, "no command given");
		return cli.exit_code;
	}
	for (size_t i = 0; i < COMMAND_COUNT && !cli.command; i++)
		if (!strcmp(commands[i]->name, argv[index]))
			cli.command = commands[i];
	if (!cli.command) {
		kvr_cli_usage(&cli, "no such command: %s", argv[index]);
		return cli.exit_code;
	}
	cli.command->run(&cli, argc - index, argv + index);
	kvr_disconnect(cli.client);
	return cli.exit_code;
}
