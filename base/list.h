/* SPDX-License-Identifier: Apache-2.0 */
/* list.h: an intrusive, circular, doubly linked list.
 *
 * A head and a node are the same type. A node that is on no list is linked to itself, so that
 * removing it twice is harmless. No locks: a list belongs to one thread. */
#ifndef KVR_BASE_LIST_H
#define KVR_BASE_LIST_H

#include <stdbool.h>
#include <stddef.h>

struct kvr_list {
	struct kvr_list *next;
	struct kvr_list *prev;
};

#define KVR_CONTAINER_OF(pointer, type, member) ((type *)((char *)(pointer)-offsetof(type, member)))

#define KVR_LIST_EACH(node, head) for (node = (head)->next; node != (head); node = node->next)

/* As above; the body may remove `node`. */
#define KVR_LIST_EACH_SAFE(node, after, head)                         \
	for (node = (head)->next, after = node->next; node != (head); \
		node = after, after = node->next)

static inline void kvr_list_init(struct kvr_list *head)
{
	head->next = head;
	head->prev = head;
}

static inline bool kvr_list_empty(const struct kvr_list *head)
{
	return head->next == head;
}

/* Appends at the tail. The node must not be on a list. */
static inline void kvr_list_push(struct kvr_list *head, struct kvr_list *node)
{
	node->prev = head->prev;
	node->next = head;
	head->prev->next = node;
	head->prev = node;
}

static inline void kvr_list_remove(struct kvr_list *node)
{
	node->prev->next = node->next;
	node->next->prev = node->prev;
	kvr_list_init(node);
}

/* Takes the first node, or NULL. */
static inline struct kvr_list *kvr_list_pop(struct kvr_list *head)
{
	struct kvr_list *node = head->next;

	if (node == head)
		return NULL;
	/* The analyzer does not see that nodes are removed before they are freed. */
	kvr_list_remove(node); /* NOLINT(clang-analyzer-unix.Malloc) */
	return node;
}

#endif
