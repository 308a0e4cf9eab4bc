/* SPDX-License-Identifier: GPL-2.0-or-later */
/* `mc-capture --inspect`: what a QEMU is and whether it can be protected, as JSON. */
#include <errno.h>
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>

#include "../ipc/util.h"
#include "capture.h"

struct options {
	const char *qmp, *accept, *gated, *tracker; /* tracker NULL: not asked */
	bool no_gate, gate_taps;
};

static int parse(int argc, char **argv, struct options *o)
{
	static const struct option options[] = {
	        {"inspect", no_argument, NULL, 'i'},      {"qmp", required_argument, NULL, 'q'},
	        {"accept", required_argument, NULL, 'a'}, {"gated", required_argument, NULL, 'g'},
	        {"no-gate", no_argument, NULL, 'n'},      {"tracker", required_argument, NULL, 't'},
	        {"gate-taps", no_argument, NULL, 'T'},    {NULL, 0, NULL, 0},
	};
	int ch;

	while ((ch = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (ch == 'q')
			o->qmp = optarg;
		else if (ch == 'a')
			o->accept = optarg;
		else if (ch == 'g')
			o->gated = optarg;
		else if (ch == 't')
			o->tracker = optarg;
		else if (ch == 'n')
			o->no_gate = true;
		else if (ch == 'T')
			o->gate_taps = true;
		else if (ch != 'i')
			return -EINVAL;
	}
	return o->qmp && optind == argc ? 0 : -EINVAL;
}

static void add_lines(json_t *array, const char *text)
{
	while (*text) {
		size_t n = strcspn(text, "\n");

		json_array_append_new(array, json_stringn(text, n));
		text += n + (text[n] == '\n');
	}
}

static json_t *report(struct qmp *q, const struct vm_info *vm, json_t *taps, json_t *refusals)
{
	json_t *blocks = json_array(), *dgram = NULL;
	char mc_autofree *args = NULL;
	uint64_t ram = 0;

	for (unsigned i = 0; i < vm->nblocks; i++) {
		/* Bitmap words don't span blocks: that much is needed. */
		ram += MC_ALIGN_UP(vm->block[i].size, 64 * MC_PAGE_SIZE);
		json_array_append_new(blocks, json_pack("{s:s, s:I}", "name", vm->block[i].name,
		                                        "size", (json_int_t)vm->block[i].size));
	}
	(void)vm_standby_args(q, vm, &args);
	if (vm_dgram_paths(q, &dgram) < 0)
		dgram = json_object();
	return json_pack("{s:o, s:i, s:I, s:I, s:o, s:O, s:O, s:s, s:s}", "dgram", dgram, "pid",
	                 (int)vm->pid, "start_time", (json_int_t)vm->start_time, "ram_bytes",
	                 (json_int_t)ram, "blocks", blocks, "taps", taps, "refusals", refusals,
	                 "description", vm->description, "standby_args", args ? args : "");
}

static int connect_error(const char *path, int r, json_t *refusals)
{
	char why[320];

	qmp_connect_why(r, path, why, sizeof(why));
	add_lines(refusals, why);
	return r;
}

/* Another supervisor's capture, or a restore, holds the RAM (attach.c). */
static bool in_use(const struct vm_info *vm)
{
	int mc_autoclose fd = vm_open_block(vm, 0);

	return fd >= 0 && flock(fd, LOCK_EX | LOCK_NB) < 0 && errno == EWOULDBLOCK;
}

/* Can the guest's writes be tracked in the way that was asked for? */
static void check_tracker(const struct vm_info *vm, const char *name, json_t *refusals)
{
	enum mc_tracker kind;
	char why[512];

	if (mc_tracker_parse(name, &kind) < 0)
		add_lines(refusals, "there is no such tracker; auto, uffd and soft-dirty are");
	else if (tracker_check(vm, kind, why, sizeof(why)) < 0)
		add_lines(refusals, why);
}

/* What the gate will hold: what was named, and all taps where none was. */
static void list_gated(const struct options *o, json_t *taps, char *buf, size_t len)
{
	size_t i, n = (size_t)snprintf(buf, len, "%s", o->gated ? o->gated : "");
	json_t *tap;

	json_array_foreach (taps, i, tap)
		if (o->gate_taps && n < len)
			n += (size_t)snprintf(buf + n, len - n, "%s%s", n ? "," : "",
			                      json_string_value(json_object_get(tap, "netdev")));
}

static json_t *inspect(const struct options *o, json_t *refusals)
{
	char mc_autofree *all = NULL;
	struct vm_info vm = {0};
	struct qmp *q = NULL;
	json_t *result = NULL, *taps = NULL;
	char why[512], gated[1024];
	int r = qmp_connect(&q, o->qmp, 2000);

	if (r < 0) {
		(void)connect_error(o->qmp, r, refusals);
		return NULL;
	}
	r = vm_inspect(q, &vm, why, sizeof(why));
	if (r == 0) {
		if (vm_taps(q, vm.pid, &taps) < 0)
			taps = json_array();
		list_gated(o, taps, gated, sizeof(gated));
		r = vm_check(q, &vm, o->accept, o->no_gate ? NULL : gated, why, sizeof(why), &all);
		add_lines(refusals, all ? all : r < 0 ? why : "");
		if (in_use(&vm))
			add_lines(refusals,
			          "the guest is protected already, by another supervisor; "
			          "unprotect it there first");
		if (o->tracker)
			check_tracker(&vm, o->tracker, refusals);
		result = report(q, &vm, taps, refusals);
		json_decref(taps);
	} else {
		add_lines(refusals, why);
	}
	vm_info_done(&vm);
	qmp_free(q);
	return result;
}

int inspect_main(int argc, char **argv)
{
	struct options o = {0};
	json_t *refusals = json_array(), *result;
	int refused;

	if (parse(argc, argv, &o) < 0) {
		fprintf(stderr, "usage: mc-capture --inspect --qmp SOCKET [--accept LIST] "
		                "[[--gated LIST] [--gate-taps] | --no-gate] [--tracker NAME]\n");
		json_decref(refusals);
		return 2;
	}
	result = inspect(&o, refusals);
	if (!result)
		result = json_pack("{s:O}", "refusals", refusals);
	json_dumpf(result, stdout, JSON_INDENT(1));
	putchar('\n');
	refused = json_array_size(refusals) > 0;
	json_decref(result);
	json_decref(refusals);
	return refused;
}
