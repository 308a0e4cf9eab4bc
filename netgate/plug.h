/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The kernel's own gate.  What a tap of QEMU's sends is redirected to an ifb, whose root qdisc
 * is a plug:
 *
 *   QEMU --write--> tap ingress --clsact, u32, mirred--> ifb [plug] --> tap ingress --> bridge
 *
 * The ifb is called mcg and the tap's index, and says in its alias whose it is.  Shared by the
 * plug*.c files only.
 */
#ifndef MC_NETGATE_PLUG_H
#define MC_NETGATE_PLUG_H

#include "backend.h"
#include "nl.h"

#define PLUG_ALIAS "microcheckpoint gate of "

struct plug {
	struct gate_nic nic;
	struct mc_nic spec;
	struct gate_env env;
	struct mc_gate_record *r; /* env.record */
	struct nl nl;
	int events; /* fd */
	sd_event_source *event_io, *tick;
	int tap, ifb; /* interface indexes */
	char ifb_name[16];
	unsigned prio; /* at which the redirection sits */
	uint64_t limit;
	bool made_ifb, made_clsact; /* by this process, while opening */
	bool flapped;  /* what was held is lost and nobody has been told: the next barrier fails */
	bool damaged;  /* something of ours was removed, or events were lost */
	bool bypassed; /* frames had a way around the plug meanwhile */
	bool told;     /* that it can't be mended */
	bool tap_gone;
	uint64_t held_packets, held_bytes; /* as counted in the metrics */
};

static inline struct plug *to_plug(struct gate_nic *n)
{
	return (struct plug *)n;
}

static inline enum gate_mode plug_mode(const struct plug *p)
{
	return (enum gate_mode)atomic_load(&p->r->mode);
}

/* --- plug-setup.c ------------------------------------------------------------------------ */

int plug_open(struct gate_nic **ret, const struct mc_nic *spec, const struct gate_env *env,
              char *why, size_t why_len);
struct gate_nic *plug_close(struct gate_nic *n, bool undo);
/* Makes what is missing of ifb, plug and redirection. 0 or negative errno with a sentence. */
int plug_complete(struct plug *p, char *why, size_t why_len);
/*
 * Removes a gate of guest @guest whose netgate isn't there any more, without an arena: @passes:
 * what is held leaves first; @fenced as in gate_env.  0, also when there is none; -EBUSY with a
 * sentence when it must stay; negative errno with a sentence.
 */
int plug_clear(const struct mc_nic *spec, const char *guest, bool passes, bool fenced, char *why,
               size_t why_len);

/* --- plug-find.c ------------------------------------------------------------------------- */

/* Writes a sentence; returns @r. */
int plug_fail(char *why, size_t len, int r, const char *fmt, ...)
        __attribute__((format(printf, 4, 5)));
/* A step that the kernel refused, as a sentence with the remedy. */
int plug_refused(char *why, size_t len, int r, const char *what, const char *needs);
/* Those that follow: 0 (find_ifb: 1 found) or negative errno with a sentence. */
int plug_open_netlink(struct nl *nl, const struct mc_nic *spec, struct mc_metrics_block *m,
                      char *why, size_t len);
int plug_find_tap(struct nl *nl, const struct mc_nic *spec, int *ret, char *why, size_t len);
void plug_ifb_name(int tap, char *ret, size_t len);
int plug_find_ifb(struct nl *nl, const char *name, const char *guest, int *ret, char *why,
                  size_t len);
int plug_check_hooks(struct nl *nl, const struct mc_nic *spec, int tap, char *why, size_t len);
/*
 * Can the kernel, and this interface, have such a gate?  Tries it on an ifb of its own that is
 * removed again; the interface isn't touched.  0 or negative errno with a sentence.
 */
int plug_probe(const struct mc_nic *spec, const char *guest, char *why, size_t why_len);

/* --- plug.c ------------------------------------------------------------------------------ */

/* A new plug in place of the present one: holds, counts from 0, what was held is dropped. */
int plug_fresh(struct plug *p);
/* Reads the statistics, checks for leaks, updates metrics. 0 or negative errno. */
int plug_stats(struct plug *p, struct nl_qdisc_info *q);
/* Does what others' changes to the network make necessary. 0 or negative errno. */
int plug_follow_events(struct plug *p);
/* Sends a RELEASE again that a predecessor did not see answered. */
int plug_finish_release(struct plug *p);
void plug_report(struct plug *p, const char *id, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));

#endif
