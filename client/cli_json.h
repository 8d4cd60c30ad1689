/* SPDX-License-Identifier: Apache-2.0 */
/* cli_json.h: builds one JSON document, step by step. The library behind it stays behind it.
 *
 * A document is an object. Inside an object every call names a key; inside an array the key is
 * NULL. Memory that runs out is remembered: kvr_json_print then fails, the calls in between do not.
 *
 * Threads: a document belongs to one thread. */
#ifndef KVR_CLIENT_CLI_JSON_H
#define KVR_CLIENT_CLI_JSON_H

#include <stdbool.h>
#include <stdio.h>

struct kvr_json;

/* NULL when memory runs out, which all calls below accept. */
struct kvr_json *kvr_json_open(void);
struct kvr_json *kvr_json_close(struct kvr_json *json);

/* Begin an object or an array inside the present one; kvr_json_end goes back out. */
void kvr_json_object(struct kvr_json *json, const char *key);
void kvr_json_array(struct kvr_json *json, const char *key);
void kvr_json_end(struct kvr_json *json);

/* A whole number is written without a fraction; what is not finite becomes null. */
void kvr_json_number(struct kvr_json *json, const char *key, double value);

/* Text that is no UTF-8 is written with '?' for the bytes above 127. */
void kvr_json_text(struct kvr_json *json, const char *key, const char *value);

/* Writes the document and a newline: one line, or indented for a terminal. Errors: -ENOMEM, -EIO. */
int kvr_json_print(const struct kvr_json *json, FILE *file);

#endif
