/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tests of the plug gate, run in a machine whose kernel has sch_plug (tests/test_plug.py). */
#include "plug.h"

#include <string.h>

#include "../../ipc/log.h"

int main(int argc, char **argv)
{
	const char *group = argc > 1 ? argv[1] : "";
	int bad = 0;

	mc_log_setup("plug", NULL, LOG_ERR);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	if (!*group || !strcmp(group, "order"))
		bad += _cmocka_run_group_tests("order", plug_order_tests, n_plug_order_tests, NULL,
		                               NULL);
	return bad;
}
