/* SPDX-License-Identifier: Apache-2.0 */
/* call.c: from message to handler to reply. What the requests mean is in the handlers' files. */
#include "daemon/call.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/assert.h"
#include "base/clock.h"
#include "daemon/daemon.h"
#include "daemon/log.h"

#define ARENAS_KEPT 32u /* calls running at once whose messages' memory stays with the daemon */

static void wake(struct kvr_waiter *waiter);

int kvr_calls_open(struct kvr_calls *calls, struct kvr_daemon *daemon)
{
	*calls = (struct kvr_calls){0};
	kvr_list_init(&calls->free);
	kvr_list_init(&calls->waiting);
	calls->entries = calloc(KVR_CALLS_MAX, sizeof(*calls->entries));
	calls->recalled =
		calloc((size_t)KVR_CALLS_MAX * KVR_RECALL_ITEMS_MAX, sizeof(*calls->recalled));
	calls->sequences =
		calloc((size_t)KVR_CALLS_MAX * KVR_RECALL_ITEMS_MAX, sizeof(struct kvr_sequence *));
	calls->packed = malloc(KVR_REPLY_BYTES_MAX);
	if (!calls->entries || !calls->recalled || !calls->sequences || !calls->packed)
		goto fail;
	for (uint32_t i = 0; i < KVR_CALLS_MAX; i++) {
		struct kvr_call *call = &calls->entries[i];

		call->daemon = daemon;
		call->recalled = calls->recalled + (size_t)i * KVR_RECALL_ITEMS_MAX;
		call->sequences = calls->sequences + (size_t)i * KVR_RECALL_ITEMS_MAX;
		kvr_waiter_init(&call->waiter, wake);
		kvr_list_init(&call->wait_link);
		kvr_list_push(&calls->free, &call->session_link);
		if (kvr_message_arena_open(&call->arena) < 0)
			goto fail;
	}
	if (kvr_message_arena_open(&calls->spare) < 0)
		goto fail;
	return 0;
fail:
	kvr_calls_close(calls);
	return -ENOMEM;
}

void kvr_calls_close(struct kvr_calls *calls)
{
	KVR_ASSERT(calls->running == 0);
	for (uint32_t i = 0; calls->entries && i < KVR_CALLS_MAX; i++)
		kvr_message_arena_close(calls->entries[i].arena);
	kvr_message_arena_close(calls->spare);
	free(calls->entries);
	free(calls->recalled);
	free(calls->sequences);
	free(calls->packed);
	*calls = (struct kvr_calls){0};
}

/* ---- replies --------------------------------------------------------------------------------- */

enum kvr_outcome kvr_call_refuse(struct kvr_call *call, enum kvr_code code, const char *format, ...)
{
	va_list arguments;

	KVR_ASSERT(code != KVR_CODE_OK);
	call->reply.code = code;
	va_start(arguments, format);
	vsnprintf(call->reply.subject, sizeof(call->reply.subject), format, arguments);
	va_end(arguments);
	return KVR_OUTCOME_DONE;
}

enum kvr_code kvr_call_code(int error)
{
	switch (error) {
	case -EDQUOT: return KVR_CODE_QUOTA;
	case -EAGAIN: return KVR_CODE_BUSY;
	case -ENOSPC:
	case -ENOMEM: return KVR_CODE_FULL;
	default: return KVR_CODE_INTERNAL;
	}
}

/* A refusal before there is a call: only the id, the code and the subject. `session` NULL: not kept. */
static void refuse_early(struct kvr_daemon *daemon, struct kvr_session *session,
	const struct kvr_net_route *route, const struct kvr_request *request, enum kvr_code code,
	const char *subject)
{
	struct kvr_calls *calls = &daemon->calls;
	struct kvr_reply reply = {.id = request->id, .code = code, .kind = request->kind};
	struct kvr_span into = {calls->packed, KVR_REPLY_BYTES_MAX};
	int64_t bytes;

	snprintf(reply.subject, sizeof(reply.subject), "%s", subject);
	bytes = kvr_reply_pack(&reply, calls->spare, into);
	KVR_ASSERT(bytes > 0);
	into.bytes = (size_t)bytes;
	daemon->counters.refusals++;
	if (session)
		kvr_session_keep_answer(session, request->id, into);
	kvr_net_send(daemon->net, into, route);
}

