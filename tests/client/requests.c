/* SPDX-License-Identifier: Apache-2.0 */
/* requests.c: deadlines, resends, credits, stray replies, submit and poll.
 *
 * Goal: no call outlives its deadline; a lost reply costs a resend with the same id and nothing
 * else; what comes twice, late or garbled is dropped; outstanding requests and their replies stay
 * within the credits; kvr_fd is readable when, and only when, kvr_poll has something.
 * Method: a scripted daemon drops, doubles, holds and garbles replies. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/client/fake_util.h"

#define NS_PER_MS UINT64_C(1000000)

struct fixture {
	struct fake *fake;
	struct kvr_client *client;
	struct kvr_sequence *sequence;
	struct kvr_append_layer layer;
	struct kvr_append append;
	struct kvr_recall_item items[1024];
	struct kvr_recall recall;
};

static void fixture_connect(struct fixture *f, uint32_t timeout_ms)
{
	struct kvr_client_config config = {.attach_path = fake_path(f->fake),
		.region_bytes = 2u << 20,
		.timeout_ms = timeout_ms};
	struct kvr_model_config model_config = {.name = "test",
		.layers = 1,
		.query_heads = 1,
		.kv_heads = 1,
		.key_dim = 8,
		.value_dim = 8,
		.type = KVR_F32,
		.sink_tokens = -1};
	struct kvr_model *model;
	uint8_t *region;
	uint32_t matched;

	assert_int_equal(kvr_connect(&config, &f->client), 0);
	assert_int_equal(kvr_model_register(f->client, &model_config, &model), 0);
	assert_int_equal(kvr_open(model, NULL, 0, &f->sequence, &matched), 0);
	region = kvr_region(f->client, NULL);
	f->layer = (struct kvr_append_layer){0, region, region};
	f->append = (struct kvr_append){f->sequence, 0, 1, NULL, &f->layer, 1};
	for (uint32_t i = 0; i < 1024; i++)
		f->items[i] = (struct kvr_recall_item){.sequence = f->sequence,
			.query = region,
			.keys = region,
			.values = region,
			.rows = (struct kvr_rows *)(void *)region};
	f->recall = (struct kvr_recall){
		f->items, 1, KVR_BY_SHARE, KVR_F32, 0, 4, 0, 4, false, false, false, 0, 0, 0};
}

static int setup_with(void **state, uint32_t timeout_ms)
{
	struct fixture *f = calloc(1, sizeof(*f));

	f->fake = fake_open();
	fixture_connect(f, timeout_ms);
	*state = f;
	return 0;
}

static int setup_long(void **state)
{
	return setup_with(state, 5000);
}

static int setup_short(void **state)
{
	return setup_with(state, 600);
}

static int setup_middle(void **state)
{
	return setup_with(state, 1500);
}

static int teardown(void **state)
{
	struct fixture *f = *state;

	kvr_disconnect(f->client);
	fake_close(f->fake);
	free(f);
	return 0;
}

static uint64_t elapsed_ms(uint64_t since_ns)
{
	return (kvr_clock_ns() - since_ns) / NS_PER_MS;
}

static bool readable(struct fixture *f, int ms)
{
	struct pollfd on = {.fd = kvr_fd(f->client), .events = POLLIN};

	return poll(&on, 1, ms) == 1;
}

/* Waits until the fake has seen so many messages. */
static void await_requests(struct fixture *f, uint32_t count)
{
	const struct timespec pause = {0, 1000000};

	for (int tries = 0; fake_requests(f->fake) < count && tries < 3000; tries++)
		nanosleep(&pause, NULL);
	assert_true(fake_requests(f->fake) >= count);
}

/* Drops the first `left` replies; the cookie counts down. */
static enum fake_action drop_some(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	uint32_t *left = cookie;

	(void)fake;
	(void)request;
	(void)reply;
	if (*left == 0)
		return FAKE_REPLY;
	(*left)--;
	return FAKE_DROP;
}

static enum fake_action always(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	(void)fake;
	(void)request;
	(void)reply;
	return *(const enum fake_action *)cookie;
}

static void test_timeout(void **state)
{
	struct fixture *f = *state;
	uint32_t left = 1000, before = fake_requests(f->fake);
	uint64_t start = kvr_clock_ns();

	fake_set_script(f->fake, drop_some, &left);
	assert_int_equal(kvr_ping(f->client), -ETIMEDOUT);
	assert_in_range(elapsed_ms(start), 595, 2000);
	assert_int_equal(kvr_error(f->client)->code, KVR_CODE_TIMEOUT);
	/* Sent, and again every 250 ms, with the same id. */
	assert_in_range(fake_requests(f->fake), before + 2, before + 3);
	assert_int_equal(fake_id(f->fake, before), fake_id(f->fake, before + 1));
	fake_set_script(f->fake, NULL, NULL);
	assert_int_equal(kvr_ping(f->client), 0);
	assert_int_equal(kvr_generation(f->client), 1);
}

