/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Control block: the words by which the processes of one guest tell each other what is
 * wanted and what is so.  Each word has one writer (or a CAS with a table); everybody may
 * read.  A writer rings the bells of those who wait for the word.
 *
 * Memory ordering: a word is stored with release after what it announces, loaded with
 * acquire; CAS is acq_rel.
 */
#ifndef MC_IPC_CONTROL_H
#define MC_IPC_CONTROL_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "config.h"
#include "gate.h"
#include "journal.h"
#include "role.h"

/* --- state of the guest, as on the bus ------------------------------------------------ */

enum mc_state {
	MC_STATE_NONE = 0,
	MC_STATE_SYNCING = 1, /* first copy */
	MC_STATE_PROTECTED = 2,
	MC_STATE_HELD = 3,        /* primary: peer unknown, guest paused at the next barrier */
	MC_STATE_DEGRADED = 4,    /* primary: runs unprotected, gate passes */
	MC_STATE_TAKING_OVER = 5, /* backup */
	MC_STATE_ACTIVE = 6,      /* was backup, runs the guest now */
	MC_STATE_STOPPED = 7,
	MC_STATE_ENDED = 8,
	MC_STATE_WAITING = 9, /* backup: ready, no primary has connected yet */
	MC_STATES = 10,
};

/* Why a state was entered, or a guest or protection ended.  Stable numbers: on the wire too. */
enum mc_reason {
	MC_REASON_NONE = 0,
	MC_REASON_STARTED = 1,
	MC_REASON_FIRST_COMMIT = 2,
	MC_REASON_PEER_LOST = 3, /* silence or a broken link beyond failure_timeout */
	MC_REASON_PEER_BACK = 4,
	MC_REASON_GUEST_DIED = 5,     /* QEMU's end without SHUTDOWN */
	MC_REASON_GUEST_SHUTDOWN = 6, /* poweroff, quit: an end, not a death */
	MC_REASON_HOST_SIGNAL = 7,    /* QEMU told to end by its host */
	MC_REASON_UNPROTECT = 8,
	MC_REASON_TAKEN_OVER = 9, /* the peer says that it took over */
	MC_REASON_RESOLVED = 10,
	MC_REASON_LINK_CLOSED = 11, /* FIN or RST, restart_grace over */
	MC_REASON_SILENCE = 12,     /* failure_timeout over */
	MC_REASON_FAILOVER = 13,    /* asked for */
	MC_REASON_REFUSED = 14,     /* the peer, or our own check, refused; text in `refusal` */
	MC_REASON_HOTPLUG = 15,     /* device list changed */
	MC_REASON_OVERLOAD = 16,
	MC_REASON_ERROR = 17,        /* text in `refusal` */
	MC_REASON_CONFLICT = 18,     /* equal term numbers with different ids */
	MC_REASON_STANDBY_LOST = 19, /* the standby QEMU died or restarted */
	MC_REASON_GUEST_PANIC = 20,
	MC_REASON_FOREIGN = 21,  /* somebody else migrates or holds the guest */
	MC_REASON_ARBITER = 22,  /* the arbiter decided */
	MC_REASON_TRACKING = 23, /* written pages can't be told any more; text in `refusal` */
	MC_REASON_RELIEVED = 24, /* an epoch was committed again after an overload */
	MC_REASONS = 25,
};

/* --- commit word of the backup -------------------------------------------------------- */
/*
 *   63 taken over | 62 disarmed | 61..42 term number (20 bits) | 41..0 last committed epoch
 *
 * Only restore changes it: commit = CAS (old epoch -> new), takeover = CAS setting bit 63,
 * refused when bit 62 is set or nothing was committed; disarm = CAS setting bit 62, refused
 * when bit 63 is set.  After bit 63 no CAS of a commit can succeed, so no ACK is possible.
 */
#define MC_COMMIT_TAKEN    (1ULL << 63)
#define MC_COMMIT_DISARMED (1ULL << 62)
static inline uint64_t mc_commit_epoch(uint64_t w)
{
	return w & MC_EPOCH_MAX;
}
static inline uint64_t mc_commit_term(uint64_t w)
{
	return w >> 42 & 0xfffff;
}
static inline uint64_t mc_commit_word(uint64_t term, uint64_t epoch)
{
	return (term & 0xfffff) << 42 | (epoch & MC_EPOCH_MAX);
}

#define MC_LINK_DOWN 0
#define MC_LINK_UP   1 /* HELLO exchanged, this instance */

#define MC_BLOCKS_MAX 16
#define MC_DESC_TEXT  16384
#define MC_WHY_MAX    512

/* One RAM block of the guest; written by capture or restore at attach. */
struct mc_block {
	char name[MC_NAME_MAX]; /* memory backend id */
	uint64_t size;          /* bytes, multiple of 4096 */
	uint64_t first_page;    /* number of its first page in bitmaps: sum of the sizes before */
	uint64_t hva;           /* address in QEMU */
	uint64_t dev, ino;      /* of its file */
};

