/* SPDX-License-Identifier: Apache-2.0 */
/* message.h: requests and replies as plain structs, and their packing.
 *
 * The fields are those of kvrecall.proto, with its units. protobuf-c stays behind this header.
 *
 * Unpacking takes nothing on trust: the length of the message, every repeated field and every byte
 * string are held against base/limits.h, enumerations and floats against their range, text against
 * UTF-8 without control characters; what does not fit is -EBADMSG (or -E2BIG past a limit) and names
 * the field. What only the daemon knows is not checked here: region offsets, and whether a number
 * fits its model or sequence.
 *
 * An arena has two halves. What unpacking returns lives in the one and is valid until that arena's
 * next unpack; packing works in the other and leaves unpacked messages alone.
 *
 * Threads: an arena belongs to one thread. No global state. */
#ifndef KVR_PROTO_MESSAGE_H
#define KVR_PROTO_MESSAGE_H

#include <stdbool.h>
#include <stdint.h>

#include "base/assert.h"
#include "base/code.h"
#include "base/geometry.h"
#include "base/limits.h"
#include "base/span.h"

#define KVR_PROTOCOL_VERSION_MIN 1u
#define KVR_PROTOCOL_VERSION_MAX 1u
#define KVR_PROTOCOL_URL_MAX     256u

/* ---- attach ---------------------------------------------------------------------------------- */

struct kvr_hello {
	uint32_t version_min, version_max;
	uint64_t region_bytes;
	char client[KVR_NAME_MAX];
};

struct kvr_welcome {
	uint32_t code;
	char subject[KVR_TEXT_MAX];
	uint32_t version;
	uint64_t session;
	uint8_t secret[KVR_SECRET_BYTES];
	uint64_t boot;
	char url[KVR_PROTOCOL_URL_MAX];
	uint32_t credits;
	uint64_t region_bytes;
	char server[KVR_NAME_MAX];
};

/* Largest values of Recall.rank and .form: base/geometry.h. */
#define KVR_WIRE_RANK_MAX 2u
#define KVR_WIRE_FORM_MAX 3u

/* ---- parts ----------------------------------------------------------------------------------- */

struct kvr_tokens {
	const uint32_t *ids; /* inline; NULL: in the region, or absent where count is 0 */
	uint32_t count;      /* inline or in the region */
	uint64_t offset;     /* into the region, where ids is NULL and count is not 0 */
};

struct kvr_wire_model {
	uint32_t model;
	char name[KVR_NAME_MAX];
	uint8_t digest[KVR_HASH_BYTES];
	struct kvr_geometry geometry; /* defaults filled in; dense lanes are not listed */
	uint32_t rank;
	uint32_t segment_count;
	uint64_t stored_bytes;
};

struct kvr_wire_layer {
	uint32_t layer;
	uint64_t keys, values;
};

struct kvr_wire_recall_item {
	uint64_t sequence;
	uint32_t layer;
	struct kvr_span query; /* inline; data NULL: at query_offset in the region */
	uint64_t query_offset;
	uint64_t keys, values, weights, positions, table;
	struct kvr_span
		budgets; /* [heads] struct kvr_wire_budget; data NULL: those of the recall */
	uint64_t outputs, lse;
	uint32_t first;
};

/* One head's budget. OFFSET SIZE MEANING
 *      0    4 tokens: rows from clusters at most
 *      4    4 mass (f32): 0, or the share of attention to stop at, up to 1 */
struct kvr_wire_budget {
	uint32_t tokens;
	float mass;
};
KVR_STATIC_ASSERT(sizeof(struct kvr_wire_budget) == 8);

struct kvr_wire_recalled {
	uint32_t token_count;
	uint32_t covered_tokens;
};

struct kvr_wire_metric {
	char name[KVR_NAME_MAX];
	double value;
	char text[KVR_TEXT_MAX]; /* empty: a number */
};

struct kvr_wire_segment {
	uint8_t hash[KVR_HASH_BYTES];
	uint8_t parent[KVR_HASH_BYTES];
	bool has_parent;
	uint32_t model;
	uint32_t token_first, token_count;
	uint64_t stored_bytes;
	uint32_t leases, pins;
	uint64_t resident_bytes;
	bool durable, quarantined;
};

