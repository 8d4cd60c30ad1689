/* SPDX-License-Identifier: Apache-2.0 */
/* fake_util.c: the scripted daemon: one thread, poll over both sockets. */
#include "tests/client/fake_util.h"
#include "tests/client/fake_reply_util.h"
#include "tests/client/fake_welcome_util.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>

#include "base/assert.h"

#define SESSIONS_MAX 64u
#define HELD_MAX     128u

struct held {
	void *control; /* nanomsg's header, to go back with the reply */
	uint8_t data[KVR_REPLY_BYTES_MAX];
	size_t bytes;
};

struct fake {
	char folder[32];
	char path[64];
	char url[64];
	pthread_t thread;
	int stop_fd; /* eventfd: kicks the thread */
	/* The thread's own while it runs. */
	int listen_fd;
	int net;
	int net_fd;
	struct kvr_message_arena *arena;
	uint8_t reply_data[KVR_REPLY_BYTES_MAX];
	struct fake_arrays arrays;
	/* Everything below is protected by the lock. */
	pthread_mutex_t lock;
	bool stop;
	bool release;
	bool hang_up;
	fake_script script;
	void *cookie;
	enum fake_welcome welcome;
	uint32_t credits;
	int sessions[SESSIONS_MAX];
	uint32_t session_count;
	uint64_t session_last;
	uint64_t boot;
	int region_fd;
	struct kvr_hello hello;
	uint64_t ids[FAKE_REQUESTS_MAX];
	uint32_t request_count;
	struct fake_seen seen[32];
	bool seen_any[32];
	struct held *held[HELD_MAX];
	uint32_t held_count;
	uint32_t held_max;
};

/* ---- attach ---------------------------------------------------------------------------------- */

/* One session: Hello in, Welcome out, as good or bad as was ordered. */
static void welcome(struct fake *fake, int fd)
{
	struct kvr_welcome reply = {.version = 1, .boot = fake->boot, .credits = fake->credits};
	uint8_t data[4096];
	ssize_t bytes = recv(fd, data, sizeof(data), 0);

	if (bytes <= 0 ||
		kvr_hello_unpack(
			(struct kvr_span){data, (size_t)bytes}, fake->arena, &fake->hello) < 0 ||
		fake->welcome == FAKE_WELCOME_CLOSED) {
		close(fd);
		return;
	}
	fake->sessions[fake->session_count++] = fd;
	KVR_ASSERT(fake->session_count < SESSIONS_MAX);
	if (fake->welcome == FAKE_WELCOME_SILENT)
		return;
	if (fake->region_fd >= 0)
		close(fake->region_fd);
	reply.session = ++fake->session_last;
	reply.region_bytes = fake->hello.region_bytes;
	memset(reply.secret, 0x5a, sizeof(reply.secret));
	snprintf(reply.url, sizeof(reply.url), "%s", fake->url);
	snprintf(reply.server, sizeof(reply.server), "fake");
	fake->region_fd = fake_welcome_send(fd, fake->welcome, reply, fake->folder);
}

/* ---- requests -------------------------------------------------------------------------------- */

static void remember(struct fake *fake, const struct kvr_request *request)
{
	struct fake_seen *seen = &fake->seen[request->kind];
	const struct kvr_tokens *tokens = NULL;
	const struct kvr_wire_layer *layers = NULL;
	uint32_t layer_count = 0;

	KVR_ASSERT(request->kind < 32);
	KVR_ASSERT(fake->request_count < FAKE_REQUESTS_MAX);
	fake->ids[fake->request_count++] = request->id;
	memset(seen, 0, sizeof(*seen));
	seen->request = *request;
	fake->seen_any[request->kind] = true;
	if (request->kind == KVR_REQUEST_OPEN)
		tokens = &request->open.tokens;
	if (request->kind == KVR_REQUEST_APPEND) {
		tokens = &request->append.tokens;
		layers = request->append.layers;
		layer_count = request->append.layer_count;
	}
	if (request->kind == KVR_REQUEST_FETCH) {
		layers = request->fetch.layers;
		layer_count = request->fetch.layer_count;
	}
	for (uint32_t i = 0; i < layer_count && i < 8; i++)
		seen->layers[i] = layers[i];
	if (tokens && tokens->ids) {
		seen->inline_tokens = true;
		for (uint32_t i = 0; i < tokens->count && i < FAKE_TOKENS_MAX; i++)
			seen->tokens[i] = tokens->ids[i];
	}
	if (request->kind == KVR_REQUEST_RECALL) {
		const struct kvr_span *query = &request->recall.items[0].query;

		for (uint32_t i = 0; i < request->recall.item_count && i < 8; i++)
			seen->items[i] = request->recall.items[i];
		if (query->data)
			memcpy(seen->query, query->data,
				query->bytes < FAKE_QUERY_MAX ? query->bytes : FAKE_QUERY_MAX);
	}
}

