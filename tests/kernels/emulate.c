/* SPDX-License-Identifier: Apache-2.0 */
/* Goal: kernels/cuda/emulate.h runs a right kernel rightly in every order, and catches each mistake that it says
 * it catches: a missing barrier, a write beyond an array, threads that do not meet. So a test of the
 * CUDA sources that passes means something.
 *
 * Method: one kernel (planted_util.cu) with a mistake planted on request. Mistakes of order must give other bits
 * in one of the orders, faults must be told, and what is AddressSanitizer's must end a child with its
 * report, or, without it, be a fault. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

#include "tests/kernels/cuda_util.h"
#include "tests/kernels/planted_util.h"

#if defined(__has_feature)
#define WITH_ADDRESS   __has_feature(address_sanitizer)
#define WITH_UNDEFINED __has_feature(undefined_behavior_sanitizer)
#else
#if defined(__SANITIZE_ADDRESS__)
#define WITH_ADDRESS 1
#else
#define WITH_ADDRESS 0
#endif
#define WITH_UNDEFINED 0 /* gcc 12 does not say */
#endif

#define COUNT   (PLANTED_BLOCKS * PLANTED_THREADS)
#define FAULTED 7 /* how a child ends whose launch was a fault */

static uint32_t in[COUNT], counter;

struct launch {
	enum planted mistake;
	uint32_t *out;
};

static int setup(void **state)
{
	(void)state;
	for (uint32_t i = 0; i < COUNT; i++)
		in[i] = i * 2654435761u;
	counter = 0;
	return 0;
}

static int run(const void *owner)
{
	const struct launch *launch = owner;

	return planted_launch(launch->mistake, in, launch->out, &counter);
}

/* What the kernel says it computes, in plain words. */
static void expect(uint32_t *out)
{
	for (uint32_t block = 0; block < PLANTED_BLOCKS; block++) {
		const uint32_t *from = in + (size_t)block * PLANTED_THREADS;
		uint32_t *to = out + (size_t)block * PLANTED_THREADS, sum = 0;

		for (uint32_t i = 0; i < PLANTED_THREADS; i++) {
			to[i] = from[PLANTED_THREADS - 1 - i] + from[PLANTED_THREADS - 1 - (i ^ 1)];
			sum += to[i];
		}
		for (uint32_t i = 0; i < PLANTED_THREADS; i++)
			to[i] += sum;
	}
}

static void test_right(void **state)
{
	uint32_t right[COUNT];
	struct oracle_guard out;
	const struct oracle_guard *outputs[] = {&out};

	(void)state;
	expect(right);
	oracle_guard_open(&out, sizeof(right), 0);
	cuda_run(run, &(struct launch){PLANTED_NOTHING, (uint32_t *)(void *)out.data}, outputs, 1);
	assert_memory_equal(out.data, right, sizeof(right));
	assert_int_equal(counter, 0);
	oracle_guard_close(&out);
}

/* At least one order gives other bits than the kernel without the mistake. */
static void test_orders(void **state)
{
	uint32_t right[COUNT], out[COUNT];

	(void)state;
	expect(right);
	for (enum planted m = PLANTED_NO_BARRIER_BEFORE_READ; m <= PLANTED_BLOCKS_RACE; m++) {
		bool caught = false;

		for (uint32_t order = 0; order < KVR_EMULATE_ORDERS; order++) {
			uint32_t before[COUNT];

			memcpy(before, out, sizeof(before));
			kvr_emulate_begin((enum kvr_emulate_order)order, order + 1);
			memset(out, CUDA_UNTOUCHED, sizeof(out));
			assert_int_equal(planted_launch(m, in, out, &counter), 0);
			if (order > 0)
				caught = caught || memcmp(before, out, sizeof(out)) != 0;
		}
		if (!caught)
			print_error("mistake %d went unnoticed\n", (int)m);
		assert_true(caught);
	}
}

