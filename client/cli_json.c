/* SPDX-License-Identifier: Apache-2.0 */
/* cli_json.c: JSON output; the only file that knows libjansson.
 *
 * Invariants:
 *   J1  stack[0] is the document, an object; stack[depth] is what calls add to.
 *   J2  Everything on the stack is owned by what lies below it; the document owns all.
 *
 * Threads: a document belongs to one thread. */
#include <errno.h>
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/assert.h"
#include "client/cli_json.h"

#define DEPTH_MAX 8

struct kvr_json {
	json_t *stack[DEPTH_MAX];
	unsigned depth;
	unsigned lost; /* containers that could not be made: their content is dropped */
	bool failed;
};

struct kvr_json *kvr_json_open(void)
{
	struct kvr_json *json = calloc(1, sizeof(*json));

	if (!json)
		return NULL;
	json->stack[0] = json_object();
	json->failed = !json->stack[0];
	return json;
}

struct kvr_json *kvr_json_close(struct kvr_json *json)
{
	if (!json)
		return NULL;
	json_decref(json->stack[0]); /* J2 */
	free(json);
	return NULL;
}

/* Takes `value`. */
static bool add(struct kvr_json *json, const char *key, json_t *value)
{
	json_t *to = json->stack[json->depth];

	KVR_ASSERT(json->failed || json_is_array(to) == (key == NULL));
	if (json->failed || json->lost || !value ||
		(key ? json_object_set_new(to, key, value) : json_array_append_new(to, value))) {
		if (json->failed || json->lost)
			json_decref(value);
		json->failed = true;
		return false;
	}
	return true;
}

static void enter(struct kvr_json *json, const char *key, json_t *container)
{
	if (!add(json, key, container)) {
		json->lost++;
		return;
	}
	KVR_ASSERT(json->depth + 1 < DEPTH_MAX);
	json->stack[++json->depth] = container; /* J1 */
}

void kvr_json_object(struct kvr_json *json, const char *key)
{
	if (json)
		enter(json, key, json_object());
}

void kvr_json_array(struct kvr_json *json, const char *key)
{
	if (json)
		enter(json, key, json_array());
}

void kvr_json_end(struct kvr_json *json)
{
	if (!json)
		return;
	if (json->lost) {
		json->lost--;
		return;
	}
	KVR_ASSERT(json->depth > 0);
	json->depth--;
}

void kvr_json_number(struct kvr_json *json, const char *key, double value)
{
	if (!json)
		return;
	if (!isfinite(value))
		add(json, key, json_null());
	else if (value == floor(value) && fabs(value) < 9007199254740992.0)
		add(json, key, json_integer((json_int_t)value));
	else
		add(json, key, json_real(value));
}

void kvr_json_text(struct kvr_json *json, const char *key, const char *value)
{
	json_t *text;
	char *plain;

	if (!json)
		return;
	text = json_string(value);
	if (!text) {
		plain = strdup(value);
		for (char *c = plain; c && *c; c++)
			if ((unsigned char)*c > 127)
				*c = '?';
		text = plain ? json_string(plain) : NULL;
		free(plain);
	}
	add(json, key, text);
}

int kvr_json_print(const struct kvr_json *json, FILE *file)
{
	size_t flags = isatty(fileno(file)) ? JSON_INDENT(2) : JSON_COMPACT;

	if (!json || json->failed)
		return -ENOMEM;
	KVR_ASSERT(json->depth == 0);
	if (json_dumpf(json->stack[0], file, flags | JSON_REAL_PRECISION(10)) ||
		fputc('\n', file) == EOF || fflush(file))
		return -EIO;
	return 0;
}
