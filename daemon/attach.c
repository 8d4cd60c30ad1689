/* SPDX-License-Identifier: Apache-2.0 */
/* attach.c: listening, credentials, Hello and Welcome. Does not read requests. */
#include "daemon/attach.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"
#include "daemon/crypt.h"
#include "daemon/log.h"
#include "proto/message.h"

#define GREETING_NS       5000000000u
#define GREETINGS_MAX     64u /* connections that have not said Hello */
#define HELLO_BYTES_MAX   1024u
#define WELCOME_BYTES_MAX 1024u
#define REGION_BYTES_UNIT (2ull << 20)
#define ACCEPTS_PER_ROUND 16
#define GROUPS_MAX        256u /* of a peer, the first one included */

static void accept_ready(struct kvr_watch *watch);

/* Removes a socket file that nobody answers on. Returns -EADDRINUSE if somebody does. */
static int clear_path(const struct sockaddr_un *address)
{
	int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int rc = 0;

	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)address, sizeof(*address)) == 0 || errno == EAGAIN)
		rc = -EADDRINUSE; /* EAGAIN: it is there, but does not accept just now */
	else if (errno == ECONNREFUSED)
		unlink(address->sun_path);
	close(fd);
	return rc;
}

int kvr_attach_listen(struct kvr_sessions *sessions, const char *path)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int rc;

	if (strlen(path) >= sizeof(address.sun_path))
		return -ENAMETOOLONG;
	memcpy(address.sun_path, path, strlen(path) + 1);
	rc = clear_path(&address);
	if (rc < 0)
		return rc;
	sessions->listener_fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (sessions->listener_fd < 0 ||
		bind(sessions->listener_fd, (struct sockaddr *)&address, sizeof(address)) < 0)
		return -errno;
	snprintf(sessions->path, sizeof(sessions->path), "%s", path); /* ours to unlink from here */
	if (chmod(path, sessions->config->socket_mode) < 0 ||
		listen(sessions->listener_fd, (int)GREETINGS_MAX) < 0)
		return -errno;
	sessions->listener = (struct kvr_watch){
		.fd = sessions->listener_fd, .ready = accept_ready, .owner = sessions};
	return kvr_loop_add(sessions->loop, &sessions->listener);
}

/* accept failed for want of descriptors or memory: the listener would be readable for ever. */
static void pause_listening(struct kvr_sessions *sessions)
{
	if (!sessions->listener_starved)
		kvr_log(KVR_LOG_WARNING, "%s: %s; raise LimitNOFILE", sessions->path,
			strerror(errno));
	sessions->listener_starved = true;
	kvr_loop_remove(sessions->loop, &sessions->listener);
	sessions->listener_paused = true;
}

void kvr_attach_resume(struct kvr_sessions *sessions)
{
	KVR_ASSERT(sessions->listener.fd < 0);
	sessions->listener.fd = sessions->listener_fd;
	sessions->listener_paused = kvr_loop_add(sessions->loop, &sessions->listener) < 0;
	if (sessions->listener_paused)
		sessions->listener.fd = -1;
}

void kvr_attach_unlisten(struct kvr_sessions *sessions)
{
	kvr_loop_remove(sessions->loop, &sessions->listener);
	if (sessions->listener_fd >= 0)
		close(sessions->listener_fd);
	if (sessions->path[0])
		unlink(sessions->path);
	sessions->listener_fd = -1;
	sessions->listener_paused = false;
	sessions->path[0] = 0;
}

/* Sends a Welcome, with the region if there is one. Returns 0 or -EIO. */
static int send_welcome(int fd, const struct kvr_welcome *welcome, int region_fd)
{
	uint8_t bytes[WELCOME_BYTES_MAX];
	union {
		struct cmsghdr header;
		uint8_t space[CMSG_SPACE(sizeof(int))];
	} control = {0};
	int64_t packed = kvr_welcome_pack(welcome, (struct kvr_span){bytes, sizeof(bytes)});
	struct iovec vector = {bytes, (size_t)packed};
	struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};

	KVR_ASSERT(packed > 0);
	if (region_fd >= 0) {
		message.msg_control = &control;
		message.msg_controllen = sizeof(control.space);
		control.header = (struct cmsghdr){.cmsg_level = SOL_SOCKET,
			.cmsg_type = SCM_RIGHTS,
			.cmsg_len = CMSG_LEN(sizeof(int))};
		memcpy(CMSG_DATA(&control.header), &region_fd, sizeof(region_fd));
	}
	return sendmsg(fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT) == packed ? 0 : -EIO;
}

