/* SPDX-License-Identifier: Apache-2.0 */
/* loop.c: epoll. Does not own what it watches. */
#include "daemon/loop.h"

#include <errno.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "base/assert.h"

#define EVENTS_MAX 64

int kvr_loop_open(struct kvr_loop *loop)
{
	loop->fd = epoll_create1(EPOLL_CLOEXEC);
	return loop->fd < 0 ? -errno : 0;
}

void kvr_loop_close(struct kvr_loop *loop)
{
	if (loop->fd >= 0)
		close(loop->fd);
	loop->fd = -1;
}

int kvr_loop_add(struct kvr_loop *loop, struct kvr_watch *watch)
{
	struct epoll_event event = {.events = EPOLLIN, .data.ptr = watch};

	KVR_ASSERT(watch->fd >= 0);
	KVR_ASSERT(watch->ready);
	return epoll_ctl(loop->fd, EPOLL_CTL_ADD, watch->fd, &event) < 0 ? -errno : 0;
}

void kvr_loop_remove(struct kvr_loop *loop, struct kvr_watch *watch)
{
	if (watch->fd >= 0)
		epoll_ctl(loop->fd, EPOLL_CTL_DEL, watch->fd, NULL);
	watch->fd = -1;
}

void kvr_loop_round(struct kvr_loop *loop, int timeout_ms)
{
	struct epoll_event events[EVENTS_MAX];
	int count = epoll_wait(loop->fd, events, EVENTS_MAX, timeout_ms);

	for (int i = 0; i < count; i++) {
		struct kvr_watch *watch = events[i].data.ptr;

		if (watch->fd >= 0) /* else removed by an earlier call of this round */
			watch->ready(watch);
	}
}
