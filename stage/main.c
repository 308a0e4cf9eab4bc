/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "stage.h"

int main(int argc, char **argv)
{
	struct stage s = {0};
	int r = mc_worker_run(argc, argv, &stage_ops, &s);

	s.encoder = encoder_free(s.encoder);
	return r;
}
