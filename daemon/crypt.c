/* SPDX-License-Identifier: Apache-2.0 */
/* crypt.c: the one file that includes libsodium. */
#include "daemon/crypt.h"

#include <errno.h>
#include <sodium.h>
#include <string.h>

#include "base/assert.h"

KVR_STATIC_ASSERT(KVR_HASH_BYTES >= crypto_generichash_BYTES_MIN);
KVR_STATIC_ASSERT(KVR_HASH_BYTES <= crypto_generichash_KEYBYTES_MAX);

int kvr_crypt_init(void)
{
	return sodium_init() < 0 ? -EIO : 0;
}

void kvr_crypt_hash(const uint8_t *key, const struct kvr_crypt_part *parts, uint32_t part_count,
	uint8_t ret_hash[KVR_HASH_BYTES])
{
	crypto_generichash_state state;
	int rc = crypto_generichash_init(&state, key, key ? KVR_HASH_BYTES : 0, KVR_HASH_BYTES);

	KVR_ASSERT(rc == 0);
	for (uint32_t i = 0; i < part_count; i++)
		crypto_generichash_update(&state, parts[i].data, parts[i].bytes);
	rc = crypto_generichash_final(&state, ret_hash, KVR_HASH_BYTES);
	KVR_ASSERT(rc == 0);
}

void kvr_crypt_random(void *data, size_t bytes)
{
	randombytes_buf(data, bytes);
}

bool kvr_crypt_from_hex(const char *text, uint8_t *ret_data, size_t bytes)
{
	size_t got;
	const char *end;

	return sodium_hex2bin(ret_data, bytes, text, strlen(text), NULL, &got, &end) == 0 &&
	       got == bytes && *end == 0;
}

bool kvr_crypt_equal(const void *one, const void *other, size_t bytes)
{
	return sodium_memcmp(one, other, bytes) == 0;
}