struct mc_control {
	/*
	 * state; CAS by mc_state_move(); low 8 bits state, next 8 reason, next 8 the role that
	 * decided it, rest change counter
	 */
	_Atomic uint64_t state;

	/* --- primary: written by capture --- */
	_Atomic uint64_t attached;    /* 1: blocks and description below are valid */
	_Atomic uint64_t paused;      /* 1: capture has the guest stopped; guard reads it */
	_Atomic uint64_t pause_began; /* ns */
	_Atomic uint64_t guard_pid, guard_start; /* of capture's guard */
	_Atomic uint64_t sections; /* hash of the first device state's list of sections; 0: none */
	_Atomic uint64_t barrier_req; /* epoch whose barrier is to be set now; guest is stopped */
	_Atomic uint64_t guest_end;   /* enum mc_reason once QEMU's end is classified; 0: lives */
	_Atomic uint64_t
	        sync_slabs; /* slabs pushed in rounds of the first copy (epoch 0), so far */
	_Atomic uint64_t sync_total; /* bytes of the first copy, estimate; progress */
	_Atomic uint64_t sync_copy;  /* which first copy these slabs are of; follows sync_wanted */
	/*
	 * First copy by page hashes (peer_keeps): words of the carry bitmap that were compared;
	 * they hold what is to be sent.  Beyond them a page whose bit is clear is a hole of the
	 * RAM.
	 */
	_Atomic uint64_t sync_compared;
	_Atomic uint64_t armed_epoch; /* first real epoch of this protection; 0: still first copy */
	_Atomic uint64_t capture_ready; /* 1: detached or finished: END may be sent */
	_Atomic uint64_t tracker;       /* enum mc_tracker that is in use; 0: none yet */

	/* --- primary: written by netgate --- */
	_Atomic uint64_t barrier_done; /* newest epoch whose barrier stands in every NIC */
	_Atomic uint64_t gate_ready;   /* 1: all NICs open */
	_Atomic uint64_t
	        gate_error; /* negative errno as unsigned; capture aborts epochs while set */
	_Atomic uint64_t barrier_failed; /* newest epoch whose barrier a NIC refused */

	/* --- written by transport --- */
	_Atomic uint64_t sync_bytes;   /* primary: bytes of the first copy sent, before encoding */
	_Atomic uint64_t link;         /* MC_LINK_* */
	_Atomic uint64_t link_changed; /* ns of the last change */
	_Atomic uint64_t link_closed;  /* ns when FIN/RST was seen; 0: link up, or only silence */
	_Atomic uint64_t last_rx;      /* ns, anything valid from the peer */
	/* primary: the first epoch of which anything was sent; 0: the backup can't hold any, so
	 * that it can't take over */
	_Atomic uint64_t first_sent;
	_Atomic uint64_t lease_until; /* primary: ns; netgate releases only before it */
	_Atomic uint64_t
	        end_acked; /* primary: 1 once the backup acked END: gate may open for good */
	_Atomic uint64_t peer_end;      /* reason of an END that the peer sent */
	_Atomic uint64_t peer_taken;    /* primary: 1: the peer says it took over */
	_Atomic uint64_t sync_received; /* backup: slabs of epoch 0 handed to restore */
	_Atomic uint64_t sync_wanted;   /* primary: raised: the first copy is to begin again */
	_Atomic uint64_t
	        peer_max_epoch; /* primary: decoded bytes of one epoch that the backup takes */
	_Atomic uint64_t peer_strikes; /* backup: strikes_max announced by the primary */
	_Atomic uint64_t
	        peer_keeps; /* primary: 1: the standby's RAM isn't empty, but tells its hashes */
	_Atomic uint64_t peer_hashes; /* primary: 1: the peer on this link tells hashes */
	_Atomic uint64_t
	        want_empty; /* backup: 1: the primary can't compare: its RAM must be empty */

	/* --- backup: written by restore --- */
	_Atomic uint64_t commit;         /* the commit word above */
	_Atomic uint64_t applied;        /* newest epoch applied to the standby's RAM */
	_Atomic uint64_t sync_applied;   /* slabs of epoch 0 applied */
	_Atomic uint64_t standby_ready;  /* 1: attached to the standby, may receive */
	_Atomic uint64_t ram_kept;       /* 1: its RAM wasn't emptied: worth a comparison */
	_Atomic uint64_t took_over;      /* ns at which the standby was running */
	_Atomic uint64_t takeover_began; /* ns */
	_Atomic uint64_t
	        nack_epoch;     /* epoch refused by restore; its journal record has the reason */
	_Atomic uint64_t nacks; /* raised after nack_epoch was set: the same one may come again */
	_Atomic uint64_t disarm_done; /* 1: END handled, takeover can't happen any more */
	/* backup: primary accepted by HELLO; written by transport before the first slab */
	_Atomic uint64_t peer_term_number, peer_term_id;
	_Atomic uint64_t peer_instance[2];

	_Atomic uint64_t rehearsal_done; /* want_rehearsal that was answered; text in `rehearsal` */
	_Atomic uint64_t rehearsal_ok;   /* 1: the epoch could be loaded */