static void test_resend(void **state)
{
	struct fixture *f = *state;
	uint32_t left = 2, before = fake_requests(f->fake);
	uint64_t start = kvr_clock_ns();
	struct kvr_appended appended;

	fake_set_script(f->fake, drop_some, &left);
	assert_int_equal(kvr_append(f->client, &f->append, &appended), 0);
	/* A third of 1,500 ms, twice. */
	assert_in_range(elapsed_ms(start), 990, 1500);
	assert_int_equal(fake_requests(f->fake), before + 3);
	assert_int_equal(fake_id(f->fake, before), fake_id(f->fake, before + 2));
	assert_int_equal(kvr_ping(f->client), 0);
	assert_true(fake_id(f->fake, before + 3) > fake_id(f->fake, before));
}

/* A submitted request is resent from the event loop, which kvr_fd wakes for it. */
static void test_resend_submitted(void **state)
{
	struct fixture *f = *state;
	uint32_t left = 1, before = fake_requests(f->fake);
	struct kvr_completion completion = {0};
	uint64_t start = kvr_clock_ns(), ticket;
	uint32_t wakes = 0;

	fake_set_script(f->fake, drop_some, &left);
	assert_int_equal(kvr_recall_submit(f->client, &f->recall, &ticket), 0);
	while (kvr_poll(f->client, &completion, 1) == 0) {
		assert_true(readable(f, 2000));
		wakes++;
	}
	assert_int_equal(completion.ticket, ticket);
	assert_int_equal(completion.status, 0);
	assert_int_equal(f->items[0].token_count, 1000);
	assert_in_range(elapsed_ms(start), 490, 1500);
	assert_in_range(wakes, 2, 4);
	assert_int_equal(fake_requests(f->fake), before + 2);
	assert_false(readable(f, 0));
}

static void test_timeout_submitted(void **state)
{
	struct fixture *f = *state;
	uint32_t left = 1000;
	struct kvr_completion completion = {0};
	uint64_t start = kvr_clock_ns(), ticket;

	fake_set_script(f->fake, drop_some, &left);
	assert_int_equal(kvr_recall_submit(f->client, &f->recall, &ticket), 0);
	while (kvr_poll(f->client, &completion, 1) == 0)
		assert_true(readable(f, 2000));
	assert_int_equal(completion.status, -ETIMEDOUT);
	assert_int_equal(kvr_error(f->client)->code, KVR_CODE_TIMEOUT);
	assert_in_range(elapsed_ms(start), 595, 2000);
	assert_int_equal(kvr_append_submit(f->client, &f->append, &ticket), 0);
	assert_int_equal(kvr_wait(f->client, ticket, &completion), 0);
	assert_int_equal(completion.status, -ETIMEDOUT);
}

/* Twice, garbled, unknown, empty: none of it reaches the caller. */
static void test_stray_replies(void **state)
{
	struct fixture *f = *state;
	enum fake_action actions[] = {FAKE_TWICE, FAKE_GARBAGE};

	for (size_t i = 0; i < 2; i++) {
		fake_set_script(f->fake, always, &actions[i]);
		for (uint32_t first = 0; first < 50; first++) {
			struct kvr_appended appended = {0};

			f->append.first = first;
			assert_int_equal(kvr_append(f->client, &f->append, &appended), 0);
			assert_int_equal(appended.token_count, first + 1);
			assert_int_equal(kvr_recall(f->client, &f->recall), 0);
		}
	}
	fake_set_script(f->fake, NULL, NULL);
	assert_int_equal(kvr_ping(f->client), 0);
}

/* A reply to the right request with a body that is none fails that request, at once. */
static void test_broken_reply(void **state)
{
	struct fixture *f = *state;
	enum fake_action action = FAKE_BROKEN;
	uint64_t start = kvr_clock_ns();

	fake_set_script(f->fake, always, &action);
	assert_int_equal(kvr_ping(f->client), -EPROTO);
	assert_true(elapsed_ms(start) < 1000);
	assert_non_null(strstr(kvr_error(f->client)->subject, "reply"));
}

