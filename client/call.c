/* SPDX-License-Identifier: Apache-2.0 */
/* call.c: starting, matching and ending requests. The states and invariants stand in call.h. */
#include "client/call.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#include "base/assert.h"
#include "client/client.h"

#define NS_PER_MS UINT64_C(1000000)

/* A request without a reply is sent again after a third of its time, but not before this: a daemon
 * that is busy needs no more to do. */
#define RESEND_NS_MIN (250 * NS_PER_MS)

/* A request that found no room in the socket is tried again after this. */
#define RETRY_NS NS_PER_MS

/* What a reply takes at most. Small ones are a few numbers and, of a refusal, KVR_TEXT_MAX bytes; a
 * recall's has two numbers per item. */
#define REPLY_SMALL      1024u
#define REPLY_ITEM_BYTES 12u
KVR_STATIC_ASSERT(KVR_CLIENT_REPLY_BYTES >= KVR_CREDITS_MAX * REPLY_SMALL);
KVR_STATIC_ASSERT(REPLY_SMALL + KVR_RECALL_ITEMS_MAX * REPLY_ITEM_BYTES <= KVR_REPLY_BYTES_MAX);

#define MEMORY_BYTES ((size_t)KVR_CLIENT_CALLS * KVR_MESSAGE_BYTES_MAX)

