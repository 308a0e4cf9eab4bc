/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What holds the guest's packets, one object per NIC.  `none` holds nothing, `relay` sits
 * between QEMU's -netdev dgram and a tap or socket; a kernel qdisc fits the same interface:
 * its barrier() may answer 0 ("no mark set") while an earlier one is unreleased, release()
 * may complete later, and its own events come through sd-event.
 */
#ifndef MC_NETGATE_BACKEND_H
#define MC_NETGATE_BACKEND_H

#include <stddef.h>
#include <stdint.h>

#include <systemd/sd-event.h>

#include "../ipc/config.h"
#include "../ipc/metrics.h"

enum gate_mode {
	GATE_SHUT, /* both directions discarded */
	GATE_PASS, /* both directions pass; what was held goes out first */
	GATE_HOLD, /* out: held until released by epoch; in: passes */
};

struct gate_nic;

struct gate_ops {
	/*
	 * Opens the NIC; mode is GATE_SHUT.  0, or negative errno with a sentence in @why.
	 * Metrics go to @m.
	 */
	int (*open)(struct gate_nic **ret, const struct mc_nic *spec, sd_event *event,
	            struct mc_metrics_block *m, char *why, size_t why_len);
	int (*set_mode)(struct gate_nic *n, enum gate_mode mode);
	/*
	 * The guest is stopped: everything that it has sent belongs to @epoch from now on (what
	 * belongs to an earlier one stays there).  1 marked, 0 no mark set, negative errno.
	 */
	int (*barrier)(struct gate_nic *n, uint64_t epoch);
	/* Lets out everything up to the mark of @epoch. */
	int (*release)(struct gate_nic *n, uint64_t epoch);
	/* Bytes that may be held. */
	int (*set_limit)(struct gate_nic *n, uint64_t bytes);
	struct gate_nic *(*close)(struct gate_nic *n);
};

struct gate_nic {
	const struct gate_ops *ops;
};

extern const struct gate_ops relay_ops;

#endif
