/* SPDX-License-Identifier: Apache-2.0 */
/* crypt.h: the daemon's cryptography, all of it libsodium's: keyed BLAKE2b, random bytes, and a
 * comparison whose time does not depend on where two secrets differ. */
#ifndef KVR_DAEMON_CRYPT_H
#define KVR_DAEMON_CRYPT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/limits.h"

/* Call once, before anything else here. Returns 0, or -EIO if the system has no randomness. */
int kvr_crypt_init(void);

struct kvr_crypt_part {
	const void *data;
	size_t bytes;
};

/* BLAKE2b-256 over the parts one after the other; `key` is KVR_HASH_BYTES long, or NULL. */
void kvr_crypt_hash(const uint8_t *key, const struct kvr_crypt_part *parts, uint32_t part_count,
	uint8_t ret_hash[KVR_HASH_BYTES]);

void kvr_crypt_random(void *data, size_t bytes);

/* Reads exactly `bytes` bytes from hexadecimal digits; false if the text is something else. */
bool kvr_crypt_from_hex(const char *text, uint8_t *ret_data, size_t bytes);

bool kvr_crypt_equal(const void *one, const void *other, size_t bytes);

#endif
