/* SPDX-License-Identifier: Apache-2.0 */
/* waiter.h: something that cannot go on yet.
 *
 * A waiter hangs on the list of what it waits for. Whoever changes that thing wakes the list: each
 * waiter is taken off, in order, and its function called; it may find that it must wait again. */
#ifndef KVR_DAEMON_WAITER_H
#define KVR_DAEMON_WAITER_H

#include "base/list.h"

struct kvr_waiter {
	struct kvr_list link;
	void (*wake)(struct kvr_waiter *waiter);
};

static inline void kvr_waiter_init(struct kvr_waiter *waiter, void (*wake)(struct kvr_waiter *))
{
	kvr_list_init(&waiter->link);
	waiter->wake = wake;
}

/* Wakes what is on the list now; what waits again meanwhile stays for the next time. */
static inline void kvr_waiters_wake(struct kvr_list *waiters)
{
	struct kvr_list now, *node;

	kvr_list_init(&now);
	while ((node = kvr_list_pop(waiters)))
		kvr_list_push(&now, node);
	while ((node = kvr_list_pop(&now))) {
		struct kvr_waiter *waiter = KVR_CONTAINER_OF(node, struct kvr_waiter, link);

		waiter->wake(waiter);
	}
}

#endif
