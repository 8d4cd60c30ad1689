/* SPDX-License-Identifier: Apache-2.0 */
/* cli_unit.c: numbers, sizes, times, hashes and layer lists, between text and memory.
 *
 * Knows units only by the words in a name, never a particular name.
 *
 * Threads: any; no state. */
#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "client/cli.h"

enum unit { UNIT_BYTES, UNIT_NS, UNIT_RATIO, UNIT_COUNT, UNIT_S, UNITS };

static const char *const unit_words[UNITS] = {"bytes", "ns", "ratio", "count", "s"};

/* Finds the last unit word of a name that stands behind an underscore (or is all of it). Returns
 * its number in unit_words, or -1; *ret_at and *ret_length say where. */
static int unit_find(const char *name, size_t *ret_at, size_t *ret_length)
{
	int found = -1;

	for (size_t at = 0; name[at];) {
		size_t length = strcspn(name + at, "_.");

		/* The s of "per_s" belongs to a rate. */
		for (int unit = 0; unit < UNITS; unit++)
			if (!(unit == UNIT_S && at >= 4 && !strncmp(name + at - 4, "per_", 4)) &&
				strlen(unit_words[unit]) == length &&
				!strncmp(name + at, unit_words[unit], length)) {
				found = unit;
				*ret_at = at;
				*ret_length = length;
			}
		at += length;
		if (name[at])
			at++;
	}
	return found;
}

static void format_scaled(double value, double step, const char *const *names, size_t name_count,
	char *into, size_t into_bytes)
{
	size_t index = 0;
	int decimals;

	/* 0.9995 steps round up to a whole step: "1.00 MiB", never "1024 KiB". */
	while (index + 1 < name_count && fabs(value) >= 0.9995 * step) {
		value /= step;
		index++;
	}
	decimals = index == 0 ? 0 : fabs(value) < 9.995 ? 2 : fabs(value) < 99.95 ? 1 : 0;
	snprintf(into, into_bytes, "%.*f %s", decimals, value, names[index]);
}

/* Times of two minutes and more in two units: "5 min 20 s", "3 d 4 h". */
static void format_time(double value, char *into, size_t into_bytes)
{
	static const char *const names[] = {"ns", "us", "ms", "s"};
	double minutes = value / 60e9;

	if (!(minutes >= 2))
		format_scaled(value, 1000, names, 4, into, into_bytes);
	else if (minutes < 120)
		snprintf(into, into_bytes, "%.0f min %.0f s", floor(minutes),
			floor(fmod(value / 1e9, 60)));
	else if (minutes < 48 * 60)
		snprintf(into, into_bytes, "%.0f h %.0f min", floor(minutes / 60),
			floor(fmod(minutes, 60)));
	else
		snprintf(into, into_bytes, "%.0f d %.0f h", floor(minutes / 1440),
			floor(fmod(minutes / 60, 24)));
}

static void format_plain(double value, char *into, size_t into_bytes)
{
	char digits[32];
	size_t length, at = 0;

	if (!isfinite(value) || fabs(value) >= 9e15 || value != floor(value)) {
		snprintf(into, into_bytes, "%.4g", value);
		return;
	}
	length = (size_t)snprintf(digits, sizeof(digits), "%.0f", fabs(value));
	if (value < 0 && at + 1 < into_bytes)
		into[at++] = '-';
	for (size_t i = 0; i < length && at + 2 < into_bytes; i++) {
		into[at++] = digits[i];
		if ((length - i - 1) % 3 == 0 && i + 1 < length)
			into[at++] = ',';
	}
	into[at] = 0;
}