static void send_reply(struct kvr_call *call)
{
	struct kvr_daemon *daemon = call->daemon;
	struct kvr_span into = {daemon->calls.packed, KVR_REPLY_BYTES_MAX};
	int64_t bytes;

	call->reply.id = call->request.id;
	call->reply.kind = call->request.kind;
	bytes = kvr_reply_pack(&call->reply, call->arena, into);
	KVR_ASSERT(bytes > 0);
	into.bytes = (size_t)bytes;
	if (call->reply.code)
		daemon->counters.refusals++;
	/* Whatever it says, it is final: the client acts on it, and a resend may be on its way already. */
	kvr_session_keep_answer(call->session, call->request.id, into);
	kvr_net_send(daemon->net, into, &call->route);
}

static void free_call(struct kvr_call *call)
{
	struct kvr_calls *calls = &call->daemon->calls;
	struct kvr_session *session = call->session;

	KVR_ASSERT(call->works_running == 0);
	KVR_ASSERT(session->call_count > 0);
	kvr_list_remove(&call->waiter.link);
	kvr_list_remove(&call->wait_link);
	kvr_list_remove(&call->session_link);
	call->session = NULL;
	/* The first free one is the next to be used, so few arenas are touched; but for a crowd. */
	if (calls->running > ARENAS_KEPT)
		kvr_message_arena_trim(call->arena);
	kvr_list_push(calls->free.next, &call->session_link);
	calls->running--;
	session->call_count--;
	kvr_session_settle(session);
}

void kvr_call_done(struct kvr_call *call)
{
	if (call->done)
		call->done(call);
	else if (call->session->state == KVR_SESSION_ATTACHED)
		send_reply(call);
	free_call(call);
}

/* ---- running --------------------------------------------------------------------------------- */

static enum kvr_outcome handle_ping(struct kvr_daemon *daemon, struct kvr_call *call)
{
	(void)daemon;
	(void)call;
	return KVR_OUTCOME_DONE;
}

static kvr_handler *const handlers[] = {
	[KVR_REQUEST_PING] = handle_ping,
	[KVR_REQUEST_MODEL_REGISTER] = kvr_handle_model_register,
	[KVR_REQUEST_MODEL_LIST] = kvr_handle_model_list,
	[KVR_REQUEST_OPEN] = kvr_handle_open,
	[KVR_REQUEST_APPEND] = kvr_handle_append,
	[KVR_REQUEST_RECALL] = kvr_handle_recall,
	[KVR_REQUEST_FETCH] = kvr_handle_fetch,
	[KVR_REQUEST_SYNC] = kvr_handle_sync,
	[KVR_REQUEST_FORK] = kvr_handle_fork,
	[KVR_REQUEST_CLOSE] = kvr_handle_close,
	[KVR_REQUEST_DROP] = kvr_handle_drop,
	[KVR_REQUEST_PIN] = kvr_handle_pin,
	[KVR_REQUEST_STATS] = kvr_handle_stats,
	[KVR_REQUEST_SEGMENT_LIST] = kvr_handle_segment_list,
};

static void run(struct kvr_call *call)
{
	switch (handlers[call->request.kind](call->daemon, call)) {
	case KVR_OUTCOME_DONE: kvr_call_done(call); break;
	case KVR_OUTCOME_PENDING: KVR_ASSERT(call->works_running > 0); break;
	case KVR_OUTCOME_WAIT: KVR_ASSERT(!kvr_list_empty(&call->waiter.link)); break;
	}
}

enum kvr_outcome kvr_call_wait(struct kvr_call *call, struct kvr_sequence *sequence)
{
	KVR_ASSERT(call->works_running == 0);
	KVR_ASSERT(kvr_list_empty(&call->waiter.link));
	kvr_list_push(&sequence->waiters, &call->waiter.link);
	call->waits_on = sequence;
	if (kvr_list_empty(&call->wait_link))
		kvr_list_push(&call->daemon->calls.waiting, &call->wait_link);
	return KVR_OUTCOME_WAIT;
}

enum kvr_outcome kvr_call_wait_work(struct kvr_call *call, struct kvr_sequence *sequence)
{
	struct kvr_works *works = &call->daemon->works;

