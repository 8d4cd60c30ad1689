/* SPDX-License-Identifier: Apache-2.0 */
/* text.c: see text.h. The story alone has a little more than 4,096 tokens; longer contexts go on into the
 * documents. */
#include "bench/quality/text.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "bench/quality/memory.h"
#include "examples/tinylm/model.h"

#define FILES_MAX 8u

struct text {
	const char *name;
	const char *files[FILES_MAX]; /* NULL behind the last */
};

static const struct text texts[] = {
	{"prose", {"examples/tinylm/text.txt", "docs/ARCHITECTURE.md", "README.md",
			  "examples/tinylm/README.md", "docs/TESTING.md"}},
	{"code", {"kernels/kmeans.c", "kernels/recall.c", "kernels/choose.c", "kernels/attend.c",
			 "kernels/cpu.c"}},
};

char *quality_text_read(const char *name, size_t *ret_bytes)
{
	const struct text *text = NULL;
	char *all = quality_need(1, 1);
	size_t bytes = 0;

	for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
		if (!strcmp(texts[i].name, name))
			text = &texts[i];
	if (!text)
		quality_fail("there is no text %s", name);
	for (uint32_t i = 0; i < FILES_MAX && text->files[i]; i++) {
		uint8_t *data;
		size_t more;
		char *longer;

		quality_must(tinylm_map(text->files[i], &data, &more), text->files[i]);
		longer = quality_need(bytes + more, 1);
		memcpy(longer, all, bytes);
		memcpy(longer + bytes, data, more);
		tinylm_unmap(data, more);
		free(all);
		all = longer;
		bytes += more;
	}
	*ret_bytes = bytes;
	return all;
}
