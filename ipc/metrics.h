/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Metrics: one block a role, written by its process only, read by anyone (supervisor).
 * Counters and gauges are 64-bit words addressed by enum mc_metric; a name, unit and kind
 * table goes with it.  Histograms are log-linear (16 steps an octave, 3 % wide) over
 * nanoseconds.  All stores are relaxed: a reader sees each value whole, not a common instant.
 */
#ifndef MC_IPC_METRICS_H
#define MC_IPC_METRICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "role.h"

enum mc_metric_kind {
	MC_COUNTER,
	MC_GAUGE,
};

/*
 * X(enum suffix, bus and Prometheus name, unit, kind, role that writes it).
 * Role STAGE0 stands for every stage worker.
 */
#define MC_METRICS(X)                                                                              \
	X(CHECKPOINTS, "checkpoints", "1", MC_COUNTER, MC_ROLE_CAPTURE)                            \
	X(ABORTS, "aborts", "1", MC_COUNTER, MC_ROLE_CAPTURE)                                      \
	X(DOWNTIME, "downtime", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                                   \
	X(LONGEST_STOP, "longest_stop", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                           \
	X(BITMAP_TIME, "bitmap_time", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                             \
	X(LOG_DIRTY_TIME, "log_dirty_time", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                       \
	X(RAM_COPY_TIME, "ram_copy_time", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                         \
	X(COPY_MBPS, "copy_mbps", "Mbit/s", MC_GAUGE, MC_ROLE_CAPTURE)                             \
	X(STATE_TIME, "state_time", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                               \
	X(STOP_TIME, "stop_time", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                                 \
	X(CONT_TIME, "cont_time", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                                 \
	X(BARRIER_TIME, "barrier_time", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                           \
	X(WAIT_TIME, "wait_time", "ns", MC_GAUGE, MC_ROLE_CAPTURE)                                 \
	X(DIRTY_PAGES, "dirty_pages", "pages", MC_GAUGE, MC_ROLE_CAPTURE)                          \
	X(PRESCANS, "prescans", "1", MC_COUNTER, MC_ROLE_CAPTURE)                                  \
	X(PAGES_TOTAL, "pages_total", "pages", MC_COUNTER, MC_ROLE_CAPTURE)                        \
	X(STATE_BYTES, "state_bytes", "bytes", MC_GAUGE, MC_ROLE_CAPTURE)                          \
	X(HASH_COMPARED, "hash_compared", "pages", MC_COUNTER, MC_ROLE_CAPTURE)                    \
	X(HASH_EQUAL, "hash_equal", "pages", MC_COUNTER, MC_ROLE_CAPTURE)                          \
	X(RDMA_COPIED, "rdma_copied", "bytes", MC_COUNTER, MC_ROLE_CAPTURE)                        \
	X(RDMA_COPY_PINNED, "rdma_copy_pinned", "bytes", MC_GAUGE, MC_ROLE_CAPTURE)                \
	X(GUEST_CLOCK_LAG, "guest_clock_lag", "ns", MC_COUNTER, MC_ROLE_CAPTURE)                   \
	X(ENCODED_PAGES, "encoded_pages", "pages", MC_COUNTER, MC_ROLE_STAGE0)                     \
	X(ZERO_PAGES, "zero_pages", "pages", MC_COUNTER, MC_ROLE_STAGE0)                           \
	X(DELTA_PAGES, "delta_pages", "pages", MC_COUNTER, MC_ROLE_STAGE0)                         \
	X(FULL_PAGES, "full_pages", "pages", MC_COUNTER, MC_ROLE_STAGE0)                           \
	X(BYTES_IN, "bytes_in", "bytes", MC_COUNTER, MC_ROLE_STAGE0)                               \
	X(BYTES_OUT, "bytes_out", "bytes", MC_COUNTER, MC_ROLE_STAGE0)                             \
	X(ENCODE_TIME, "encode_time", "ns", MC_COUNTER, MC_ROLE_STAGE0)                            \
	X(QUEUE_DEPTH, "queue_depth", "1", MC_GAUGE, MC_ROLE_STAGE0)                               \
	X(BYTES_XFER, "bytes_xfer", "bytes", MC_COUNTER, MC_ROLE_TRANSPORT)                        \
	X(XMIT_MBPS, "mbps", "Mbit/s", MC_GAUGE, MC_ROLE_TRANSPORT)                                \
	X(XMIT_TIME, "xmit_time", "ns", MC_GAUGE, MC_ROLE_TRANSPORT)                               \
	X(EPOCHS_SENT, "epochs_sent", "1", MC_COUNTER, MC_ROLE_TRANSPORT)                          \
	X(EPOCHS_ACKED, "epochs_acked", "1", MC_COUNTER, MC_ROLE_TRANSPORT)                        \
	X(NACKS, "nacks", "1", MC_COUNTER, MC_ROLE_TRANSPORT)                                      \
	X(RECONNECTS, "reconnects", "1", MC_COUNTER, MC_ROLE_TRANSPORT)                            \
	X(BYTES_RECEIVED, "bytes_received", "bytes", MC_COUNTER, MC_ROLE_TRANSPORT)                \
	X(STREAMS, "streams", "1", MC_GAUGE, MC_ROLE_TRANSPORT)                                    \
	X(RTT, "rtt", "ns", MC_GAUGE, MC_ROLE_TRANSPORT)                                           \
	X(PINNED, "pinned", "bytes", MC_GAUGE, MC_ROLE_TRANSPORT)                                  \
	X(SLAB_BYTES_COPIED, "slab_bytes_copied", "bytes", MC_COUNTER, MC_ROLE_TRANSPORT)          \
	X(CREDIT_WAITS, "credit_waits", "1", MC_COUNTER, MC_ROLE_TRANSPORT)                        \
	X(HASH_BYTES, "hash_bytes", "bytes", MC_COUNTER, MC_ROLE_TRANSPORT)                        \
	X(HELD_PACKETS, "held_packets", "packets", MC_GAUGE, MC_ROLE_NETGATE)                      \
	X(HELD_BYTES, "held_bytes", "bytes", MC_GAUGE, MC_ROLE_NETGATE)                            \
	X(GATE_DROPS, "gate_drops", "packets", MC_COUNTER, MC_ROLE_NETGATE)                        \
	X(PURGED, "purged", "packets", MC_COUNTER, MC_ROLE_NETGATE)                                \
	X(BARRIERS, "barriers", "1", MC_COUNTER, MC_ROLE_NETGATE)                                  \
	X(RELEASES, "releases", "1", MC_COUNTER, MC_ROLE_NETGATE)                                  \
	X(FRAMES_OUT, "frames_out", "packets", MC_COUNTER, MC_ROLE_NETGATE)                        \
	X(FRAMES_IN, "frames_in", "packets", MC_COUNTER, MC_ROLE_NETGATE)                          \
	X(LEAKS, "leaks", "1", MC_COUNTER, MC_ROLE_NETGATE)                                        \
	X(LEAKED_BYTES, "leaked_bytes", "bytes", MC_COUNTER, MC_ROLE_NETGATE)                      \
	X(COALESCED, "coalesced", "1", MC_COUNTER, MC_ROLE_NETGATE)                                \
	X(GATE_FLAPS, "gate_flaps", "1", MC_COUNTER, MC_ROLE_NETGATE)                              \
	X(DECODED_PAGES, "decoded_pages", "pages", MC_COUNTER, MC_ROLE_RESTORE)                    \
	X(DECODE_TIME, "decode_time", "ns", MC_COUNTER, MC_ROLE_RESTORE)                           \
	X(APPLY_TIME, "apply_time", "ns", MC_COUNTER, MC_ROLE_RESTORE)                             \
	X(COMMITS, "commits", "1", MC_COUNTER, MC_ROLE_RESTORE)                                    \
	X(HASHED_PAGES, "hashed_pages", "pages", MC_COUNTER, MC_ROLE_RESTORE)                      \
	X(REFUSED_EPOCHS, "refused_epochs", "1", MC_COUNTER, MC_ROLE_RESTORE)

enum mc_metric {
#define X(e, n, u, k, r) MC_M_##e,
	MC_METRICS(X)
#undef X
	        MC_METRIC_COUNT
};

enum mc_histogram_id {
	MC_H_PAUSE,   /* capture: sum of stops of an epoch */
	MC_H_LONGEST, /* capture: longest single stop */
	MC_H_COMMIT,  /* transport: pause to ACK */
	MC_H_RELEASE, /* netgate: pause to release */
	MC_H_NETLINK, /* netgate: one call to the kernel */
	MC_HISTOGRAMS
};

#define MC_HIST_BUCKETS 640 /* 16 exact + 39 octaves of 16: up to 2^43 ns */

struct mc_histogram {
	_Atomic uint64_t count, sum, max;
	_Atomic uint32_t bucket[MC_HIST_BUCKETS];
};

struct mc_metrics_block {
	_Atomic uint64_t value[128];
	struct mc_histogram hist[MC_HISTOGRAMS];
};
_Static_assert(MC_METRIC_COUNT <= 128, "ABI");

struct mc_metric_info {
	const char *name;
	const char *unit;
	enum mc_metric_kind kind;
	enum mc_role role;
};
const struct mc_metric_info *mc_metric_info(enum mc_metric m);
const char *mc_histogram_name(enum mc_histogram_id h); /* "pause", "longest_stop", ... */
enum mc_role mc_histogram_role(enum mc_histogram_id h);

static inline void mc_metric_add(struct mc_metrics_block *b, enum mc_metric m, uint64_t n)
{
	atomic_fetch_add_explicit(&b->value[m], n, memory_order_relaxed);
}
static inline void mc_metric_set(struct mc_metrics_block *b, enum mc_metric m, uint64_t v)
{
	atomic_store_explicit(&b->value[m], v, memory_order_relaxed);
}
static inline uint64_t mc_metric_get(const struct mc_metrics_block *b, enum mc_metric m)
{
	return atomic_load_explicit(&b->value[m], memory_order_relaxed);
}

/* Records @ns in a histogram. */
void mc_histogram_add(struct mc_histogram *h, uint64_t ns);
/* Upper edge in ns of the bucket in which the quantile @q (0..1) falls; 0 when empty. */
uint64_t mc_histogram_quantile(const struct mc_histogram *h, double q);

#endif
