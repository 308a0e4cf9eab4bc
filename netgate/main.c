/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "netgate.h"

int main(int argc, char **argv)
{
	struct netgate g = {0};

	return mc_worker_run(argc, argv, &netgate_ops, &g);
}
