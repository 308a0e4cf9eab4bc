/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "capture.h"

int main(int argc, char **argv)
{
	struct capture *c;
	int r;

	if (argc > 1 && strcmp(argv[1], "--inspect") == 0)
		return inspect_main(argc, argv);
	c = calloc(1, sizeof(*c));
	if (!c)
		return 1;
	r = mc_worker_run(argc, argv, &capture_ops, c);
	free(c);
	return r;
}
