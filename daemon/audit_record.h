/* SPDX-License-Identifier: Apache-2.0 */
/* audit_record.h: what audits have found, per model and layer. Internal to audit*.c.
 *
 * Threads: the core thread's. */
#ifndef KVR_DAEMON_AUDIT_RECORD_H
#define KVR_DAEMON_AUDIT_RECORD_H

#include "daemon/audit.h"

/* Where a bin ends; what is larger than the last edge is in the last bin. */
extern const double kvr_audit_mass_edges[KVR_AUDIT_BINS];
extern const double kvr_audit_error_edges[KVR_AUDIT_BINS];

/* The records of a layer; NULL: no memory. */
struct kvr_audit_layer *kvr_audit_layer_of(
	struct kvr_audit *audit, const struct kvr_model *model, uint32_t layer);

/* One query head's. What is not finite counts as the worst: mass 0, error in the last bin. */
void kvr_audit_add(struct kvr_audit_layer *layer, double mass, double error);

/* Frees all records. */
void kvr_audit_forget(struct kvr_audit *audit);

#endif
