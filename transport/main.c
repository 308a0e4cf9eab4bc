/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <stdlib.h>

#include "transport.h"

int main(int argc, char **argv)
{
	struct transport *t = calloc(1, sizeof(*t));
	int r;

	if (!t)
		return 1;
	r = mc_worker_run(argc, argv, &transport_ops, t);
	free(t->p.epoch);
	free(t->p.window);
	free(t);
	return r;
}
