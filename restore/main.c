/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>
#include <string.h>

#include "restore.h"

int main(int argc, char **argv)
{
	struct restore *r;
	int e;

	if (argc > 1 && strcmp(argv[1], "--inspect") == 0)
		return inspect_main(argc, argv);
	if (argc > 1 && strcmp(argv[1], "--rehearse") == 0)
		return rehearse_main(argc, argv);
	r = calloc(1, sizeof(*r));
	if (!r)
		return 1;
	e = mc_worker_run(argc, argv, &restore_ops, r);
	restore_done(r);
	free(r);
	return e;
}
