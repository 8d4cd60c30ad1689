/* SPDX-License-Identifier: Apache-2.0 */
/* session.c: the table of sessions: begin, find, end. The attach socket's talk is in attach.c. */
#include "daemon/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "daemon/attach.h"
#include "daemon/crypt.h"
#include "daemon/log.h"
#include "proto/message.h"

#define INDEX_BITS 16u /* of a session's id; the rest counts, so that ids are never used again */
KVR_STATIC_ASSERT(KVR_SESSIONS_MAX <= 1u << INDEX_BITS);

int kvr_sessions_open(struct kvr_sessions *sessions, const struct kvr_config *config,
	struct kvr_loop *loop, struct kvr_tenants *tenants, const char *path, const char *url)
{
	int rc;

	*sessions = (struct kvr_sessions){
		.config = config,
		.loop = loop,
		.tenants = tenants,
		.url = url,
		.listener = {.fd = -1},
		.listener_fd = -1,
	};
	kvr_crypt_random(&sessions->boot, sizeof(sessions->boot));
	sessions->entries = calloc(KVR_SESSIONS_MAX, sizeof(*sessions->entries));
	if (!sessions->entries)
		return -ENOMEM;
	for (uint32_t i = 0; i < KVR_SESSIONS_MAX; i++) {
		struct kvr_session *session = &sessions->entries[i];

		session->sessions = sessions;
		session->watch.fd = -1;
		session->region.fd = -1;
		kvr_list_init(&session->calls);
		kvr_list_init(&session->sequences);
	}
	rc = kvr_message_arena_open(&sessions->arena);
	if (rc == 0)
		rc = kvr_attach_listen(sessions, path);
	if (rc < 0)
		kvr_sessions_close(sessions);
	return rc;
}

static void free_session(struct kvr_session *session)
{
	struct kvr_sessions *sessions = session->sessions;

	KVR_ASSERT(session->call_count == 0); /* E1 */
	KVR_ASSERT(kvr_list_empty(&session->calls));
	KVR_ASSERT(kvr_list_empty(&session->sequences));
	sessions->region_bytes -= session->region.memory.bytes;
	kvr_region_close(&session->region);
	free(session->answers);
	session->answers = NULL;
	memset(session->secret, 0, sizeof(session->secret));
	session->state = KVR_SESSION_FREE;
}

void kvr_sessions_stop(struct kvr_sessions *sessions)
{
	kvr_attach_unlisten(sessions);
	for (uint32_t i = 0; i < KVR_SESSIONS_MAX; i++)
		kvr_session_end(&sessions->entries[i]);
}

void kvr_sessions_close(struct kvr_sessions *sessions)
{
	kvr_attach_unlisten(sessions);
	KVR_ASSERT(sessions->attached_count == 0);
	kvr_message_arena_close(sessions->arena);
	free(sessions->entries);
	sessions->entries = NULL;
	sessions->arena = NULL;
}

struct kvr_session *kvr_session_begin(struct kvr_sessions *sessions)
{
	for (uint32_t i = 0; i < KVR_SESSIONS_MAX; i++) {
		struct kvr_session *session = &sessions->entries[i];

		if (session->state != KVR_SESSION_FREE)
			continue;
		session->state = KVR_SESSION_GREETING;
		session->id = ++sessions->counter << INDEX_BITS | i;
		session->tenant = NULL;
		session->answer_next = 0;
		session->id_last = 0;
		session->id_forgotten = 0;
		sessions->greeting_count++;
		return session;
	}
	return NULL;
}

void kvr_session_end(struct kvr_session *session)
{
	struct kvr_sessions *sessions = session->sessions;
	const int fd = session->watch.fd;

	if (session->state != KVR_SESSION_GREETING && session->state != KVR_SESSION_ATTACHED)
		return;
	kvr_loop_remove(sessions->loop, &session->watch);
	close(fd);
	if (session->state == KVR_SESSION_ATTACHED) {
		KVR_ASSERT(sessions->attached_count > 0);
		sessions->attached_count--;
		kvr_log(KVR_LOG_DEBUG, "session of %s (%s) ended", session->client,
			session->tenant->name);
	} else {
		KVR_ASSERT(sessions->greeting_count > 0);
		sessions->greeting_count--;
	}
	session->state = KVR_SESSION_ENDING;
	if (sessions->ended)
		sessions->ended(sessions->context, session);
	kvr_session_settle(session);
}

void kvr_session_settle(struct kvr_session *session)
{
	if (session->state == KVR_SESSION_ENDING && session->call_count == 0 &&
		kvr_list_empty(&session->sequences))
		free_session(session);
}

struct kvr_session *kvr_sessions_find(
	struct kvr_sessions *sessions, uint64_t id, const uint8_t secret[KVR_SECRET_BYTES])
{
	const uint32_t index = (uint32_t)(id & ((1u << INDEX_BITS) - 1));
	struct kvr_session *session;

	if (index >= KVR_SESSIONS_MAX)
		return NULL;
	session = &sessions->entries[index];
	if (session->state != KVR_SESSION_ATTACHED || session->id != id ||
		!kvr_crypt_equal(session->secret, secret, KVR_SECRET_BYTES))
		return NULL;
	return session;
}

void kvr_sessions_tick(struct kvr_sessions *sessions, uint64_t now_ns)
{
	if (sessions->listener_paused)
		kvr_attach_resume(sessions);
	for (uint32_t i = 0; i < KVR_SESSIONS_MAX && sessions->greeting_count; i++) {
		struct kvr_session *session = &sessions->entries[i];

		if (session->state == KVR_SESSION_GREETING && now_ns > session->greeting_until_ns)
			kvr_session_end(session);
	}
}

int kvr_session_answer(struct kvr_session *session, uint64_t id, struct kvr_span *ret_answer)
{
	for (uint32_t i = 0; i < KVR_ANSWERS_MAX; i++) {
		struct kvr_answer *answer = &session->answers[i];

		if (answer->id != id)
			continue;
		*ret_answer = (struct kvr_span){answer->data, answer->bytes};
		return answer->bytes ? 0 : -ESTALE;
	}
	return id <= session->id_forgotten ? -ESTALE : -ENOENT;
}

void kvr_session_keep_answer(struct kvr_session *session, uint64_t id, struct kvr_span reply)
{
	struct kvr_answer *answer = &session->answers[session->answer_next];

	KVR_ASSERT(session->answer_next < KVR_ANSWERS_MAX);
	KVR_ASSERT(id > 0);
	KVR_ASSERT(id <= session->id_last);
	if (answer->id > session->id_forgotten)
		session->id_forgotten = answer->id;
	session->answer_next = (session->answer_next + 1) % (uint32_t)KVR_ANSWERS_MAX;
	answer->id = id;
	answer->bytes = reply.bytes <= KVR_ANSWER_BYTES_MAX ? (uint32_t)reply.bytes : 0;
	memcpy(answer->data, reply.data, answer->bytes);
}
