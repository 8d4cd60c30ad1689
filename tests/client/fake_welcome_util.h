/* SPDX-License-Identifier: Apache-2.0 */
/* fake_welcome_util.h: the fake daemon's side of attaching: a region and a Welcome, good or bad. */
#ifndef KVR_TESTS_CLIENT_FAKE_WELCOME_UTIL_H
#define KVR_TESTS_CLIENT_FAKE_WELCOME_UTIL_H

#include "tests/client/fake_util.h"

/* Makes a region and sends `welcome` with it, spoilt as `fault` says. Returns the region's
 * descriptor; the caller owns it. `folder`: for a region that is an ordinary file. */
int fake_welcome_send(
	int fd, enum fake_welcome fault, struct kvr_welcome welcome, const char *folder);

#endif
