/* SPDX-License-Identifier: Apache-2.0 */
/* code.h: why a request was refused.
 *
 * Numbers are on the wire and in docs/PROTOCOL.md: never renumber, only append. Each code has the
 * errno that the client library returns for it and the remedy that goes with every refusal; the
 * subject ("what, on what") is written where the request is refused. */
#ifndef KVR_BASE_CODE_H
#define KVR_BASE_CODE_H

#include <errno.h>
#include <stdint.h>

/* X(name, number, errno, remedy) */
#define KVR_CODES(X)                                                                              \
	X(OK, 0, 0, "")                                                                           \
	X(MALFORMED, 1, EBADMSG, "send a message that docs/PROTOCOL.md describes")                \
	X(VERSION, 2, EPROTONOSUPPORT, "use a client library of the daemon's version range")      \
	X(SESSION, 3, ESTALE, "attach again and re-open sequences")                               \
	X(LIMIT, 4, E2BIG, "stay below the limit named")                                          \
	X(REGION, 5, EFAULT, "use offsets inside the region, or attach with a larger one")        \
	X(NO_MODEL, 6, ENODEV, "register the model first")                                        \
	X(GEOMETRY, 7, EINVAL, "give a geometry inside the limits of docs/PROTOCOL.md")           \
	X(NO_SEQUENCE, 8, ENOENT, "open the sequence first; sequences end with their session")    \
	X(POSITION, 9, ERANGE, "append each layer without gaps, from its next position")          \
	X(TOKENS, 10, EILSEQ, "give one token id per appended token, the same for every layer")   \
	X(NOT_FINITE, 11, EDOM, "append finite keys and values; nothing of the request was kept") \
	X(FULL, 12, ENOSPC, "close sequences, unpin segments, or raise memory.host_bytes")        \
	X(QUOTA, 13, EDQUOT, "close or drop the tenant's segments, or raise its quota")           \
	X(BUSY, 14, EAGAIN, "try again")                                                          \
	X(ROWS, 15, ENOBUFS, "give more rows per lane; dense lanes need one per covered token")   \
	X(NO_SEGMENT, 16, ENOENT, "list segments to see what is stored")                          \
	X(IN_USE, 17, EBUSY, "close the sequences that lease it, or unpin it")                    \
	X(RANGE, 18, ERANGE, "fetch tokens that every layer has")                                 \
	X(CREDIT, 19, EAGAIN, "keep fewer requests outstanding than the session's credits")       \
	X(INTERNAL, 20, EIO, "look at the daemon's log")                                          \
	X(TIMEOUT, 21, ETIMEDOUT, "give a later deadline or a smaller request")                   \
	X(ARGUMENT, 22, EINVAL, "correct the argument named")                                     \
	X(LOST, 23, ECONNRESET, "the daemon went away; re-open sequences after re-attachment")    \
	X(DENIED, 24, EACCES, "ask the operator for a tenant that admits this uid")               \
	X(NOT_STORED, 25, EDQUOT, "what is sealed is in memory alone: see why, and sync again")   \
	X(UNREADABLE, 26, EIO, "compute these tokens again; kvrecall verify tells what is damaged")

enum kvr_code {
#define KVR_CODE_ENUM(name, number, error, remedy) KVR_CODE_##name = (number),
	KVR_CODES(KVR_CODE_ENUM)
#undef KVR_CODE_ENUM
};

/* The errno (positive) for a code; EPROTO for one that this build does not know. */
static inline int kvr_code_errno(uint32_t code)
{
	switch (code) {
#define KVR_CODE_CASE(name, number, error, remedy) \
	case (number): return (error);
		KVR_CODES(KVR_CODE_CASE)
#undef KVR_CODE_CASE
	default: return EPROTO;
	}
}

/* The name of a code as docs/PROTOCOL.md lists it. */
static inline const char *kvr_code_name(uint32_t code)
{
	switch (code) {
#define KVR_CODE_CASE(name, number, error, remedy) \
	case (number): return #name;
		KVR_CODES(KVR_CODE_CASE)
#undef KVR_CODE_CASE
	default: return "UNKNOWN";
	}
}

static inline const char *kvr_code_remedy(uint32_t code)
{
	switch (code) {
#define KVR_CODE_CASE(name, number, error, remedy) \
	case (number): return (remedy);
		KVR_CODES(KVR_CODE_CASE)
#undef KVR_CODE_CASE
	default: return "";
	}
}

#endif
