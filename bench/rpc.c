/* SPDX-License-Identifier: Apache-2.0 */
/* rpc.c: how long an empty request takes, against a bare nanomsg echo.
 *
 * Goal: session, secret, packing, deadlines and the daemon's loop must add little to the transport.
 *
 * Method: kvr_ping to a real daemon; and 64 bytes over a cooked REQ socket to another process that
 * sends back what its REP socket receives, over ipc as well. One of each in turn, 4,000 rounds after
 * 500 to warm up, medians. With --verbose also the 99th percentiles, on stderr. */
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>

#include "base/clock.h"
#include "bench/bench_util.h"
#include "bench/tiny.h"

#define ECHO_BYTES 64
#define WARM_UP    BENCH_SIZE(500u, 20u)
#define ROUNDS     BENCH_SIZE(4000u, 200u)

static void need(int rc, const char *what)
{
	if (rc < 0)
		bench_fail("%s: %s", what, nn_strerror(nn_errno()));
}

/* The other process: starts before this one has touched nanomsg, which does not survive a fork. */
static pid_t start_echo(const char *url)
{
	char message[ECHO_BYTES];
	pid_t pid = fork();
	int socket;

	if (pid != 0)
		return pid;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	need(socket = nn_socket(AF_SP, NN_REP), "nn_socket");
	need(nn_bind(socket, url), "nn_bind");
	for (;;) {
		int bytes = nn_recv(socket, message, sizeof(message), 0);

		if (bytes < 0 || nn_send(socket, message, (size_t)bytes, 0) < 0)
			_exit(1);
	}
}

static double time_echo(int socket)
{
	char message[ECHO_BYTES] = {0};
	const uint64_t start = kvr_clock_ns();

	need(nn_send(socket, message, sizeof(message), 0), "nn_send");
	need(nn_recv(socket, message, sizeof(message), 0), "nn_recv");
	return (double)(kvr_clock_ns() - start) / 1000;
}

static double time_ping(struct kvr_client *client)
{
	const uint64_t start = kvr_clock_ns();

	bench_need(client, kvr_ping(client), "kvr_ping");
	return (double)(kvr_clock_ns() - start) / 1000;
}

int main(int argc, char **argv)
{
	static double ping[ROUNDS], echo[ROUNDS];
	const bool verbose = bench_verbose(argc, argv);
	struct bench_daemon daemon;
	struct kvr_client *client;
	double ours, reference;
	char url[128];
	pid_t pid;
	int socket;

	bench_start(&daemon, "64MiB");
	snprintf(url, sizeof(url), "ipc://%s/echo.sock", daemon.dir);
	pid = start_echo(url);
	client = bench_connect(&daemon, 1u << 20);
	need(socket = nn_socket(AF_SP, NN_REQ), "nn_socket");
	need(nn_connect(socket, url), "nn_connect");
	for (uint32_t i = 0; i < WARM_UP + ROUNDS; i++) {
		const uint32_t at = i < WARM_UP ? i : i - WARM_UP;

		ping[at] = time_ping(client);
		echo[at] = time_echo(socket);
	}
	ours = bench_median(ping, ROUNDS);
	reference = bench_median(echo, ROUNDS);
	bench_print((struct bench_result){
		.bench = "rpc",
		.value = ours,
		.unit = "us",
		.reference = "nanomsg REQ/REP echo",
		.reference_value = reference,
		.ratio = ours / reference,
	});
	if (verbose)
		fprintf(stderr, "rpc: p99 %.1f us; echo %.1f us\n", ping[ROUNDS * 99 / 100],
			echo[ROUNDS * 99 / 100]);
	nn_close(socket);
	kill(pid, SIGKILL);
	kvr_disconnect(client);
	bench_stop(&daemon);
	return 0;
}
