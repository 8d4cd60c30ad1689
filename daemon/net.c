/* SPDX-License-Identifier: Apache-2.0 */
/* net.c: the one file of the daemon that includes nanomsg.
 *
 * A raw REP socket hands over, beside each message, an SP header with the way back; it is kept with
 * the request and handed in again with the reply. */
#include "daemon/net.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>

#include "base/assert.h"
#include "base/limits.h"

#define BUFFER_BYTES (4 << 20) /* a quarter of it is what all credits of a session may fill */

struct kvr_net {
	int socket; /* -1: none */
	int fd;
	char url[256];
	char path[256];
};

static int translate(int error)
{
	switch (error) {
	case EADDRINUSE:
	case EACCES:
	case ENAMETOOLONG:
	case EMFILE: return -error;
	default: return -EIO;
	}
}

/* A socket file that nobody listens on any more is in the way of bind; nanomsg takes care of it. */
int kvr_net_open(const char *path, mode_t mode, struct kvr_net **ret_net)
{
	/* nanomsg counts the way back, too. */
	const int buffer = BUFFER_BYTES, receive_max = KVR_MESSAGE_BYTES_MAX + KVR_NET_ROUTE_MAX;
	struct kvr_net *net = calloc(1, sizeof(*net));
	size_t fd_bytes = sizeof(net->fd);
	int rc = -ENOMEM;

	if (!net)
		return rc;
	snprintf(net->path, sizeof(net->path), "%s", path);
	snprintf(net->url, sizeof(net->url), "ipc://%s", path);
	net->socket = nn_socket(AF_SP_RAW, NN_REP);
	if (net->socket < 0 ||
		nn_setsockopt(net->socket, NN_SOL_SOCKET, NN_SNDBUF, &buffer, sizeof(buffer)) < 0 ||
		nn_setsockopt(net->socket, NN_SOL_SOCKET, NN_RCVBUF, &buffer, sizeof(buffer)) < 0 ||
		nn_setsockopt(net->socket, NN_SOL_SOCKET, NN_RCVMAXSIZE, &receive_max,
			sizeof(receive_max)) < 0 ||
		nn_bind(net->socket, net->url) < 0 || chmod(path, mode) < 0 ||
		nn_getsockopt(net->socket, NN_SOL_SOCKET, NN_RCVFD, &net->fd, &fd_bytes) < 0) {
		rc = translate(nn_errno());
		kvr_net_close(net);
		return rc;
	}
	*ret_net = net;
	return 0;
}

const char *kvr_net_url(const struct kvr_net *net)
{
	return net->url;
}

int kvr_net_fd(const struct kvr_net *net)
{
	return net->fd;
}

/* Copies the SP header out of the control data. */
static int read_route(void *control, struct kvr_net_route *ret_route)
{
	struct nn_msghdr header = {.msg_control = &control, .msg_controllen = NN_MSG};
	struct nn_cmsghdr *part = NN_CMSG_FIRSTHDR(&header);
	size_t bytes;

	for (; part; part = NN_CMSG_NXTHDR(&header, part)) {
		if (part->cmsg_level != PROTO_SP || part->cmsg_type != SP_HDR)
			continue;
		memcpy(&bytes, NN_CMSG_DATA(part), sizeof(bytes));
		if (bytes > KVR_NET_ROUTE_MAX)
			return -EIO;
		memcpy(ret_route->data, NN_CMSG_DATA(part) + sizeof(bytes), bytes);
		ret_route->bytes = (uint32_t)bytes;
		return 0;
	}
	return -EIO;
}

int kvr_net_receive(
	struct kvr_net *net, struct kvr_span *ret_message, struct kvr_net_route *ret_route)
{
	void *message = NULL, *control = NULL;
	struct nn_iovec vector = {.iov_base = &message, .iov_len = NN_MSG};
	struct nn_msghdr header = {.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = NN_MSG};
	int bytes = nn_recvmsg(net->socket, &header, NN_DONTWAIT);
	int rc;

	if (bytes < 0)
		return nn_errno() == EAGAIN ? -EAGAIN : -EIO;
	rc = read_route(control, ret_route);
	nn_freemsg(control);
	if (rc < 0) {
		nn_freemsg(message);
		return -EAGAIN; /* not a request that could be answered */
	}
	*ret_message = (struct kvr_span){message, (size_t)bytes};
	return 0;
}

void kvr_net_release(struct kvr_net *net, struct kvr_span message)
{
	(void)net;
	nn_freemsg(message.data);
}

int kvr_net_send(struct kvr_net *net, struct kvr_span message, const struct kvr_net_route *route)
{
	uint8_t control[NN_CMSG_SPACE(sizeof(size_t) + KVR_NET_ROUTE_MAX)]
		__attribute__((aligned(16))) = {0};
	const size_t route_bytes = route->bytes;
	struct nn_iovec vector = {.iov_base = message.data, .iov_len = message.bytes};
	struct nn_msghdr header = {.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = NN_CMSG_SPACE(sizeof(size_t) + route_bytes)};
	struct nn_cmsghdr *part = (struct nn_cmsghdr *)(void *)control;

	KVR_ASSERT(route->bytes <= KVR_NET_ROUTE_MAX);
	part->cmsg_len = NN_CMSG_LEN(sizeof(size_t) + route_bytes);
	part->cmsg_level = PROTO_SP;
	part->cmsg_type = SP_HDR;
	memcpy(NN_CMSG_DATA(part), &route_bytes, sizeof(route_bytes));
	memcpy(NN_CMSG_DATA(part) + sizeof(route_bytes), route->data, route_bytes);
	return nn_sendmsg(net->socket, &header, NN_DONTWAIT) < 0 ? -EIO : 0;
}

struct kvr_net *kvr_net_close(struct kvr_net *net)
{
	if (!net)
		return NULL;
	if (net->socket >= 0)
		nn_close(net->socket);
	unlink(net->path);
	free(net);
	return NULL;
}