/* One row of a recall's table, written to the region by the daemon, little-endian:
 *
 *   OFFSET SIZE MEANING
 *        0    4 row_count: rows staged for this head
 *        4    4 cluster_count: clusters they come from
 *        8    4 centroid_count: rows that are centroids, the last of them
 *       12    4 token_missing: rows left out because they could not be read
 *       16    4 mass (f32): estimated share of the attention over clusters that was staged exactly */
struct kvr_wire_rows {
	uint32_t row_count;
	uint32_t cluster_count;
	uint32_t centroid_count;
	uint32_t token_missing;
	float mass;
};
KVR_STATIC_ASSERT(sizeof(struct kvr_wire_rows) == 20);

/* ---- requests -------------------------------------------------------------------------------- */

enum kvr_request_kind { /* the field numbers of Request.body */
	KVR_REQUEST_PING = 10,
	KVR_REQUEST_MODEL_REGISTER = 11,
	KVR_REQUEST_MODEL_LIST = 12,
	KVR_REQUEST_OPEN = 13,
	KVR_REQUEST_APPEND = 14,
	KVR_REQUEST_RECALL = 15,
	KVR_REQUEST_FETCH = 16,
	KVR_REQUEST_SYNC = 17,
	KVR_REQUEST_FORK = 18,
	KVR_REQUEST_CLOSE = 19,
	KVR_REQUEST_DROP = 20,
	KVR_REQUEST_PIN = 21,
	KVR_REQUEST_STATS = 22,
	KVR_REQUEST_SEGMENT_LIST = 23,
};

struct kvr_request {
	uint64_t id;
	uint64_t session;
	uint8_t secret[KVR_SECRET_BYTES];
	uint32_t deadline_ms; /* 1 to KVR_DEADLINE_MS_MAX; 0 on packing: the maximum */
	enum kvr_request_kind kind;
	union {
		struct {
			char name[KVR_NAME_MAX];
			uint8_t digest[KVR_HASH_BYTES];
			/* segment_tokens and cluster_tokens may be 0 and sink_tokens UINT32_MAX:
			 * "default". Otherwise unchecked: kvr_geometry_valid. */
			struct kvr_geometry geometry;
			uint32_t rank;
		} model_register;
		struct {
			uint32_t first;
		} model_list;
		struct {
			uint32_t model;
			struct kvr_tokens tokens;
		} open;
		struct {
			uint64_t sequence;
			uint32_t first, count;
			struct kvr_tokens tokens;
			const struct kvr_wire_layer *layers;
			uint32_t layer_count;
		} append;
		struct {
			const struct kvr_wire_recall_item *items;
			uint32_t item_count;
			uint32_t rank; /* 1 to KVR_WIRE_RANK_MAX; 0 on packing: SHARE */
			enum kvr_dtype query_dtype;
			float scale;
			uint32_t budget_tokens;
			float budget_mass;
			uint32_t row_capacity;
			uint32_t form; /* 1 to KVR_WIRE_FORM_MAX; 0 on packing: CLUSTERS */
			uint32_t centroid_rows;
			uint32_t merged_set; /* of MERGED: index into kvr_merged_divisors */
			bool sinks, tail, want_weights, want_positions, background;
		} recall;
		struct {
			uint64_t sequence;
			uint32_t first, count;
			const struct kvr_wire_layer *layers; /* where to */
			uint32_t layer_count;
		} fetch;
		struct {
			uint64_t sequence;
			bool seal_tail;
		} sync;
		struct {
			uint64_t sequence;
		} fork;
		struct {
			uint64_t sequence;
			bool discard_tail;
		} close;
		struct {
			uint8_t segment[KVR_HASH_BYTES];
			bool has_segment;
			uint32_t model;
		} drop;
		struct {
			uint64_t sequence; /* 0: the segment */
			uint8_t segment[KVR_HASH_BYTES];
			bool unpin;
		} pin;
		struct {
			uint32_t first;
		} stats;
		struct {
			uint32_t first;
			uint32_t model;
		} segment_list;
	};
};

/* ---- replies --------------------------------------------------------------------------------- */

