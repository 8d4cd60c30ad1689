/* SPDX-License-Identifier: Apache-2.0 */
/* wait.c: when something is sent, taken, awaited and given up.
 *
 * There is no thread here: everything happens inside the engine's calls. One that waits takes a
 * message if there is one, and else sleeps on the net, the attach socket (whose end says at once
 * that the daemon died) and the time at which something is due. It does not spin before it sleeps:
 * that saves a quarter of a short request on idle CPUs, and costs half of one on busy ones, where
 * the threads that carry the reply wait behind the one that spins.
 *
 *   kvr_fd = epoll { net, attach socket, alarm }
 *
 * Invariants:
 *   W1  The alarm goes off no later than a submitted request has to be sent again or ended, and at
 *       once while done ones have not been polled: kvr_fd is then readable.
 *   W2  It may go off too early: it is put back only when it has gone off, so that a submit as a
 *       rule costs no system call for it.
 *   W3  A call that waits takes one message at a time: client->reply is that of its own when it
 *       ends. */
#include "client/call.h"

#include <errno.h>
#include <poll.h>
#include <sys/timerfd.h>
#include <time.h>

#include "base/assert.h"
#include "base/clock.h"
#include "client/client.h"

#define NS_PER_S UINT64_C(1000000000)
#define AT_ONCE  UINT64_C(1) /* an alarm in the past */

static struct timespec to_timespec(uint64_t ns)
{
	return (struct timespec){
		.tv_sec = (time_t)(ns / NS_PER_S), .tv_nsec = (long)(ns % NS_PER_S)};
}

/* Sets the alarm to a time of kvr_clock_ns; 0 turns it off. */
static void set_alarm(struct kvr_client *client, uint64_t at_ns)
{
	struct itimerspec when = {.it_value = to_timespec(at_ns)};
	int rc;

	if (client->alarm_ns == at_ns)
		return;
	rc = timerfd_settime(client->alarm_fd, TFD_TIMER_ABSTIME, &when, NULL);
	KVR_ASSERT(rc == 0); /* it fails for bad arguments alone */
	client->alarm_ns = at_ns;
}

void kvr_client_settle(struct kvr_client *client, uint64_t now_ns)
{
	if (client->calls.done_count)
		set_alarm(client, AT_ONCE);
	else if (client->alarm_ns && client->alarm_ns <= now_ns)
		set_alarm(client, kvr_client_calls_due(client));
}

static void sleep_ns(struct kvr_client *client, uint64_t ns)
{
	struct timespec time = to_timespec(ns);
	struct pollfd on[2] = {
		{.fd = kvr_client_net_recv_fd(client->net), .events = POLLIN},
		{.fd = client->attach_fd, .events = POLLIN},
	};

	/* Interrupted or not: the caller looks again at everything. What the daemon said before its
	 * end still counts, so the end is looked at when there is nothing else. */
	if (ppoll(on, 2, &time, NULL) > 0 && on[1].revents && !on[0].revents)
		kvr_client_look(client);
}

/* Does one thing: takes a message, or sends or ends what is due, or sleeps until something of that
 * comes up, at most until `until_ns`. */
static void turn(struct kvr_client *client, uint64_t until_ns)
{
	uint64_t due_ns, now_ns;

	if (kvr_client_call_take(client) == 0 || !client->net)
		return;
	due_ns = kvr_client_calls_due(client);
	if (due_ns && due_ns < until_ns)
		until_ns = due_ns;
	now_ns = kvr_clock_ns();
	if (now_ns < until_ns)
		sleep_ns(client, until_ns - now_ns);
	else
		kvr_client_calls_expire(client, now_ns);
}

int kvr_client_call(struct kvr_client *client, struct kvr_request *request,
	struct kvr_recall *recall, uint64_t deadline_ns)
{
	struct kvr_client_call *call;
	uint64_t now_ns = kvr_clock_ns();
	int rc;

