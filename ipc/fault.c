/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "fault.h"

#ifdef MC_FAULTS

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "journal.h"

enum action {
	CRASH,
	STALL,
	ERROR,
};

static const struct {
	const char *name;
	enum mc_role role;
	enum mc_side side;
	enum mc_fault_when when;
	bool error;
} points[MC_FAULT_COUNT] = {
#define X(id, text, r, s, w, e) [MC_FAULT_##id] = {text, MC_ROLE_##r, MC_SIDE_##s, MC_FAULT_##w, e},
        MC_FAULT_POINTS(X)
#undef X
};

static const char *const whens[MC_FAULT_WHENS] = {
        "start", "link", "sync",  "resync",   "run", "large",
        "abort", "nack", "break", "takeover", "end", "plug",
};

/* Test builds only: what is armed in this process, and who it is. */
static struct {
	enum mc_fault_point point;
	enum action action;
	unsigned long nth;
	enum mc_role role;
	enum mc_side side;
	struct mc_fault_slot *slot;
	char then[128]; /* armed after an error */
} armed;

/* False: not a specification for this process. */
static bool arm(const char *spec)
{
	static const char *const actions[] = {":crash", ":stall", ":error"};
	size_t n = strcspn(spec, ":,\n");
	const char *p = spec + n, *comma = strchr(spec, ',');

	for (int i = 1; i < MC_FAULT_COUNT; i++) {
		if (strlen(points[i].name) != n || strncmp(points[i].name, spec, n) != 0 ||
		    points[i].role != armed.role)
			continue;
		/* The supervisor's and the gate's points are passed at either end. */
		if (points[i].side != armed.side && points[i].role == MC_ROLE_TRANSPORT)
			continue;
		armed.nth = 1;
		armed.action = CRASH;
		if (p[0] == ':' && p[1] >= '0' && p[1] <= '9')
			armed.nth = strtoul(p + 1, (char **)&p, 10);
		for (int a = CRASH; a <= ERROR; a++)
			if (strncmp(p, actions[a], strlen(actions[a])) == 0)
				armed.action = (enum action)a;
		armed.point = (enum mc_fault_point)i;
		snprintf(armed.then, sizeof(armed.then), "%s", comma ? comma + 1 : "");
		return true;
	}
	return false;
}

void mc_fault_setup(enum mc_role role, enum mc_side side, bool first, struct mc_fault_slot *slot)
{
	const char *spec = getenv("MC_FAULT");

	armed.role = mc_role_is_stage(role) ? MC_ROLE_STAGE0 : role;
	armed.side = side;
	armed.slot = slot;
	if (first && spec)
		(void)arm(spec);
}

static void look_into_slot(void)
{
	char text[sizeof(armed.slot->text)];

	if (!armed.slot || !atomic_load_explicit(&armed.slot->set, memory_order_acquire))
		return;
	memcpy(text, armed.slot->text, sizeof(text));
	text[sizeof(text) - 1] = '\0';
	(void)arm(text);
	atomic_store_explicit(&armed.slot->set, 0, memory_order_release);
}

int mc_fault(enum mc_fault_point p)
{
	if (armed.point == MC_FAULT_NONE)
		look_into_slot();
	if (armed.point != p || p == MC_FAULT_NONE || --armed.nth)
		return 0;
	armed.point = MC_FAULT_NONE;
	if (armed.action == ERROR) {
		char then[sizeof(armed.then)];

		memcpy(then, armed.then, sizeof(then));
		(void)arm(then);
		return -EIO;
	}
	kill(getpid(), armed.action == STALL ? SIGSTOP : SIGKILL);
	return 0;
}

void mc_fault_journal(enum mc_role role, enum mc_side side, int to, bool done)
{
	static const enum mc_fault_point primary[MC_EPOCH_STATES] = {
	        [MC_EPOCH_CAPTURING] = MC_FAULT_CAPTURE_CAPTURING,
	        [MC_EPOCH_CAPTURED] = MC_FAULT_CAPTURE_CAPTURED,
	        [MC_EPOCH_STAGED] = MC_FAULT_STAGE_STAGED,
	        [MC_EPOCH_SENT] = MC_FAULT_TRANSPORT_SENT,
	        [MC_EPOCH_COMMITTED] = MC_FAULT_TRANSPORT_COMMITTED,
	        [MC_EPOCH_RELEASED] = MC_FAULT_NETGATE_RELEASED,
	};
	static const enum mc_fault_point backup[MC_EPOCH_STATES] = {
	        [MC_EPOCH_CAPTURING] = MC_FAULT_RECEIVER_CAPTURING,
	        [MC_EPOCH_CAPTURED] = MC_FAULT_RECEIVER_CAPTURED,
	        [MC_EPOCH_STAGED] = MC_FAULT_RESTORE_STAGED,
	        [MC_EPOCH_COMMITTED] = MC_FAULT_RESTORE_COMMITTED,
	        [MC_EPOCH_RELEASED] = MC_FAULT_RESTORE_RELEASED,
	};
	enum mc_fault_point p = side == MC_SIDE_PRIMARY ? primary[to] : backup[to];

	if (to == MC_EPOCH_ABORTED)
		p = role == MC_ROLE_CAPTURE   ? MC_FAULT_CAPTURE_ABORTED
		    : role == MC_ROLE_RESTORE ? MC_FAULT_RESTORE_ABORTED
		    : mc_role_is_stage(role)  ? MC_FAULT_NONE
		    : side == MC_SIDE_PRIMARY ? MC_FAULT_TRANSPORT_ABORTED
		                              : MC_FAULT_RECEIVER_ABORTED;
	if (p != MC_FAULT_NONE)
		(void)mc_fault(done ? (enum mc_fault_point)(p + 1) : p);
}

void mc_fault_list(enum mc_role role)
{
	for (int i = 1; i < MC_FAULT_COUNT; i++)
		if (points[i].role == role)
			printf("%s %s %s%s\n", points[i].name,
			       points[i].side == MC_SIDE_PRIMARY ? "primary" : "backup",
			       whens[points[i].when], points[i].error ? " error" : "");
}

#endif
