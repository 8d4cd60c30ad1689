/* SPDX-License-Identifier: Apache-2.0 */
/* cli_option.c: reads command lines from tables, and prints --help from the same tables.
 *
 * Each command has one table of its options; those that every command has are added here, so they
 * may stand before or behind the command's name. What the values mean is the command's matter.
 *
 * Threads: one (getopt keeps global state). */
#include <errno.h>
#include <getopt.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "client/cli.h"

#define OPTIONS_MAX 32

struct parser {
	struct kvr_cli_option table[OPTIONS_MAX]; /* the command's, then the common ones */
	size_t count;
	bool seen[OPTIONS_MAX];
	bool help;
	bool version;
};

static void add(struct parser *parser, const struct kvr_cli_option *options)
{
	for (; options && options->name; options++) {
		KVR_ASSERT(parser->count < OPTIONS_MAX);
		parser->table[parser->count++] = *options;
	}
}

static void add_common(struct parser *parser, struct kvr_cli *cli)
{
	const struct kvr_cli_option common[] = {
		{"socket", 's', KVR_CLI_TEXT, false, &cli->socket, "PATH",
			"attach socket of the daemon"},
		{"timeout", 't', KVR_CLI_U32, false, &cli->timeout_ms, "MS",
			"deadline of every request"},
		{"region", 0, KVR_CLI_BYTES, false, &cli->region_bytes, "SIZE",
			"memory shared with the daemon; default 64M"},
		{"json", 'j', KVR_CLI_FLAG, false, &cli->json, NULL,
			"one JSON document on stdout; errors as JSON on stderr"},
		{"help", 'h', KVR_CLI_FLAG, false, &parser->help, NULL, "this text"},
		{"version", 0, KVR_CLI_FLAG, false, &parser->version, NULL, "the version"},
		{0},
	};

	add(parser, common);
}

static void print_option(const struct kvr_cli_option *option)
{
	char left[64];
	const char *line = option->help;

	snprintf(left, sizeof(left), "%c%c%c --%s%s%s", option->letter ? '-' : ' ',
		option->letter ? option->letter : ' ', option->letter ? ',' : ' ', option->name,
		option->value ? " " : "", option->value ? option->value : "");
	printf("  %-28s ", left);
	for (;;) {
		size_t length = strcspn(line, "\n");

		printf("%.*s%s\n", (int)length, line,
			option->required && !line[length] ? " (required)" : "");
		if (!line[length])
			return;
		line += length + 1;
		printf("  %-28s ", "");
	}
}

static void print_help(const struct kvr_cli *cli, const struct parser *parser)
{
	if (!cli->command) {
		kvr_cli_overview();
		return;
	}
	printf("kvrecall %s: %s\n\nUsage: kvrecall %s%s%s\n\nOptions:\n", cli->command->name,
		cli->command->summary, cli->command->name, cli->command->synopsis[0] ? " " : "",
		cli->command->synopsis);
	for (size_t i = 0; i < parser->count; i++)
		print_option(&parser->table[i]);
	printf("\n%s\nExit codes: %s\n", cli->command->text,
		cli->command->exits
			? cli->command->exits
			: "0 done, 1 refused or failed, 2 wrong usage, 3 no daemon there");
}

/* Whole numbers only: strtoull alone would take " -1" and "1x". */
static int read_integer(const char *text, int64_t minimum, int64_t maximum, int64_t *ret_value)
{
	const char *digits = text[0] == '-' ? text + 1 : text;
	char *end = NULL;
	int64_t value;

	if (digits[0] < '0' || digits[0] > '9')
		return -EINVAL;
	errno = 0;
	value = strtoll(text, &end, 10);
	if (errno || *end || value < minimum || value > maximum)
		return -EINVAL;
	*ret_value = value;
	return 0;
}

static int read_share(const char *text, float *ret_share)
{
	char *end = NULL;
	double value = strtod(text, &end);

	if (end == text || *end || !isfinite(value) || value <= 0 || value > 1)
		return -EINVAL;
	*ret_share = (float)value;
	return 0;
}

static int read_seconds(const char *text, double *ret_seconds)
{
	char *end = NULL;
	double value = strtod(text, &end);

	if (end == text || *end || !(value >= 0.05 && value <= 86400))
		return -EINVAL;
	*ret_seconds = value;
	return 0;
}

