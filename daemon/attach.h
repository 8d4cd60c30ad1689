/* SPDX-License-Identifier: Apache-2.0 */
/* attach.h: the attach socket: who is there, and the one exchange that makes a session.
 *
 *   client                               daemon
 *     │ connect ────────────────────────►│ accept, SO_PEERCRED
 *     │ Hello ──────────────────────────►│ tenant, version, region
 *     │◄─────────────────────── Welcome  │ + the region as a file descriptor
 *     │ ... stays open ...               │ its end is the session's end
 *
 * Internal to the session module: session.c and attach.c are one module in two files. */
#ifndef KVR_DAEMON_ATTACH_H
#define KVR_DAEMON_ATTACH_H

#include "daemon/session.h"

int kvr_attach_listen(struct kvr_sessions *sessions, const char *path);
void kvr_attach_unlisten(struct kvr_sessions *sessions);
void kvr_attach_resume(struct kvr_sessions *sessions);

/* A free slot in state GREETING, or NULL. */
struct kvr_session *kvr_session_begin(struct kvr_sessions *sessions);

/* Closes the socket and begins to end. Takes a session in any state. */
void kvr_session_end(struct kvr_session *session);

#endif
