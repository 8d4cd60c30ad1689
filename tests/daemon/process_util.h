/* SPDX-License-Identifier: Apache-2.0 */
/* process_util.h: other processes: programs that are run to their end, and parts that this test
 * program plays itself in a process of its own, to be killed or waited for.
 *
 * A part is a function with a name. main() hands its arguments to process_part before it runs any
 * test: a child is this program again, with the part's name as its first argument. */
#ifndef KVR_TESTS_DAEMON_PROCESS_H
#define KVR_TESTS_DAEMON_PROCESS_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Sanitizers make everything slower: counts of rounds are divided by this. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define PROCESS_SLOW 10u
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define PROCESS_SLOW 10u
#endif
#endif
#ifndef PROCESS_SLOW
#define PROCESS_SLOW 1u
#endif

struct process_part {
	const char *name;
	int (*play)(const char *socket, uint32_t number); /* returns the exit code */
};

/* Plays the part that the arguments name and exits; returns if they name none. `parts` ends with an
 * entry without a name. Whatever a part does, it ends after two minutes. */
void process_part(int argc, char **argv, const struct process_part *parts);

/* Starts a part as a child that dies with this process. */
pid_t process_start(const char *name, const char *socket, uint32_t number);

/* Waits until the child ends and returns its exit code, or minus the signal that ended it. Fails the
 * test, and kills the child, after `timeout_ms`. */
int process_wait(pid_t pid, uint32_t timeout_ms);

/* SIGKILL, and waits. */
void process_kill(pid_t pid);

/* Runs a program built beside the tests to its end, at most a minute, with arguments (NULL-terminated).
 * Returns its exit code; what it wrote to both outputs is in `ret_output`, cut to `bytes`. */
int process_run(const char *name, const char *const *arguments, char *ret_output, size_t bytes);

/* Uniform in first .. last; process_seed is printed by process_seed_print and may be set. */
extern uint64_t process_seed;
uint32_t process_random(uint32_t first, uint32_t last);

/* Takes the seed from KVR_TEST_SEED, else from the clock, and prints it. */
void process_seed_print(void);

void process_sleep_us(uint32_t us);

#endif