static int take(struct kvr_cli *cli, const struct kvr_cli_option *option, const char *text)
{
	int64_t integer = 0;
	int error = 0;
	const char *wanted = "";

	switch (option->type) {
	case KVR_CLI_FLAG: *(bool *)option->into = true; break;
	case KVR_CLI_TEXT: *(const char **)option->into = text; break;
	case KVR_CLI_U32:
		wanted = "a whole number from 0 to 4294967295";
		error = read_integer(text, 0, UINT32_MAX, &integer);
		if (!error)
			*(uint32_t *)option->into = (uint32_t)integer;
		break;
	case KVR_CLI_I32:
		wanted = "a whole number";
		error = read_integer(text, INT32_MIN, INT32_MAX, &integer);
		if (!error)
			*(int32_t *)option->into = (int32_t)integer;
		break;
	case KVR_CLI_BYTES:
		wanted = "a size like 512K, 64M or 2G";
		error = kvr_cli_bytes(text, option->into);
		break;
	case KVR_CLI_SHARE:
		wanted = "a number above 0 and at most 1";
		error = read_share(text, option->into);
		break;
	case KVR_CLI_SECONDS:
		wanted = "seconds from 0.05 to 86400";
		error = read_seconds(text, option->into);
		break;
	}
	if (error)
		return kvr_cli_usage(cli, "--%s takes %s, not '%s'", option->name, wanted, text);
	return 0;
}

/* Runs getopt over argv. Stops at the first argument that is no option ('+'). */
static int run(struct kvr_cli *cli, struct parser *parser, int argc, char **argv)
{
	struct option options[OPTIONS_MAX + 1] = {{0}};
	char letters[2 * OPTIONS_MAX + 3] = "+:";
	size_t length = 2;

	for (size_t i = 0; i < parser->count; i++) {
		const struct kvr_cli_option *option = &parser->table[i];

		/* Values above those of characters, so that a letter and an index never meet. */
		options[i] =
			(struct option){option->name, option->value != NULL, NULL, 256 + (int)i};
		if (option->letter) {
			letters[length++] = (char)option->letter;
			if (option->value)
				letters[length++] = ':';
		}
	}
	optind = 0; /* glibc: start anew */
	opterr = 0;
	for (;;) {
		int got = getopt_long(argc, argv, letters, options, NULL);
		size_t index = 0;

		if (got == -1)
			return 0;
		if (got == ':')
			return kvr_cli_usage(cli, "%s needs a value", argv[optind - 1]);
		if (got == '?')
			return kvr_cli_usage(cli, "no such option: %s", argv[optind - 1]);
		if (got >= 256)
			index = (size_t)got - 256;
		else
			while (parser->table[index].letter != got)
				index++;
		KVR_ASSERT(index < parser->count);
		parser->seen[index] = true;
		if (take(cli, &parser->table[index], optarg))
			return -EINVAL;
	}
}

static int print_asked(const struct kvr_cli *cli, const struct parser *parser)
{
	if (parser->help)
		print_help(cli, parser);
	else if (parser->version)
		printf("kvrecall " KVR_VERSION "\n");
	else
		return 0;
	return -ECANCELED;
}

int kvr_cli_parse(struct kvr_cli *cli, const struct kvr_cli_option *options, int argc, char **argv)
{
	struct parser parser = {0};
	int error;

	add(&parser, options);
	add_common(&parser, cli);
	error = run(cli, &parser, argc, argv);
	if (!error)
		error = print_asked(cli, &parser);
	if (error)
		return error;
	if (optind < argc)
		return kvr_cli_usage(cli, "unexpected argument: %s", argv[optind]);
	for (size_t i = 0; i < parser.count; i++)
		if (parser.table[i].required && !parser.seen[i])
			return kvr_cli_usage(cli, "--%s %s is missing", parser.table[i].name,
				parser.table[i].value);
	return 0;
}

int kvr_cli_parse_front(struct kvr_cli *cli, int argc, char **argv, int *ret_index)
{
	struct parser parser = {0};
	int error;

	add_common(&parser, cli);
	error = run(cli, &parser, argc, argv);
	if (!error)
		error = print_asked(cli, &parser);
	if (!error)
		*ret_index = optind;
	return error;
}
