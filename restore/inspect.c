/* SPDX-License-Identifier: GPL-2.0-or-later */
/* `mc-restore --inspect`: is this QEMU a standby, and how large, as JSON. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "restore.h"

static void problem(json_t *problems, const char *text)
{
	json_array_append_new(problems, json_string(text));
}

static void connect_problem(json_t *problems, const char *path, int e)
{
	char why[320];

	qmp_connect_why(e, path, why, sizeof(why));
	problem(problems, why);
}

static json_t *list_blocks(const struct vm_info *vm, json_t *problems, uint64_t *ram)
{
	json_t *blocks = json_array();

	for (unsigned i = 0; i < vm->nblocks; i++) {
		*ram += MC_ALIGN_UP(vm->block[i].size, 64 * MC_PAGE_SIZE);
		json_array_append_new(blocks, json_pack("{s:s, s:I}", "name", vm->block[i].name,
		                                        "size", (json_int_t)vm->block[i].size));
		if (!vm->block[i].shared)
			problem(problems, "the standby's RAM is private; start it with share=on");
	}
	return blocks;
}

static json_t *inspect(struct qmp *q, json_t *problems)
{
	struct vm_info vm = {0};
	json_t *v = NULL, *result, *blocks, *dgram = NULL, *taps = NULL;
	const char *status;
	uint64_t ram = 0;
	char why[512];

	if (vm_inspect(q, &vm, why, sizeof(why)) < 0) {
		problem(problems, why);
		return NULL;
	}
	(void)qmp_command(q, "query-status", NULL, 2000, &v);
	status = json_string_value(json_object_get(v, "status"));
	if (!status || strcmp(status, "inmigrate") != 0)
		problem(problems, "this QEMU doesn't wait for incoming state; start the standby "
		                  "with -incoming defer");
	blocks = list_blocks(&vm, problems, &ram);
	if (vm_dgram_paths(q, &dgram) < 0)
		dgram = json_object();
	if (vm_taps(q, vm.pid, &taps) < 0)
		taps = json_array();
	result = json_pack("{s:o, s:o, s:i, s:I, s:I, s:o, s:s, s:O}", "dgram", dgram, "taps", taps,
	                   "pid", (int)vm.pid, "start_time", (json_int_t)vm.start_time, "ram_bytes",
	                   (json_int_t)ram, "blocks", blocks, "runstate", status ? status : "",
	                   "problems", problems);
	json_decref(v);
	vm_info_done(&vm);
	return result;
}

int inspect_main(int argc, char **argv)
{
	json_t *problems, *result = NULL;
	struct qmp *q = NULL;
	int bad, e;

	if (argc != 4 || strcmp(argv[2], "--qmp") != 0) {
		fprintf(stderr, "usage: mc-restore --inspect --qmp SOCKET\n");
		return 2;
	}
	problems = json_array();
	e = qmp_connect(&q, argv[3], 2000);
	if (e < 0)
		connect_problem(problems, argv[3], e);
	else
		result = inspect(q, problems);
	qmp_free(q);
	if (!result)
		result = json_pack("{s:O}", "problems", problems);
	json_dumpf(result, stdout, JSON_INDENT(1));
	putchar('\n');
	bad = json_array_size(problems) > 0;
	json_decref(result);
	json_decref(problems);
	return bad;
}
