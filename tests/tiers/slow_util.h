/* SPDX-License-Identifier: Apache-2.0 */
/* slow_util.h: under which sanitizer a test was built, for counts of rounds.
 *
 * AddressSanitizer makes what takes much memory or forks slow, ThreadSanitizer everything. In a test of one thread the
 * second finds nothing that the first and the plain build do not: a few rounds show that it runs. */
#ifndef KVR_TESTS_TIERS_SLOW_H
#define KVR_TESTS_TIERS_SLOW_H

#if defined(__has_feature)
#define KVR_SLOW_HAS(name) __has_feature(name)
#else
#define KVR_SLOW_HAS(name) 0
#endif

#if defined(__SANITIZE_THREAD__) || KVR_SLOW_HAS(thread_sanitizer)
#define KVR_SLOW_THREAD 1
#else
#define KVR_SLOW_THREAD 0
#endif

#if defined(__SANITIZE_ADDRESS__) || KVR_SLOW_HAS(address_sanitizer)
#define KVR_SLOW_ADDRESS 1
#else
#define KVR_SLOW_ADDRESS 0
#endif

#endif
