/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Tests of the plug gate, run in a machine whose kernel has sch_plug (tests/test_plug.py). */
#include "plug.h"

#include <string.h>

#include "../../ipc/log.h"

int main(int argc, char **argv)
{
	const struct {
		const char *name;
		const struct CMUnitTest *tests;
		size_t n;
	} groups[] = {
	        {"order", plug_order_tests, n_plug_order_tests},
	        {"harm", plug_harm_tests, n_plug_harm_tests},
	        {"death", plug_death_tests, n_plug_death_tests},
	        {"process", plug_process_tests, n_plug_process_tests},
	};
	int bad = 0;

	mc_log_setup("plug", NULL, LOG_CRIT);
	if (argc > 2)
		cmocka_set_test_filter(argv[2]);
	for (size_t i = 0; i < sizeof(groups) / sizeof(groups[0]); i++)
		if (argc < 2 || !strcmp(argv[1], groups[i].name))
			bad += _cmocka_run_group_tests(groups[i].name, groups[i].tests, groups[i].n,
			                               NULL, NULL);
	return bad;
}