	KVR_ASSERT(kvr_list_empty(&works->free));
	if (kvr_list_empty(&sequence->work_waiter.link))
		kvr_list_push(&works->waiters, &sequence->work_waiter.link);
	return kvr_call_wait(call, sequence);
}

enum kvr_outcome kvr_call_wait_memory(struct kvr_call *call, struct kvr_sequence *sequence)
{
	if (kvr_list_empty(&sequence->work_waiter.link))
		kvr_list_push(&call->daemon->cache.waiters, &sequence->work_waiter.link);
	return kvr_call_wait(call, sequence);
}

enum kvr_outcome kvr_call_wait_on(struct kvr_call *call, struct kvr_list *waiters)
{
	KVR_ASSERT(call->works_running == 0);
	KVR_ASSERT(kvr_list_empty(&call->waiter.link));
	kvr_list_push(waiters, &call->waiter.link);
	call->waits_on = NULL;
	if (kvr_list_empty(&call->wait_link))
		kvr_list_push(&call->daemon->calls.waiting, &call->wait_link);
	return KVR_OUTCOME_WAIT;
}

static void wake(struct kvr_waiter *waiter)
{
	struct kvr_call *call = KVR_CONTAINER_OF(waiter, struct kvr_call, waiter);

	run(call);
}

/* Gives a request one of the free calls. */
static struct kvr_call *take_call(
	struct kvr_daemon *daemon, struct kvr_session *session, const struct kvr_request *request)
{
	struct kvr_calls *calls = &daemon->calls;
	struct kvr_call *call = KVR_CONTAINER_OF(calls->free.next, struct kvr_call, session_link);
	uint32_t deadline_ms = request->deadline_ms;

	KVR_ASSERT(!kvr_list_empty(&calls->free));
	kvr_list_remove(&call->session_link);
	call->session = session;
	call->request = *request;
	call->done = NULL;
	memset(&call->reply, 0, sizeof(call->reply));
	call->start_ns = kvr_clock_ns();
	if (deadline_ms == 0 || deadline_ms > KVR_DEADLINE_MS_MAX)
		deadline_ms = KVR_DEADLINE_MS_MAX;
	call->deadline_ns = call->start_ns + deadline_ms * 1000000ull;
	call->cursor_item = 0;
	call->cursor_head = 0;
	call->works_running = 0;
	call->sequence = NULL;
	call->made = NULL;
	call->started = false;
	kvr_list_push(&session->calls, &call->session_link);
	session->call_count++;
	calls->running++;
	return call;
}

/* Runs a request with a session, not seen before. kvr_calls_receive has seen to it that a call is free. */
static void start(struct kvr_daemon *daemon, struct kvr_session *session,
	const struct kvr_net_route *route, const struct kvr_request *request)
{
	struct kvr_calls *calls = &daemon->calls;
	struct kvr_call *call = take_call(daemon, session, request);
	struct kvr_message_arena *arena = call->arena;

	call->arena = calls->spare; /* the request lives there */
	calls->spare = arena;
	call->route = *route;
	run(call);
}

bool kvr_call_start_own(struct kvr_daemon *daemon, struct kvr_session *session,
	const struct kvr_request *request, void (*done)(struct kvr_call *))
{
	struct kvr_call *call;

	KVR_ASSERT(done);
	if (kvr_list_empty(&daemon->calls.free))
		return false;
	call = take_call(daemon, session, request);
	call->done = done;
	run(call);
	return true;
}

bool kvr_call_background(const struct kvr_call *call)
{
	return call->done ||
	       (call->request.kind == KVR_REQUEST_RECALL && call->request.recall.background);
}

/* Deals with a request that has come before (E2). Returns whether it was one. */
static bool resent(struct kvr_daemon *daemon, struct kvr_session *session,
	const struct kvr_net_route *route, const struct kvr_request *request)
{
	struct kvr_span answer;
	struct kvr_list *node;
	int rc;

	if (request->id > session->id_last)
		return false;
	KVR_LIST_EACH (node, &session->calls) {
		struct kvr_call *call = KVR_CONTAINER_OF(node, struct kvr_call, session_link);

		if (call->request.id != request->id)
			continue;
		call->route = *route; /* the way it came last: the first may be gone */
		daemon->counters.resent++;
		return true;
	}
	rc = kvr_session_answer(session, request->id, &answer);
	if (rc == -ENOENT)
		return false; /* overtaken on its way */
	daemon->counters.resent++;
	if (rc == 0)
		kvr_net_send(daemon->net, answer, route);
	else
		refuse_early(daemon, NULL, route, request, KVR_CODE_TIMEOUT,
			"a resend; the answer is not kept");
	return true;
}

