/* SPDX-License-Identifier: Apache-2.0 */
/* attach.c: a session of the daemon: one Hello out, one Welcome with the region's descriptor in.
 *
 * It does not map the region, does not open the request socket and keeps nothing: client.c does. */
#include "client/client.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "base/assert.h"
#include "base/clock.h"

#define NS_PER_S UINT64_C(1000000000)

/* How often a daemon that is not there is looked for. */
#define RETRY_NS UINT64_C(20000000)

/* A Hello or a Welcome at its largest, with room for fields of later versions. */
#define HELLO_BYTES   1024u
#define WELCOME_BYTES 4096u

/* More descriptors than one are received only to be closed. */
#define FDS_MAX 8u

static const char REMEDY_PROTO[] = "use a daemon of the library's version";
static const char REMEDY_START[] = "start kvrecalld, or correct the attach path";

static int connect_once(struct kvr_client *client, int *ret_fd)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	int fd, rc;

	KVR_STATIC_ASSERT(sizeof(address.sun_path) == KVR_CLIENT_PATH_MAX);
	memcpy(address.sun_path, client->path, sizeof(address.sun_path));
	fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	if (fd < 0)
		return -errno;
	if (connect(fd, (const struct sockaddr *)&address, sizeof(address)) != 0) {
		rc = -errno;
		close(fd);
		return rc;
	}
	*ret_fd = fd;
	return 0;
}

/* Takes the descriptors out of a message: the first is returned (-1: none), any other closed. */
static int take_fd(struct msghdr *message, uint32_t *ret_count)
{
	int first = -1;
	uint32_t count = 0;

	for (struct cmsghdr *head = CMSG_FIRSTHDR(message); head;
		head = CMSG_NXTHDR(message, head)) {
		if (head->cmsg_level != SOL_SOCKET || head->cmsg_type != SCM_RIGHTS)
			continue;
		for (size_t at = 0; at + sizeof(int) <= head->cmsg_len - CMSG_LEN(0);
			at += sizeof(int)) {
			int fd;

			memcpy(&fd, CMSG_DATA(head) + at, sizeof(fd));
			if (count++ == 0)
				first = fd;
			else
				close(fd);
		}
	}
	*ret_count = count;
	return first;
}

/* Waits for the Welcome. -ECONNREFUSED: the daemon closed the socket instead. */
static int receive(struct kvr_client *client, int fd, uint64_t deadline_ns,
	struct kvr_welcome *ret_welcome, int *ret_region_fd)
{
	uint8_t data[WELCOME_BYTES];
	_Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(FDS_MAX * sizeof(int))];
	struct iovec part = {.iov_base = data, .iov_len = sizeof(data)};
	struct msghdr message = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control)};
	struct pollfd on = {.fd = fd, .events = POLLIN};
	uint32_t fd_count;
	ssize_t bytes;
	int region_fd, rc;

	while ((bytes = recvmsg(fd, &message, MSG_CMSG_CLOEXEC)) < 0) {
		uint64_t now_ns = kvr_clock_ns();

		if (errno != EAGAIN && errno != EINTR)
			return -ECONNREFUSED;
		if (now_ns >= deadline_ns)
			return kvr_client_refuse(client, ETIMEDOUT, "look at the daemon's log",
				"no answer at %s", client->path);
		/* Rounded up; a deadline is ten minutes away at most. */
		(void)poll(&on, 1, (int)((deadline_ns - now_ns) / 1000000 + 1));
	}
	region_fd = take_fd(&message, &fd_count);
	rc = -ECONNREFUSED;
	if (bytes == 0)
		goto fail;
	rc = kvr_client_refuse(client, EPROTO, REMEDY_PROTO, "welcome: %zd bytes, %u descriptors",
		bytes, fd_count);
	if ((message.msg_flags & (MSG_TRUNC | MSG_CTRUNC)) || fd_count > 1)
		goto fail;
	if (kvr_welcome_unpack((struct kvr_span){data, (size_t)bytes}, client->arena, ret_welcome) <
		0) {
		rc = kvr_client_refuse(client, EPROTO, REMEDY_PROTO, "welcome: %s",
			kvr_message_error(client->arena));
		goto fail;
	}
	if (ret_welcome->code != KVR_CODE_OK) {
		rc = kvr_client_code(client, ret_welcome->code, ret_welcome->subject);
		goto fail;
	}
	if (region_fd < 0)
		goto fail;
	if (ret_welcome->region_bytes != client->region.bytes) {
		rc = kvr_client_refuse(client, EPROTO, REMEDY_PROTO,
			"a region of %llu bytes was asked for, %llu were given",
			(unsigned long long)client->region.bytes,
			(unsigned long long)ret_welcome->region_bytes);
		goto fail;
	}
	*ret_region_fd = region_fd;
	return 0;