	while ((rc = kvr_client_call_start(
			client, request, recall, false, now_ns, deadline_ns, &call)) == -EAGAIN) {
		turn(client, deadline_ns);
		now_ns = kvr_clock_ns();
		if (!client->net)
			rc = kvr_client_code(
				client, KVR_CODE_LOST, "the session ended before the request");
		else if (now_ns >= deadline_ns)
			rc = kvr_client_code(
				client, KVR_CODE_TIMEOUT, "no credit within the deadline");
		if (rc != -EAGAIN)
			break;
	}
	if (rc == 0) {
		while (call->state == KVR_CLIENT_CALL_OUT)
			turn(client, deadline_ns);
		if (call->failure.error)
			rc = kvr_client_failed(client, &call->failure);
		kvr_client_call_end(client, call);
	}
	kvr_client_settle(client, now_ns);
	return rc;
}

int kvr_client_submit(struct kvr_client *client, struct kvr_request *request,
	struct kvr_recall *recall, uint64_t *ret_ticket)
{
	uint64_t now_ns = kvr_clock_ns();
	struct kvr_client_call *call;
	uint64_t due_ns;
	int rc;

	rc = kvr_client_call_start(
		client, request, recall, true, now_ns, kvr_client_deadline(client), &call);
	if (rc == -EAGAIN)
		return kvr_client_refuse(client, EAGAIN, "take completions with kvr_poll first",
			"all %u credits are in use, or their replies need all the room",
			client->credits);
	if (rc < 0)
		return rc;
	due_ns = call->send_ns < call->deadline_ns ? call->send_ns : call->deadline_ns;
	if (call->state == KVR_CLIENT_CALL_OUT &&
		(client->alarm_ns == 0 || due_ns < client->alarm_ns))
		set_alarm(client, due_ns); /* W1 */
	*ret_ticket = call->id;
	return 0;
}

/* Hands out a call that is done, and frees its slot. */
static void complete(struct kvr_client *client, struct kvr_client_call *call,
	struct kvr_completion *ret_completion)
{
	ret_completion->ticket = call->id;
	ret_completion->status = 0;
	ret_completion->appended = call->appended;
	if (call->failure.error)
		ret_completion->status = kvr_client_failed(client, &call->failure);
	kvr_client_call_end(client, call);
}

int kvr_fd(const struct kvr_client *client)
{
	return client ? client->epoll_fd : -EINVAL;
}

int kvr_poll(struct kvr_client *client, struct kvr_completion *ret_completions, uint32_t max)
{
	uint64_t now_ns;
	uint32_t count = 0;

	if (!client)
		return -EINVAL;
	if (!ret_completions && max)
		return kvr_client_argument(client, "ret_completions is NULL");
	while (client->calls.done_count < max && kvr_client_call_take(client) == 0)
		;
	if (client->calls.done_count < max)
		kvr_client_look(client);
	now_ns = kvr_clock_ns();
	if (client->alarm_ns && client->alarm_ns <= now_ns)
		kvr_client_calls_expire(client, now_ns);
	for (uint32_t i = 0; i < KVR_CLIENT_SUBMITTED && count < max; i++) {
		struct kvr_client_call *call = &client->calls.slots[i];

		if (call->state == KVR_CLIENT_CALL_DONE)
			complete(client, call, &ret_completions[count++]);
	}
	kvr_client_settle(client, now_ns);
	return (int)count;
}

int kvr_wait(struct kvr_client *client, uint64_t ticket, struct kvr_completion *ret_completion)
{
	struct kvr_client_call *call;

	if (!client)
		return -EINVAL;
	if (!ret_completion)
		return kvr_client_argument(client, "ret_completion is NULL");
	call = kvr_client_call_find(client, ticket);
	if (!call)
		return kvr_client_argument(client,
			"ticket %llu was never given out, or is polled already",
			(unsigned long long)ticket);
	while (call->state == KVR_CLIENT_CALL_OUT)
		turn(client, call->deadline_ns);
	complete(client, call, ret_completion);
	kvr_client_settle(client, kvr_clock_ns());
	return 0;
}
