/* SPDX-License-Identifier: GPL-2.0-or-later */
/* From a request to a guest entry: checks, examination of the QEMU, start. */
#include <dirent.h>
#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/log.h"
#include "../ipc/util.h"
#include "supervisor.h"

/* All refusals of an inspection, one a line. */
static void join_refusals(json_t *list, const char *name, char *buf, size_t len)
{
	size_t i, n = 0;
	json_t *v;

	n = (size_t)snprintf(buf, len, "guest %s can't be used: ", name);
	json_array_foreach (list, i, v)
		if (n < len)
			n += (size_t)snprintf(buf + n, len - n, "%s%s", i ? "; " : "",
			                      json_string_value(v) ?: "?");
}

/* Same RAM file, same QEMU: somebody on this host protects it already. */
static struct guest *same_qemu(struct manager *m, const struct request *rq)
{
	for (struct guest *g = m->guests; g; g = g->next)
		if (strcmp(g->name, rq->cfg.guest) != 0 && !guest_replaceable(g) &&
		    strcmp(g->arena.config->qmp, rq->cfg.qmp) == 0)
			return g;
	return NULL;
}

/* Where QEMU listens for frames, unless the caller said so. */
static void fill_qemu_paths(struct request *rq, json_t *dgram)
{
	for (uint32_t i = 0; i < rq->cfg.nnics; i++) {
		struct mc_nic *n = &rq->cfg.nic[i];
		const char *path = json_string_value(json_object_get(dgram, n->netdev));

		if (path && strlen(path) < sizeof(n->qemu_path))
			snprintf(n->qemu_path, sizeof(n->qemu_path), "%s", path);
	}
}

/* QEMU's taps that nobody named. */
static void add_taps(struct request *rq, json_t *taps)
{
	size_t i;
	json_t *t;

	if (!request_takes_taps(rq))
		return;
	json_array_foreach (taps, i, t) {
		struct mc_nic n = {.kind = MC_GATE_PLUG};

		if (rq->cfg.nnics == MC_NICS_MAX)
			break; /* the examination refused more */
		snprintf(n.netdev, sizeof(n.netdev), "%s",
		         json_string_value(json_object_get(t, "netdev")) ?: "");
		snprintf(n.tap, sizeof(n.tap), "%s",
		         json_string_value(json_object_get(t, "tap")) ?: "");
		snprintf(n.netns, sizeof(n.netns), "%s",
		         json_string_value(json_object_get(t, "netns")) ?: "");
		rq->cfg.nic[rq->cfg.nnics++] = n;
	}
	request_set_gate(rq);
}

static void finish(struct manager *m, struct request *rq, int r, const char *text)
{
	rq->done(m, rq, r, text);
	request_free(rq);
}

/* Everything was examined: the guest may start. */
static void launch(struct manager *m, struct request *rq)
{
	struct guest *old = manager_find(m, rq->cfg.guest);
	char why[1024] = "";
	int r = 0;

	if (rq->again && !again_wanted(old)) {
		snprintf(why, sizeof(why),
		         "guest %s: somebody decided otherwise meanwhile; mcctl status shows what "
		         "it is now",
		         rq->cfg.guest);
		r = -ECANCELED;
	} else if (old && !guest_replaceable(old)) {
		snprintf(why, sizeof(why),
		         "guest %s exists and is %s; mcctl unprotect %s ends that", rq->cfg.guest,
		         mc_state_name(guest_state(old)), rq->cfg.guest);
		r = -EEXIST;
	} else if (!rq->args_only && !rq->dry_run) {
		r = guest_start(m, rq, rq->primary ? MC_SIDE_PRIMARY : MC_SIDE_BACKUP,
		                rq->ram_bytes, why, sizeof(why));
		if (r < 0 && !why[0])
			snprintf(why, sizeof(why), "guest %s: %s", rq->cfg.guest, strerror(-r));
	}
	finish(m, rq, r, r < 0 ? why : rq->args_only || rq->dry_run ? rq->standby_args : "");
}

static void gate_inspected(struct manager *m, struct request *rq, int status, const char *text)
{
	json_t *bad = json_loads(text, 0, NULL);
	char why[2048];

	(void)status;
	if (json_is_array(bad) && !json_array_size(bad)) {
		launch(m, rq);
	} else if (json_is_array(bad)) {
		join_refusals(bad, rq->cfg.guest, why, sizeof(why));
		finish(m, rq, -EPERM, why);
	} else {
		snprintf(why, sizeof(why),
		         "guest %s: its network interfaces can't be examined; journalctl -u "
		         "mc-supervisor says why",
		         rq->cfg.guest);
		finish(m, rq, -EIO, why);
	}
	json_decref(bad);
}

/* A plug needs what not every kernel has: better refused now than half set up. */
static void examine_gate(struct manager *m, struct request *rq)
{
	int r;

	if (rq->cfg.gate != MC_GATE_PLUG || rq->args_only) {
		launch(m, rq);
		return;
	}
	r = inspect_run(m, rq, INSPECT_GATE, gate_inspected);
	if (r < 0)
		finish(m, rq, r,
		       "can't start a process that examines its network interfaces; free memory on "
		       "this host, then try again");
}

