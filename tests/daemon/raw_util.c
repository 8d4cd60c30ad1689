/* SPDX-License-Identifier: Apache-2.0 */
/* raw_util.c: see raw_util.h. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include "tests/daemon/raw_util.h"

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define WAIT_MS 30000

int raw_hello(struct raw *raw, const struct harness_daemon *daemon, struct kvr_span hello)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	struct timeval timeout = {.tv_sec = WAIT_MS / 1000};
	uint8_t bytes[2048];
	union {
		struct cmsghdr header;
		uint8_t space[CMSG_SPACE(sizeof(int))];
	} control;
	struct iovec vector = {bytes, sizeof(bytes)};
	struct msghdr message = {.msg_iov = &vector,
		.msg_iovlen = 1,
		.msg_control = &control,
		.msg_controllen = sizeof(control)};
	ssize_t got;

	memset(raw, 0, offsetof(struct raw, packed));
	raw->region_fd = -1;
	assert_int_equal(kvr_message_arena_open(&raw->arena), 0);
	raw->attach = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
	assert_true(raw->attach >= 0);
	setsockopt(raw->attach, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
	snprintf(address.sun_path, sizeof(address.sun_path), "%s", daemon->socket);
	assert_int_equal(connect(raw->attach, (struct sockaddr *)&address, sizeof(address)), 0);
	assert_int_equal(send(raw->attach, hello.data, hello.bytes, MSG_NOSIGNAL), hello.bytes);
	got = recvmsg(raw->attach, &message, MSG_CMSG_CLOEXEC);
	if (got <= 0)
		return -1;
	assert_int_equal(kvr_welcome_unpack(
				 (struct kvr_span){bytes, (size_t)got}, raw->arena, &raw->welcome),
		0);
	if (CMSG_FIRSTHDR(&message))
		memcpy(&raw->region_fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof(int));
	return (int)raw->welcome.code;
}

void raw_attach(struct raw *raw, const struct harness_daemon *daemon, uint64_t region_bytes)
{
	const struct kvr_hello hello = {
		KVR_PROTOCOL_VERSION_MIN, KVR_PROTOCOL_VERSION_MAX, region_bytes, "raw"};
	uint8_t bytes[512];
	int64_t packed = kvr_hello_pack(&hello, (struct kvr_span){bytes, sizeof(bytes)});

	assert_true(packed > 0);
	assert_int_equal(
		raw_hello(raw, daemon, (struct kvr_span){bytes, (size_t)packed}), KVR_CODE_OK);
	assert_true(raw->region_fd >= 0);
	raw->region.bytes = raw->welcome.region_bytes;
	raw->region.data = mmap(
		NULL, raw->region.bytes, PROT_READ | PROT_WRITE, MAP_SHARED, raw->region_fd, 0);
	assert_ptr_not_equal(raw->region.data, MAP_FAILED);
	assert_int_equal(kvr_client_net_open(raw->welcome.url, &raw->net), 0);
}

void raw_detach(struct raw *raw)
{
	kvr_client_net_close(raw->net);
	if (raw->region.data)
		munmap(raw->region.data, raw->region.bytes);
	if (raw->region_fd >= 0)
		close(raw->region_fd);
	close(raw->attach);
	kvr_message_arena_close(raw->arena);
}

struct kvr_span raw_pack(struct raw *raw, struct kvr_request *request)
{
	int64_t bytes;

	request->id = ++raw->id;
	request->session = raw->welcome.session;
	memcpy(request->secret, raw->welcome.secret, sizeof(request->secret));
	bytes = kvr_request_pack(
		request, raw->arena, (struct kvr_span){raw->packed, sizeof(raw->packed)});
	assert_true(bytes > 0);
	return (struct kvr_span){raw->packed, (size_t)bytes};
}

void raw_send(struct raw *raw, struct kvr_span bytes)
{
	static uint64_t route;

	for (int i = 0; i < WAIT_MS; i++) {
		int rc = kvr_client_net_send(raw->net, ++route, bytes);

		if (rc == 0)
			return;
		assert_int_equal(rc, -EAGAIN);
		usleep(1000);
	}
	fail_msg("the request socket does not take messages");
}

size_t raw_receive(struct raw *raw, struct kvr_span into, int timeout_ms)
{
	struct pollfd poller = {kvr_client_net_recv_fd(raw->net), POLLIN, 0};

	for (;;) {
		int64_t bytes = kvr_client_net_recv(raw->net, into);

		if (bytes >= 0)
			return (size_t)bytes;
		assert_int_equal(bytes, -EAGAIN);
		if (poll(&poller, 1, timeout_ms) == 0)
			return 0;
	}
}

uint32_t raw_call(struct raw *raw, struct kvr_request *request, struct kvr_reply *ret_reply)
{
	static uint8_t bytes[KVR_REPLY_BYTES_MAX];
	size_t got;

	raw_send(raw, raw_pack(raw, request));
	got = raw_receive(raw, (struct kvr_span){bytes, sizeof(bytes)}, WAIT_MS);
	if (got == 0)
		fail_msg("no reply");
	assert_int_equal(kvr_reply_unpack((struct kvr_span){bytes, got}, request->kind, raw->arena,
				 ret_reply),
		0);
	assert_int_equal(ret_reply->id, request->id);
	return ret_reply->code;
}
