/* SPDX-License-Identifier: Apache-2.0 */
/* scratch_util.h: folders for stores of tests, which are large and must not stay, whatever becomes of the test.
 *
 * They lie in $KVR_TEST_DIR, or in /tmp. They go with harness_stop, else when the program ends, else (it was killed)
 * when the next one makes its first: the maker holds a lock on each while it lives. */
#ifndef KVR_TESTS_DAEMON_SCRATCH_H
#define KVR_TESTS_DAEMON_SCRATCH_H

#include <stddef.h>
#include <stdint.h>

/* Makes a folder, mode 0700, and writes its absolute path. */
void scratch_make(char *ret_path, size_t bytes);

/* Removes it with all that is in it. */
void scratch_remove(const char *path);

/* A folder that was made, and what is in it, is elsewhere now. */
void scratch_move(const char *from, char *ret_to, size_t bytes);

/* Copies the files of one folder, and of its folders, into another, over what is there of the same name. */
void scratch_copy(const char *from, const char *to);

/* Bytes that the blocks of all files in it, and of its folders, take. */
uint64_t scratch_blocks(const char *path);

/* Removes any folder with all that is in it. */
void scratch_remove_tree(const char *path);

#endif
