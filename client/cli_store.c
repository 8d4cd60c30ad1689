/* SPDX-License-Identifier: Apache-2.0 */
/* cli_store.c: `kvrecall verify` and `kvrecall rebuild`: hands over to kvrecalld, which knows stores.
 *
 * A store is one process's at a time, and none of this goes through a running daemon. The program is replaced, so
 * that output and exit code are kvrecalld's.
 *
 * Threads: one. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "client/cli.h"

#define DAEMON         "kvrecalld"
#define CONFIG_DEFAULT "/etc/kvrecall/kvrecalld.conf"

/* The daemon that was installed with this program: one of another release might not know the store. */
static void run_beside(char *const *arguments)
{
	char path[PATH_MAX];
	const ssize_t length = readlink("/proc/self/exe", path, sizeof(path) - sizeof(DAEMON));
	char *name;

	if (length <= 0)
		return;
	path[length] = 0;
	name = strrchr(path, '/');
	if (!name)
		return;
	memcpy(name + 1, DAEMON, sizeof(DAEMON));
	execv(path, arguments);
}

/* Returns only when it cannot be run. */
static int hand_over(struct kvr_cli *cli, const char *flag, const char *config, const char *store)
{
	const char *arguments[8] = {DAEMON, flag};
	size_t count = 2;
	int error;

	if (config) {
		arguments[count++] = "--config";
		arguments[count++] = config;
	}
	if (store) {
		arguments[count++] = "--store";
		arguments[count++] = store;
	}
	if (cli->json)
		arguments[count++] = "--json";
	run_beside((char *const *)arguments);
	execvp(DAEMON, (char *const *)arguments);
	error = errno;
	kvr_cli_refuse(cli, error, "install it beside kvrecall, or put its folder into PATH",
		"cannot run " DAEMON ": %s", strerror(error));
	cli->exit_code = KVR_CLI_CANNOT;
	return -error;
}

static int run(struct kvr_cli *cli, int argc, char **argv, const char *flag)
{
	const char *config = NULL, *store = NULL;
	const struct kvr_cli_option options[] = {
		{"config", 'c', KVR_CLI_TEXT, false, &config, "FILE",
			"the daemon's configuration, which names the store; if\nneither is given: "
			"" CONFIG_DEFAULT},
		{"store", 0, KVR_CLI_TEXT, false, &store, "DIR", "the directory of the store"},
		{0},
	};
	char path[PATH_MAX];
	int error = kvr_cli_parse(cli, options, argc, argv);

	if (error)
		return error;
	if (!config && !store && access(CONFIG_DEFAULT, R_OK) == 0)
		config = CONFIG_DEFAULT;
	if (!config && !store)
		return kvr_cli_usage(cli, "which store: give --store, or --config");
	/* The daemon takes paths from / on. What is not there is its to refuse. */
	if (store && realpath(store, path))
		store = path;
	return hand_over(cli, flag, config, store);
}

static int run_verify(struct kvr_cli *cli, int argc, char **argv)
{
	return run(cli, argc, argv, "--verify");
}

static int run_rebuild(struct kvr_cli *cli, int argc, char **argv)
{
	return run(cli, argc, argv, "--rebuild");
}

static const char exits[] =
	"0 sound, 1 damage found, 2 wrong usage or settings, 4 cannot be done (the store is\n"
	"in use, not there, or not readable)";

const struct kvr_cli_command kvr_cli_verify = {
	.name = "verify",
	.summary = "read all of a store and check it; the daemon must not run",
	.synopsis = "[--config FILE | --store DIR] [OPTIONS]",
	.text = "Reads every slab and every row of the catalog, checks every CRC-32C, and compares "
		"what\n"
		"they say of each other. Changes nothing that is stored. Damage is one line each "
		"on\n"
		"stderr; with --json in the document.\n\n"
		"Examples:\n"
		"  systemctl stop kvrecalld && kvrecall verify; systemctl start kvrecalld\n"
		"  kvrecall verify --store /var/lib/kvrecall --json | jq .damaged_segments_count\n",
	.exits = exits,
	.run = run_verify,
};

const struct kvr_cli_command kvr_cli_rebuild = {
	.name = "rebuild",
	.summary = "make a store's catalog anew from what is stored",
	.synopsis = "[--config FILE | --store DIR] [OPTIONS]",
	.text = "For a catalog that is damaged or lost. What is damaged among the slabs is left "
		"out, with\n"
		"what follows it. Pins and last uses are lost. The old catalog stays as "
		"catalog.old.\n\n"
		"Examples:\n"
		"  kvrecall rebuild --store /var/lib/kvrecall\n"
		"  kvrecall rebuild --config /etc/kvrecall/kvrecalld.conf && kvrecall verify\n",
	.exits = exits,
	.run = run_rebuild,
};
