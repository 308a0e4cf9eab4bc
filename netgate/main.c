/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <string.h>

#include "netgate.h"

int main(int argc, char **argv)
{
	struct netgate g = {0};

	if (argc > 1 && (!strcmp(argv[1], "--inspect") || !strcmp(argv[1], "--clear")))
		return netgate_inspect(argc, argv);
	return mc_worker_run(argc, argv, &netgate_ops, &g);
}