static void inspected(struct manager *m, struct request *rq, bool primary, const char *text)
{
	json_t *j = json_loads(text, 0, NULL);
	json_t *bad = json_object_get(j, primary ? "refusals" : "problems");
	const char *args = json_string_value(json_object_get(j, "standby_args"));
	char why[2048] = "";

	rq->primary = primary;
	rq->ram_bytes = (uint64_t)json_integer_value(json_object_get(j, "ram_bytes"));
	rq->standby_args = strdup(args ?: "");
	if (!j || !json_is_array(bad)) {
		snprintf(why, sizeof(why),
		         "guest %s: QEMU behind %s can't be examined; journalctl -u mc-supervisor "
		         "says why",
		         rq->cfg.guest, rq->cfg.qmp);
		finish(m, rq, -EIO, why);
	} else if (json_array_size(bad) && !(rq->args_only && args)) {
		join_refusals(bad, rq->cfg.guest, why, sizeof(why));
		finish(m, rq, -EPERM, why);
	} else if (!rq->standby_args) {
		finish(m, rq, -ENOMEM, "out of memory; free some on this host, then try again");
	} else {
		fill_qemu_paths(rq, json_object_get(j, "dgram"));
		add_taps(rq, json_object_get(j, "taps"));
		examine_gate(m, rq);
	}
	json_decref(j);
}

static void inspected_primary(struct manager *m, struct request *rq, int status, const char *text)
{
	(void)status;
	inspected(m, rq, true, text);
}

static void inspected_standby(struct manager *m, struct request *rq, int status, const char *text)
{
	(void)status;
	inspected(m, rq, false, text);
}

/* Better refused now than after a first contact that can't be made; a standby takes TCP as well. */
static int check_rdma(const struct request *rq, bool primary, char *why, size_t why_len)
{
	struct dirent *e = NULL;
	DIR *dir;

	if (!primary || strcmp(rq->cfg.transport, "rdma") != 0)
		return 0;
	dir = opendir("/sys/class/infiniband");
	while (dir && (e = readdir(dir)) && e->d_name[0] == '.')
		;
	if (dir)
		closedir(dir);
	if (e)
		return 0;
	snprintf(why, why_len,
	         "transport rdma: this host has no RDMA device (/sys/class/infiniband is empty); "
	         "load its driver and rdma_ucm, or use transport tcp, or auto, which goes over to "
	         "TCP by itself");
	return -EPERM;
}

int start_check(struct manager *m, const struct request *rq, bool primary, char *why,
                size_t why_len)
{
	struct guest *old = manager_find(m, rq->cfg.guest), *twin = same_qemu(m, rq);
	char text[512];
	int r = request_check(rq, primary, text, sizeof(text));

	if (r == 0)
		r = place_check(&rq->cfg, text, sizeof(text));
	if (r == 0)
		r = check_rdma(rq, primary, text, sizeof(text));
	if (r < 0) {
		snprintf(why, why_len, "guest %s: %s", rq->cfg.guest, text);
		return r;
	}
	if (old && !guest_replaceable(old) && (rq->again || !again_gives_way(old))) {
		snprintf(why, why_len, "guest %s exists and is %s; mcctl unprotect %s ends that",
		         rq->cfg.guest, mc_state_name(guest_state(old)), rq->cfg.guest);
		return -EEXIST;
	}
	if (!old && m->nguests >= GUESTS_MAX) {
		snprintf(why, why_len,
		         "guest %s: this supervisor has %d guests already; unprotect one that has "
		         "ended, or use another host",
		         rq->cfg.guest, GUESTS_MAX);
		return -ENOSPC;
	}
	if (twin) {
		snprintf(why, why_len,
		         "QEMU %s is protected already, as guest %s; unprotect that one first, or "
		         "use that name",
		         rq->cfg.qmp, twin->name);
		return -EEXIST;
	}
	return 0;
}

int start_examine(struct manager *m, struct request *rq, bool primary, char *why, size_t why_len)
{
	struct guest *old = manager_find(m, rq->cfg.guest);
	int r;

	/* The NICs of the entry that is replaced count when none are named. */
	if (old && !rq->gate_given && old->arena.config->nnics) {
		rq->cfg.gate = old->arena.config->gate;
		rq->cfg.nnics = old->arena.config->nnics;
		memcpy(rq->cfg.nic, old->arena.config->nic, sizeof(rq->cfg.nic));
		rq->gate_given = true;
	}
	/* It has the monitor that is to be examined. */
	if (old && !guest_replaceable(old) && !rq->dry_run && !rq->args_only)
		guest_remove(old);
	if (m->njobs >= JOBS_MAX) {
		snprintf(why, why_len,
		         "guest %s: %d guests are being examined at this moment; try again in a "
		         "second",
		         rq->cfg.guest, JOBS_MAX);
		return -EBUSY;
	}
	r = inspect_run(m, rq, primary ? INSPECT_PRIMARY : INSPECT_STANDBY,
	                primary ? inspected_primary : inspected_standby);
	if (r < 0)
		snprintf(why, why_len, "guest %s: can't examine its QEMU: %s; try again",
		         rq->cfg.guest, strerror(-r));
	return r;
}