/* Sends with the header that came with the request; takes it. */
static void reply_send(struct fake *fake, void *control, const uint8_t *data, size_t bytes)
{
	struct nn_iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
	struct nn_msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = NN_MSG};

	if (nn_sendmsg(fake->net, &message, NN_DONTWAIT) < 0)
		nn_freemsg(control);
}

/* A second header, for a second reply to the same request. */
static void *control_copy(const void *control, size_t bytes)
{
	void *copy = nn_allocmsg(bytes, 0);

	KVR_ASSERT(copy);
	memcpy(copy, control, bytes);
	return copy;
}

static void act(struct fake *fake, enum fake_action action, void *control, size_t control_bytes,
	size_t bytes)
{
	static const uint8_t noise[] = {0xff, 0x00, 0x13, 0x37, 0x80, 0x80, 0x80};
	static const uint8_t stranger[] = {0x08, 0xff, 0xff, 0x7f}; /* Reply.id = 2,097,151 */
	uint8_t *data = fake->reply_data;
	struct held *held;

	switch (action) {
	case FAKE_DROP: nn_freemsg(control); return;
	case FAKE_TWICE: reply_send(fake, control_copy(control, control_bytes), data, bytes); break;
	case FAKE_GARBAGE:
		reply_send(fake, control_copy(control, control_bytes), noise, sizeof(noise));
		reply_send(fake, control_copy(control, control_bytes), stranger, sizeof(stranger));
		reply_send(fake, control_copy(control, control_bytes), noise, 0);
		break;
	case FAKE_BROKEN:
		/* Field 12 (Models) as a varint: not what the schema says. */
		data[bytes++] = 0x60;
		data[bytes++] = 0x01;
		break;
	case FAKE_HOLD:
		KVR_ASSERT(fake->held_count < HELD_MAX);
		held = malloc(sizeof(*held));
		KVR_ASSERT(held);
		held->control = control;
		held->bytes = bytes;
		memcpy(held->data, data, bytes);
		fake->held[fake->held_count++] = held;
		if (fake->held_count > fake->held_max)
			fake->held_max = fake->held_count;
		return;
	case FAKE_REPLY: break;
	}
	reply_send(fake, control, data, bytes);
}

/* Takes one request. False: there was none. */
static bool serve(struct fake *fake)
{
	void *body = NULL, *control = NULL;
	struct nn_iovec part = {.iov_base = &body, .iov_len = NN_MSG};
	struct nn_msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = NN_MSG};
	struct kvr_request request;
	struct kvr_reply reply;
	enum fake_action action = FAKE_REPLY;
	int bytes = nn_recvmsg(fake->net, &message, NN_DONTWAIT);
	struct nn_cmsghdr *head;
	int64_t size;
	int rc;

	if (bytes < 0)
		return false;
	rc = kvr_request_unpack((struct kvr_span){body, (size_t)bytes}, fake->arena, &request);
	if (rc < 0)
		fprintf(stderr, "fake: %s\n", kvr_message_error(fake->arena));
	KVR_ASSERT(rc == 0); /* the library sends nothing else */
	remember(fake, &request);
	fake_reply_make(&fake->arrays, &request, &reply);
	if (fake->script)
		action = fake->script(fake, &request, &reply, fake->cookie);
	size = kvr_reply_pack(
		&reply, fake->arena, (struct kvr_span){fake->reply_data, sizeof(fake->reply_data)});
	KVR_ASSERT(size >= 0);
	head = control;
	act(fake, action, control, NN_CMSG_ALIGN_(head->cmsg_len), (size_t)size);
	nn_freemsg(body);
	return true;
}

