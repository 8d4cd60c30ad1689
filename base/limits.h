/* SPDX-License-Identifier: Apache-2.0 */
/* limits.h: the maximum of everything.
 *
 * A number from outside is compared with its limit before it is used for an allocation, an index or
 * a loop. Full means -EAGAIN or a refusal, never growth. Each limit has one line that says why. */
#ifndef KVR_BASE_LIMITS_H
#define KVR_BASE_LIMITS_H

/* Geometry of a model. */
#define KVR_LAYERS_MAX         256u   /* twice the deepest published dense model */
#define KVR_QUERY_HEADS_MAX    256u   /* per layer */
#define KVR_KV_HEADS_MAX       128u   /* per layer */
#define KVR_LANES_MAX          16384u /* layers x kv heads; indexes a lane in 16 bits */
#define KVR_GROUP_MAX          128u   /* query heads per kv head (multi-query attention) */
#define KVR_DIM_MIN            8u     /* key and value dims; 576 is the latent of MLA models */
#define KVR_DIM_MAX            576u
#define KVR_SINK_TOKENS        16u   /* never clustered, always exact (StreamingLLM) */
#define KVR_SEGMENT_TOKENS_MIN 64u   /* S */
#define KVR_SEGMENT_TOKENS_MAX 8192u /* S; positions inside a segment fit 16 bits */
#define KVR_SEGMENT_TOKENS     1024u /* S, default */
#define KVR_CLUSTER_TOKENS_MIN 4u    /* mean tokens per cluster */
#define KVR_CLUSTER_TOKENS_MAX 1024u
#define KVR_CLUSTER_TOKENS     16u /* default */
#define KVR_CLUSTERS_MAX \
	(KVR_SEGMENT_TOKENS_MAX / KVR_CLUSTER_TOKENS_MIN) /* per lane of a segment */
#define KVR_NAME_MAX 64u /* model, tenant and metric names, with the final NUL */

/* Sequences. */
#define KVR_SEQUENCE_TOKENS_MAX   (1u << 20) /* longest context served */
#define KVR_SEQUENCE_SEGMENTS_MAX 16384u     /* chain length: 1 Mi tokens in segments of 64 */
#define KVR_SEQUENCE_CLUSTERS_MAX (KVR_SEQUENCE_TOKENS_MAX / KVR_CLUSTER_TOKENS_MIN)
#define KVR_BLOCK_TOKENS          64u /* a tail grows by blocks of so many tokens, all lanes */
#define KVR_TAIL_TOKENS_MAX       32768u /* a prefill chunk, layer by layer, and what is being sealed */
#define KVR_TAIL_BLOCKS_MAX       (KVR_TAIL_TOKENS_MAX / KVR_BLOCK_TOKENS)

/* One daemon. */
#define KVR_SESSIONS_MAX      1024u  /* attached clients */
#define KVR_SEQUENCES_MAX     16384u /* open at once, all sessions */
#define KVR_SEGMENTS_MAX      65536u /* stored */
#define KVR_MODELS_MAX        256u
#define KVR_TENANT_MODELS_MAX 64u /* in use by one tenant, so that none takes all */
#define KVR_TENANTS_MAX       256u
#define KVR_THREADS_MAX       64u /* device workers */

/* Wire. */
#define KVR_MESSAGE_BYTES_MAX \
	(1u << 20)                    /* nanomsg's default receive limit; larger drops the pipe */
#define KVR_REPLY_BYTES_MAX   16384u  /* a reply; lists are paged to fit */
#define KVR_TOKENS_INLINE_MAX 131072u /* token ids in a message; more go through the region */
#define KVR_RECALL_ITEMS_MAX  1024u   /* (sequence, layer) pairs of one recall */
#define KVR_APPEND_LAYERS_MAX KVR_LAYERS_MAX
#define KVR_LIST_ENTRIES_MAX  64u  /* models, segments or metrics in one reply */
#define KVR_CREDITS_MAX       64u  /* requests a session may have outstanding */
#define KVR_TEXT_MAX          160u /* an error's subject or remedy, with the final NUL */
#define KVR_SECRET_BYTES      16u
#define KVR_HASH_BYTES        32u
#define KVR_REGION_BYTES_MAX  (1ull << 36) /* 64 GiB per session; configuration lowers it */
#define KVR_DEADLINE_MS_MAX   600000u

#endif