int kvr_client_calls_init(struct kvr_client_calls *calls)
{
	uint8_t *memory = mmap(NULL, MEMORY_BYTES, PROT_READ | PROT_WRITE,
		MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		return -ENOMEM;
	calls->memory = memory;
	return 0;
}

void kvr_client_calls_fini(struct kvr_client_calls *calls)
{
	if (calls->memory)
		munmap(calls->memory, MEMORY_BYTES);
	calls->memory = NULL;
}

static uint32_t reply_cost(const struct kvr_request *request)
{
	switch (request->kind) {
	case KVR_REQUEST_MODEL_REGISTER: /* dense lanes come back */
	case KVR_REQUEST_MODEL_LIST:
	case KVR_REQUEST_STATS:
	case KVR_REQUEST_SEGMENT_LIST: return KVR_REPLY_BYTES_MAX;
	case KVR_REQUEST_RECALL: return REPLY_SMALL + request->recall.item_count * REPLY_ITEM_BYTES;
	case KVR_REQUEST_PING:
	case KVR_REQUEST_OPEN:
	case KVR_REQUEST_APPEND:
	case KVR_REQUEST_FETCH:
	case KVR_REQUEST_SYNC:
	case KVR_REQUEST_FORK:
	case KVR_REQUEST_CLOSE:
	case KVR_REQUEST_DROP:
	case KVR_REQUEST_PIN: break;
	}
	return REPLY_SMALL;
}

static bool is_submitted(const struct kvr_client *client, const struct kvr_client_call *call)
{
	return call - client->calls.slots < (ptrdiff_t)KVR_CLIENT_SUBMITTED; /* T4 */
}

static struct kvr_client_call *free_slot(struct kvr_client *client, bool submitted)
{
	struct kvr_client_call *slots = client->calls.slots;

	if (!submitted) {
		KVR_ASSERT(slots[KVR_CLIENT_SUBMITTED].state == KVR_CLIENT_CALL_FREE); /* T4 */
		return &slots[KVR_CLIENT_SUBMITTED];
	}
	for (uint32_t i = 0; i < KVR_CLIENT_SUBMITTED; i++) {
		if (slots[i].state == KVR_CLIENT_CALL_FREE)
			return &slots[i];
	}
	return NULL;
}

/* out ──► done. The failure is set already, or has error 0. */
static void done(struct kvr_client *client, struct kvr_client_call *call)
{
	struct kvr_client_calls *calls = &client->calls;

	KVR_ASSERT(call->state == KVR_CLIENT_CALL_OUT); /* T3 */
	KVR_ASSERT(calls->out_count >= 1);
	KVR_ASSERT(calls->out_bytes >= call->reply_cost);
	call->state = KVR_CLIENT_CALL_DONE;
	call->recall = NULL;
	calls->out_count--;
	calls->out_bytes -= call->reply_cost;
	if (is_submitted(client, call))
		calls->done_count++;
}

static void done_code(
	struct kvr_client *client, struct kvr_client_call *call, uint32_t code, const char *subject)
{
	call->failure.code = code;
	call->failure.error = kvr_code_errno(code);
	call->failure.remedy = kvr_code_remedy(code);
	snprintf(call->failure.subject, sizeof(call->failure.subject), "%s", subject);
	done(client, call);
}

/* The daemon's reply is none to this request. */
static void done_garbled(
	struct kvr_client *client, struct kvr_client_call *call, const char *subject)
{
	call->failure.code = 0;
	call->failure.error = EPROTO;
	call->failure.remedy = "use a daemon of the library's version";
	snprintf(call->failure.subject, sizeof(call->failure.subject), "reply: %s", subject);
	done(client, call);
}

/* Sends, or sends again. */
static void post(struct kvr_client *client, struct kvr_client_call *call, uint64_t now_ns)
{
	uint64_t third_ns = client->timeout_ms * NS_PER_MS / 3;
	int rc = kvr_client_net_send(client->net, call->id, call->message);

	if (rc == -EAGAIN)
		call->send_ns = now_ns + RETRY_NS;
	else if (rc < 0)
		kvr_client_lose(client);
	else
		call->send_ns = now_ns + (third_ns > RESEND_NS_MIN ? third_ns : RESEND_NS_MIN);
}

int kvr_client_call_start(struct kvr_client *client, struct kvr_request *request,
	struct kvr_recall *recall, bool submitted, uint64_t now_ns, uint64_t deadline_ns,
	struct kvr_client_call **ret_call)
{
	struct kvr_client_calls *calls = &client->calls;
	uint32_t cost = reply_cost(request);
	uint64_t left_ns = deadline_ns > now_ns ? deadline_ns - now_ns : 0;
	struct kvr_client_call *call;
	struct kvr_span into;
	int64_t bytes;

	KVR_ASSERT(client->net);
	if (calls->out_count >= client->credits ||
		cost > KVR_CLIENT_REPLY_BYTES - calls->out_bytes) /* T2 */
		return -EAGAIN;
	call = free_slot(client, submitted);
	if (!call)
		return -EAGAIN;
	request->id = calls->id_last + 1; /* T1 */
	request->session = client->session;
	memcpy(request->secret, client->secret, sizeof(request->secret));
	request->deadline_ms = (uint32_t)((left_ns + NS_PER_MS - 1) / NS_PER_MS);
	if (request->deadline_ms == 0)
		request->deadline_ms = 1;
	into.data = calls->memory + (size_t)(call - calls->slots) * KVR_MESSAGE_BYTES_MAX;
	into.bytes = KVR_MESSAGE_BYTES_MAX;
	bytes = kvr_request_pack(request, client->arena, into);
	if (bytes < 0)
		return kvr_client_refuse(client, E2BIG,
			"put queries or token ids into the region, or send less at once",
			"request larger than %u bytes", KVR_MESSAGE_BYTES_MAX);
	calls->id_last = request->id;
	calls->out_count++;
	calls->out_bytes += cost;
	call->state = KVR_CLIENT_CALL_OUT;
	call->kind = request->kind;
	call->id = request->id;
	call->deadline_ns = deadline_ns;
	call->reply_cost = cost;
	call->message = (struct kvr_span){into.data, (size_t)bytes};
	call->recall = recall;
	call->appended = (struct kvr_appended){0, 0};
	call->failure.error = 0;
	post(client, call, now_ns);
	*ret_call = call;
	return 0;
}

/* Hands a recall's results to its items. False: the reply does not fit the request. */
static bool give_recalled(struct kvr_recall *recall, const struct kvr_reply *reply)
{
	const struct kvr_wire_recalled *from = reply->recalled.items;
	const struct kvr_wire_recalled *same = &reply->recalled.same;

	if (reply->recalled.count != 0 && reply->recalled.count != recall->item_count)
		return false;
	for (uint32_t i = 0; i < recall->item_count; i++) {
		const struct kvr_wire_recalled *each = reply->recalled.count ? &from[i] : same;

		recall->items[i].token_count = each->token_count;
		recall->items[i].covered_tokens = each->covered_tokens;
	}
	return true;
}

static void finish(struct kvr_client *client, struct kvr_client_call *call, struct kvr_span from)
{
	struct kvr_reply *reply = &client->reply;

	if (kvr_reply_unpack(from, call->kind, client->arena, reply) < 0) {
		done_garbled(client, call, kvr_message_error(client->arena));
		return;
	}
	if (reply->code != KVR_CODE_OK) {
		done_code(client, call, reply->code, reply->subject);
		/* The daemon does not know this session: only another one helps. */
		if (reply->code == KVR_CODE_SESSION)
			kvr_client_lose(client);
		return;
	}
	if (call->recall && !give_recalled(call->recall, reply)) {
		done_garbled(client, call, "items do not fit the recall");
		return;
	}
	if (call->kind == KVR_REQUEST_APPEND) {
		call->appended.token_count = reply->appended.token_count;
		call->appended.sealed_tokens = reply->appended.sealed_tokens;
	}
	done(client, call);
}

/* The request that is out with this id, or NULL (T3). Calls that wait are in the last slot, and
 * mostly alone: looked at first. */
static struct kvr_client_call *find_out(struct kvr_client *client, uint64_t id)
{
	uint32_t left = client->calls.out_count;

	for (uint32_t i = KVR_CLIENT_CALLS; left > 0 && i-- > 0;) {
		struct kvr_client_call *call = &client->calls.slots[i];

		if (call->state != KVR_CLIENT_CALL_OUT)
			continue;
		if (call->id == id)
			return call;
		left--;
	}
	return NULL;
}

int kvr_client_call_take(struct kvr_client *client)
{
	struct kvr_span from = {client->reply_bytes, sizeof(client->reply_bytes)};
	struct kvr_client_call *call;
	int64_t bytes;

	if (!client->net)
		return -EAGAIN;
	bytes = kvr_client_net_recv(client->net, from);
	if (bytes == -EAGAIN)
		return -EAGAIN;
	if (bytes == -EMSGSIZE)
		return 0;
	if (bytes < 0) {
		kvr_client_lose(client);
		return 0;
	}
	from.bytes = (size_t)bytes;
	call = find_out(client, kvr_reply_id(from));
	if (call)
		finish(client, call, from);
	return 0;
}

void kvr_client_calls_expire(struct kvr_client *client, uint64_t now_ns)
{
	for (uint32_t i = 0; i < KVR_CLIENT_CALLS; i++) {
		struct kvr_client_call *call = &client->calls.slots[i];

		if (call->state != KVR_CLIENT_CALL_OUT)
			continue;
		if (now_ns >= call->deadline_ns)
			done_code(client, call, KVR_CODE_TIMEOUT, "no reply within the deadline");
		else if (now_ns >= call->send_ns)
			post(client, call, now_ns);
	}
}

uint64_t kvr_client_calls_due(const struct kvr_client *client)
{
	uint32_t left = client->calls.out_count;
	uint64_t due = 0;

	for (uint32_t i = KVR_CLIENT_CALLS; left > 0 && i-- > 0;) {
		const struct kvr_client_call *call = &client->calls.slots[i];
		uint64_t at = call->send_ns < call->deadline_ns ? call->send_ns : call->deadline_ns;

		if (call->state != KVR_CLIENT_CALL_OUT)
			continue;
		if (due == 0 || at < due)
			due = at;
		left--;
	}
	return due;
}

void kvr_client_calls_lose(struct kvr_client *client)
{
	for (uint32_t i = 0; i < KVR_CLIENT_CALLS; i++) {
		struct kvr_client_call *call = &client->calls.slots[i];

		if (call->state == KVR_CLIENT_CALL_OUT)
			done_code(client, call, KVR_CODE_LOST,
				"the session ended during the request");
	}
	KVR_ASSERT(client->calls.out_count == 0);
	KVR_ASSERT(client->calls.out_bytes == 0);
}

struct kvr_client_call *kvr_client_call_find(struct kvr_client *client, uint64_t ticket)
{
	for (uint32_t i = 0; i < KVR_CLIENT_SUBMITTED; i++) {
		struct kvr_client_call *call = &client->calls.slots[i];

		if (call->state != KVR_CLIENT_CALL_FREE && call->id == ticket)
			return call;
	}
	return NULL;
}

void kvr_client_call_end(struct kvr_client *client, struct kvr_client_call *call)
{
	KVR_ASSERT(call->state == KVR_CLIENT_CALL_DONE);
	if (is_submitted(client, call)) {
		KVR_ASSERT(client->calls.done_count >= 1);
		client->calls.done_count--;
	}
	call->state = KVR_CLIENT_CALL_FREE;
}
