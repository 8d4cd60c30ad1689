/* SPDX-License-Identifier: Apache-2.0 */
/* mapping.h: a fixed run of host memory with the largest pages the system grants.
 *
 * It maps and locks; what lies where in it is the arena's business (tiers/arena.h).
 *
 * Pages are tried in this order, and `pages` says what came of it:
 *   hugetlb      a memfd on reserved 2 MiB pages (vm.nr_hugepages); there from the start
 *   transparent  anonymous memory advised to be huge; taken from the system as it is first used
 *   small        the same with 4 KiB pages: O_DIRECT reads into it run at a third of the bandwidth
 *
 * Threads: open and close by one thread; the memory is anybody's. */
#ifndef KVR_TIERS_MAPPING_H
#define KVR_TIERS_MAPPING_H

#include <stddef.h>
#include <stdint.h>

#define KVR_MAPPING_ALIGNMENT ((size_t)2 << 20)

enum kvr_pages {
	KVR_PAGES_HUGETLB,
	KVR_PAGES_TRANSPARENT,
	KVR_PAGES_SMALL, /* worth a warning */
};

struct kvr_mapping {
	uint8_t *base;       /* aligned to KVR_MAPPING_ALIGNMENT; NULL: none */
	size_t bytes;        /* a multiple of KVR_MAPPING_ALIGNMENT */
	size_t locked_bytes; /* from the base on, as far as RLIMIT_MEMLOCK allows */
	enum kvr_pages pages;
};

/* Maps `bytes`, a multiple of KVR_MAPPING_ALIGNMENT; zeroed. Errors: -ENOMEM. */
int kvr_mapping_open(size_t bytes, struct kvr_mapping *ret_mapping);

/* Unmaps and clears. A cleared mapping is ignored. */
void kvr_mapping_close(struct kvr_mapping *mapping);

#endif
