/* SPDX-License-Identifier: Apache-2.0 */
/* main.c: the command line of tinylm. */
#include "examples/tinylm/engine.h"

#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXIT_USAGE 2
#define TEXT_MAX   1048576u /* tokens; the model's context is the tighter bound */

static const char usage[] =
	"tinylm: a small language model whose keys and values live in kvrecalld\n"
	"\n"
	"  tinylm demo [options]       measure recall against full attention on a text\n"
	"  tinylm second [options]     open the text that the demo has stored, and continue it\n"
	"  tinylm revive [options]     the same after the daemon was killed and started again: "
	"compare all\n"
	"  tinylm selftest [options]   check the engine against stored values; needs no daemon\n"
	"\n"
	"  --socket PATH         the daemon's attach socket ($KVRECALL_SOCKET)\n"
	"  --model FOLDER        weights.tlm and tokenizer.vocab (examples/tinylm/model)\n"
	"  --text FILE           the text (examples/tinylm/text.txt)\n"
	"  --kept FILE           what the demo writes aside, and revive compares with\n"
	"  --tokens N            of the text: the context (4000)\n"
	"  --steps N             of these, the last N are measured one by one (500)\n"
	"  --generate N          tokens of the continuation (60)\n"
	"  --segment-tokens N    tokens of a sealed segment, a multiple of 64 (1024)\n"
	"  --json-only           print the JSON object alone\n"
	"\n"
	"  examples/tinylm/demo.sh BUILD_FOLDER starts a daemon and runs the demo on it.\n";

static const struct option long_options[] = {
	{"socket", required_argument, NULL, 's'},
	{"model", required_argument, NULL, 'm'},
	{"text", required_argument, NULL, 't'},
	{"kept", required_argument, NULL, 'k'},
	{"tokens", required_argument, NULL, 'n'},
	{"steps", required_argument, NULL, 'p'},
	{"generate", required_argument, NULL, 'g'},
	{"segment-tokens", required_argument, NULL, 'S'},
	{"json-only", no_argument, NULL, 'j'},
	{"wait", no_argument, NULL, 'w'}, /* between the demo and its second process */
	{"help", no_argument, NULL, 'h'},
	{NULL, 0, NULL, 0},
};

/* A whole number from 1 to `max`, or 0. */
static uint32_t number(const char *text, uint32_t max)
{
	char *end;
	const unsigned long value = strtoul(text, &end, 10);

	return *end || end == text || *text == '-' || value > max ? 0 : (uint32_t)value;
}

/* Returns 0, or the exit status at once (`ret_done`). */
static int options_read(int argc, char **argv, struct tinylm_options *options, bool *ret_done)
{
	int option;

	*ret_done = true;
	while ((option = getopt_long(argc, argv, "h", long_options, NULL)) >= 0)
		switch (option) {
		case 's': options->socket = optarg; break;
		case 'm': options->model = optarg; break;
		case 't': options->text = optarg; break;
		case 'k': options->kept = optarg; break;
		case 'n': options->token_count = number(optarg, TEXT_MAX); break;
		case 'p': options->step_count = number(optarg, TEXT_MAX); break;
		case 'g': options->generate_count = number(optarg, TINYLM_GENERATE_MAX); break;
		case 'S': options->segment_tokens = number(optarg, 8192); break;
		case 'j': options->json_only = true; break;
		case 'w': options->wait = true; break;
		case 'h': return fputs(usage, stdout) < 0;
		default: return EXIT_USAGE;
		}
	if (options->step_count >= options->token_count || !options->step_count ||
		!options->generate_count || !options->segment_tokens) {
		fprintf(stderr,
			"tinylm: --tokens, --steps (fewer than tokens), --generate (1 to %u)"
			" and --segment-tokens (64 to 8192) are whole numbers\n",
			TINYLM_GENERATE_MAX);
		return EXIT_USAGE;
	}
	*ret_done = false;
	return 0;
}

int main(int argc, char **argv)
{
	struct tinylm_options options = {.model = "examples/tinylm/model",
		.text = "examples/tinylm/text.txt",
		.token_count = 4000,
		.step_count = 500,
		.generate_count = 60,
		.segment_tokens = TINYLM_SEGMENT_TOKENS};
	bool done;
	const int status = options_read(argc, argv, &options, &done);
	const char *command = optind < argc ? argv[optind] : "";

	if (done)
		return status;
	/* A second process that has died is an error of the write, not the end of this one. */
	signal(SIGPIPE, SIG_IGN);
	if (strcmp(command, "demo") == 0)
		return tinylm_demo(&options);
	if (strcmp(command, "second") == 0)
		return tinylm_second(&options);
	if (strcmp(command, "revive") == 0)
		return tinylm_revive(&options);
	if (strcmp(command, "selftest") == 0)
		return tinylm_selftest(&options);
	fputs(usage, stderr);
	return EXIT_USAGE;
}