static void test_faults(void **state)
{
	static const char *const words[] = {
		[PLANTED_BARRIER_MISSED] = "is at the barrier",
		[PLANTED_BARRIER_RETURNED] = "only 95 of 96 threads came",
		[PLANTED_BARRIERS_CROSSED] = "is at the barrier",
		[PLANTED_LANE_MISSING] = "for other lanes",
		[PLANTED_LANE_OUTSIDE] = "which the mask",
		[PLANTED_LANE_WRONG_MASK] = "gives the mask",
		[PLANTED_SHARED_TOO_LARGE] = "of shared memory",
		[PLANTED_BLOCK_TOO_LARGE] = "no device takes it",
	};
	uint32_t out[COUNT];

	(void)state;
	for (enum planted m = PLANTED_BARRIER_MISSED; m <= PLANTED_BLOCK_TOO_LARGE; m++) {
		for (uint32_t order = 0; order < KVR_EMULATE_ORDERS; order++) {
			kvr_emulate_begin((enum kvr_emulate_order)order, order + 1);
			assert_null(kvr_emulate_fault());
			assert_int_equal(planted_launch(m, in, out, &counter), -EIO);
			assert_non_null(kvr_emulate_fault());
			assert_non_null(strstr(kvr_emulate_fault(), words[m]));
			/* It stays until the next begin. */
			assert_int_equal(planted_launch(PLANTED_NOTHING, in, out, &counter), -EIO);
		}
	}
	counter = 0; /* faulty launches leave it anywhere */
	test_right(state);
}

/* Launches in a child; returns how that ended, and the start of what it said. */
static int launch_in_child(enum planted mistake, char *ret_said, size_t said_bytes)
{
	size_t at = 0;
	int said[2], status;
	ssize_t count;
	pid_t child;

	assert_int_equal(pipe(said), 0);
	child = fork();
	assert_true(child >= 0);
	if (child == 0) {
		static uint32_t out[COUNT];

		dup2(said[1], STDERR_FILENO);
		kvr_emulate_begin(KVR_EMULATE_RISING, 1);
		_exit(planted_launch(mistake, in, out, &counter) ? FAULTED : 0);
	}
	close(said[1]);
	while ((count = read(said[0], ret_said + at, said_bytes - 1 - at)) > 0)
		at += (size_t)count;
	ret_said[at] = '\0';
	close(said[0]);
	assert_int_equal(waitpid(child, &status, 0), child);
	return status;
}

static void test_bounds(void **state)
{
	static char said[1u << 20];

	(void)state;
	for (enum planted m = PLANTED_WRITE_BEHIND; m <= PLANTED_READ_BEHIND; m++) {
		const int status = launch_in_child(m, said, sizeof(said));

		if (WITH_ADDRESS) {
			assert_true(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
			assert_true(!WIFEXITED(status) || WEXITSTATUS(status) != FAULTED);
			assert_non_null(strstr(said, "AddressSanitizer"));
			assert_non_null(strstr(said, "planted_util.cu"));
		} else if (m != PLANTED_READ_BEHIND) {
			assert_true(WIFEXITED(status));
			assert_int_equal(WEXITSTATUS(status), FAULTED);
		}
	}
}

/* 16 bytes from where only 4 are aligned: a fault on a GPU. */
static void test_alignment(void **state)
{
	static char said[1u << 20];
	int status;

	(void)state;
	if (!WITH_UNDEFINED) {
		print_message("skipped: only clang's UndefinedBehaviorSanitizer sees this\n");
		skip();
	}
	status = launch_in_child(PLANTED_MISALIGNED, said, sizeof(said));
	assert_true(!WIFEXITED(status) || WEXITSTATUS(status) != 0);
	assert_non_null(strstr(said, "misaligned"));
}

int main(void)
{
	/* Those that fork come first: ThreadSanitizer counts fibers as threads, and after the fork of a process
	 * that has threads it no longer knows who waits for whom. */
	const struct CMUnitTest tests[] = {
		cmocka_unit_test_setup(test_bounds, setup),
		cmocka_unit_test_setup(test_alignment, setup),
		cmocka_unit_test_setup(test_right, setup),
		cmocka_unit_test_setup(test_orders, setup),
		cmocka_unit_test_setup(test_faults, setup),
	};

	return cmocka_run_group_tests(tests, NULL, NULL);
}