	/* --- written by supervisor: what is wanted --- */
	_Atomic uint64_t
	        want_rehearsal;     /* backup: counter: raised = load the last epoch on trial */
	_Atomic uint64_t want_end;  /* primary: enum mc_reason: END is to be sent, gate to open */
	_Atomic uint64_t want_hold; /* 1: no new epochs (operator's hold); guest runs, gate shut */
	_Atomic uint64_t want_checkpoint; /* counter: raised = take an epoch now */
	_Atomic uint64_t want_takeover;   /* backup: enum mc_reason: operator's failover */
	_Atomic uint64_t want_undo;       /* 1: netgate leaves the host's network as it found it */
	_Atomic uint64_t resolved; /* HELD: 1 promote (run unprotected), 2 demote (stay stopped) */

	_Atomic uint64_t blocks; /* number of valid entries in block[] */
	/* the QEMU that block[] belongs to; written with it, by restore or capture */
	_Atomic uint64_t qemu_pid, qemu_start;
	/* primary, DEGRADED; written by transport: 1: a fresh standby of the peer waits */
	_Atomic uint64_t standby_waits;
	uint8_t pad[32];
	struct mc_gate_record gate[MC_NICS_MAX]; /* of the plug; written by netgate */
	struct mc_block block[MC_BLOCKS_MAX];
	/*
	 * What the guest is (QEMU version, machine, CPU model, devices), a line each, sorted, NUL
	 * terminated; both ends must be equal, the first line that differs is named.
	 */
	char description[MC_DESC_TEXT];
	char rehearsal[MC_WHY_MAX]; /* what came of the last one */
	char security[256]; /* how the link is secured, and who the peer is; written by transport */
	char refusal[MC_WHY_MAX]; /* sentence for MC_REASON_REFUSED and _ERROR; written before the
	                             state */
};

const char *mc_state_name(enum mc_state s);   /* "SYNCING", ... */
const char *mc_reason_name(enum mc_reason r); /* "guest-died", ... */

static inline enum mc_state mc_state_of(uint64_t word)
{
	return (enum mc_state)(word & 0xff);
}
static inline enum mc_reason mc_state_reason(uint64_t word)
{
	return (enum mc_reason)(word >> 8 & 0xff);
}
static inline enum mc_role mc_state_role(uint64_t word)
{
	return (enum mc_role)(word >> 16 & 0xff);
}

/*
 * Moves the guest's state from @from to @to if the table in control.c allows it to @role:
 *
 *   primary   NONE -> SYNCING              supervisor
 *             SYNCING -> PROTECTED         transport (first commit)
 *             SYNCING -> STOPPED           any (error before anything was armed)
 *             SYNCING|PROTECTED -> HELD    capture (lease over, after an epoch was sent),
 *                                          transport (PROTECTED only: handed over, planned)
 *             HELD -> PROTECTED            transport (same instance is back), capture (the overload
 * is over), supervisor (an operator says so) HELD -> DEGRADED|STOPPED     supervisor (resolved),
 * transport (peer said END; taken over), capture (arbiter) PROTECTED -> DEGRADED        transport
 * (peer said END), capture (END acked) PROTECTED -> STOPPED         transport (peer took over) any
 * but STOPPED -> ENDED     transport (END acked), supervisor backup    NONE -> WAITING supervisor
 *             WAITING -> SYNCING           transport (HELLO accepted)
 *             SYNCING -> WAITING           restore (first copy broke off)
 *             SYNCING -> PROTECTED         restore (first commit)
 *             PROTECTED -> TAKING_OVER     restore
 *             TAKING_OVER -> ACTIVE        restore
 *             TAKING_OVER -> STOPPED       restore, supervisor
 *             WAITING|SYNCING|PROTECTED -> ENDED|STOPPED  restore, supervisor
 *
 * 0; -EPERM (not this role's); -ESTALE (not in @from any more).
 */
int mc_state_move(struct mc_control *c, enum mc_side side, enum mc_role role, enum mc_state from,
                  enum mc_state to, enum mc_reason why);

/* Commit: epoch @epoch under @term. 0; -EPERM (taken over, disarmed, other term, not newer). */
int mc_commit_advance(struct mc_control *c, uint64_t term, uint64_t epoch);
/* Takeover. 0; -EPERM (disarmed, nothing committed); -EALREADY. */
int mc_commit_take(struct mc_control *c);
/* Disarm. 0 (also when it was); -EPERM (taken over). */
int mc_commit_disarm(struct mc_control *c);
/* New first copy under @term: epoch 0, armed again. -EPERM (taken over, or armed with an epoch). */
int mc_commit_reset(struct mc_control *c, uint64_t term);

/*
 * Does what the guest sends pass, all that was held first?  Side, state and commit word say so
 * (docs/architecture.md, "Gate by state").
 */
bool mc_control_passes(const struct mc_control *c, enum mc_side side);

/* Writes the sentence into refusal (always terminated). */
void mc_control_refuse(struct mc_control *c, const char *fmt, ...)
        __attribute__((format(printf, 2, 3)));

#endif
