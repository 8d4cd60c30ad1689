/* SPDX-License-Identifier: Apache-2.0 */
/* figure.h: the figures that are claimed, as JSON lines in the form of `make bench`.
 *
 * Threads: one. */
#ifndef QUALITY_FIGURE_H
#define QUALITY_FIGURE_H

#include <stdint.h>

struct quality_entry;

/* Prints them from the entries of the methods and of the variants; means over the inputs that are
 * counted and where both sides were measured. A figure without entries is left out. */
void quality_figures_print(const struct quality_entry *entries, uint32_t count);

#endif
