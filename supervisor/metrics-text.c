/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The metrics of all guests in Prometheus' text format (version 0.0.4).  Times are seconds,
 * counters end in _total, histograms are summaries with their quantiles.
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../ipc/util.h"
#include "supervisor.h"

#define P "microcheckpoint_"

static const char *side_name(const struct guest *g)
{
	return g->side == MC_SIDE_PRIMARY ? "primary" : "backup";
}

static void head(FILE *f, const char *name, const char *type, const char *help)
{
	fprintf(f, "# HELP " P "%s %s\n# TYPE " P "%s %s\n", name, help, name, type);
}

/* A word of the guest, by how it is read. */
struct word {
	const char *name, *type, *help;
	uint64_t (*get)(const struct guest *g);
};

static uint64_t get_term(const struct guest *g)
{
	return g->side == MC_SIDE_PRIMARY ? g->arena.config->term.number
	                                  : atomic_load(&g->arena.control->peer_term_number);
}

static uint64_t get_epoch(const struct guest *g)
{
	return atomic_load(&g->arena.journal.shm->last_begun);
}

static uint64_t get_committed(const struct guest *g)
{
	return bus_guest_committed_epoch(g);
}

static uint64_t get_link(const struct guest *g)
{
	return atomic_load(&g->arena.control->link) == MC_LINK_UP;
}

static uint64_t get_slabs(const struct guest *g)
{
	return atomic_load(&g->arena.slabs.shm->held);
}

static uint64_t get_slabs_used(const struct guest *g)
{
	return atomic_load(&g->arena.slabs.shm->in_use);
}

static uint64_t get_strikes(const struct guest *g)
{
	return atomic_load(&g->arena.slabs.shm->strikes);
}

static uint64_t get_sync_done(const struct guest *g)
{
	return atomic_load(&g->arena.control->sync_bytes);
}

static uint64_t get_sync_total(const struct guest *g)
{
	return atomic_load(&g->arena.control->sync_total);
}

static const struct word words[] = {
        {"term", "gauge", "number of the term in force", get_term},
        {"epoch", "gauge", "newest epoch that was begun", get_epoch},
        {"committed_epoch", "gauge", "newest epoch that the backup holds", get_committed},
        {"link_up", "gauge", "1 while the link to the peer stands", get_link},
        {"slabs", "gauge", "slabs held", get_slabs},
        {"slabs_used", "gauge", "slabs with contents", get_slabs_used},
        {"slab_strikes", "gauge", "epochs in a row that needed fewer slabs than are held",
         get_strikes},
        {"sync_done_bytes", "gauge", "first copy: bytes captured so far", get_sync_done},
        {"sync_total_bytes", "gauge", "first copy: bytes in all, an estimate", get_sync_total},
};

static void put_words(FILE *f, const struct manager *m)
{
	for (size_t i = 0; i < MC_ARRAY_SIZE(words); i++) {
		head(f, words[i].name, words[i].type, words[i].help);
		for (const struct guest *g = m->guests; g; g = g->next)
			fprintf(f, P "%s{guest=\"%s\",role=\"%s\"} %llu\n", words[i].name, g->name,
			        side_name(g), (unsigned long long)words[i].get(g));
	}
}

static void put_states(FILE *f, const struct manager *m)
{
	head(f, "guest_state", "gauge", "1 for the state that the guest is in");
	for (const struct guest *g = m->guests; g; g = g->next)
		for (int s = MC_STATE_SYNCING; s < MC_STATES; s++)
			fprintf(f, P "guest_state{guest=\"%s\",role=\"%s\",state=\"%s\"} %d\n",
			        g->name, side_name(g), mc_state_name((enum mc_state)s),
			        (int)guest_state(g) == s);
	head(f, "interval_seconds", "gauge", "time from pause to pause that is aimed at");
	for (const struct guest *g = m->guests; g; g = g->next)
		fprintf(f, P "interval_seconds{guest=\"%s\",role=\"%s\"} %.6f\n", g->name,
		        side_name(g), (double)mc_config_interval_ns(g->arena.config) / 1e9);
}

static void put_processes(FILE *f, const struct manager *m)
{
	static const char *const names[] = {"process_up", "process_given_up",
	                                    "process_restarts_total"};
	static const char *const help[] = {"1 while the process runs",
	                                   "1 when the process died too often and stays dead",
	                                   "how often the process was started again"};

	for (size_t n = 0; n < MC_ARRAY_SIZE(names); n++) {
		head(f, names[n], n == 2 ? "counter" : "gauge", help[n]);
		for (const struct guest *g = m->guests; g; g = g->next)
			for (int r = 0; r < MC_ROLE_MAX; r++) {
				const struct child *c = &g->child[r];
				uint64_t v[] = {c->pid != 0, c->given_up, c->restarts};

				if (c->object)
					fprintf(f,
					        P "%s{guest=\"%s\",process=\"%s\",worker=\"%u\"} "
					          "%llu\n",
					        names[n], g->name, mc_role_name(c->role),
					        mc_role_index(c->role), (unsigned long long)v[n]);
			}
	}
}

