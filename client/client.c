/* SPDX-License-Identifier: Apache-2.0 */
/* client.c: the life of a client: connecting, losing a daemon, attaching to the next one.
 *
 *   kvr_connect ─► session_open ─► (attached) ─► lose ─► (detached) ─► begin: session_open ─► ...
 *
 * The states and invariants stand in client.h. */
#include "client/client.h"

#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"

#define NS_PER_MS UINT64_C(1000000)

#define DEFAULT_PATH         "/run/kvrecall/attach.sock"
#define DEFAULT_REGION_BYTES (UINT64_C(64) << 20)
#define DEFAULT_TIMEOUT_MS   10000u

/* The public header repeats what is on the wire, so that it stands alone. */
KVR_STATIC_ASSERT((int)KVR_F32 == (int)KVR_DTYPE_F32);
KVR_STATIC_ASSERT((int)KVR_F16 == (int)KVR_DTYPE_F16);
KVR_STATIC_ASSERT((int)KVR_BF16 == (int)KVR_DTYPE_BF16);
KVR_STATIC_ASSERT(KVR_BY_INNER_PRODUCT == KVR_WIRE_RANK_MAX);
KVR_STATIC_ASSERT((int)KVR_RECALL_CLUSTERS == (int)KVR_FORM_CLUSTERS);
KVR_STATIC_ASSERT((int)KVR_RECALL_MERGED == (int)KVR_FORM_MERGED);
KVR_STATIC_ASSERT((int)KVR_RECALL_MIXED == (int)KVR_FORM_MIXED);
KVR_STATIC_ASSERT(KVR_MERGED_8 == 1 << (KVR_MERGED_SETS - 1));
KVR_STATIC_ASSERT(sizeof(struct kvr_budget) == sizeof(struct kvr_wire_budget));
KVR_STATIC_ASSERT(offsetof(struct kvr_budget, mass) == offsetof(struct kvr_wire_budget, mass));
KVR_STATIC_ASSERT(sizeof(struct kvr_rows) == sizeof(struct kvr_wire_rows));
KVR_STATIC_ASSERT(
	offsetof(struct kvr_rows, row_count) == offsetof(struct kvr_wire_rows, row_count));
KVR_STATIC_ASSERT(
	offsetof(struct kvr_rows, cluster_count) == offsetof(struct kvr_wire_rows, cluster_count));
KVR_STATIC_ASSERT(offsetof(struct kvr_rows, centroid_count) ==
		  offsetof(struct kvr_wire_rows, centroid_count));
KVR_STATIC_ASSERT(
	offsetof(struct kvr_rows, missing_tokens) == offsetof(struct kvr_wire_rows, token_missing));
KVR_STATIC_ASSERT(offsetof(struct kvr_rows, mass) == offsetof(struct kvr_wire_rows, mass));
KVR_STATIC_ASSERT(sizeof(((struct kvr_model_info *)0)->name) == KVR_NAME_MAX);
KVR_STATIC_ASSERT(sizeof(((struct kvr_metric *)0)->text) == KVR_TEXT_MAX);

/* ---- errors ---------------------------------------------------------------------------------- */

int kvr_client_failed(struct kvr_client *client, const struct kvr_client_failure *failure)
{
	KVR_ASSERT(failure->error > 0);
	if (failure != &client->failure)
		client->failure = *failure;
	client->error.code = failure->code;
	client->error.error = failure->error;
	client->error.name = failure->code ? kvr_code_name(failure->code) : "LIBRARY";
	client->error.subject = client->failure.subject;
	client->error.remedy = failure->remedy;
	return -failure->error;
}

__attribute__((format(printf, 4, 0))) static int refuse(struct kvr_client *client, int error,
	const char *remedy, const char *subject, va_list arguments)
{
	client->failure.code = 0;
	client->failure.error = error;
	client->failure.remedy = remedy;
	vsnprintf(client->failure.subject, sizeof(client->failure.subject), subject, arguments);
	return kvr_client_failed(client, &client->failure);
}

int kvr_client_refuse(
	struct kvr_client *client, int error, const char *remedy, const char *subject, ...)
{
	va_list arguments;
	int rc;

	va_start(arguments, subject);
	rc = refuse(client, error, remedy, subject, arguments);
	va_end(arguments);
	return rc;
}

int kvr_client_argument(struct kvr_client *client, const char *subject, ...)
{
	va_list arguments;
	int rc;

	va_start(arguments, subject);
	rc = refuse(client, EINVAL, kvr_code_remedy(KVR_CODE_ARGUMENT), subject, arguments);
	va_end(arguments);
	return rc;
}

int kvr_client_code(struct kvr_client *client, uint32_t code, const char *subject)
{
	struct kvr_client_failure failure = {
		.code = code,
		.error = kvr_code_errno(code),
		.remedy = kvr_code_remedy(code),
	};

	snprintf(failure.subject, sizeof(failure.subject), "%s", subject);
	return kvr_client_failed(client, &failure);
}