/* ---- the thread ------------------------------------------------------------------------------ */

static void drop_sessions(struct fake *fake)
{
	while (fake->session_count)
		close(fake->sessions[--fake->session_count]);
}

static void release_held(struct fake *fake)
{
	while (fake->held_count) {
		struct held *held = fake->held[--fake->held_count];

		if (fake->stop)
			nn_freemsg(held->control);
		else
			reply_send(fake, held->control, held->data, held->bytes);
		free(held);
	}
}

/* Sessions whose client has gone. */
static void reap_sessions(struct fake *fake)
{
	for (uint32_t i = 0; i < fake->session_count;) {
		uint8_t byte;

		if (recv(fake->sessions[i], &byte, 1, MSG_DONTWAIT) == 0) {
			close(fake->sessions[i]);
			fake->sessions[i] = fake->sessions[--fake->session_count];
		} else {
			i++;
		}
	}
}

static void *run(void *argument)
{
	struct fake *fake = argument;
	bool stop = false;

	while (!stop) {
		struct pollfd on[3] = {
			{.fd = fake->stop_fd, .events = POLLIN},
			{.fd = fake->listen_fd, .events = POLLIN},
			{.fd = fake->net_fd, .events = POLLIN},
		};
		uint64_t kicks;

		(void)poll(on, 3, 10);
		pthread_mutex_lock(&fake->lock);
		if (on[0].revents)
			(void)!read(fake->stop_fd, &kicks, sizeof(kicks));
		while (!fake->stop && serve(fake))
			;
		if (on[1].revents) {
			int fd = accept4(fake->listen_fd, NULL, NULL, SOCK_CLOEXEC);

			if (fd >= 0)
				welcome(fake, fd);
		}
		reap_sessions(fake);
		if (fake->release || fake->stop)
			release_held(fake);
		fake->release = false;
		if (fake->hang_up)
			drop_sessions(fake);
		fake->hang_up = false;
		stop = fake->stop;
		pthread_mutex_unlock(&fake->lock);
	}
	return NULL;
}

static void kick(struct fake *fake, bool *flag)
{
	const uint64_t one = 1;

	pthread_mutex_lock(&fake->lock);
	*flag = true;
	pthread_mutex_unlock(&fake->lock);
	KVR_ASSERT(write(fake->stop_fd, &one, sizeof(one)) == sizeof(one));
}

/* ---- for the test ---------------------------------------------------------------------------- */

void fake_start(struct fake *fake)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const int bytes = 1 << 21;
	size_t size = sizeof(fake->net_fd);

	fake->stop = false;
	fake->boot++;
	unlink(fake->path);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", fake->path);
	fake->listen_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	KVR_ASSERT(fake->listen_fd >= 0);
	fake->net = nn_socket(AF_SP_RAW, NN_REP);
	KVR_ASSERT(fake->net >= 0);
	nn_setsockopt(fake->net, NN_SOL_SOCKET, NN_SNDBUF, &bytes, sizeof(bytes));
	nn_setsockopt(fake->net, NN_SOL_SOCKET, NN_RCVBUF, &bytes, sizeof(bytes));
	KVR_ASSERT(nn_bind(fake->net, fake->url) >= 0);
	KVR_ASSERT(nn_getsockopt(fake->net, NN_SOL_SOCKET, NN_RCVFD, &fake->net_fd, &size) == 0);
	KVR_ASSERT(bind(fake->listen_fd, (const struct sockaddr *)&address, sizeof(address)) == 0);
	KVR_ASSERT(listen(fake->listen_fd, 64) == 0);
	KVR_ASSERT(pthread_create(&fake->thread, NULL, run, fake) == 0);
}

void fake_kill(struct fake *fake)
{
	kick(fake, &fake->stop);
	pthread_join(fake->thread, NULL);
	close(fake->listen_fd);
	drop_sessions(fake);
	nn_close(fake->net);
	fake->listen_fd = -1;
}

struct fake *fake_open(void)
{
	struct fake *fake = calloc(1, sizeof(*fake));