/* Which body a reply has: that of the request's kind, or none after a refusal. FORK is answered with
 * `opened`; PING and CLOSE have no body. */
struct kvr_reply {
	uint64_t id;
	uint32_t code;
	char subject[KVR_TEXT_MAX];
	enum kvr_request_kind kind; /* of the request that it answers */
	union {
		struct {
			uint32_t model;
			struct kvr_geometry geometry;
		} model_registered;
		struct {
			const struct kvr_wire_model *entries;
			uint32_t count, next;
		} models;
		struct {
			uint64_t sequence;
			uint32_t matched_tokens;
		} opened;
		struct {
			uint32_t token_count, sealed_tokens;
		} appended;
		struct {
			/* One per item of the request; or, with count 0, `same` for each of them.
			 * Packing sends `same` by itself where all items are alike. */
			const struct kvr_wire_recalled *items;
			uint32_t count;
			struct kvr_wire_recalled same;
			uint64_t staged_bytes;
			uint32_t token_missing;
		} recalled;
		struct {
			uint64_t staged_bytes;
		} fetched;
		struct {
			uint32_t sealed_tokens;
		} synced;
		struct {
			uint32_t segment_count;
			uint64_t freed_bytes;
			uint32_t kept_count;
		} dropped;
		struct {
			uint32_t segment_count;
		} pinned;
		struct {
			const struct kvr_wire_metric *entries;
			uint32_t count, next;
		} metrics;
		struct {
			const struct kvr_wire_segment *entries;
			uint32_t count, next;
		} segments;
	};
};

/* ---- packing --------------------------------------------------------------------------------- */

/* Fixed memory for one message being unpacked and one being packed. Pages that no message has
 * needed yet cost nothing. */
struct kvr_message_arena;

/* Errors: -ENOMEM. */
int kvr_message_arena_open(struct kvr_message_arena **ret_arena);
struct kvr_message_arena *kvr_message_arena_close(struct kvr_message_arena *arena);

/* Forgets what was unpacked and gives the pages that large messages have needed back to the system. Costs
 * nothing where there were none since the last time. */
void kvr_message_arena_trim(struct kvr_message_arena *arena);

/* Pack into `into`; return the bytes written, or -EMSGSIZE if it does not fit there, or not in
 * KVR_MESSAGE_BYTES_MAX (a reply: KVR_REPLY_BYTES_MAX). Never allocate. Counts within their limits
 * and terminated strings are the caller's guarantee, and asserted. A subject or a metric's text that
 * is no valid text (cut inside a character, say) is sent up to there. A number that is not finite goes
 * as 0 with the text "not finite". */
int64_t kvr_hello_pack(const struct kvr_hello *hello, struct kvr_span into);
int64_t kvr_welcome_pack(const struct kvr_welcome *welcome, struct kvr_span into);
int64_t kvr_request_pack(
	const struct kvr_request *request, struct kvr_message_arena *arena, struct kvr_span into);
int64_t kvr_reply_pack(
	const struct kvr_reply *reply, struct kvr_message_arena *arena, struct kvr_span into);

/* Unpack `from`. Returns 0, -EBADMSG (not a message of this kind, or a value out of range) or
 * -E2BIG (past a limit); then `arena` says why: kvr_message_error. A refused request still has its
 * id, session and secret set where they could be read (else 0). */
int kvr_hello_unpack(
	struct kvr_span from, struct kvr_message_arena *arena, struct kvr_hello *ret_hello);
int kvr_welcome_unpack(
	struct kvr_span from, struct kvr_message_arena *arena, struct kvr_welcome *ret_welcome);
int kvr_request_unpack(
	struct kvr_span from, struct kvr_message_arena *arena, struct kvr_request *ret_request);
/* `kind`: of the request that was sent. */
int kvr_reply_unpack(struct kvr_span from, enum kvr_request_kind kind,
	struct kvr_message_arena *arena, struct kvr_reply *ret_reply);

/* The reply's id alone, so that the client can find the kind before it unpacks. 0: not a reply. */
uint64_t kvr_reply_id(struct kvr_span from);

/* Why the last unpack failed, for people. Borrowed. */
const char *kvr_message_error(const struct kvr_message_arena *arena);

#endif