/* "bitmap_time", ns -> "capture_bitmap_time_seconds"; a counter ends in _total. */
static void metric_name(const struct mc_metric_info *i, char *buf, size_t len)
{
	bool ns = strcmp(i->unit, "ns") == 0;
	bool bytes = strcmp(i->unit, "bytes") == 0 && !strstr(i->name, "bytes");

	snprintf(buf, len, "%s_%s%s%s", mc_role_name(i->role), i->name,
	         ns      ? "_seconds"
	         : bytes ? "_bytes"
	                 : "",
	         i->kind == MC_COUNTER ? "_total" : "");
}

static bool has_role(const struct guest *g, enum mc_role role)
{
	return g->child[role].object != NULL;
}

static void put_metric(FILE *f, const struct manager *m, enum mc_metric id)
{
	const struct mc_metric_info *i = mc_metric_info(id);
	double scale = strcmp(i->unit, "ns") == 0 ? 1e9 : 1;
	int last = i->role == MC_ROLE_STAGE0 ? MC_ROLE_STAGE0 + MC_STAGES_MAX - 1 : (int)i->role;
	char name[96];

	metric_name(i, name, sizeof(name));
	fprintf(f, "# HELP " P "%s %s of mc-%s\n# TYPE " P "%s %s\n", name, i->name,
	        mc_role_name(i->role), name, i->kind == MC_COUNTER ? "counter" : "gauge");
	for (const struct guest *g = m->guests; g; g = g->next)
		for (int r = i->role; r <= last; r++)
			if (has_role(g, (enum mc_role)r))
				fprintf(f, P "%s{guest=\"%s\",role=\"%s\",worker=\"%u\"} %.9g\n",
				        name, g->name, side_name(g), mc_role_index((enum mc_role)r),
				        (double)mc_metric_get(&g->arena.metrics[r], id) / scale);
}

static void put_summary(FILE *f, const struct manager *m, enum mc_histogram_id h)
{
	static const double q[] = {0.5, 0.9, 0.99, 1};
	enum mc_role role = mc_histogram_role(h);
	const char *name = mc_histogram_name(h);

	fprintf(f,
	        "# HELP " P "%s_seconds %s, since the protection began\n# TYPE " P
	        "%s_seconds summary\n",
	        name, name, name);
	for (const struct guest *g = m->guests; g; g = g->next) {
		const struct mc_histogram *hist = &g->arena.metrics[role].hist[h];

		if (!has_role(g, role))
			continue;
		for (size_t i = 0; i < MC_ARRAY_SIZE(q); i++)
			fprintf(f, P "%s_seconds{guest=\"%s\",role=\"%s\",quantile=\"%g\"} %.9g\n",
			        name, g->name, side_name(g), q[i],
			        (double)mc_histogram_quantile(hist, q[i]) / 1e9);
		fprintf(f, P "%s_seconds_sum{guest=\"%s\",role=\"%s\"} %.9g\n", name, g->name,
		        side_name(g), (double)atomic_load(&hist->sum) / 1e9);
		fprintf(f, P "%s_seconds_count{guest=\"%s\",role=\"%s\"} %llu\n", name, g->name,
		        side_name(g), (unsigned long long)atomic_load(&hist->count));
	}
}

struct pending {
	unsigned guests, mistakes;
};

static void count_pending(void *ctx, const char *name, const char *why)
{
	struct pending *p = ctx;

	(void)why;
	if (name[0])
		p->guests++;
	else
		p->mistakes++;
}

static void put_configuration(FILE *f, const struct manager *m)
{
	struct pending p = {0};

	boot_pending(m, count_pending, &p);
	head(f, "guests_pending", "gauge", "guests that are configured, but can't be begun yet");
	fprintf(f, P "guests_pending %u\n", p.guests);
	head(f, "config_mistakes", "gauge", "mistakes that were found in the configuration files");
	fprintf(f, P "config_mistakes %u\n", p.mistakes);
}

char *metrics_text(const struct manager *m)
{
	char *buf = NULL;
	size_t len = 0;
	FILE *f = open_memstream(&buf, &len);

	if (!f)
		return NULL;
	head(f, "build_info", "gauge", "1, with the version as a label");
	fprintf(f, P "build_info{version=\"%s\"} 1\n", mc_build_id());
	head(f, "guests", "gauge", "guests that this supervisor knows");
	fprintf(f, P "guests %u\n", m->nguests);
	put_configuration(f, m);
	put_states(f, m);
	put_words(f, m);
	put_processes(f, m);
	for (int i = 0; i < MC_METRIC_COUNT; i++)
		if (mc_metric_info((enum mc_metric)i)->role != MC_ROLE_SUPERVISOR)
			put_metric(f, m, (enum mc_metric)i);
	for (int h = 0; h < MC_HISTOGRAMS; h++)
		put_summary(f, m, (enum mc_histogram_id)h);
	if (fclose(f) != 0) {
		free(buf);
		return NULL;
	}
	return buf;
}