fail:
	if (region_fd >= 0)
		close(region_fd);
	return rc;
}

/* One try. -ENOENT, -ECONNREFUSED and -EAGAIN: the daemon is not there, or not yet. */
static int try_attach(
	struct kvr_client *client, uint64_t deadline_ns, struct kvr_client_attached *ret_attached)
{
	struct kvr_client_attached attached = {.socket_fd = -1, .region_fd = -1};
	uint8_t data[HELLO_BYTES];
	struct kvr_hello hello = {
		.version_min = KVR_PROTOCOL_VERSION_MIN,
		.version_max = KVR_PROTOCOL_VERSION_MAX,
		.region_bytes = client->region.bytes,
	};
	int64_t bytes;
	int rc;

	memcpy(hello.client, client->name, sizeof(hello.client));
	bytes = kvr_hello_pack(&hello, (struct kvr_span){data, sizeof(data)});
	KVR_ASSERT(bytes > 0); /* HELLO_BYTES holds any Hello of ours */
	rc = connect_once(client, &attached.socket_fd);
	if (rc == -ENOENT || rc == -ECONNREFUSED || rc == -EAGAIN)
		return rc;
	if (rc < 0)
		return kvr_client_refuse(client, -rc,
			"ask the operator for access to the attach socket", "connecting to %s",
			client->path);
	rc = -ECONNREFUSED;
	if (send(attached.socket_fd, data, (size_t)bytes, MSG_NOSIGNAL) != bytes)
		goto fail;
	rc = receive(
		client, attached.socket_fd, deadline_ns, &attached.welcome, &attached.region_fd);
	if (rc < 0)
		goto fail;
	*ret_attached = attached;
	return 0;
fail:
	if (attached.region_fd >= 0)
		close(attached.region_fd);
	close(attached.socket_fd);
	return rc;
}

int kvr_client_attach(struct kvr_client *client, bool patient, uint64_t deadline_ns,
	struct kvr_client_attached *ret_attached)
{
	for (;;) {
		int rc = try_attach(client, deadline_ns, ret_attached);
		uint64_t now_ns = kvr_clock_ns();
		struct timespec pause;

		/* -EAGAIN: too many clients are waiting to be let in. */
		if (rc != -ENOENT && rc != -ECONNREFUSED && rc != -EAGAIN)
			return rc;
		if (!patient && rc != -EAGAIN)
			return kvr_client_refuse(
				client, -rc, REMEDY_START, "no daemon at %s", client->path);
		if (now_ns >= deadline_ns)
			return kvr_client_refuse(client, patient ? ENOTCONN : ETIMEDOUT,
				REMEDY_START, "no daemon at %s within the deadline", client->path);
		if (deadline_ns - now_ns < RETRY_NS)
			pause.tv_nsec = (long)(deadline_ns - now_ns);
		else
			pause.tv_nsec = (long)RETRY_NS;
		pause.tv_sec = 0;
		nanosleep(&pause, NULL);
	}
}
