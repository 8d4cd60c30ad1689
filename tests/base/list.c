/* SPDX-License-Identifier: Apache-2.0 */
/* list.c: goal: a list holds what was pushed and not removed, in order, linked both ways.
 * Method: 20,000 random pushes, pops and removals against an array that does the same slowly. */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
#include <string.h>

#include "base/list.h"

#define SEED  0x6b767265u
#define NODES 24
#define STEPS 20000

struct item {
	struct kvr_list link;
	int number;
};

static uint32_t next_random(uint32_t *state)
{
	*state = *state * 1664525u + 1013904223u;
	return *state >> 16;
}

/* The list is the model: forwards, backwards, and by its own word on being empty. */
static void same(struct kvr_list *head, const int *model, int count)
{
	struct kvr_list *node;
	int at = 0;

	KVR_LIST_EACH (node, head) {
		assert_true(at < count);
		assert_int_equal(KVR_CONTAINER_OF(node, struct item, link)->number, model[at++]);
		assert_ptr_equal(node->next->prev, node);
	}
	assert_int_equal(at, count);
	assert_int_equal(kvr_list_empty(head), count == 0);
}

static void remove_model(int *model, int *count, int number)
{
	for (int i = 0; i < *count; i++) {
		if (model[i] != number)
			continue;
		memmove(&model[i], &model[i + 1], sizeof(int) * (size_t)(*count - i - 1));
		(*count)--;
		return;
	}
}

static void random_operations(void **state)
{
	struct item items[NODES];
	struct kvr_list head, *node;
	int model[NODES], count = 0;
	uint32_t random = SEED;

	(void)state;
	kvr_list_init(&head);
	for (int i = 0; i < NODES; i++) {
		kvr_list_init(&items[i].link);
		items[i].number = i;
	}
	for (int step = 0; step < STEPS; step++) {
		struct item *item = &items[next_random(&random) % NODES];
		uint32_t what = next_random(&random) % 4;

		if (what == 0) {
			node = kvr_list_pop(&head);
			assert_int_equal(node == NULL, count == 0);
			if (node)
				remove_model(model, &count, model[0]);
		} else if (what == 1) { /* also of one that is on no list: harmless */
			kvr_list_remove(&item->link);
			remove_model(model, &count, item->number);
		} else if (kvr_list_empty(&item->link)) {
			kvr_list_push(&head, &item->link);
			model[count++] = item->number;
		}
		same(&head, model, count);
	}
}

static void removal_inside_a_loop(void **state)
{
	struct item items[NODES];
	struct kvr_list head, *node, *after;
	int model[NODES], count = 0;

	(void)state;
	kvr_list_init(&head);
	for (int i = 0; i < NODES; i++) {
		items[i].number = i;
		kvr_list_push(&head, &items[i].link);
		if (i % 3)
			model[count++] = i;
	}
	KVR_LIST_EACH_SAFE (node, after, &head) {
		if (KVR_CONTAINER_OF(node, struct item, link)->number % 3 == 0)
			kvr_list_remove(node);
	}
	same(&head, model, count);
}

int main(void)
{
	const struct CMUnitTest tests[] = {
		cmocka_unit_test(random_operations),
		cmocka_unit_test(removal_inside_a_loop),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
