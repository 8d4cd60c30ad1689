/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: bytes on the request socket that no client of ours would send (lengths that lie, frames that
 * end halfway, no protocol at all) end that connection at most: the daemon lives, allocates nothing for
 * a length that it was only told, and serves others as before. A message of the largest size passes.
 * Method: the transport's frames written by hand to the socket file; beside it a good client and one
 * without the library, whose session must live on.
 *
 *   hello   00 'S' 'P' 00, protocol (big-endian, 16 bits: 0030 a client, 0031 the daemon), 00 00
 *   frame   01, length (big-endian, 64 bits), payload: 4 bytes of route, the message */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>

#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "tests/daemon/process_util.h"
#include "tests/daemon/witness_util.h"

#define HEAD_BYTES    9u
#define ROUTE_BYTES   4u
#define RESIDENT_MORE (24u << 20) /* what buffers of a few connections may take */

static const uint8_t hello[8] = {0, 'S', 'P', 0, 0, 0x30, 0, 0};

static int wire_connect(void)
{
	struct sockaddr_un address = {.sun_family = AF_UNIX};
	const struct timeval timeout = {.tv_sec = 10};
	int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

	assert_true(fd >= 0);
	snprintf(address.sun_path, sizeof(address.sun_path), "%s/request.sock", witness.daemon.dir);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout)), 0);
	assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout)), 0);
	assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
	return fd;
}

/* Connects and takes the daemon's hello. */
static int wire_open(void)
{
	int fd = wire_connect();
	uint8_t theirs[8];

	assert_int_equal(send(fd, hello, sizeof(hello), MSG_NOSIGNAL), sizeof(hello));
	assert_int_equal(recv(fd, theirs, sizeof(theirs), MSG_WAITALL), sizeof(theirs));
	assert_memory_equal(theirs, "\0SP\0\0\x31\0\0", sizeof(theirs));
	return fd;
}

/* Sends what the other end takes: it may have closed already. */
static void wire_send(int fd, const void *data, size_t bytes)
{
	for (size_t at = 0; at < bytes;) {
		ssize_t sent = send(fd, (const uint8_t *)data + at, bytes - at, MSG_NOSIGNAL);

		if (sent <= 0)
			return;
		at += (size_t)sent;
	}
}

static void wire_head(int fd, uint8_t type, uint64_t length)
{
	uint8_t head[HEAD_BYTES] = {type};

	for (uint32_t i = 0; i < 8; i++)
		head[1 + i] = (uint8_t)(length >> (56 - 8 * i));
	wire_send(fd, head, sizeof(head));
}

/* Whether the daemon ends the connection, within the socket's timeout. */
static bool wire_ended(int fd)
{
	uint8_t bytes[4096];
	ssize_t got;

	while ((got = recv(fd, bytes, sizeof(bytes), 0)) > 0)
		;
	return got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK);
}

/* Bytes of memory that the daemon has in use. */
static uint64_t resident(void)
{
	char path[64], text[128], *end;
	uint64_t pages;
	FILE *file;

	snprintf(path, sizeof(path), "/proc/%d/statm", (int)witness.daemon.pid);
	file = fopen(path, "r");
	assert_non_null(file);
	assert_non_null(fgets(text, sizeof(text), file));
	fclose(file);
	strtoull(text, &end, 10); /* of address space */
	pages = strtoull(end, NULL, 10);
	assert_true(pages > 0);
	return pages * (uint64_t)sysconf(_SC_PAGESIZE);
}

static void ping(void)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	struct kvr_reply reply;

	assert_int_equal(raw_call(&witness.raw, &request, &reply), KVR_CODE_OK);
}

/* ---- lengths --------------------------------------------------------------------------------- */

static void test_length_lies(void **state)
{
	static const uint64_t lengths[] = {KVR_MESSAGE_BYTES_MAX + 65, KVR_MESSAGE_BYTES_MAX * 2u,
		1ull << 31, (1ull << 32) + 10, 1ull << 40, 1ull << 62, 1ull << 63, UINT64_MAX};
	static const uint8_t zeros[65536];

	(void)state;
	for (uint32_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++) {
		int fd = wire_open();

		wire_head(fd, 1, lengths[i]);
		wire_send(fd, zeros, sizeof(zeros));
		if (!wire_ended(fd))
			fail_msg("length %llu was not refused", (unsigned long long)lengths[i]);
		close(fd);
		ping();
	}
}

/* Connections that announce much and send little, all at once. */
static void test_announced_only(void **state)
{
	uint64_t before = resident(), during;
	int fds[200];

	(void)state;
	for (uint32_t i = 0; i < 200; i++) {
		fds[i] = wire_open();
		wire_head(fds[i], 1, KVR_MESSAGE_BYTES_MAX);
		wire_send(fds[i], "\x80\0\0\1", ROUTE_BYTES);
	}
	ping();
	during = resident();
	for (uint32_t i = 0; i < 200; i++)
		close(fds[i]);
	ping();
	if (PROCESS_SLOW == 1 && during > before + RESIDENT_MORE)
		fail_msg("%llu bytes more for messages that never came",
			(unsigned long long)(during - before));
}

