/* SPDX-License-Identifier: Apache-2.0 */
/* fake_welcome_util.c: every way to get a Welcome wrong. */
#include "tests/client/fake_welcome_util.h"

#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "base/assert.h"

static int region_make(enum fake_welcome fault, uint64_t bytes, const char *folder)
{
	char name[64];
	int fd;

	if (fault == FAKE_WELCOME_NOT_MEMFD) {
		snprintf(name, sizeof(name), "%s/region", folder);
		fd = open(name, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
		unlink(name);
	} else {
		fd = memfd_create("fake", MFD_CLOEXEC | MFD_ALLOW_SEALING);
	}
	KVR_ASSERT(fd >= 0);
	if (fault == FAKE_WELCOME_SHORT_FD)
		bytes /= 2;
	KVR_ASSERT(ftruncate(fd, (off_t)bytes) == 0);
	if (fault != FAKE_WELCOME_UNSEALED && fault != FAKE_WELCOME_NOT_MEMFD)
		KVR_ASSERT(fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0);
	return fd;
}

static void send_with_fds(int fd, const uint8_t *data, size_t bytes, int region_fd, int count)
{
	_Alignas(struct cmsghdr) uint8_t control[CMSG_SPACE(2 * sizeof(int))] = {0};
	int fds[2] = {region_fd, region_fd};
	struct iovec part = {.iov_base = (void *)(uintptr_t)data, .iov_len = bytes};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (count) {
		size_t fd_bytes = (size_t)count * sizeof(int);
		struct cmsghdr *head = (struct cmsghdr *)(void *)control;

		message.msg_control = control;
		message.msg_controllen = CMSG_SPACE(fd_bytes);
		head->cmsg_level = SOL_SOCKET;
		head->cmsg_type = SCM_RIGHTS;
		head->cmsg_len = CMSG_LEN(fd_bytes);
		memcpy(CMSG_DATA(head), fds, fd_bytes);
	}
	(void)sendmsg(fd, &message, MSG_NOSIGNAL);
}

int fake_welcome_send(
	int fd, enum fake_welcome fault, struct kvr_welcome welcome, const char *folder)
{
	int region_fd = region_make(fault, welcome.region_bytes, folder);
	uint8_t data[1 << 15] = {0};
	int64_t bytes;
	int count = 1;

	switch (fault) {
	case FAKE_WELCOME_WRONG_VERSION: welcome.version = 99; break;
	case FAKE_WELCOME_NO_CREDITS: welcome.credits = 0; break;
	case FAKE_WELCOME_WRONG_SIZE: welcome.region_bytes *= 2; break;
	case FAKE_WELCOME_BAD_URL: strcpy(welcome.url, "nonsense"); break;
	case FAKE_WELCOME_DEAD_URL: strcat(welcome.url, ".dead"); break;
	case FAKE_WELCOME_NO_FD: count = 0; break;
	case FAKE_WELCOME_TWO_FDS: count = 2; break;
	case FAKE_WELCOME_REFUSED:
		welcome.code = KVR_CODE_DENIED;
		strcpy(welcome.subject, "uid 4711");
		count = 0;
		break;
	default: break;
	}
	bytes = kvr_welcome_pack(&welcome, (struct kvr_span){data, sizeof(data)});
	KVR_ASSERT(bytes > 0);
	if (fault == FAKE_WELCOME_GARBAGE)
		memset(data, 0xff, (size_t)bytes);
	if (fault == FAKE_WELCOME_HUGE)
		bytes = 20000;
	send_with_fds(fd, data, (size_t)bytes, region_fd, count);
	return region_fd;
}
