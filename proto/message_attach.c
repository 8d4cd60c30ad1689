/* SPDX-License-Identifier: Apache-2.0 */
/* message_attach.c: Hello and Welcome, the two messages of the attach socket.
 *
 * Their fields are frozen: every version must be able to read them, to find out which version both
 * sides speak. Which version is chosen is the daemon's business, who may attach also. */
#include "proto/message_arena.h"

#include <errno.h>
#include <string.h>

KVR_STATIC_ASSERT(KVR_PROTOCOL_VERSION_MIN >= 1);
KVR_STATIC_ASSERT(KVR_PROTOCOL_VERSION_MIN <= KVR_PROTOCOL_VERSION_MAX);

int64_t kvr_hello_pack(const struct kvr_hello *hello, struct kvr_span into)
{
	Kvrecall__Hello message = KVRECALL__HELLO__INIT;
	char spare[KVR_NAME_MAX];

	message.version_min = hello->version_min;
	message.version_max = hello->version_max;
	message.region_bytes = hello->region_bytes;
	message.client = kvr_message_give_text(hello->client, spare, sizeof(spare));
	return kvr_message_pack(&message.base, into, KVR_MESSAGE_BYTES_MAX);
}

int kvr_hello_unpack(
	struct kvr_span from, struct kvr_message_arena *arena, struct kvr_hello *ret_hello)
{
	struct kvr_hello hello = {0};
	const ProtobufCMessage *unpacked;
	const Kvrecall__Hello *message;
	int error;

	kvr_message_reset(arena);
	error = kvr_message_unpack(arena, &kvrecall__hello__descriptor, from, &unpacked);
	if (error < 0)
		return error;
	message = (const Kvrecall__Hello *)unpacked;
	hello.version_min = message->version_min;
	hello.version_max = message->version_max;
	hello.region_bytes = message->region_bytes;
	error = kvr_message_bound(arena, "Hello.version_min", hello.version_min, 1, UINT32_MAX);
	if (error == 0)
		error = kvr_message_bound(arena, "Hello.version_max", hello.version_max,
			hello.version_min, UINT32_MAX);
	if (error == 0)
		error = kvr_message_bound(
			arena, "Hello.region_bytes", hello.region_bytes, 0, KVR_REGION_BYTES_MAX);
	if (error == 0)
		error = kvr_message_take_text(
			arena, "Hello.client", message->client, hello.client, sizeof(hello.client));
	if (error == 0)
		*ret_hello = hello;
	return error;
}

int64_t kvr_welcome_pack(const struct kvr_welcome *welcome, struct kvr_span into)
{
	Kvrecall__Welcome message = KVRECALL__WELCOME__INIT;
	char subject[KVR_TEXT_MAX], url[KVR_PROTOCOL_URL_MAX], server[KVR_NAME_MAX];

	message.code = welcome->code;
	message.subject = kvr_message_give_text(welcome->subject, subject, sizeof(subject));
	message.server = kvr_message_give_text(welcome->server, server, sizeof(server));
	if (welcome->code == KVR_CODE_OK) { /* a refusal gives nothing away */
		message.version = welcome->version;
		message.session = welcome->session;
		message.secret = kvr_message_give_bytes(welcome->secret, KVR_SECRET_BYTES);
		message.boot = welcome->boot;
		message.url = kvr_message_give_text(welcome->url, url, sizeof(url));
		message.credits = welcome->credits;
		message.region_bytes = welcome->region_bytes;
	}
	return kvr_message_pack(&message.base, into, KVR_MESSAGE_BYTES_MAX);
}

/* What a welcome without refusal must have. */
static int take_session(
	struct kvr_message_arena *arena, const Kvrecall__Welcome *message, struct kvr_welcome *into)
{
	int error = kvr_message_bound(arena, "Welcome.version", message->version,
		KVR_PROTOCOL_VERSION_MIN, KVR_PROTOCOL_VERSION_MAX);

	if (error == 0)
		error = kvr_message_bound(
			arena, "Welcome.session", message->session, 1, UINT64_MAX);
	if (error == 0)
		error = kvr_message_bound(
			arena, "Welcome.credits", message->credits, 1, KVR_CREDITS_MAX);
	if (error == 0)
		error = kvr_message_bound(arena, "Welcome.region_bytes", message->region_bytes, 0,
			KVR_REGION_BYTES_MAX);
	if (error == 0)
		error = kvr_message_take_bytes(
			arena, "Welcome.secret", message->secret, into->secret, KVR_SECRET_BYTES);
	if (error == 0)
		error = kvr_message_take_text(
			arena, "Welcome.url", message->url, into->url, sizeof(into->url));
	if (error == 0 && into->url[0] == '\0')
		error = kvr_message_refuse(arena, -EBADMSG, "Welcome.url is missing");
	into->version = message->version;
	into->session = message->session;
	into->boot = message->boot;
	into->credits = message->credits;
	into->region_bytes = message->region_bytes;
	return error;
}

int kvr_welcome_unpack(
	struct kvr_span from, struct kvr_message_arena *arena, struct kvr_welcome *ret_welcome)
{
	struct kvr_welcome welcome = {0};
	const ProtobufCMessage *unpacked;
	const Kvrecall__Welcome *message;
	int error;

	kvr_message_reset(arena);
	error = kvr_message_unpack(arena, &kvrecall__welcome__descriptor, from, &unpacked);
	if (error < 0)
		return error;
	message = (const Kvrecall__Welcome *)unpacked;
	welcome.code = message->code;
	error = kvr_message_take_text(arena, "Welcome.subject", message->subject, welcome.subject,
		sizeof(welcome.subject));
	if (error == 0)
		error = kvr_message_take_text(arena, "Welcome.server", message->server,
			welcome.server, sizeof(welcome.server));
	if (error == 0 && welcome.code == KVR_CODE_OK)
		error = take_session(arena, message, &welcome);
	if (error == 0)
		*ret_welcome = welcome;
	return error;
}
