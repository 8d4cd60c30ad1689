/* SPDX-License-Identifier: Apache-2.0 */
/* session.c: attaching, being refused, losing the daemon, attaching again.
 *
 * Goal: every way in which attaching can go wrong gives a clear error within the deadline and
 * leaves nothing behind; a daemon's end is noticed at once; the next daemon is found by itself,
 * the region stays at its address, and old sequences are known to be gone.
 * Method: a scripted daemon that gives bad welcomes, hangs up, dies and comes back; descriptors and
 * mappings of the process are counted. */
#include <dirent.h>
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include <cmocka.h>

#include "base/clock.h"
#include "tests/client/fake_util.h"

#define NS_PER_MS UINT64_C(1000000)

static int setup(void **state)
{
	*state = fake_open();
	return 0;
}

static int teardown(void **state)
{
	fake_close(*state);
	return 0;
}

static struct kvr_client *connect_to(struct fake *fake, uint32_t timeout_ms)
{
	struct kvr_client_config config = {
		.attach_path = fake_path(fake), .region_bytes = 2u << 20, .timeout_ms = timeout_ms};
	struct kvr_client *client = NULL;

	assert_int_equal(kvr_connect(&config, &client), 0);
	return client;
}

static struct kvr_model *register_model(struct kvr_client *client)
{
	struct kvr_model_config config = {.name = "test",
		.layers = 1,
		.query_heads = 1,
		.kv_heads = 1,
		.key_dim = 8,
		.value_dim = 8,
		.type = KVR_F32,
		.sink_tokens = -1};
	struct kvr_model *model = NULL;

	assert_int_equal(kvr_model_register(client, &config, &model), 0);
	return model;
}

static uint64_t elapsed_ms(uint64_t since_ns)
{
	return (kvr_clock_ns() - since_ns) / NS_PER_MS;
}

static void sleep_ms(long ms)
{
	const struct timespec time = {ms / 1000, ms % 1000 * 1000000};

	nanosleep(&time, NULL);
}

static uint32_t count_fds(void)
{
	DIR *dir = opendir("/proc/self/fd");
	uint32_t count = 0;

	assert_non_null(dir);
	while (readdir(dir))
		count++;
	closedir(dir);
	return count;
}

static uint32_t count_mappings(void)
{
	FILE *file = fopen("/proc/self/maps", "r");
	uint32_t count = 0;
	char line[512];

	assert_non_null(file);
	while (fgets(line, sizeof(line), file))
		count += strstr(line, "memfd:fake") != NULL;
	fclose(file);
	return count;
}

static void test_no_daemon(void **state)
{
	struct fake *fake = *state;
	struct kvr_client_config config = {.attach_path = "/nonexistent/attach.sock"};
	struct kvr_client *client = NULL;
	char path[200];
	uint64_t start = kvr_clock_ns();

	assert_int_equal(kvr_connect(&config, &client), -ENOENT);
	config.attach_path = fake_path(fake);
	fake_kill(fake);
	assert_int_equal(kvr_connect(&config, &client), -ECONNREFUSED);
	assert_true(elapsed_ms(start) < 2000);
	memset(path, 'a', sizeof(path));
	path[sizeof(path) - 1] = '\0';
	config.attach_path = path;
	assert_int_equal(kvr_connect(&config, &client), -ENAMETOOLONG);
	config.attach_path = fake_path(fake);
	config.region_bytes = KVR_REGION_BYTES_MAX + 1;
	assert_int_equal(kvr_connect(&config, &client), -EINVAL);
	config.region_bytes = 0;
	config.timeout_ms = KVR_DEADLINE_MS_MAX + 1;
	assert_int_equal(kvr_connect(&config, &client), -EINVAL);
	assert_null(client);
}

static void test_environment(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = NULL;
	size_t bytes;

	setenv("KVRECALL_SOCKET", fake_path(fake), 1);
	assert_int_equal(kvr_connect(NULL, &client), 0);
	unsetenv("KVRECALL_SOCKET");
	assert_non_null(kvr_region(client, &bytes));
	assert_int_equal(bytes, 64u << 20);
	kvr_disconnect(client);
}

