/* SPDX-License-Identifier: Apache-2.0 */
/* cli_top.c: `kvrecall top`: what the daemon does now, again and again.
 *
 *   attach ─► sample ─► wait for the next tick ─► sample ─► rates between the two ─► show ─┐
 *                        ▲      │                                                          │
 *                        │      └── SIGINT, SIGTERM: end                                   │
 *                        └──────────────────────────────────────────────────────────────────┘
 *
 * A daemon that goes away is shown as away; the library attaches again by itself, and the sample after that has
 * nothing to be compared with: its counters began anew. On a terminal each screen replaces the last one.
 *
 * Invariants:
 *   T1  SIGINT and SIGTERM are blocked, and taken between two samples only: no handler, no race.
 *   T2  A rate is shown only between two samples of one attachment.
 *
 * Threads: one (that of nanomsg takes no signals). */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#include "base/clock.h"
#include "client/cli.h"
#include "client/cli_metrics.h"
#include "client/cli_quality.h"
#include "client/cli_report.h"

#define TIMEOUT_MS \
	1000u /* unless --timeout says other: how long a daemon may be silent before it is away */
#define REGION_BYTES 65536u /* nothing goes through it */
#define LINES_FIXED  20u    /* of a screen without quality and warnings */
#define CLEAR        "\033[H\033[2J"

struct sample {
	struct kvr_cli_metrics metrics; /* none: away */
	uint64_t at_ns;
	uint32_t generation;
	char away[256]; /* why; "": it is there */
};

struct top {
	double interval_s;
	uint32_t count; /* 0: for ever */
	sigset_t signals;
	bool screen;              /* a terminal, for people */
	struct sample samples[2]; /* by turns */
	const struct sample *before, *now;
	double seconds; /* between them; NAN: they cannot be compared (T2) */
};

/* ---- sampling -------------------------------------------------------------------------------- */

/* Returns 0, also if the daemon is away; else why there will be no more samples, reported. */
static int take_sample(struct kvr_cli *cli, struct sample *sample)
{
	int error = kvr_cli_metrics_load(cli->client, &sample->metrics);

	sample->at_ns = kvr_clock_ns();
	sample->generation = kvr_generation(cli->client);
	sample->away[0] = '\0';
	if (error == -ECONNRESET || error == -ENOTCONN || error == -ETIMEDOUT) {
		snprintf(sample->away, sizeof(sample->away), "%s", kvr_error(cli->client)->subject);
		return 0;
	}
	if (error == -ENOMEM)
		return kvr_cli_refuse(cli, ENOMEM, "", "no memory for metrics");
	return error ? kvr_cli_refused(cli, error) : 0;
}

static void compare(struct top *top)
{
	const bool same = !top->before->away[0] && !top->now->away[0] &&
			  top->before->generation == top->now->generation;

	top->seconds = same ? (double)(top->now->at_ns - top->before->at_ns) / 1e9 : (double)NAN;
}

/* What a counter has grown by. */
static double grown(const struct top *top, const char *name)
{
	return kvr_cli_metrics_value(&top->now->metrics, name) -
	       kvr_cli_metrics_value(&top->before->metrics, name);
}

static double rate(const struct top *top, const char *name)
{
	return grown(top, name) / top->seconds;
}

static double now(const struct top *top, const char *name)
{
	return kvr_cli_metrics_value(&top->now->metrics, name);
}

/* Of the recalls between the samples: the daemon tells the mean of all. */
static double recall_mean_ns(const struct top *top)
{
	const char *count = "recall.requests_count", *mean = "recall.mean_ns";
	const struct kvr_cli_metrics *before = &top->before->metrics;
	const double sum =
		now(top, mean) * now(top, count) -
		kvr_cli_metrics_value(before, mean) * kvr_cli_metrics_value(before, count);

	return isnan(top->seconds) ? (double)NAN : sum / grown(top, count);
}

static double hit_ratio(const struct top *top)
{
	const double hit = grown(top, "cache.hit_bytes");

	return isnan(top->seconds) ? (double)NAN : hit / (hit + grown(top, "cache.miss_bytes"));
}

/* ---- showing --------------------------------------------------------------------------------- */

/* A number under a short heading; "-" where there is none, null in JSON. */
static void put(
	struct kvr_report *report, bool json, const char *name, const char *heading, double value)
{
	char text[64] = "-";

	if (json) {
		kvr_report_number(report, name, value);
		return;
	}
	if (isfinite(value))
		kvr_cli_format(name, value, text, sizeof(text));
	kvr_report_text(report, heading, text);
}

/* Fields side by side for people; an object in JSON. */
static void begin(struct kvr_report *report, bool json, const char *name)
{
	if (json) {
		kvr_report_group(report, name);
		return;
	}
	kvr_report_table(report, name);
	kvr_report_row(report);
}

static void end(struct kvr_report *report, bool json)
{
	kvr_report_end(report);
	if (!json)
		kvr_report_end(report);
}

