/* SPDX-License-Identifier: Apache-2.0 */
/* cli.h: what the subcommands of `kvrecall` share: options, errors, units.
 *
 * It stands on the public library (client/kvrecall.h) and on nothing that lies behind it.
 *
 *   main ─► command.run ─► kvr_cli_parse ─► kvr_cli_connect ─► kvr_* ─► report (cli_report.h)
 *                │
 *                └── a failure is reported once, where it happens, by one of kvr_cli_usage,
 *                    kvr_cli_refuse, kvr_cli_refused; what they return travels up unchanged.
 *
 * Invariants:
 *   C1  stdout carries the result and nothing else; errors and notes go to stderr.
 *   C2  With --json, stdout is one JSON document (of top: one for each interval), and an error is one on
 *       stderr.
 *   C3  A non-zero `exit_code` is set by the function that reported the error.
 *
 * Threads: one. */
#ifndef KVR_CLIENT_CLI_H
#define KVR_CLIENT_CLI_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "client/kvrecall.h"

enum kvr_cli_exit { /* documented in --help and in docs/kvrecall.1 */
	KVR_CLI_OK = 0,
	KVR_CLI_REFUSED = 1,
	KVR_CLI_USAGE = 2,
	KVR_CLI_NO_DAEMON = 3,
	KVR_CLI_CANNOT = 4, /* of verify and rebuild, whose 1 is damage */
};

struct kvr_cli;

struct kvr_cli_command {
	const char *name;
	const char *summary;  /* one line, for the list of commands */
	const char *synopsis; /* what follows the name; "" for none */
	const char *text;     /* paragraphs and examples for --help */
	const char *exits;    /* its exit codes; NULL: those of most */
	/* Returns 0, or -errno after the failure was reported. argv[0] is the command's name. */
	int (*run)(struct kvr_cli *cli, int argc, char **argv);
};

extern const struct kvr_cli_command kvr_cli_status, kvr_cli_top, kvr_cli_models, kvr_cli_segments,
	kvr_cli_put, kvr_cli_recall, kvr_cli_fetch, kvr_cli_drop, kvr_cli_pin, kvr_cli_unpin,
	kvr_cli_verify, kvr_cli_rebuild, kvr_cli_bench;

struct kvr_cli {
	const struct kvr_cli_command *command;
	const char *socket;    /* --socket; NULL: the library's default */
	uint32_t timeout_ms;   /* --timeout; 0: not given */
	uint64_t region_bytes; /* --region; 0: not given */
	bool json;
	struct kvr_client *client; /* from kvr_cli_connect on; main disconnects it */
	int exit_code;
};

/* ---- options (cli_option.c) ------------------------------------------------------------------ */

enum kvr_cli_type {       /* what `into` points to */
	KVR_CLI_FLAG = 1, /* bool, set to true */
	KVR_CLI_TEXT,     /* const char *, borrowed from argv */
	KVR_CLI_U32,      /* uint32_t */
	KVR_CLI_I32,      /* int32_t */
	KVR_CLI_BYTES,    /* uint64_t, with an optional K, M or G (powers of 1024) */
	KVR_CLI_SHARE,    /* float in (0, 1] */
	KVR_CLI_SECONDS,  /* double, 0.05 to 86400 */
};

struct kvr_cli_option {
	const char *name; /* long name; NULL ends a table */
	int letter;       /* short name, or 0 */
	enum kvr_cli_type type;
	bool required;
	void *into;
	const char *value; /* what its argument is called in --help; NULL for a flag */
	const char *help;  /* lines of at most 60 columns */
};

/* Reads the options of a command and those that all commands have. Returns 0; -ECANCELED when --help
 * or --version was asked for and printed (exit_code stays 0); -EINVAL after a usage error. Arguments
 * that are no options are refused. */
int kvr_cli_parse(struct kvr_cli *cli, const struct kvr_cli_option *options, int argc, char **argv);

/* Reads the options in front of the command; *ret_index is the command's place in argv, or argc. */
int kvr_cli_parse_front(struct kvr_cli *cli, int argc, char **argv, int *ret_index);

/* The list of commands and what they have in common. (cli.c) */
void kvr_cli_overview(void);

/* ---- errors and the connection (cli.c) ------------------------------------------------------- */

/* Reports that the command line is wrong. Returns -EINVAL. */
int kvr_cli_usage(struct kvr_cli *cli, const char *format, ...)
	__attribute__((format(printf, 2, 3)));

/* Reports a refusal of the tool itself: `error` is a positive errno. Returns -error. */
int kvr_cli_refuse(struct kvr_cli *cli, int error, const char *remedy, const char *format, ...)
	__attribute__((format(printf, 4, 5)));

/* Reports why the library's last call failed; `error` is what it returned. Returns `error`. */
int kvr_cli_refused(struct kvr_cli *cli, int error);

/* Attaches to the daemon; cli->client holds it. Returns 0, or -errno after reporting. */
int kvr_cli_connect(struct kvr_cli *cli);

/* Finds a stored segment by its chain hash, or by the first digits of it (4 or more) if they are
 * those of one segment only. Needs the connection. Reports errors. (cli_segments.c) */
int kvr_cli_segment(struct kvr_cli *cli, const char *hex, uint8_t ret_hash[32]);

/* ---- units (cli_unit.c) ---------------------------------------------------------------------- */

/* The unit of a number is a word of its name: _bytes, _ns, _s, _ratio, _count, and _per_s behind
 * one of them. Writes `value` for people: "1.5 MiB", "38.2 us", "93.1 %", "4,096". */
void kvr_cli_format(const char *name, double value, char *into, size_t into_bytes);

/* Writes the name for people: without a unit that the value shows, spaces for underscores. */
void kvr_cli_label(const char *name, char *into, size_t into_bytes);

/* Reads a number with an optional K, M or G. Returns 0 or -EINVAL. */
int kvr_cli_bytes(const char *text, uint64_t *ret_bytes);

/* Reads up to 64 hexadecimal digits. Returns how many, or -EINVAL; the rest of `ret_hash` is zero. */
int kvr_cli_hex(const char *text, uint8_t ret_hash[32]);

/* Writes the first `bytes` (at most 32) of a hash in hexadecimal; `into` holds 2 * bytes + 1. */
void kvr_cli_hash(const uint8_t *hash, size_t bytes, char *into);

/* Reads layers like "0-1,5" into lanes (layer * kv_heads + head). Returns how many, or -EINVAL. */
int kvr_cli_lanes(
	const char *text, uint32_t layers, uint32_t kv_heads, uint32_t *ret_lanes, uint32_t max);

#endif