/* ---- the session ----------------------------------------------------------------------------- */

uint64_t kvr_client_deadline(const struct kvr_client *client)
{
	return kvr_clock_ns() + client->timeout_ms * NS_PER_MS;
}

void kvr_client_lose(struct kvr_client *client)
{
	if (client->attach_fd < 0) /* C1 */
		return;
	/* Closing takes the descriptors out of the epoll set; the net's are nanomsg's own, and a
	 * duplicate may live on: they are taken out by name. */
	epoll_ctl(client->epoll_fd, EPOLL_CTL_DEL, client->attach_fd, NULL);
	epoll_ctl(client->epoll_fd, EPOLL_CTL_DEL, kvr_client_net_recv_fd(client->net), NULL);
	close(client->attach_fd);
	client->attach_fd = -1;
	client->net = kvr_client_net_close(client->net);
	kvr_client_calls_lose(client);
	kvr_client_settle(client, kvr_clock_ns());
}

void kvr_client_look(struct kvr_client *client)
{
	uint8_t data[64];
	ssize_t bytes;

	if (client->attach_fd < 0)
		return;
	/* The daemon says nothing here after its Welcome; what a later one might say is passed
	 * over. The end of the socket is the end of the session. */
	bytes = recv(client->attach_fd, data, sizeof(data), MSG_DONTWAIT | MSG_TRUNC);
	if (bytes == 0 || (bytes < 0 && errno != EAGAIN && errno != EINTR))
		kvr_client_lose(client);
}

static int watch(struct kvr_client *client, int fd)
{
	struct epoll_event event = {.events = EPOLLIN};

	if (epoll_ctl(client->epoll_fd, EPOLL_CTL_ADD, fd, &event) != 0)
		return -errno;
	return 0;
}

/* Waits until the request socket is connected, so that no first request finds it is not. */
static int wait_connected(struct kvr_client *client, uint64_t deadline_ns)
{
	struct pollfd on[2] = {
		{.fd = kvr_client_net_send_fd(client->net), .events = POLLIN},
		{.fd = client->attach_fd, .events = POLLIN},
	};

	for (;;) {
		uint64_t now_ns = kvr_clock_ns();

		if (now_ns >= deadline_ns)
			return kvr_client_refuse(client, ETIMEDOUT, "look at the daemon's log",
				"the request socket does not answer");
		/* Rounded up; a deadline is ten minutes away at most. */
		if (poll(on, 2, (int)((deadline_ns - now_ns) / NS_PER_MS + 1)) <= 0)
			continue;
		if (on[1].revents)
			kvr_client_look(client);
		if (client->attach_fd < 0)
			return kvr_client_code(
				client, KVR_CODE_LOST, "the session ended while it began");
		if (on[0].revents)
			return 0;
	}
}

/* detached ──► attached. */
static int session_open(struct kvr_client *client, bool patient, uint64_t deadline_ns)
{
	struct kvr_client_attached attached;
	const struct kvr_welcome *welcome = &attached.welcome;
	struct kvr_client_net *net = NULL;
	int rc;

	KVR_ASSERT(client->attach_fd < 0);
	rc = kvr_client_attach(client, patient, deadline_ns, &attached);
	if (rc < 0)
		return rc;
	KVR_ASSERT(welcome->credits >= 1); /* proto/ lets no other pass */
	KVR_ASSERT(welcome->credits <= KVR_CLIENT_SUBMITTED);
	rc = kvr_client_region_map(&client->region, attached.region_fd);
	close(attached.region_fd);
	if (rc == 0)
		rc = kvr_client_net_open(welcome->url, &net);
	if (rc < 0) {
		close(attached.socket_fd);
		return kvr_client_refuse(client, -rc, "use a daemon of the library's version",
			"the region (sealed, %llu bytes) or the url of the welcome: %s",
			(unsigned long long)client->region.bytes, welcome->url);
	}
	client->attach_fd = attached.socket_fd; /* C1 */
	client->net = net;
	client->session = welcome->session;
	memcpy(client->secret, welcome->secret, sizeof(client->secret));
	client->credits = welcome->credits;
	client->generation++;
	rc = watch(client, client->attach_fd);
	if (rc == 0)
		rc = watch(client, kvr_client_net_recv_fd(client->net));
	if (rc < 0) {
		kvr_client_lose(client);
		return kvr_client_refuse(client, -rc, "raise the limits of the process", "epoll");
	}
	rc = wait_connected(client, deadline_ns);
	if (rc < 0)
		kvr_client_lose(client);
	return rc;
}

int kvr_client_begin(struct kvr_client *client, uint64_t deadline_ns)
{
	int rc;

	kvr_client_look(client);
	if (client->attach_fd >= 0)
		return 0;
	do {
		rc = session_open(client, true, deadline_ns);
		/* A daemon that goes away while it is attached to: wait for the next one. */
	} while (rc == -ECONNRESET && kvr_clock_ns() < deadline_ns);
	return rc;
}

