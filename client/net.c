/* SPDX-License-Identifier: Apache-2.0 */
/* net.c: the request socket over nanomsg, and the only file of the library that includes it.
 *
 * A raw REQ socket: no resend and no matching by nanomsg itself, both of which the library does
 * with the ids and deadlines that it has anyway. A raw socket writes its header itself: four bytes,
 * big-endian, the highest bit set; a raw REP peer returns it with the reply.
 *
 * What nanomsg cannot be asked not to do: it runs one worker thread per process, and allocates a
 * chunk per message. */
#include "client/net.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include <nanomsg/nn.h>
#include <nanomsg/reqrep.h>

#include "base/assert.h"
#include "base/limits.h"

/* How soon nanomsg tries again after a pipe broke, in ms. The daemon's end is seen on the attach
 * socket; this is about a pipe that breaks while the daemon lives. */
#define RECONNECT_MS 10

#define HEADER_BYTES  4u
#define CONTROL_BYTES NN_CMSG_SPACE(sizeof(size_t) + HEADER_BYTES)

struct kvr_client_net {
	int socket;
	int recv_fd;
	int send_fd;
};

/* nanomsg's errnos are the system's, but for two of its own and those that mean its end. */
static int net_error(void)
{
	int error = nn_errno();

	switch (error) {
	case EAGAIN:
	case EINTR: return -EAGAIN;
	case ETERM:
	case EBADF: return -ENOTCONN;
	case EMFILE:
	case ENOMEM: return -error;
	default: return -EINVAL;
	}
}

static int net_option(int socket, int option, int value)
{
	if (nn_setsockopt(socket, NN_SOL_SOCKET, option, &value, sizeof(value)) != 0)
		return net_error();
	return 0;
}

static int net_fd(int socket, int option, int *ret_fd)
{
	size_t bytes = sizeof(*ret_fd);

	if (nn_getsockopt(socket, NN_SOL_SOCKET, option, ret_fd, &bytes) != 0)
		return net_error();
	return 0;
}

int kvr_client_net_open(const char *url, struct kvr_client_net **ret_net)
{
	struct kvr_client_net *net = calloc(1, sizeof(*net));
	int rc;

	if (!net)
		return -ENOMEM;
	net->socket = nn_socket(AF_SP_RAW, NN_REQ);
	if (net->socket < 0) {
		rc = net_error();
		goto fail;
	}
	/* A whole message fits the send buffer, so that a send is done when it returns. */
	rc = net_option(net->socket, NN_SNDBUF, 2 * (int)KVR_MESSAGE_BYTES_MAX);
	if (rc == 0)
		rc = net_option(net->socket, NN_RCVBUF, (int)KVR_MESSAGE_BYTES_MAX);
	if (rc == 0)
		rc = net_option(net->socket, NN_RCVMAXSIZE, (int)KVR_MESSAGE_BYTES_MAX);
	if (rc == 0)
		rc = net_option(net->socket, NN_RECONNECT_IVL, RECONNECT_MS);
	if (rc == 0)
		rc = net_fd(net->socket, NN_RCVFD, &net->recv_fd);
	if (rc == 0)
		rc = net_fd(net->socket, NN_SNDFD, &net->send_fd);
	if (rc == 0 && nn_connect(net->socket, url) < 0)
		rc = net_error();
	if (rc < 0)
		goto fail;
	*ret_net = net;
	return 0;
fail:
	kvr_client_net_close(net);
	return rc;
}

struct kvr_client_net *kvr_client_net_close(struct kvr_client_net *net)
{
	if (!net)
		return NULL;
	if (net->socket >= 0) {
		/* An interrupted close has to be taken up again: nanomsg says so. */
		while (nn_close(net->socket) != 0 && nn_errno() == EINTR)
			;
	}
	free(net);
	return NULL;
}

int kvr_client_net_send(struct kvr_client_net *net, uint64_t id, struct kvr_span message)
{
	_Alignas(struct nn_cmsghdr) uint8_t control[CONTROL_BYTES] = {0};
	struct nn_cmsghdr *head = (struct nn_cmsghdr *)(void *)control;
	struct nn_iovec part = {.iov_base = message.data, .iov_len = message.bytes};
	struct nn_msghdr what = {.msg_iov = &part,
		.msg_iovlen = 1,
		.msg_control = control,
		.msg_controllen = sizeof(control)};
	const size_t header_bytes = HEADER_BYTES;
	uint8_t *data = NN_CMSG_DATA(head);
	uint32_t route = (uint32_t)id | UINT32_C(0x80000000);

	KVR_ASSERT(message.bytes <= KVR_MESSAGE_BYTES_MAX);
	head->cmsg_len = sizeof(control);
	head->cmsg_level = PROTO_SP;
	head->cmsg_type = SP_HDR;
	/* OFFSET SIZE MEANING: 0 8 length of the header; 8 4 the header. */
	memcpy(data, &header_bytes, sizeof(header_bytes));
	data += sizeof(header_bytes);
	data[0] = (uint8_t)(route >> 24);
	data[1] = (uint8_t)(route >> 16);
	data[2] = (uint8_t)(route >> 8);
	data[3] = (uint8_t)route;
	if (nn_sendmsg(net->socket, &what, NN_DONTWAIT) < 0)
		return net_error() == -EAGAIN ? -EAGAIN : -ENOTCONN;
	return 0;
}

int64_t kvr_client_net_recv(struct kvr_client_net *net, struct kvr_span into)
{
	int bytes = nn_recv(net->socket, into.data, into.bytes, NN_DONTWAIT);

	if (bytes < 0)
		return net_error() == -EAGAIN ? -EAGAIN : -ENOTCONN;
	if ((size_t)bytes > into.bytes)
		return -EMSGSIZE;
	return bytes;
}

int kvr_client_net_recv_fd(const struct kvr_client_net *net)
{
	return net->recv_fd;
}

int kvr_client_net_send_fd(const struct kvr_client_net *net)
{
	return net->send_fd;
}
