/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Reads epochs and metrics of a guest from its arena, from outside and without taking part:
 *
 *   watch ARENA SECONDS
 *
 * Prints one JSON object: "epochs": what the journal says of each that ended meanwhile (ns), with
 * capture's phases as they stood when it was seen; "metrics": every metric of every role at the
 * end; "grew": by how much each counter grew meanwhile; "copy": the first copy, from link up
 * to the commit that armed the backup (ns), 0 when the journal has it no more.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "../../ipc/arena.h"
#include "../../ipc/util.h"

#define LOOK_NS (10 * MC_NS_PER_MS)

static const enum mc_metric phases[] = {MC_M_STOP_TIME,  MC_M_LOG_DIRTY_TIME, MC_M_RAM_COPY_TIME,
                                        MC_M_STATE_TIME, MC_M_BARRIER_TIME,   MC_M_CONT_TIME};

static _Noreturn void fail(const char *what, int error)
{
	fprintf(stderr, "watch: %s: %s\n", what, strerror(error));
	exit(1);
}

static void attach(struct mc_arena *a, const char *path)
{
	int bells[MC_ROLE_MAX];
	int fd = open(path, O_RDWR | O_CLOEXEC), config_fd, r;
	char config[600];

	if (fd < 0)
		fail(path, errno);
	for (int i = 0; i < MC_ROLE_MAX; i++)
		bells[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
	snprintf(config, sizeof(config), "%s:config", path);
	config_fd = open(config, O_RDWR | O_CLOEXEC);
	r = mc_arena_attach(a, fd, config_fd, bells, MC_ROLE_MAX, MC_ROLE_SUPERVISOR);
	if (r < 0)
		fail(path, -r);
}

static void print_epoch(struct mc_arena *a, uint64_t n, const char *comma)
{
	struct mc_journal_record *r = mc_journal_get(&a->journal, n);
	const struct mc_metrics_block *m = &a->metrics[MC_ROLE_CAPTURE];

	if (!r)
		return;
	printf("%s{\"epoch\":%llu,\"state\":\"%s\",\"pages\":%llu,\"raw\":%llu,\"wire\":%llu,"
	       "\"device\":%llu,\"slabs\":%u,\"pause\":%llu,\"longest\":%llu,\"stamp\":[",
	       comma, (unsigned long long)n, mc_epoch_state_name(mc_journal_state(&a->journal, n)),
	       (unsigned long long)atomic_load(&r->pages),
	       (unsigned long long)atomic_load(&r->raw_bytes),
	       (unsigned long long)atomic_load(&r->wire_bytes),
	       (unsigned long long)atomic_load(&r->state_bytes), atomic_load(&r->slabs),
	       (unsigned long long)atomic_load(&r->pause_ns),
	       (unsigned long long)atomic_load(&r->longest_ns));
	for (int i = 0; i < MC_EPOCH_STATES; i++)
		printf("%s%llu", i ? "," : "", (unsigned long long)atomic_load(&r->stamp[i]));
	printf("],\"phase\":{");
	for (size_t i = 0; i < MC_ARRAY_SIZE(phases); i++)
		printf("%s\"%s\":%llu", i ? "," : "", mc_metric_info(phases[i])->name,
		       (unsigned long long)mc_metric_get(m, phases[i]));
	printf("}}");
}

/* True when nothing more happens to the epoch. */
static bool is_over(const struct mc_arena *a, uint64_t n)
{
	enum mc_epoch_state s = mc_journal_state(&a->journal, n);
	bool gated = a->params.side == MC_SIDE_BACKUP || a->config->gate != MC_GATE_NONE;

	return s == MC_EPOCH_RELEASED || s == MC_EPOCH_ABORTED || s == MC_EPOCH_FREE ||
	       (s == MC_EPOCH_COMMITTED && !gated);
}

static void sum_up(const struct mc_arena *a, uint64_t *sum)
{
	memset(sum, 0, sizeof(*sum) * MC_METRIC_COUNT);
	for (int role = 0; role < MC_ROLE_MAX; role++)
		for (int i = 0; i < MC_METRIC_COUNT; i++)
			sum[i] += mc_metric_get(&a->metrics[role], (enum mc_metric)i);
}

static void print_sums(const uint64_t *now, const uint64_t *then)
{
	for (int i = 0; i < MC_METRIC_COUNT; i++)
		printf("%s\"%s\":%lld", i ? "," : "", mc_metric_info((enum mc_metric)i)->name,
		       (long long)(now[i] - (then ? then[i] : 0)));
}

static void print_copy(struct mc_arena *a)
{
	uint64_t armed = atomic_load(&a->control->armed_epoch);
	struct mc_journal_record *r = armed ? mc_journal_get(&a->journal, armed) : NULL;

	printf("\"copy\":{\"bytes\":%llu,\"began\":%llu,\"committed\":%llu}",
	       (unsigned long long)atomic_load(&a->control->sync_total),
	       (unsigned long long)atomic_load(&a->control->link_changed),
	       r ? (unsigned long long)atomic_load(&r->stamp[MC_EPOCH_COMMITTED]) : 0ULL);
}

int main(int argc, char **argv)
{
	static struct mc_arena a;
	uint64_t before[MC_METRIC_COUNT], after[MC_METRIC_COUNT];
	uint64_t next, end, first = 0;

	if (argc != 3) {
		fprintf(stderr, "usage: %s ARENA SECONDS\n", argv[0]);
		return 2;
	}
	attach(&a, argv[1]);
	sum_up(&a, before);
	next = atomic_load(&a.journal.shm->last_begun) + 1;
	first = next;
	end = mc_now_ns() + (uint64_t)(atof(argv[2]) * 1e9);
	printf("{\"epochs\":[");
	while (mc_now_ns() < end) {
		struct timespec ts = {.tv_nsec = LOOK_NS};

		for (; next <= atomic_load(&a.journal.shm->last_begun) && is_over(&a, next); next++)
			print_epoch(&a, next, next > first ? "," : "");
		nanosleep(&ts, NULL);
	}
	sum_up(&a, after);
	printf("],\"metrics\":{");
	print_sums(after, NULL);
	printf("},\"grew\":{");
	print_sums(after, before);
	printf("},");
	print_copy(&a);
	printf("}\n");
	mc_arena_done(&a);
	return 0;
}
