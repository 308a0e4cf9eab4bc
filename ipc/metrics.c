/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "metrics.h"

#include <stddef.h>

static const struct mc_metric_info infos[MC_METRIC_COUNT] = {
#define X(e, n, u, k, r) [MC_M_##e] = {n, u, k, r},
        MC_METRICS(X)
#undef X
};

const struct mc_metric_info *mc_metric_info(enum mc_metric m)
{
	return (unsigned)m < MC_METRIC_COUNT ? &infos[m] : NULL;
}

static const struct {
	const char *name;
	enum mc_role role;
} histograms[MC_HISTOGRAMS] = {
        [MC_H_PAUSE] = {"pause", MC_ROLE_CAPTURE},
        [MC_H_LONGEST] = {"longest_stop", MC_ROLE_CAPTURE},
        [MC_H_COMMIT] = {"commit", MC_ROLE_TRANSPORT},
        [MC_H_RELEASE] = {"release", MC_ROLE_NETGATE},
        [MC_H_NETLINK] = {"netlink", MC_ROLE_NETGATE},
};

const char *mc_histogram_name(enum mc_histogram_id h)
{
	return (unsigned)h < MC_HISTOGRAMS ? histograms[h].name : "?";
}

enum mc_role mc_histogram_role(enum mc_histogram_id h)
{
	return (unsigned)h < MC_HISTOGRAMS ? histograms[h].role : MC_ROLE_NONE;
}

/* 0..15 exact; then 16 steps an octave. */
static unsigned bucket_of(uint64_t ns)
{
	unsigned octave, b;

	if (ns < 16)
		return (unsigned)ns;
	octave = 63 - (unsigned)__builtin_clzll(ns);
	b = (octave - 3) * 16 + (unsigned)(ns >> (octave - 4) & 15);
	return b < MC_HIST_BUCKETS ? b : MC_HIST_BUCKETS - 1;
}

/* Largest value of a bucket. */
static uint64_t bucket_edge(unsigned b)
{
	unsigned octave = b / 16 + 3;

	if (b < 16)
		return b;
	return ((16ULL + b % 16 + 1) << (octave - 4)) - 1;
}

void mc_histogram_add(struct mc_histogram *h, uint64_t ns)
{
	uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);

	atomic_fetch_add_explicit(&h->bucket[bucket_of(ns)], 1, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->sum, ns, memory_order_relaxed);
	if (ns > max)
		atomic_store_explicit(&h->max, ns, memory_order_relaxed);
	atomic_fetch_add_explicit(&h->count, 1, memory_order_relaxed);
}

uint64_t mc_histogram_quantile(const struct mc_histogram *h, double q)
{
	uint64_t total = 0, seen = 0, want;
	uint64_t max = atomic_load_explicit(&h->max, memory_order_relaxed);

	for (unsigned b = 0; b < MC_HIST_BUCKETS; b++)
		total += atomic_load_explicit(&h->bucket[b], memory_order_relaxed);
	if (!total)
		return 0;
	want = (uint64_t)(q * (double)total);
	if (want >= total)
		want = total - 1;
	for (unsigned b = 0; b < MC_HIST_BUCKETS; b++) {
		seen += atomic_load_explicit(&h->bucket[b], memory_order_relaxed);
		if (seen > want)
			return bucket_edge(b) < max ? bucket_edge(b) : max;
	}
	return max;
}