static uint32_t warnings_of(const struct top *top)
{
	uint32_t count = 0;

	for (uint32_t i = 0; i < top->now->metrics.count; i++)
		count += kvr_cli_metrics_in(&top->now->metrics.entries[i], "warning");
	return count;
}

static void show_daemon(const struct top *top, struct kvr_report *report, bool json)
{
	const struct kvr_metric *version =
		kvr_cli_metrics_find(&top->now->metrics, "daemon.version");
	const bool away = top->now->away[0] != '\0';
	const time_t seconds = time(NULL);
	char text[32];
	struct tm parts;

	gmtime_r(&seconds, &parts);
	strftime(text, sizeof(text), "%Y-%m-%dT%H:%M:%SZ", &parts);
	begin(report, json, "daemon");
	kvr_report_text(report, "time", text);
	kvr_report_text(report, "state",
		away                  ? "away"
		: isnan(top->seconds) ? "attached again"
				      : "attached");
	if (away) {
		kvr_report_text(report, "reason", top->now->away);
	} else {
		kvr_report_text(report, "version", version ? version->text : "?");
		put(report, json, "uptime_s", "uptime", now(top, "daemon.uptime_s"));
		put(report, json, "sessions", "sessions", now(top, "session.attached_count"));
		put(report, json, "sequences", "sequences", now(top, "sequence.open_count"));
		put(report, json, "running", "running", now(top, "daemon.running_count"));
		put(report, json, "warnings", "warnings", warnings_of(top));
	}
	if (json)
		kvr_report_number(report, "interval_s", top->seconds);
	end(report, json);
}

static void show_rates(const struct top *top, struct kvr_report *report, bool json)
{
	begin(report, json, "rates");
	put(report, json, "requests_per_s", "requests", rate(top, "daemon.requests_count"));
	put(report, json, "refusals_per_s", "refusals", rate(top, "daemon.refusals_count"));
	put(report, json, "recalls_per_s", "recalls", rate(top, "recall.requests_count"));
	put(report, json, "recall_mean_ns", "mean", recall_mean_ns(top));
	put(report, json, "staged_bytes_per_s", "staged", rate(top, "recall.staged_bytes"));
	put(report, json, "hit_ratio", "from RAM", hit_ratio(top));
	put(report, json, "nvme_reads_per_s", "NVMe reads", rate(top, "nvme.reads_count"));
	put(report, json, "nvme_read_bytes_per_s", "NVMe bytes", rate(top, "nvme.read_bytes"));
	end(report, json);
	begin(report, json, "changes");
	put(report, json, "appended_tokens_per_s", "tokens", rate(top, "append.tokens_count"));
	put(report, json, "seals_per_s", "seals", rate(top, "seal.segments_count"));
	put(report, json, "put_bytes_per_s", "written", rate(top, "store.put_bytes"));
	put(report, json, "demoted_bytes_per_s", "demoted", rate(top, "cache.demoted_bytes"));
	put(report, json, "evicted_per_s", "RAM evictions", rate(top, "segment.evicted_count"));
	put(report, json, "store_evicted_per_s", "disk evictions",
		rate(top, "store.evicted_count"));
	put(report, json, "audits", "audits", now(top, "audit.done_count"));
	put(report, json, "audits_abandoned", "given up", now(top, "audit.abandoned_count"));
	end(report, json);
}

static void show_tier(const struct top *top, struct kvr_report *report, const char *tier,
	const char *used_name, const char *capacity_name)
{
	const double used = now(top, used_name), capacity = now(top, capacity_name);

	if (isnan(used) || isnan(capacity))
		return;
	kvr_report_row(report);
	kvr_report_text(report, "tier", tier);
	kvr_report_number(report, "used_bytes", used);
	kvr_report_number(report, "capacity_bytes", capacity);
	kvr_report_number(report, "fill_ratio", capacity > 0 ? used / capacity : 0);
	kvr_report_end(report);
}

static void show_warnings(const struct top *top, struct kvr_report *report)
{
	if (!warnings_of(top))
		return;
	kvr_report_table(report, "warnings");
	for (uint32_t i = 0; i < top->now->metrics.count; i++) {
		const struct kvr_metric *metric = &top->now->metrics.entries[i];

		if (!kvr_cli_metrics_in(metric, "warning"))
			continue;
		kvr_report_row(report);
		kvr_report_text(report, "warning", strchr(metric->name, '.') + 1);
		kvr_report_text(report, "text", metric->text);
		kvr_report_end(report);
	}
	kvr_report_end(report);
}

/* How many rows of quality fit the terminal; elsewhere all of them. */
static uint32_t quality_rows(const struct top *top)
{
	const uint32_t used = LINES_FIXED + warnings_of(top);
	struct winsize size = {0};

	if (!top->screen || ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) || !size.ws_row)
		return UINT32_MAX;
	return size.ws_row > used ? size.ws_row - used : 1;
}

