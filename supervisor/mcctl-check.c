/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mcctl status --check: one line and an exit status as monitoring systems take them (0 OK,
 * 1 WARNING, 2 CRITICAL, 3 UNKNOWN).
 */
#include <jansson.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "mcctl.h"

enum verdict { OK, WARNING, CRITICAL, UNKNOWN };

static const char *const verdict_names[] = {"OK", "WARNING", "CRITICAL", "UNKNOWN"};

#define NOT_BEGUN "isn't protected, that couldn't begin, and runs as before; mcctl events says why"

static const struct {
	const char *state, *role, *reason; /* NULL: any */
	enum verdict verdict;
	const char *what;
} states[] = {
        {"PROTECTED", NULL, NULL, OK, NULL},
        {"ENDED", NULL, NULL, OK, NULL},
        {"SYNCING", NULL, NULL, WARNING, "isn't protected yet, its first copy runs"},
        {"WAITING", NULL, NULL, WARNING, "is a standby that no primary has connected to"},
        {"DEGRADED", NULL, NULL, WARNING, "runs unprotected; give it a new standby"},
        {"ACTIVE", NULL, NULL, WARNING,
         "failed over to here and runs unprotected; a new standby, then mcctl protect"},
        {"TAKING_OVER", NULL, NULL, CRITICAL, "is being taken over at this moment"},
        {"HELD", NULL, "overload", CRITICAL,
         "is paused: epochs fail; mcctl events says why, mcctl resume lets it go on"},
        {"HELD", NULL, NULL, CRITICAL,
         "is paused: its backup can't be reached and may run it; look there, then mcctl resolve"},
        {"STOPPED", "backup", NULL, CRITICAL,
         "is a standby that can't take over any more; mcctl events says why"},
        {"STOPPED", NULL, "taken-over", CRITICAL,
         "is stopped here, its backup took over; end this QEMU, then mcctl unprotect"},
        {"STOPPED", NULL, "resolved", CRITICAL, "is stopped here, as an operator decided"},
        {"STOPPED", NULL, "arbiter", CRITICAL, "is stopped here, as the arbiter decided"},
        {"STOPPED", NULL, "conflict", CRITICAL,
         "isn't protected and may be stopped: another term is in force; mcctl events says more"},
        {"STOPPED", NULL, "refused", WARNING, NOT_BEGUN},
        {"STOPPED", NULL, "error", WARNING, NOT_BEGUN},
        {"STOPPED", NULL, "peer-lost", WARNING, NOT_BEGUN},
        {"STOPPED", NULL, "standby-lost", WARNING, NOT_BEGUN},
        {"STOPPED", NULL, NULL, CRITICAL,
         "ended here and may run on its backup; mcctl events says more"},
};

static bool fits(const char *want, const char *is)
{
	return !want || (is && strcmp(want, is) == 0);
}

static enum verdict judge(json_t *g, char *text, size_t len)
{
	const char *name = json_string_value(json_object_get(g, "Name"));
	const char *state = json_string_value(json_object_get(g, "State"));
	const char *reason = json_string_value(json_object_get(g, "Reason"));
	const char *role = json_string_value(json_object_get(g, "Role"));

	for (size_t i = 0; state && i < MC_ARRAY_SIZE(states); i++) {
		if (strcmp(states[i].state, state) != 0 || !fits(states[i].role, role) ||
		    !fits(states[i].reason, reason))
			continue;
		if (states[i].verdict == OK && strcmp(state, "PROTECTED") == 0 &&
		    !json_is_true(json_object_get(g, "Link"))) {
			snprintf(text, len, "%s: the link to its peer is down", name);
			return WARNING;
		}
		if (states[i].what)
			snprintf(text, len, "%s (%s, %s) %s", name, state, reason ? reason : "-",
			         states[i].what);
		return states[i].verdict;
	}
	snprintf(text, len, "%s is in a state that this mcctl doesn't know; update it",
	         name ? name : "?");
	return UNKNOWN;
}

/* Worse wins; UNKNOWN is less than CRITICAL to those who are woken up. */
static enum verdict worse(enum verdict a, enum verdict b)
{
	static const int rank[] = {[OK] = 0, [WARNING] = 1, [UNKNOWN] = 2, [CRITICAL] = 3};

	return rank[b] > rank[a] ? b : a;
}

/* What was found so far. */
struct findings {
	enum verdict total;
	char all[2048];
	size_t used;
};

static void find(struct findings *f, enum verdict v, const char *text)
{
	f->total = worse(f->total, v);
	if (v != OK && f->used < sizeof(f->all))
		f->used += (size_t)snprintf(f->all + f->used, sizeof(f->all) - f->used, "%s%s",
		                            f->used ? "; " : "", text);
}

int check_print(json_t *list, json_t *pending, const char *name)
{
	struct findings f = {.total = OK};
	size_t i, n = json_array_size(list);
	char text[1024];
	json_t *g;

	if (!list && !json_array_size(pending)) {
		printf("MICROCHECKPOINT UNKNOWN - %s%s%s\n", name ? "guest " : "", name ? name : "",
		       name ? " isn't known here, or mc-supervisor gives no answer"
		            : "mc-supervisor gives no answer");
		return UNKNOWN;
	}
	json_array_foreach (list, i, g) {
		enum verdict v = judge(g, text, sizeof(text));

		find(&f, v, text);
	}
	json_array_foreach (pending, i, g) {
		const char *who = json_string_value(json_object_get(g, "name"));
		const char *why = json_string_value(json_object_get(g, "why"));

		snprintf(text, sizeof(text), "%s%s%s", who,
		         who[0] ? " is configured, but can't be begun yet: " : "configuration: ",
		         why);
		find(&f, WARNING, text);
	}
	/* One line, and what follows a bar are figures. */
	for (char *p = f.all; *p; p++)
		*p = *p == '\n' ? ' ' : *p == '|' ? '/' : *p;
	printf("MICROCHECKPOINT %s - %zu guest%s%s%s |", verdict_names[f.total], n,
	       n == 1 ? "" : "s", f.used ? ": " : "", f.all);
	json_array_foreach (list, i, g)
		printf(" '%s_pause_p99'=%.3fms",
		       json_string_value(json_object_get(g, "Name")) ?: "?",
		       (double)json_integer_value(json_object_get(g, "PauseP99")) / 1e6);
	putchar('\n');
	return (int)f.total;
}