/* ---- public ---------------------------------------------------------------------------------- */

static int set_path(struct kvr_client *client, const struct kvr_client_config *config)
{
	const char *path = config->attach_path;

	if (!path)
		path = secure_getenv("KVRECALL_SOCKET");
	if (!path || path[0] == '\0')
		path = DEFAULT_PATH;
	if (strlen(path) >= sizeof(client->path))
		return -ENAMETOOLONG;
	memcpy(client->path, path, strlen(path) + 1);
	return 0;
}

/* Name and version, in characters that any log can show. */
static void set_name(struct kvr_client *client, const struct kvr_client_config *config)
{
	const char *name = config->name ? config->name : program_invocation_short_name;

	snprintf(client->name, sizeof(client->name), "%.32s (libkvrecall " KVR_VERSION ")", name);
	for (char *at = client->name; *at; at++) {
		if (*at < ' ' || *at > '~')
			*at = '?';
	}
}

static int client_open(const struct kvr_client_config *config, struct kvr_client **ret_client)
{
	uint64_t region_bytes = config->region_bytes ? config->region_bytes : DEFAULT_REGION_BYTES;
	struct kvr_client *client = calloc(1, sizeof(*client));
	int rc;

	if (!client)
		return -ENOMEM;
	client->attach_fd = -1;
	client->epoll_fd = -1;
	client->alarm_fd = -1;
	client->timeout_ms = config->timeout_ms ? config->timeout_ms : DEFAULT_TIMEOUT_MS;
	client->error = (struct kvr_error){0, 0, "", "", ""};
	kvr_list_init(&client->models);
	kvr_list_init(&client->sequences);
	rc = set_path(client, config);
	if (rc < 0)
		goto fail;
	set_name(client, config);
	rc = kvr_client_region_init(&client->region, region_bytes);
	if (rc == 0)
		rc = kvr_client_calls_init(&client->calls);
	if (rc == 0)
		rc = kvr_message_arena_open(&client->arena);
	if (rc < 0)
		goto fail;
	client->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	client->alarm_fd = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
	rc = client->epoll_fd < 0 || client->alarm_fd < 0 ? -errno : 0;
	if (rc == 0)
		rc = watch(client, client->alarm_fd);
	if (rc < 0)
		goto fail;
	*ret_client = client;
	return 0;
fail:
	kvr_disconnect(client);
	return rc;
}

int kvr_connect(const struct kvr_client_config *config, struct kvr_client **ret_client)
{
	static const struct kvr_client_config defaults;
	struct kvr_client *client;
	int rc;

	if (!config)
		config = &defaults;
	if (!ret_client || config->region_bytes > KVR_REGION_BYTES_MAX ||
		config->timeout_ms > KVR_DEADLINE_MS_MAX)
		return -EINVAL;
	rc = client_open(config, &client);
	if (rc < 0)
		return rc;
	rc = session_open(client, false, kvr_client_deadline(client));
	if (rc < 0) {
		kvr_disconnect(client);
		return rc;
	}
	*ret_client = client;
	return 0;
}

struct kvr_client *kvr_disconnect(struct kvr_client *client)
{
	struct kvr_list *node;

	if (!client)
		return NULL;
	kvr_client_lose(client);
	while ((node = kvr_list_pop(&client->sequences)))
		free(KVR_CONTAINER_OF(node, struct kvr_sequence, link));
	while ((node = kvr_list_pop(&client->models)))
		free(KVR_CONTAINER_OF(node, struct kvr_model, link));
	if (client->alarm_fd >= 0)
		close(client->alarm_fd);
	if (client->epoll_fd >= 0)
		close(client->epoll_fd);
	kvr_message_arena_close(client->arena);
	kvr_client_calls_fini(&client->calls);
	kvr_client_region_fini(&client->region);
	free(client);
	return NULL;
}

void *kvr_region(const struct kvr_client *client, size_t *ret_bytes)
{
	if (ret_bytes)
		*ret_bytes = client ? client->region.bytes : 0;
	return client ? client->region.base : NULL;
}

uint32_t kvr_generation(const struct kvr_client *client)
{
	return client ? client->generation : 0;
}

const struct kvr_error *kvr_error(const struct kvr_client *client)
{
	static const struct kvr_error none = {
		0, EINVAL, "LIBRARY", "the client is NULL", "connect"};

	return client ? &client->error : &none;
}

int kvr_ping(struct kvr_client *client)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	uint64_t deadline_ns;
	int rc;

	if (!client)
		return -EINVAL;
	deadline_ns = kvr_client_deadline(client);
	rc = kvr_client_begin(client, deadline_ns);
	if (rc < 0)
		return rc;
	return kvr_client_call(client, &request, NULL, deadline_ns);
}
