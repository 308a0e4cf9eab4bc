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

static const struct {
	const char *state;
	enum verdict verdict;
	const char *what;
} states[] = {
        {"PROTECTED", OK, NULL},
        {"ENDED", OK, NULL},
        {"SYNCING", WARNING, "isn't protected yet, its first copy runs"},
        {"WAITING", WARNING, "is a standby that no primary has connected to"},
        {"DEGRADED", WARNING, "runs unprotected; give it a new standby"},
        {"ACTIVE", WARNING, "failed over to here and runs unprotected; mcctl protect"},
        {"TAKING_OVER", CRITICAL, "is being taken over at this moment"},
        {"HELD", CRITICAL,
         "is paused: its backup can't be reached (mcctl resolve), or epochs fail (mcctl resume)"},
        {"STOPPED", CRITICAL, "is stopped here; mcctl events says why"},
};

static enum verdict judge(json_t *g, char *text, size_t len)
{
	const char *name = json_string_value(json_object_get(g, "Name"));
	const char *state = json_string_value(json_object_get(g, "State"));

	for (size_t i = 0; state && i < MC_ARRAY_SIZE(states); i++) {
		if (strcmp(states[i].state, state) != 0)
			continue;
		if (states[i].verdict == OK && strcmp(state, "PROTECTED") == 0 &&
		    !json_is_true(json_object_get(g, "Link"))) {
			snprintf(text, len, "%s: the link to its peer is down", name);
			return WARNING;
		}
		if (states[i].what)
			snprintf(text, len, "%s (%s) %s", name, state, states[i].what);
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

int check_print(json_t *list)
{
	char all[2048] = "", text[256];
	enum verdict total = OK;
	size_t i, n = 0;
	json_t *g;

	if (!list) {
		printf("MICROCHECKPOINT UNKNOWN - mc-supervisor gives no answer\n");
		return UNKNOWN;
	}
	json_array_foreach (list, i, g) {
		enum verdict v = judge(g, text, sizeof(text));

		total = worse(total, v);
		if (v != OK && n < sizeof(all))
			n += (size_t)snprintf(all + n, sizeof(all) - n, "%s%s", n ? "; " : "",
			                      text);
	}
	printf("MICROCHECKPOINT %s - %zu guests%s%s |", verdict_names[total], json_array_size(list),
	       n ? ": " : "", all);
	json_array_foreach (list, i, g)
		printf(" '%s_pause_p99'=%.3fms",
		       json_string_value(json_object_get(g, "Name")) ?: "?",
		       (double)json_integer_value(json_object_get(g, "PauseP99")) / 1e6);
	putchar('\n');
	return (int)total;
}