	KVR_ASSERT(fake);
	snprintf(fake->folder, sizeof(fake->folder), "/tmp/kvr-fake-XXXXXX");
	KVR_ASSERT(mkdtemp(fake->folder));
	snprintf(fake->path, sizeof(fake->path), "%s/attach.sock", fake->folder);
	snprintf(fake->url, sizeof(fake->url), "ipc://%s/request.sock", fake->folder);
	fake->credits = KVR_CREDITS_MAX;
	fake->region_fd = -1;
	fake->stop_fd = eventfd(0, EFD_CLOEXEC);
	KVR_ASSERT(fake->stop_fd >= 0);
	KVR_ASSERT(pthread_mutex_init(&fake->lock, NULL) == 0);
	KVR_ASSERT(kvr_message_arena_open(&fake->arena) == 0);
	fake_start(fake);
	return fake;
}

struct fake *fake_close(struct fake *fake)
{
	if (fake->listen_fd >= 0)
		fake_kill(fake);
	unlink(fake->path);
	unlink(fake->url + strlen("ipc://"));
	rmdir(fake->folder);
	if (fake->region_fd >= 0)
		close(fake->region_fd);
	close(fake->stop_fd);
	kvr_message_arena_close(fake->arena);
	pthread_mutex_destroy(&fake->lock);
	free(fake);
	return NULL;
}

const char *fake_path(const struct fake *fake)
{
	return fake->path;
}

void fake_set_script(struct fake *fake, fake_script script, void *cookie)
{
	pthread_mutex_lock(&fake->lock);
	fake->script = script;
	fake->cookie = cookie;
	pthread_mutex_unlock(&fake->lock);
}

void fake_set_welcome(struct fake *fake, enum fake_welcome welcome)
{
	pthread_mutex_lock(&fake->lock);
	fake->welcome = welcome;
	pthread_mutex_unlock(&fake->lock);
}

void fake_set_credits(struct fake *fake, uint32_t credits)
{
	pthread_mutex_lock(&fake->lock);
	fake->credits = credits;
	pthread_mutex_unlock(&fake->lock);
}

void fake_release(struct fake *fake)
{
	kick(fake, &fake->release);
}

void fake_hang_up(struct fake *fake)
{
	kick(fake, &fake->hang_up);
}

static uint32_t get(struct fake *fake, const uint32_t *number)
{
	uint32_t value;

	pthread_mutex_lock(&fake->lock);
	value = *number;
	pthread_mutex_unlock(&fake->lock);
	return value;
}

uint32_t fake_requests(struct fake *fake)
{
	return get(fake, &fake->request_count);
}

uint32_t fake_held(struct fake *fake)
{
	return get(fake, &fake->held_count);
}

uint32_t fake_held_max(struct fake *fake)
{
	return get(fake, &fake->held_max);
}

uint32_t fake_attached(struct fake *fake)
{
	return get(fake, &fake->session_count);
}

uint64_t fake_id(struct fake *fake, uint32_t index)
{
	uint64_t id;

	KVR_ASSERT(index < FAKE_REQUESTS_MAX);
	pthread_mutex_lock(&fake->lock);
	id = fake->ids[index];
	pthread_mutex_unlock(&fake->lock);
	return id;
}

bool fake_seen(struct fake *fake, enum kvr_request_kind kind, struct fake_seen *ret_seen)
{
	bool any;

	pthread_mutex_lock(&fake->lock);
	any = fake->seen_any[kind];
	*ret_seen = fake->seen[kind];
	fake->seen_any[kind] = false;
	pthread_mutex_unlock(&fake->lock);
	return any;
}

void fake_hello(struct fake *fake, struct kvr_hello *ret_hello)
{
	pthread_mutex_lock(&fake->lock);
	*ret_hello = fake->hello;
	pthread_mutex_unlock(&fake->lock);
}

void fake_region_read(struct fake *fake, uint64_t offset, void *into, size_t bytes)
{
	pthread_mutex_lock(&fake->lock);
	KVR_ASSERT(pread(fake->region_fd, into, bytes, (off_t)offset) == (ssize_t)bytes);
	pthread_mutex_unlock(&fake->lock);
}
