/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What holds the guest's packets, one object per NIC.  `relay` sits between QEMU's -netdev dgram
 * and a tap or socket, `plug` has the kernel hold what a tap of QEMU's own sends.  Gate `none`
 * has no objects.
 */
#ifndef MC_NETGATE_BACKEND_H
#define MC_NETGATE_BACKEND_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include <systemd/sd-event.h>

#include "../ipc/config.h"
#include "../ipc/gate.h"
#include "../ipc/metrics.h"

enum gate_mode {
	GATE_SHUT, /* both directions discarded */
	GATE_PASS, /* both directions pass; what was held goes out first */
	GATE_HOLD, /* out: held until released by epoch; in: passes */
};

struct gate_nic;

/* What a NIC lives in; outlives it. */
struct gate_env {
	sd_event *event;
	const char *guest;
	struct mc_metrics_block *m;
	struct mc_gate_record *record; /* of this NIC, in the arena */
	uint64_t limit;                /* bytes that may be held, at the beginning */
	enum gate_mode mode;           /* that will be set first */
	bool fenced; /* a guest that is shut out runs, or may: close() never opens its way */
	/* Tells the operator; @id names the kind of event. */
	void (*report)(void *ctx, const char *id, const char *text);
	void *ctx;
};

struct gate_ops {
	/*
	 * Opens the NIC.  0, or negative errno with a sentence in @why that names the remedy;
	 * then nothing is left behind.  A kernel object of a dead predecessor is taken over and
	 * lets nothing out until set_mode(), which is called at once.
	 */
	int (*open)(struct gate_nic **ret, const struct mc_nic *spec, const struct gate_env *env,
	            char *why, size_t why_len);
	int (*set_mode)(struct gate_nic *n, enum gate_mode mode);
	/*
	 * The guest is stopped: everything that it has sent belongs to @epoch from now on (what
	 * belongs to an earlier one stays there).  1 marked; 0 no mark set, since an earlier one
	 * is outstanding: what was sent goes with the next mark; negative errno: the epoch must
	 * not be used.
	 */
	int (*barrier)(struct gate_nic *n, uint64_t epoch);
	/*
	 * Lets out everything up to the newest mark that isn't newer than @epoch.  1 done, 0 there
	 * was none, -EAGAIN not yet: is called again.
	 */
	int (*release)(struct gate_nic *n, uint64_t epoch);
	/* Bytes that may be held; what is held already stays. */
	int (*set_limit)(struct gate_nic *n, uint64_t bytes);
	/*
	 * @undo: leaves the host's network as it was before open(); what is held is discarded
	 * unless the mode is PASS.  Otherwise kernel objects stay as they are, for a successor.
	 */
	struct gate_nic *(*close)(struct gate_nic *n, bool undo);
	bool in_kernel; /* the data path doesn't run through this process */
};

struct gate_nic {
	const struct gate_ops *ops;
};

extern const struct gate_ops relay_ops;
extern const struct gate_ops plug_ops;

#endif
