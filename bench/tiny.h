/* SPDX-License-Identifier: Apache-2.0 */
/* tiny.h: how large a bench is: as its figures need it, or so small that it only shows that it runs.
 *
 * Under a sanitizer (KVR_BENCH_TINY, set by the Makefile) benches are tiny: `make check` starts each of them once so. Their
 * figures mean nothing then. */
#ifndef KVR_BENCH_TINY_H
#define KVR_BENCH_TINY_H

#ifdef KVR_BENCH_TINY
#define BENCH_SIZE(full, tiny) (tiny)
#else
#define BENCH_SIZE(full, tiny) (full)
#endif

#endif