void kvr_cli_format(const char *name, double value, char *into, size_t into_bytes)
{
	static const char *const sizes[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
	size_t at = 0, length = 0, used;
	int unit = unit_find(name, &at, &length);

	switch (unit) {
	case UNIT_BYTES: format_scaled(value, 1024, sizes, 6, into, into_bytes); break;
	case UNIT_NS: format_time(value, into, into_bytes); break;
	case UNIT_S: format_time(1e9 * value, into, into_bytes); break;
	case UNIT_RATIO: snprintf(into, into_bytes, "%.1f %%", 100 * value); break;
	default: format_plain(value, into, into_bytes); break;
	}
	used = strlen(into);
	length = strlen(name);
	if (length > 6 && !strcmp(name + length - 6, "_per_s"))
		snprintf(into + used, into_bytes - used, "/s");
}

void kvr_cli_label(const char *name, char *into, size_t into_bytes)
{
	size_t unit_at = 0, unit_length = 0, length = strlen(name), at = 0;
	int unit = unit_find(name, &unit_at, &unit_length);
	bool rate = length > 6 && !strcmp(name + length - 6, "_per_s");

	if (rate)
		length -= 6;
	for (size_t i = 0; i < length && at + 1 < into_bytes; i++) {
		/* The unit goes with the underscore in front of it, but never the whole name. */
		if (unit >= 0 && unit_at > 0 && i + 1 == unit_at) {
			i += unit_length;
			continue;
		}
		into[at++] = name[i] == '_' ? ' ' : name[i];
	}
	into[at] = 0;
	if (rate)
		snprintf(into + at, into_bytes - at, " rate");
}

int kvr_cli_bytes(const char *text, uint64_t *ret_bytes)
{
	static const char letters[] = "KMGT";
	unsigned long long value;
	const char *letter;
	char *end = NULL;
	unsigned shift = 0;

	if (text[0] < '0' || text[0] > '9')
		return -EINVAL;
	errno = 0;
	value = strtoull(text, &end, 10);
	if (errno)
		return -EINVAL;
	if (*end) {
		letter = strchr(letters, *end);
		if (!letter)
			return -EINVAL;
		shift = 10 * (unsigned)(letter - letters + 1);
		end++;
		if (!strcmp(end, "iB") || !strcmp(end, "B"))
			end += strlen(end);
	}
	if (*end || value > UINT64_MAX >> shift)
		return -EINVAL;
	*ret_bytes = (uint64_t)value << shift;
	return 0;
}

int kvr_cli_hex(const char *text, uint8_t ret_hash[32])
{
	size_t length = strlen(text);
	uint8_t hash[32] = {0};

	if (length < 1 || length > 64)
		return -EINVAL;
	for (size_t i = 0; i < length; i++) {
		static const char digits[] = "0123456789abcdef";
		int c = text[i] >= 'A' && text[i] <= 'F' ? text[i] + 32 : text[i];
		const char *digit = strchr(digits, c);

		if (!digit)
			return -EINVAL;
		hash[i / 2] = (uint8_t)(hash[i / 2] | (digit - digits) << (i % 2 ? 0 : 4));
	}
	memcpy(ret_hash, hash, sizeof(hash));
	return (int)length;
}

void kvr_cli_hash(const uint8_t *hash, size_t bytes, char *into)
{
	for (size_t i = 0; i < bytes; i++)
		snprintf(into + 2 * i, 3, "%02x", hash[i]);
}

int kvr_cli_lanes(
	const char *text, uint32_t layers, uint32_t kv_heads, uint32_t *ret_lanes, uint32_t max)
{
	uint32_t count = 0;
	const char *at = text;

	for (;;) {
		unsigned long first, last;
		char *end = NULL;

		if (*at < '0' || *at > '9')
			return -EINVAL;
		first = last = strtoul(at, &end, 10);
		if (*end == '-') {
			at = end + 1;
			if (*at < '0' || *at > '9')
				return -EINVAL;
			last = strtoul(at, &end, 10);
		}
		if (first > last || last >= layers || (last - first + 1) * kv_heads > max - count)
			return -EINVAL;
		for (unsigned long lane = first * kv_heads; lane < (last + 1) * kv_heads; lane++)
			ret_lanes[count++] = (uint32_t)lane;
		if (!*end)
			return (int)count;
		if (*end != ',')
			return -EINVAL;
		at = end + 1;
	}
}