/* A reply after its deadline is dropped, and does not answer the next request. */
static void test_late_reply(void **state)
{
	struct fixture *f = *state;
	enum fake_action action = FAKE_HOLD;
	struct kvr_appended appended = {0};

	fake_set_script(f->fake, always, &action);
	f->append.first = 10;
	assert_int_equal(kvr_append(f->client, &f->append, &appended), -ETIMEDOUT);
	fake_set_script(f->fake, NULL, NULL);
	fake_release(f->fake);
	f->append.first = 20;
	assert_int_equal(kvr_append(f->client, &f->append, &appended), 0);
	assert_int_equal(appended.token_count, 21);
}

static void test_credits(void **state)
{
	struct fixture *f = *state;
	enum fake_action action = FAKE_HOLD;
	struct kvr_completion completions[KVR_CREDITS_MAX];
	uint64_t tickets[KVR_CREDITS_MAX], ticket;
	uint32_t before = fake_requests(f->fake), count = 0;

	fake_set_script(f->fake, always, &action);
	for (uint32_t i = 0; i < KVR_CREDITS_MAX; i++) {
		f->append.first = i;
		assert_int_equal(kvr_append_submit(f->client, &f->append, &tickets[i]), 0);
	}
	assert_int_equal(kvr_append_submit(f->client, &f->append, &ticket), -EAGAIN);
	assert_int_equal(kvr_recall_submit(f->client, &f->recall, &ticket), -EAGAIN);
	await_requests(f, before + KVR_CREDITS_MAX);
	fake_set_script(f->fake, NULL, NULL);
	fake_release(f->fake);
	/* One that is waited for by name, though others come first. */
	assert_int_equal(kvr_wait(f->client, tickets[0], completions), 0);
	assert_int_equal(completions[0].status, 0);
	assert_int_equal(completions[0].appended.token_count, 1);
	assert_int_equal(kvr_wait(f->client, tickets[0], completions), -EINVAL);
	assert_int_equal(kvr_wait(f->client, 0, completions), -EINVAL);
	while (count < KVR_CREDITS_MAX - 1) {
		assert_true(readable(f, 1000));
		count += (uint32_t)kvr_poll(f->client, &completions[count], 7);
		assert_true(count <= KVR_CREDITS_MAX - 1);
	}
	for (uint32_t i = 1; i < KVR_CREDITS_MAX; i++) {
		bool found = false;

		for (uint32_t j = 0; j < count; j++) {
			if (completions[j].ticket != tickets[i])
				continue;
			assert_false(found);
			found = true;
			assert_int_equal(completions[j].appended.token_count, i + 1);
		}
		assert_true(found);
	}
	assert_int_equal(fake_held_max(f->fake), KVR_CREDITS_MAX);
	assert_int_equal(fake_requests(f->fake), before + KVR_CREDITS_MAX);
}

/* Replies that may be large count as such: seven recalls of 1,024 items, not eight. */
static void test_reply_bytes(void **state)
{
	struct fixture *f = *state;
	enum fake_action action = FAKE_HOLD;
	struct kvr_completion completions[8];
	uint64_t ticket;
	uint32_t count = 0;
	int rc;

	fake_set_script(f->fake, always, &action);
	f->recall.item_count = 1024;
	while ((rc = kvr_recall_submit(f->client, &f->recall, &ticket)) == 0)
		count++;
	assert_int_equal(rc, -EAGAIN);
	assert_int_equal(count, 7);
	/* A small one still fits, a list does not: it waits, here in vain. */
	assert_int_equal(kvr_append_submit(f->client, &f->append, &ticket), 0);
	assert_int_equal(kvr_stats(f->client, 0, NULL, 0), 0);
	assert_int_equal(kvr_stats(f->client, 0, &(struct kvr_metric){.value = 0}, 1), -ETIMEDOUT);
	/* All submitted are past their deadline by now as well. */
	for (count = 0; count < 8;)
		count += (uint32_t)kvr_poll(f->client, completions, 8);
	assert_int_equal(count, 8);
}

static void *release_soon(void *argument)
{
	const struct timespec pause = {0, 100000000};

	nanosleep(&pause, NULL);
	fake_set_script(argument, NULL, NULL);
	fake_release(argument);
	return NULL;
}