/* Each bad welcome has its errno, ends in time and leaves no descriptor and no mapping. */
static void test_bad_welcomes(void **state)
{
	static const struct {
		enum fake_welcome welcome;
		int rc;
	} cases[] = {
		{FAKE_WELCOME_NO_FD, -EPROTO},
		{FAKE_WELCOME_TWO_FDS, -EPROTO},
		{FAKE_WELCOME_UNSEALED, -EPROTO},
		{FAKE_WELCOME_NOT_MEMFD, -EPROTO},
		{FAKE_WELCOME_SHORT_FD, -EPROTO},
		{FAKE_WELCOME_WRONG_SIZE, -EPROTO},
		{FAKE_WELCOME_WRONG_VERSION, -EPROTO},
		{FAKE_WELCOME_NO_CREDITS, -EPROTO},
		{FAKE_WELCOME_BAD_URL, -EINVAL},
		{FAKE_WELCOME_DEAD_URL, -ETIMEDOUT},
		{FAKE_WELCOME_GARBAGE, -EPROTO},
		{FAKE_WELCOME_HUGE, -EPROTO},
		{FAKE_WELCOME_SILENT, -ETIMEDOUT},
		{FAKE_WELCOME_CLOSED, -ECONNREFUSED},
		{FAKE_WELCOME_REFUSED, -EACCES},
	};
	struct fake *fake = *state;
	struct kvr_client_config config = {
		.attach_path = fake_path(fake), .region_bytes = 4096, .timeout_ms = 300};
	struct kvr_client *client = NULL;
	uint32_t fds;

	/* The fake keeps one region; nanomsg's worker keeps its descriptors. */
	kvr_disconnect(connect_to(fake, 1000));
	fds = count_fds();
	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
		uint64_t start = kvr_clock_ns();
		int rc;

		fake_set_welcome(fake, cases[i].welcome);
		rc = kvr_connect(&config, &client);
		if (rc != cases[i].rc)
			fail_msg("welcome %d: %d, not %d", (int)cases[i].welcome, rc, cases[i].rc);
		assert_null(client);
		assert_in_range(elapsed_ms(start), 0, 1500);
		for (int tries = 0; fake_attached(fake) && tries < 200; tries++)
			sleep_ms(10);
		assert_int_equal(fake_attached(fake), 0);
		assert_int_equal(count_mappings(), 0);
	}
	assert_in_range(count_fds(), 0, fds);
	fake_set_welcome(fake, FAKE_WELCOME_GOOD);
	client = connect_to(fake, 1000);
	assert_int_equal(kvr_ping(client), 0);
	kvr_disconnect(client);
}

/* Sessions come and go without leaving anything. */
static void test_many_sessions(void **state)
{
	struct fake *fake = *state;
	uint32_t fds;

	kvr_disconnect(connect_to(fake, 1000));
	fds = count_fds();
	for (uint32_t i = 0; i < 50; i++) {
		struct kvr_client *client = connect_to(fake, 2000);
		struct kvr_sequence *sequence;
		uint32_t matched;

		assert_int_equal(kvr_open(register_model(client), NULL, 0, &sequence, &matched), 0);
		kvr_disconnect(client);
	}
	for (int tries = 0; fake_attached(fake) && tries < 200; tries++)
		sleep_ms(10);
	assert_in_range(count_fds(), 0, fds);
	assert_int_equal(count_mappings(), 0);
}

static enum fake_action hold_recalls(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	(void)fake;
	(void)reply;
	(void)cookie;
	return request->kind == KVR_REQUEST_SYNC || request->kind == KVR_REQUEST_APPEND
		       ? FAKE_HOLD
		       : FAKE_REPLY;
}

static void *hang_up_soon(void *argument)
{
	sleep_ms(100);
	fake_hang_up(argument);
	return NULL;
}

/* The attach socket's end fails the call that waits and those submitted, at once. */
static void test_lost_at_once(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = connect_to(fake, 10000);
	struct kvr_model *model = register_model(client);
	uint8_t *region = kvr_region(client, NULL);
	struct kvr_append_layer layer = {0, region, region};
	struct kvr_append append = {NULL, 0, 1, NULL, &layer, 1};
	struct kvr_completion completion[2] = {{0}};
	struct kvr_sequence *sequence;
	struct pollfd on = {.fd = kvr_fd(client), .events = POLLIN};
	pthread_t thread;
	uint64_t start, ticket = 0;
	uint32_t matched;

	assert_int_equal(kvr_open(model, NULL, 0, &sequence, &matched), 0);
	append.sequence = sequence;
	fake_set_script(fake, hold_recalls, NULL);
	assert_int_equal(kvr_append_submit(client, &append, &ticket), 0);
	start = kvr_clock_ns();
	assert_int_equal(pthread_create(&thread, NULL, hang_up_soon, fake), 0);
	assert_int_equal(kvr_sync(sequence, false, NULL), -ECONNRESET);
	assert_in_range(elapsed_ms(start), 90, 2000);
	assert_int_equal(kvr_error(client)->code, KVR_CODE_LOST);
	assert_string_equal(kvr_error(client)->name, "LOST");
	pthread_join(thread, NULL);
	/* The submitted one is done too, and kvr_fd says so. */
	assert_int_equal(poll(&on, 1, 0), 1);
	assert_int_equal(kvr_poll(client, completion, 2), 1);
	assert_int_equal(completion[0].ticket, ticket);
	assert_int_equal(completion[0].status, -ECONNRESET);
	assert_int_equal(kvr_poll(client, completion, 2), 0);
	assert_int_equal(poll(&on, 1, 0), 0);
	assert_int_equal(kvr_append_submit(client, &append, &ticket), -ESTALE);
	kvr_disconnect(client);
}

