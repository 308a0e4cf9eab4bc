/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Options as a caller may give them: lines "KEY=VALUE".  What is accepted is a valid configuration.
 */
#include "../ipc/fuzz.h"
#include "options.h"

static void set_line(struct request *rq, char *line, bool running)
{
	char *eq = strchr(line, '='), why[512] = "";

	if (!eq)
		return;
	*eq = '\0';
	if (option_set(rq, line, eq + 1, running, why, sizeof(why)) < 0)
		FUZZ_CHECK(why[0] && memchr(why, '\0', sizeof(why)));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct request *rq = malloc(sizeof(*rq));
	char *text = malloc(size + 1), *save = NULL, why[512];

	if (!rq || !text)
		abort();
	memcpy(text, data, size);
	text[size] = '\0';
	request_init(rq);
	for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
		set_line(rq, line, line[0] == '!');
	if (request_check(rq, true, why, sizeof(why)) == 0 ||
	    request_check(rq, false, why, sizeof(why)) == 0) {
		strcpy(rq->cfg.guest, "vm");
		rq->cfg.side = MC_SIDE_PRIMARY;
		rq->params.side = MC_SIDE_PRIMARY;
		rq->params.ram_pages = 65536;
		if (mc_config_validate(&rq->cfg, why, sizeof(why)) == 0)
			(void)mc_arena_params_check(&rq->params, why, sizeof(why));
	}
	request_gated(rq, why, sizeof(why));
	free(text);
	free(rq);
	return 0;
}
