/* SPDX-License-Identifier: Apache-2.0 */
/* random_util.c: splitmix64 (Steele et al., OOPSLA 2014) and what is drawn from it. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <math.h>
#include <cmocka.h>

#include "tests/tiers/random_util.h"

#define SEED_DEFAULT   20231023u
#define CLUSTER_MEAN   16.0
#define CLUSTER_SHAPE  3
#define CLUSTER_TOKENS 80u

struct kvr_random kvr_random_start(void)
{
	const char *text = getenv("KVR_TEST_SEED");
	struct kvr_random random = {text ? strtoull(text, NULL, 0) : SEED_DEFAULT};

	print_message("KVR_TEST_SEED=%llu\n", (unsigned long long)random.state);
	return random;
}

uint64_t kvr_random_next(struct kvr_random *random)
{
	uint64_t z = random->state += 0x9e3779b97f4a7c15ull;

	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
	z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
	return z ^ (z >> 31);
}

uint32_t kvr_random_range(struct kvr_random *random, uint32_t first, uint32_t last)
{
	uint64_t count = (uint64_t)last - first + 1;

	return first + (uint32_t)(kvr_random_next(random) % count);
}

double kvr_random_unit(struct kvr_random *random)
{
	return (double)(kvr_random_next(random) >> 11) / 9007199254740992.0;
}

uint32_t kvr_random_cluster(struct kvr_random *random)
{
	double sum = 0.0;
	uint32_t tokens;

	for (int i = 0; i < CLUSTER_SHAPE; i++)
		sum -= log(1.0 - kvr_random_unit(random));
	tokens = 1 + (uint32_t)(sum * (CLUSTER_MEAN - 0.5) / CLUSTER_SHAPE);
	return tokens < CLUSTER_TOKENS ? tokens : CLUSTER_TOKENS;
}
