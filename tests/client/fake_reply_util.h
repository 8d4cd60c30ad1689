/* SPDX-License-Identifier: Apache-2.0 */
/* fake_reply_util.h: a good reply to any request, for the fake daemon (fake_util.h). Nothing in it
 * is true. It sends nothing. */
#ifndef KVR_TESTS_CLIENT_FAKE_REPLY_UTIL_H
#define KVR_TESTS_CLIENT_FAKE_REPLY_UTIL_H

#include "tests/client/fake_util.h"

/* What the last reply points to, and how many sequences were given out. */
struct fake_arrays {
	uint64_t sequences;
	struct kvr_wire_recalled recalled[KVR_RECALL_ITEMS_MAX];
	struct kvr_wire_model models[FAKE_LIST_PAGE];
	struct kvr_wire_segment segments[FAKE_LIST_PAGE];
	struct kvr_wire_metric metrics[FAKE_LIST_PAGE];
};

void fake_reply_make(
	struct fake_arrays *arrays, const struct kvr_request *request, struct kvr_reply *ret_reply);

#endif