/* A call that waits finds no credit, waits for one, and leaves the completions to kvr_poll. */
static void test_wait_for_credit(void **state)
{
	struct fixture *f = *state;
	enum fake_action action = FAKE_HOLD;
	struct kvr_completion completions[4];
	uint64_t tickets[2];
	pthread_t thread;

	kvr_disconnect(f->client);
	fake_set_credits(f->fake, 2);
	fixture_connect(f, 5000);
	fake_set_script(f->fake, always, &action);
	assert_int_equal(kvr_recall_submit(f->client, &f->recall, &tickets[0]), 0);
	assert_int_equal(kvr_recall_submit(f->client, &f->recall, &tickets[1]), 0);
	assert_int_equal(kvr_recall_submit(f->client, &f->recall, &tickets[1]), -EAGAIN);
	assert_int_equal(pthread_create(&thread, NULL, release_soon, f->fake), 0);
	assert_int_equal(kvr_ping(f->client), 0);
	assert_true(readable(f, 1000));
	assert_int_equal(kvr_poll(f->client, completions, 1), 1);
	while (kvr_poll(f->client, completions, 1) == 0)
		assert_true(readable(f, 1000));
	assert_false(readable(f, 0));
	pthread_join(thread, NULL);
	assert_int_equal(fake_held_max(f->fake), 2);
}

/* Slots that were not polled do not keep a call from going through. */
static void test_unpolled(void **state)
{
	struct fixture *f = *state;
	struct kvr_completion completions[KVR_CREDITS_MAX];
	uint64_t ticket;
	uint32_t count = 0;

	for (uint32_t i = 0; i < KVR_CREDITS_MAX; i++) {
		int rc;

		while ((rc = kvr_append_submit(f->client, &f->append, &ticket)) == -EAGAIN)
			assert_int_equal(kvr_ping(f->client), 0);
		assert_int_equal(rc, 0);
		assert_int_equal(kvr_ping(f->client), 0);
	}
	assert_int_equal(kvr_append_submit(f->client, &f->append, &ticket), -EAGAIN);
	assert_int_equal(kvr_ping(f->client), 0);
	while (count < KVR_CREDITS_MAX) {
		assert_true(readable(f, 1000));
		count += (uint32_t)kvr_poll(f->client, completions, 10);
	}
	assert_int_equal(count, KVR_CREDITS_MAX);
	assert_false(readable(f, 0));
}

/* As an engine's event loop does it: a full pipe of recalls, driven by kvr_fd alone. */
static void test_event_loop(void **state)
{
	struct fixture *f = *state;
	const uint32_t total = 5000;
	struct kvr_completion completions[16];
	uint32_t submitted = 0, completed = 0;
	uint64_t ticket;

	while (completed < total) {
		int count;

		while (submitted < total && kvr_append_submit(f->client, &f->append, &ticket) == 0)
			submitted++;
		assert_true(readable(f, 5000));
		count = kvr_poll(f->client, completions, 16);
		assert_true(count >= 0);
		for (int i = 0; i < count; i++)
			assert_int_equal(completions[i].status, 0);
		completed += (uint32_t)count;
	}
	assert_int_equal(completed, submitted);
}

struct worker {
	struct fake *fake;
	uint32_t failures;
};

static void *work(void *argument)
{
	struct worker *worker = argument;
	struct kvr_client_config config = {.attach_path = fake_path(worker->fake),
		.region_bytes = 2u << 20,
		.timeout_ms = 5000};

	for (uint32_t round = 0; round < 5; round++) {
		struct kvr_client *client;

		if (kvr_connect(&config, &client) != 0) {
			worker->failures++;
			return NULL;
		}
		for (uint32_t i = 0; i < 200; i++)
			worker->failures += kvr_ping(client) != 0;
		kvr_disconnect(client);
	}
	return NULL;
}

/* Clients are independent of each other: two threads, each with its own, over and over. */
static void test_two_threads(void **state)
{
	struct fixture *f = *state;
	struct worker workers[2] = {{f->fake, 0}, {f->fake, 0}};
	pthread_t threads[2];

	for (uint32_t i = 0; i < 2; i++)
		assert_int_equal(pthread_create(&threads[i], NULL, work, &workers[i]), 0);
	for (uint32_t i = 0; i < 2; i++) {
		pthread_join(threads[i], NULL);
		assert_int_equal(workers[i].failures, 0);
	}
}

#define TEST(name)        cmocka_unit_test_setup_teardown(name, setup_long, teardown)
#define TEST_SHORT(name)  cmocka_unit_test_setup_teardown(name, setup_short, teardown)
#define TEST_MIDDLE(name) cmocka_unit_test_setup_teardown(name, setup_middle, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST_SHORT(test_timeout),
		TEST_MIDDLE(test_resend),
		TEST_MIDDLE(test_resend_submitted),
		TEST_SHORT(test_timeout_submitted),
		TEST(test_stray_replies),
		TEST(test_broken_reply),
		TEST_SHORT(test_late_reply),
		TEST(test_credits),
		TEST_MIDDLE(test_reply_bytes),
		TEST(test_wait_for_credit),
		TEST(test_unpolled),
		TEST(test_event_loop),
		TEST(test_two_threads),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