/* An idle event loop learns of the end through kvr_fd. */
static void test_lost_in_event_loop(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = connect_to(fake, 10000);
	uint8_t *region = kvr_region(client, NULL);
	struct kvr_append_layer layer = {0, region, region};
	struct kvr_append append = {NULL, 0, 1, NULL, &layer, 1};
	struct kvr_completion completion;
	struct kvr_sequence *sequence;
	struct pollfd on = {.fd = kvr_fd(client), .events = POLLIN};
	uint64_t ticket = 0;
	uint32_t matched;

	assert_int_equal(kvr_open(register_model(client), NULL, 0, &sequence, &matched), 0);
	append.sequence = sequence;
	fake_set_script(fake, hold_recalls, NULL);
	assert_int_equal(kvr_append_submit(client, &append, &ticket), 0);
	assert_int_equal(poll(&on, 1, 50), 0);
	fake_hang_up(fake);
	assert_int_equal(poll(&on, 1, 2000), 1);
	assert_int_equal(kvr_poll(client, &completion, 1), 1);
	assert_int_equal(completion.status, -ECONNRESET);
	kvr_disconnect(client);
}

static void test_attach_again(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = connect_to(fake, 5000);
	struct kvr_model *model = register_model(client);
	size_t bytes, bytes_after;
	uint8_t *region = kvr_region(client, &bytes);
	struct kvr_append_layer layer = {0, region, region};
	struct kvr_append append = {NULL, 0, 1, NULL, &layer, 1};
	struct kvr_sequence *old, *fresh;
	struct fake_seen seen;
	int fd = kvr_fd(client);
	uint32_t matched;

	assert_int_equal(kvr_open(model, NULL, 0, &old, &matched), 0);
	append.sequence = old;
	memset(region, 0xee, bytes);
	fake_kill(fake);
	/* Gone, but what the engine holds is still there. */
	assert_int_equal(kvr_append(client, &append, NULL), -ESTALE);
	assert_string_equal(kvr_error(client)->name, "LIBRARY");
	assert_int_equal(region[bytes - 1], 0xee);
	fake_start(fake);
	assert_int_equal(kvr_ping(client), 0);
	assert_int_equal(kvr_generation(client), 2);
	assert_ptr_equal(kvr_region(client, &bytes_after), region);
	assert_int_equal(bytes_after, bytes);
	for (size_t i = 0; i < bytes; i++)
		assert_int_equal(region[i], 0);
	assert_int_equal(kvr_fd(client), fd);
	/* Old sequences are known to be gone; the model is registered again when it is needed. */
	assert_int_equal(kvr_append(client, &append, NULL), -ESTALE);
	assert_int_equal(kvr_fork(old, &fresh, &matched), -ESTALE);
	assert_int_equal(kvr_sync(old, false, NULL), -ESTALE);
	assert_int_equal(kvr_close(old, false), -ESTALE);
	(void)fake_seen(fake, KVR_REQUEST_MODEL_REGISTER, &seen);
	assert_int_equal(kvr_open(model, NULL, 0, &fresh, &matched), 0);
	assert_true(fake_seen(fake, KVR_REQUEST_MODEL_REGISTER, &seen));
	assert_string_equal(seen.request.model_register.name, "test");
	append.sequence = fresh;
	assert_int_equal(kvr_append(client, &append, NULL), 0);
	kvr_disconnect(client);
}

static void *start_soon(void *argument)
{
	sleep_ms(300);
	fake_start(argument);
	return NULL;
}