__attribute__((format(printf, 3, 4))) static void refuse(
	struct kvr_session *session, enum kvr_code code, const char *format, ...)
{
	struct kvr_welcome welcome = {.code = code};
	va_list arguments;

	va_start(arguments, format);
	vsnprintf(welcome.subject, sizeof(welcome.subject), format, arguments);
	va_end(arguments);
	session->sessions->refused_total++;
	send_welcome(session->watch.fd, &welcome, -1);
	kvr_session_end(session);
}

/* Finds the peer's tenant by the kernel's word on user and groups. */
static int identify(struct kvr_session *session)
{
	const int fd = session->watch.fd;
	struct ucred peer;
	gid_t groups[GROUPS_MAX];
	socklen_t bytes = sizeof(peer), group_bytes = sizeof(groups) - sizeof(gid_t);
	uint32_t count = 1;

	if (getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &bytes) < 0)
		return -EACCES;
	groups[0] = peer.gid;
	/* Where there are too many, or the kernel does not tell, the first one has to do. */
	if (getsockopt(fd, SOL_SOCKET, SO_PEERGROUPS, groups + 1, &group_bytes) == 0)
		count += (uint32_t)(group_bytes / sizeof(gid_t));
	KVR_ASSERT(count <= GROUPS_MAX);
	return kvr_tenants_find(
		session->sessions->tenants, peer.uid, groups, count, &session->tenant);
}

/* Gives the session its region, answers and secret, and says so to the client. */
static void welcome(struct kvr_session *session, const struct kvr_hello *hello, uint64_t bytes)
{
	struct kvr_sessions *sessions = session->sessions;
	struct kvr_welcome reply = {
		.version = hello->version_max < KVR_PROTOCOL_VERSION_MAX ? hello->version_max
									 : KVR_PROTOCOL_VERSION_MAX,
		.session = session->id,
		.boot = sessions->boot,
		.credits = sessions->config->credits,
		.region_bytes = bytes,
	};

	session->answers = calloc(KVR_ANSWERS_MAX, sizeof(*session->answers));
	if (!session->answers || kvr_region_open(&session->region, bytes) < 0) {
		refuse(session, KVR_CODE_FULL, "a region of %llu bytes: no memory or descriptors",
			(unsigned long long)bytes);
		return;
	}
	sessions->region_bytes += bytes;
	kvr_crypt_random(session->secret, sizeof(session->secret));
	memcpy(reply.secret, session->secret, sizeof(reply.secret));
	memcpy(session->client, hello->client, sizeof(session->client));
	snprintf(reply.url, sizeof(reply.url), "%s", sessions->url);
	snprintf(reply.server, sizeof(reply.server), "kvrecalld %s", KVR_BUILD_VERSION);
	if (send_welcome(session->watch.fd, &reply, session->region.fd) < 0) {
		kvr_session_end(session);
		return;
	}
	sessions->greeting_count--;
	sessions->attached_count++;
	sessions->attached_total++;
	session->state = KVR_SESSION_ATTACHED;
	kvr_log(KVR_LOG_DEBUG, "session of %s (%s) attached", session->client,
		session->tenant->name);
}