static int show(struct kvr_cli *cli, const struct top *top, bool first)
{
	struct kvr_report *report = kvr_report_open(cli->json);
	uint32_t left_out = 0;
	int error;

	if (top->screen)
		fputs(CLEAR, stdout);
	else if (!first && !cli->json)
		putchar('\n');
	show_daemon(top, report, cli->json);
	if (!top->now->away[0]) {
		show_rates(top, report, cli->json);
		kvr_report_table(report, "tiers");
		show_tier(top, report, "RAM", "host.used_bytes", "host.capacity_bytes");
		show_tier(top, report, "disk", "store.used_bytes", "store.capacity_bytes");
		show_tier(top, report, "catalog", "store.catalog_bytes",
			"store.catalog_capacity_bytes");
		kvr_report_end(report);
		show_warnings(top, report);
		left_out = kvr_cli_quality_report(
			&top->now->metrics, report, quality_rows(top), cli->json);
	}
	error = kvr_report_close(cli, report, false);
	if (!error && left_out) {
		printf("and %u layers more: kvrecall status\n", left_out);
		fflush(stdout);
	}
	return error;
}

/* ---- the loop -------------------------------------------------------------------------------- */

/* Waits until a moment. False: a signal came first. */
static bool wait_until(const struct top *top, uint64_t until_ns)
{
	for (;;) {
		const uint64_t now_ns = kvr_clock_ns();
		const uint64_t left_ns = until_ns > now_ns ? until_ns - now_ns : 0;
		const struct timespec left = {.tv_sec = (time_t)(left_ns / 1000000000),
			.tv_nsec = (long)(left_ns % 1000000000)};

		if (sigtimedwait(&top->signals, NULL, &left) > 0) /* T1 */
			return false;
		if (errno != EINTR)
			return true;
	}
}

static int watch(struct kvr_cli *cli, struct top *top)
{
	const uint64_t interval_ns = (uint64_t)(top->interval_s * 1e9);
	uint64_t next_ns = kvr_clock_ns() + interval_ns;
	int error = take_sample(cli, &top->samples[0]);

	for (uint32_t shown = 0; !error && shown < top->count; shown++) {
		top->before = &top->samples[shown % 2];
		top->now = &top->samples[(shown + 1) % 2];
		if (!wait_until(top, next_ns))
			return 0;
		error = take_sample(cli, &top->samples[(shown + 1) % 2]);
		if (error)
			return error;
		compare(top);
		error = show(cli, top, shown == 0);
		/* A daemon that was waited for leaves ticks behind: they are not made up for. */
		next_ns += interval_ns;
		if (next_ns < top->now->at_ns)
			next_ns = top->now->at_ns;
	}
	return error;
}

static int run(struct kvr_cli *cli, int argc, char **argv)
{
	struct top top = {.interval_s = 1, .count = UINT32_MAX};
	const struct kvr_cli_option options[] = {
		{"interval", 'i', KVR_CLI_SECONDS, false, &top.interval_s, "S",
			"seconds between samples; default 1"},
		{"count", 'n', KVR_CLI_U32, false, &top.count, "N",
			"end after so many; default: go on until Ctrl-C"},
		{0},
	};
	int error = kvr_cli_parse(cli, options, argc, argv);

	if (error)
		return error;
	if (top.count == 0)
		return kvr_cli_usage(cli, "--count takes 1 or more");
	if (!cli->timeout_ms)
		cli->timeout_ms = TIMEOUT_MS;
	if (!cli->region_bytes)
		cli->region_bytes = REGION_BYTES;
	top.screen = !cli->json && isatty(STDOUT_FILENO);
	sigemptyset(&top.signals);
	sigaddset(&top.signals, SIGINT);
	sigaddset(&top.signals, SIGTERM);
	sigprocmask(SIG_BLOCK, &top.signals, NULL); /* T1 */
	error = kvr_cli_connect(cli);
	if (!error)
		error = watch(cli, &top);
	for (int i = 0; i < 2; i++)
		kvr_cli_metrics_free(&top.samples[i].metrics);
	return error;
}

const struct kvr_cli_command kvr_cli_top = {
	.name = "top",
	.summary = "what the daemon does now: rates, fill, quality of recalls",
	.synopsis = "[OPTIONS]",
	.text = "Rates are those since the last sample. A daemon that goes away is waited for; "
		"what it\n"
		"counted before is not compared with what it counts after. With --json each "
		"interval\n"
		"is one document. Quality is that of audited recalls (telemetry.audit_every): mass "
		"is\n"
		"the share of exact attention that was staged exactly, error that of the output;\n"
		"beside the means stand the worst bins and how many heads are in them.\n\n"
		"Examples:\n"
		"  kvrecall top\n"
		"  kvrecall top --interval 5 --count 12 >log\n"
		"  kvrecall top --json | jq .rates.recalls_per_s\n",
	.run = run,
};