/* A call waits for the daemon to come back, within its deadline. */
static void test_wait_for_daemon(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = connect_to(fake, 400);
	uint64_t start;
	pthread_t thread;

	fake_kill(fake);
	start = kvr_clock_ns();
	assert_int_equal(kvr_ping(client), -ENOTCONN);
	assert_in_range(elapsed_ms(start), 390, 1000);
	assert_int_equal(kvr_generation(client), 1);
	assert_int_equal(pthread_create(&thread, NULL, start_soon, fake), 0);
	start = kvr_clock_ns();
	while (kvr_ping(client) != 0)
		assert_true(elapsed_ms(start) < 5000);
	assert_in_range(elapsed_ms(start), 250, 2000);
	assert_int_equal(kvr_generation(client), 2);
	pthread_join(thread, NULL);
	kvr_disconnect(client);
}

/* Token ids that lay in a region which was renewed meanwhile are not sent as zeroes. */
static void test_tokens_renewed(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = connect_to(fake, 3000);
	struct kvr_model *model = register_model(client);
	uint32_t *tokens = kvr_region(client, NULL);
	struct kvr_sequence *sequence = NULL;
	uint32_t matched;

	tokens[0] = 77;
	fake_kill(fake);
	fake_start(fake);
	assert_int_equal(kvr_open(model, tokens, 1, &sequence, &matched), -ECONNRESET);
	assert_null(sequence);
	tokens[0] = 77;
	assert_int_equal(kvr_open(model, tokens, 1, &sequence, &matched), 0);
	kvr_disconnect(client);
}

static enum fake_action forget_session(
	struct fake *fake, const struct kvr_request *request, struct kvr_reply *reply, void *cookie)
{
	(void)fake;
	(void)cookie;
	if (request->session == 1)
		reply->code = KVR_CODE_SESSION;
	return FAKE_REPLY;
}

/* A daemon that does not know the session any more: the next call begins another. */
static void test_session_refused(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = connect_to(fake, 3000);

	fake_set_script(fake, forget_session, NULL);
	assert_int_equal(kvr_ping(client), -ESTALE);
	assert_int_equal(kvr_error(client)->code, KVR_CODE_SESSION);
	assert_int_equal(kvr_ping(client), 0);
	assert_int_equal(kvr_generation(client), 2);
	kvr_disconnect(client);
}

/* A refusal on the way back is told with its code, and the client stays usable. */
static void test_refused_again(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = connect_to(fake, 1000);

	fake_set_welcome(fake, FAKE_WELCOME_REFUSED);
	fake_hang_up(fake);
	for (int tries = 0; fake_attached(fake) && tries < 200; tries++)
		sleep_ms(5);
	assert_int_equal(kvr_ping(client), -EACCES);
	assert_int_equal(kvr_error(client)->code, KVR_CODE_DENIED);
	assert_string_equal(kvr_error(client)->subject, "uid 4711");
	fake_set_welcome(fake, FAKE_WELCOME_GOOD);
	assert_int_equal(kvr_ping(client), 0);
	kvr_disconnect(client);
}

/* Leaving with requests out. */
static void test_disconnect_busy(void **state)
{
	struct fake *fake = *state;
	struct kvr_client *client = connect_to(fake, 10000);
	uint8_t *region = kvr_region(client, NULL);
	struct kvr_append_layer layer = {0, region, region};
	struct kvr_append append = {NULL, 0, 1, NULL, &layer, 1};
	struct kvr_sequence *sequence;
	uint64_t ticket, start;
	uint32_t matched;

	assert_int_equal(kvr_open(register_model(client), NULL, 0, &sequence, &matched), 0);
	append.sequence = sequence;
	fake_set_script(fake, hold_recalls, NULL);
	for (uint32_t i = 0; i < KVR_CREDITS_MAX; i++)
		assert_int_equal(kvr_append_submit(client, &append, &ticket), 0);
	start = kvr_clock_ns();
	assert_null(kvr_disconnect(client));
	assert_true(elapsed_ms(start) < 1000);
	for (int tries = 0; fake_attached(fake) && tries < 200; tries++)
		sleep_ms(5);
	assert_int_equal(fake_attached(fake), 0);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
	const struct CMUnitTest tests[] = {
		TEST(test_no_daemon),
		TEST(test_environment),
		TEST(test_bad_welcomes),
		TEST(test_many_sessions),
		TEST(test_lost_at_once),
		TEST(test_lost_in_event_loop),
		TEST(test_attach_again),
		TEST(test_wait_for_daemon),
		TEST(test_tokens_renewed),
		TEST(test_session_refused),
		TEST(test_refused_again),
		TEST(test_disconnect_busy),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
