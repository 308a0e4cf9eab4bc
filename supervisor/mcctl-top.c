/* SPDX-License-Identifier: GPL-2.0-or-later */
/* mcctl top: a table of all guests, with the last half minute of their latencies. */
#include <jansson.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <termios.h>
#include <unistd.h>

#include "../ipc/util.h"
#include "mcctl.h"

#define POINTS 30
#define KINDS  3

static const char *const kinds[KINDS] = {"Pause", "Commit", "Release"};

/* What is remembered of a guest from one look to the next. */
struct trace {
	struct trace *next;
	char name[MC_NAME_MAX];
	uint64_t sum[KINDS], count[KINDS];
	double point[KINDS][POINTS]; /* ms; negative: no epoch in that second */
	unsigned points;
	bool seen;
};

static uint64_t total(json_t *g, const char *kind, const char *what)
{
	char key[32];

	snprintf(key, sizeof(key), "%s%s", kind, what);
	return (uint64_t)json_integer_value(json_object_get(g, key));
}

static struct trace *trace_of(struct trace **list, const char *name)
{
	struct trace *t = *list;

	while (t && strcmp(t->name, name) != 0)
		t = t->next;
	if (t)
		return t;
	t = calloc(1, sizeof(*t));
	if (!t)
		return NULL;
	snprintf(t->name, sizeof(t->name), "%s", name);
	t->next = *list;
	*list = t;
	return t;
}

/* The mean of what happened since the last look is the newest point. */
static void take(struct trace *t, json_t *g)
{
	bool first = !t->points;
	unsigned last = t->points < POINTS ? t->points : POINTS - 1;

	for (int k = 0; k < KINDS; k++) {
		uint64_t sum = total(g, kinds[k], "Sum"), count = total(g, kinds[k], "Count");
		uint64_t n = count - t->count[k];

		if (!first && t->points >= POINTS)
			memmove(t->point[k], t->point[k] + 1,
			        (POINTS - 1) * sizeof(t->point[k][0]));
		t->point[k][last] = first || count < t->count[k] || !n
		                            ? -1
		                            : (double)(sum - t->sum[k]) / (double)n / 1e6;
		t->sum[k] = sum;
		t->count[k] = count;
	}
	if (t->points < POINTS)
		t->points++;
	t->seen = true;
}

/* Heights are relative to the highest point shown, which is printed beside. */
static void print_line(const struct trace *t, int k)
{
	static const char *const bars[] = {"\u2581", "\u2582", "\u2583", "\u2584",
	                                   "\u2585", "\u2586", "\u2587", "\u2588"};
	double max = 0, now = -1;

	for (unsigned i = 0; i < t->points; i++) {
		if (t->point[k][i] > max)
			max = t->point[k][i];
		if (t->point[k][i] >= 0)
			now = t->point[k][i];
	}
	printf("    %-8s", kinds[k]);
	for (unsigned i = t->points; i < POINTS; i++)
		putchar(' ');
	for (unsigned i = 0; i < t->points; i++)
		fputs(t->point[k][i] < 0 ? " " : bars[(int)(t->point[k][i] / (max + 1e-9) * 7.999)],
		      stdout);
	if (now >= 0)
		printf("  now %.2f ms, highest %.2f ms", now, max);
	putchar('\n');
}

/* The phases of the newest pause: they overlap, QEMU writes its state while we scan and copy. */
static void print_phases(json_t *g)
{
	static const char *const phase[] = {"Stop", "State", "Scan", "Copy", "Barrier", "Cont"};
	char key[32];

	if (!json_integer_value(json_object_get(g, "StopTime")))
		return;
	printf("    phases  ");
	for (size_t i = 0; i < MC_ARRAY_SIZE(phase); i++) {
		snprintf(key, sizeof(key), "%sTime", phase[i]);
		printf(" %s %.2f", phase[i],
		       (double)json_integer_value(json_object_get(g, key)) / 1e6);
	}
	printf(" ms\n");
}

static void forget_gone(struct trace **list)
{
	while (*list) {
		struct trace *t = *list;

		if (t->seen) {
			t->seen = false;
			list = &t->next;
		} else {
			*list = t->next;
			free(t);
		}
	}
}

static void show(json_t *list, struct trace **traces)
{
	json_t *g;
	size_t i;

	status_print_head();
	json_array_foreach (list, i, g) {
		struct trace *t =
		        trace_of(traces, json_string_value(json_object_get(g, "Name")) ?: "?");

		status_print_row(g);
		if (!t)
			continue;
		take(t, g);
		for (int k = 0; t->points > 1 && k < KINDS; k++)
			print_line(t, k);
		print_phases(g);
	}
	forget_gone(traces);
}

/* Waits a second, or for a key. true: 'q' was pressed, or there is nobody at the keys. */
static bool wait_key(void)
{
	struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
	char key = 0;

	return poll(&p, 1, 1000) > 0 && (read(STDIN_FILENO, &key, 1) <= 0 || key == 'q');
}

static int run(struct ctl *c, unsigned rounds)
{
	struct trace *traces = NULL;
	int r = 0;

	for (unsigned n = 1;; n++) {
		json_t *list = status_list(c);

		if (!list) {
			r = 1;
			break;
		}
		if (!rounds)
			printf("\033[H\033[2J");
		show(list, &traces);
		json_decref(list);
		if (!rounds)
			printf("\nq quits\n");
		fflush(stdout);
		if (rounds ? n == rounds : wait_key())
			break;
		if (rounds)
			(void)poll(NULL, 0, 1000);
	}
	while (traces) {
		struct trace *next = traces->next;

		free(traces);
		traces = next;
	}
	return r;
}

int cmd_top(struct ctl *c, int argc, char **argv)
{
	unsigned rounds = 0;
	struct termios was, raw;
	bool tty = tcgetattr(STDIN_FILENO, &was) == 0;
	int r;

	if (argc == 2 && strcmp(argv[1], "--once") == 0)
		rounds = 1;
	else if (argc == 3 && strcmp(argv[1], "--rounds") == 0 && atoi(argv[2]) > 0)
		rounds = (unsigned)atoi(argv[2]);
	else if (argc > 1) {
		fprintf(stderr, "usage: mcctl top [--once | --rounds N]\n");
		return 2;
	}
	if (tty && !rounds) {
		raw = was;
		raw.c_lflag &= ~(tcflag_t)(ICANON | ECHO);
		(void)tcsetattr(STDIN_FILENO, TCSANOW, &raw);
	}
	r = run(c, rounds);
	if (tty && !rounds)
		(void)tcsetattr(STDIN_FILENO, TCSANOW, &was);
	return r;
}