static void receive_one(
	struct kvr_daemon *daemon, struct kvr_span message, const struct kvr_net_route *route)
{
	struct kvr_request request;
	struct kvr_session *session;
	int rc = kvr_request_unpack(message, daemon->calls.spare, &request);

	daemon->counters.requests++;
	session = kvr_sessions_find(&daemon->sessions, request.session, request.secret);
	if (!session) {
		refuse_early(daemon, NULL, route, &request, KVR_CODE_SESSION, "session or secret");
		return;
	}
	if (rc < 0) {
		daemon->counters.malformed++;
		refuse_early(daemon, NULL, route, &request,
			rc == -E2BIG ? KVR_CODE_LIMIT : KVR_CODE_MALFORMED,
			kvr_message_error(daemon->calls.spare));
		return;
	}
	if (resent(daemon, session, route, &request))
		return;
	if (request.id > session->id_last)
		session->id_last = request.id;
	if (session->call_count >= daemon->config->credits) { /* E3 */
		refuse_early(
			daemon, session, route, &request, KVR_CODE_CREDIT, "requests outstanding");
		return;
	}
	start(daemon, session, route, &request);
}

bool kvr_calls_receive(struct kvr_daemon *daemon)
{
	struct kvr_net_route route;
	struct kvr_span message;

	if (kvr_list_empty(&daemon->calls.free)) /* what waits in the socket waits on */
		return false;
	if (kvr_net_receive(daemon->net, &message, &route) < 0)
		return false;
	receive_one(daemon, message, &route);
	kvr_net_release(daemon->net, message);
	return true;
}

void kvr_calls_cancel(struct kvr_session *session)
{
	struct kvr_list *node, *after;

	KVR_ASSERT(session->state == KVR_SESSION_ENDING);
	session->call_count++; /* so that the session outlives its last call here */
	KVR_LIST_EACH_SAFE (node, after, &session->calls) {
		struct kvr_call *call = KVR_CONTAINER_OF(node, struct kvr_call, session_link);

		if (call->works_running == 0)
			free_call(call);
	}
	session->call_count--;
}

void kvr_calls_tick(struct kvr_daemon *daemon, uint64_t now_ns)
{
	struct kvr_list *node, *after;

	KVR_LIST_EACH_SAFE (node, after, &daemon->calls.waiting) {
		struct kvr_call *call = KVR_CONTAINER_OF(node, struct kvr_call, wait_link);

		if (kvr_list_empty(&call->waiter.link) || now_ns < call->deadline_ns)
			continue;
		daemon->counters.timeouts++;
		if (call->waits_on)
			kvr_sequence_touch(
				call->waits_on); /* who came behind it may be able to run */
		kvr_call_refuse(
			call, KVR_CODE_TIMEOUT, "the request's deadline passed while it waited");
		kvr_call_done(call);
	}
}

/* ---- what handlers share --------------------------------------------------------------------- */

struct kvr_sequence *kvr_call_sequence(struct kvr_call *call, uint64_t id)
{
	struct kvr_sequence *sequence = kvr_sequence_find(call->daemon, call->session, id);

	if (!sequence)
		kvr_call_refuse(
			call, KVR_CODE_NO_SEQUENCE, "sequence %llu", (unsigned long long)id);
	return sequence;
}

struct kvr_span kvr_call_region(
	struct kvr_call *call, uint64_t offset, uint64_t bytes, const char *what)
{
	struct kvr_span span = kvr_span_part(call->session->region.memory, offset, bytes);

	if (!span.data)
		kvr_call_refuse(call, KVR_CODE_REGION,
			"%s: %llu bytes at offset %llu; the region has %llu", what,
			(unsigned long long)bytes, (unsigned long long)offset,
			(unsigned long long)call->session->region.memory.bytes);
	return span;
}