static void test_largest_message(void **state)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	static uint8_t message[KVR_MESSAGE_BYTES_MAX];
	uint8_t into[KVR_REPLY_BYTES_MAX];
	struct kvr_span packed = raw_pack(&witness.raw, &request);
	size_t left = sizeof(message) - packed.bytes, got;
	struct kvr_reply reply;

	(void)state;
	/* One unknown field (number 100, bytes) fills it up: tag 2 bytes, length 3. */
	memcpy(message, packed.data, packed.bytes);
	left -= 5;
	message[packed.bytes] = 0xa2;
	message[packed.bytes + 1] = 0x06;
	message[packed.bytes + 2] = (uint8_t)(left & 0x7f) | 0x80;
	message[packed.bytes + 3] = (uint8_t)(left >> 7 & 0x7f) | 0x80;
	message[packed.bytes + 4] = (uint8_t)(left >> 14);
	for (int i = 0; i < 20; i++) {
		raw_send(&witness.raw, (struct kvr_span){message, sizeof(message)});
		got = raw_receive(&witness.raw, (struct kvr_span){into, sizeof(into)}, 10000);
		if (got == 0)
			fail_msg("the largest message got no reply");
		assert_int_equal(kvr_reply_unpack((struct kvr_span){into, got}, KVR_REQUEST_PING,
					 witness.raw.arena, &reply),
			0);
		assert_int_equal(reply.id, request.id);
		assert_int_equal(reply.code, KVR_CODE_OK);
	}
}

/* ---- frames ---------------------------------------------------------------------------------- */

/* Every beginning of a good frame, then the end of the connection. */
static void test_cut_frames(void **state)
{
	struct kvr_request request = {.kind = KVR_REQUEST_PING};
	struct kvr_span packed = raw_pack(&witness.raw, &request);
	uint8_t frame[HEAD_BYTES + ROUTE_BYTES + 256] = {1};
	size_t bytes = HEAD_BYTES + ROUTE_BYTES + packed.bytes;
	uint8_t into[512];
	int fd;

	(void)state;
	assert_true(bytes <= sizeof(frame));
	frame[8] = (uint8_t)(ROUTE_BYTES + packed.bytes);
	frame[HEAD_BYTES] = 0x80;
	frame[HEAD_BYTES + 3] = 1;
	memcpy(frame + HEAD_BYTES + ROUTE_BYTES, packed.data, packed.bytes);
	for (size_t cut = 0; cut < bytes; cut++) {
		fd = wire_open();
		wire_send(fd, frame, cut);
		close(fd);
	}
	/* The whole frame is good: so were the beginnings. */
	fd = wire_open();
	wire_send(fd, frame, bytes);
	assert_true(recv(fd, into, sizeof(into), 0) > 0);
	close(fd);
	ping();
}

/* Frames without a way back, with too long a one, empty. The first byte of a frame is left alone:
 * nanomsg 1.1.5 itself ends the process if it is not 01. */
static void test_wrong_frames(void **state)
{
	static uint8_t hops[65536];
	int fd;

	(void)state;
	for (uint32_t length = 0; length < 12; length++) {
		fd = wire_open();
		wire_head(fd, 1, length);
		wire_send(fd, hops, length);
		ping();
		close(fd);
	}
	for (uint32_t bytes = 16; bytes <= sizeof(hops); bytes *= 4) { /* a route without an end */
		fd = wire_open();
		wire_head(fd, 1, bytes);
		wire_send(fd, hops, bytes);
		hops[bytes - 4] = 0x80; /* and one that fills the whole frame */
		wire_head(fd, 1, bytes);
		wire_send(fd, hops, bytes);
		hops[bytes - 4] = 0;
		ping();
		close(fd);
	}
	ping();
}

/* Another protocol, or none. */
static void test_wrong_hello(void **state)
{
	uint8_t bytes[4096];
	int fd;

	(void)state;
	for (uint32_t i = 0; i < 100; i++) {
		uint32_t count = process_random(8, sizeof(bytes));

		for (uint32_t k = 0; k < count; k++)
			bytes[k] = (uint8_t)process_random(0, 255);
		if (i < 64) { /* one bit of a good one, and no more: it may still be good */
			memcpy(bytes, hello, sizeof(hello));
			bytes[i / 8] ^= (uint8_t)(1 << i % 8);
			count = sizeof(hello);
		}
		fd = wire_connect();
		wire_send(fd, bytes, count);
		close(fd);
	}
	for (size_t cut = 0; cut < sizeof(hello); cut++) {
		fd = wire_connect();
		wire_send(fd, hello, cut);
		close(fd);
	}
	ping();
}

/* A client that never reads its replies harms itself alone. */
static void test_never_reads(void **state)
{
	struct kvr_request request = {.kind = KVR_REQUEST_STATS};
	struct raw deaf;
	int fd = wire_open();

	(void)state;
	raw_attach(&deaf, &witness.daemon, WITNESS_REGION);
	for (uint32_t i = 0; i < 2000; i++) {
		struct kvr_span packed = raw_pack(&deaf, &request);

		wire_head(fd, 1, ROUTE_BYTES + packed.bytes);
		wire_send(fd, "\x80\0\0\1", ROUTE_BYTES);
		wire_send(fd, packed.data, packed.bytes);
		if (i % 100 == 0)
			ping();
	}
	ping();
	close(fd);
	raw_detach(&deaf);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup_teardown(test_length_lies, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(
			test_announced_only, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(
			test_largest_message, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(test_cut_frames, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(test_wrong_frames, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(test_wrong_hello, witness_attach, witness_detach),
		cmocka_unit_test_setup_teardown(test_never_reads, witness_attach, witness_detach),
	};

	process_seed_print();
	return cmocka_run_group_tests_name("daemon wire", tests, witness_start, witness_stop);
}