static void greet(struct kvr_session *session, const struct kvr_hello *hello)
{
	const struct kvr_sessions *sessions = session->sessions;
	const struct kvr_config *config = sessions->config;
	uint64_t bytes;
	int rc;

	if (hello->version_min > KVR_PROTOCOL_VERSION_MAX ||
		hello->version_max < KVR_PROTOCOL_VERSION_MIN) {
		refuse(session, KVR_CODE_VERSION,
			"client speaks versions %u to %u, daemon %u to %u", hello->version_min,
			hello->version_max, KVR_PROTOCOL_VERSION_MIN, KVR_PROTOCOL_VERSION_MAX);
		return;
	}
	rc = identify(session);
	if (rc < 0) {
		refuse(session, rc == -EACCES ? KVR_CODE_DENIED : KVR_CODE_LIMIT,
			rc == -EACCES ? "no tenant admits the client's uid" : "too many tenants");
		return;
	}
	if (hello->region_bytes == 0 || hello->region_bytes > config->region_bytes_max) {
		refuse(session, KVR_CODE_LIMIT,
			"region_bytes %llu; memory.region_bytes_max is %llu",
			(unsigned long long)hello->region_bytes,
			(unsigned long long)config->region_bytes_max);
		return;
	}
	bytes = (hello->region_bytes + REGION_BYTES_UNIT - 1) & ~(uint64_t)(REGION_BYTES_UNIT - 1);
	/* The bound may have been lowered since the others came. */
	if (bytes > config->regions_bytes_max ||
		sessions->region_bytes > config->regions_bytes_max - bytes) {
		refuse(session, KVR_CODE_FULL,
			"regions of all sessions: memory.regions_bytes_max is %llu",
			(unsigned long long)config->regions_bytes_max);
		return;
	}
	welcome(session, hello, bytes);
}

/* A greeting client says Hello. An attached one has nothing to say: its socket is there to close. */
static void session_ready(struct kvr_watch *watch)
{
	struct kvr_session *session = watch->owner;
	uint8_t bytes[HELLO_BYTES_MAX];
	struct kvr_hello hello;
	ssize_t got = recv(watch->fd, bytes, sizeof(bytes), MSG_DONTWAIT);

	if (got < 0 && (errno == EAGAIN || errno == EINTR))
		return;
	if (got <= 0 || session->state != KVR_SESSION_GREETING) {
		kvr_session_end(session);
		return;
	}
	if (kvr_hello_unpack(
		    (struct kvr_span){bytes, (size_t)got}, session->sessions->arena, &hello) < 0) {
		refuse(session, KVR_CODE_MALFORMED, "Hello: %s",
			kvr_message_error(session->sessions->arena));
		return;
	}
	greet(session, &hello);
}

/* A slot for a new connection. Who says nothing does not keep others out: of too many greetings the
 * oldest ends. */
static struct kvr_session *begin_greeting(struct kvr_sessions *sessions)
{
	struct kvr_session *oldest = NULL;

	for (uint32_t i = 0; i < KVR_SESSIONS_MAX; i++) {
		struct kvr_session *session = &sessions->entries[i];

		if (sessions->greeting_count < GREETINGS_MAX)
			break;
		if (session->state == KVR_SESSION_GREETING &&
			(!oldest || session->greeting_until_ns < oldest->greeting_until_ns))
			oldest = session;
	}
	if (oldest) {
		sessions->refused_total++;
		kvr_session_end(oldest);
	}
	KVR_ASSERT(sessions->greeting_count < GREETINGS_MAX);
	return kvr_session_begin(sessions);
}

static void accept_ready(struct kvr_watch *watch)
{
	struct kvr_sessions *sessions = watch->owner;

	for (int i = 0; i < ACCEPTS_PER_ROUND; i++) {
		struct kvr_session *session;
		int fd = accept4(watch->fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);

		if (fd < 0) {
			if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS ||
				errno == ENOMEM)
				pause_listening(sessions);
			return;
		}
		sessions->listener_starved = false;
		session = begin_greeting(sessions);
		if (!session) {
			const struct kvr_welcome full = {
				.code = KVR_CODE_LIMIT, .subject = "too many sessions"};

			sessions->refused_total++;
			send_welcome(fd, &full, -1);
			close(fd);
			continue;
		}
		session->watch =
			(struct kvr_watch){.fd = fd, .ready = session_ready, .owner = session};
		session->greeting_until_ns = kvr_clock_ns() + GREETING_NS;
		if (kvr_loop_add(sessions->loop, &session->watch) < 0)
			kvr_session_end(session);
	}
}
