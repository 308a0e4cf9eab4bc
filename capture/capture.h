/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-capture: takes epochs of a running guest.  One context, one thread; a
 * second one helps it scan large guests (uffd-scan.h).
 */
#ifndef MC_CAPTURE_CAPTURE_H
#define MC_CAPTURE_CAPTURE_H

#include <stdbool.h>
#include <stdint.h>

#include "../ipc/arbiter.h"
#include "../ipc/worker.h"
#include "../qmp/vm.h"
#include "death.h"
#include "guard.h"
#include "pace.h"
#include "rdma-copy.h"
#include "tracker.h"

#define EPOCH_BITMAPS 8                   /* epoch N uses the one of N % EPOCH_BITMAPS */
#define CARRY         EPOCH_BITMAPS       /* bitmap: pages that the next epoch must hold */
#define NOBASE        (EPOCH_BITMAPS + 1) /* bitmap: pages whose previous content the backup may lack */

#define HASH_WORDS  (MC_HASH_PAGES / 64) /* of a bitmap, that one question covers */
#define HASH_WINDOW (MC_HASH_SLOTS / 2)  /* questions on their way */

/* What -EUCLEAN of a scan means. */
#define TRACKING_LOST                                                                              \
	"huge pages for shared memory were turned on: written pages can't be told any more; turn " \
	"them off, restart QEMU and protect it again"

enum phase {
	PHASE_START, /* not attached yet */
	PHASE_WAIT,  /* attached; waits for link and gate */
	PHASE_SYNC,  /* rounds of the first copy */
	PHASE_EPOCHS,
	PHASE_HELD, /* guest paused, peer unknown */
	PHASE_SWITCHOVER,
	PHASE_ENDING, /* waits for END_ACK, guest runs or is gone */
	PHASE_DONE,
};

/* What a pause begins with. */
#define PAUSE_STATUS "{\"execute\":\"query-status\"}\n"
#define PAUSE_STOP   PAUSE_STATUS "{\"execute\":\"stop\"}\n"

/* What the pause needs, ready before it. */
struct prepared {
	char stop_cmd[192]; /* query-status, stop, xen-save-devices-state */
	size_t stop_len;
	uint64_t *again; /* bitmap, private: pages of the last scan of an epoch */
};

/* Slabs of an epoch under construction. */
struct slab_list {
	mc_handle slab[MC_EPOCH_SLABS_MAX];
	uint32_t n;
	uint32_t pages_max;        /* of one slab */
	struct mc_slab_meta *meta; /* of the last slab */
	uint8_t *data;
	struct mc_page_desc *desc;
};

struct capture {
	struct mc_worker *w;
	struct mc_arena *a;
	struct qmp *q;
	struct vm_info vm;
	struct tracker tracker;
	struct guard guard;
	struct death death;
	sd_event_source *death_source[DEATH_THREADS];
	uint8_t *ram[VM_BLOCKS_MAX]; /* our mapping of each block */
	int ram_fd[VM_BLOCKS_MAX];
	int state_fd;           /* device state: we read */
	int state_out;          /* QEMU writes; the file offset is shared with it */
	struct rdma_copy *rdma; /* NULL: pages are copied by memcpy */
	struct prepared prep;
	struct slab_list list;
	struct mc_ring_end ring[MC_STAGES_MAX];
	unsigned next_ring;

	enum phase phase;
	bool running;  /* the guest, as QEMU's events say */
	bool shutdown; /* SHUTDOWN was seen */
	enum mc_reason shutdown_reason;
	bool qmp_dead;
	bool qmp_silent; /* dead since it gave no answer in time */
	bool gone;       /* QEMU's end is classified */
	bool saving;     /* QEMU writes the device state of this pause */
	int saved;       /* how that ended: 0 or negative errno */
	uint64_t saved_at;
	sd_event_source *timer, *qmp_source, *guard_source;
	uint64_t due;                  /* ns: when the next epoch begins */
	uint64_t owner[EPOCH_BITMAPS]; /* epoch whose pages a bitmap holds; 0: free */
	uint64_t dirty_estimate;       /* pages */
	struct pace_prescan prescan;
	uint64_t checkpoint_seen;
	unsigned aborts_in_row; /* epochs that failed, here or at the backup, since a commit */
	unsigned aborts_told;   /* of those: the policy was applied */
	int abort_error;        /* of the last one, negative errno */
	uint64_t committed_seen;
	uint32_t strikes_interval; /* interval for which strikes were computed */

	/* planned switchover */
	bool keep_paused; /* the guest stays stopped after the epoch that is being taken */
	struct {
		uint64_t epoch; /* the last one; 0: not taken yet */
		uint64_t began;
		bool refused; /* called off while it is still wanted */
	} switchover;

	/* first copy */
	bool round_open;
	unsigned rounds;
	uint64_t cursor, round_pages, last_round;
	/* its first round, when the standby holds an older copy (hashes.c) */
	struct {
		bool on;
		struct mc_hash_asker asker;
		uint64_t seed;
		uint64_t begin;              /* words before it aren't compared */
		uint64_t from;               /* first word of the oldest question that is open */
		uint64_t next;               /* asked up to this word */
		uint64_t counted;            /* words before it are in the sums */
		uint64_t differ[HASH_WORDS]; /* of those from `from` on: pages to send */
		uint64_t compared, equal, taken_off; /* pages */
	} hash;
	/* an epoch was too large: what the backup has of it already is found out (resync.c) */
	struct {
		bool on, scanned;
		uint64_t heard;             /* ns: the last answer */
		bool tried;                 /* since the last commit */
		uint64_t epoch;             /* what the backup's RAM is as of */
		uint64_t next;              /* word: asked up to here */
		uint64_t word[HASH_WINDOW]; /* where the open questions begin */
		unsigned open;
		uint64_t compared, equal; /* pages */
	} resync;

	struct {
		bool on;        /* the guest is paused until the next epoch can be taken */
		uint64_t since; /* ns: when the newest epoch began */
		uint64_t began; /* ns: that pause */
		uint64_t told;  /* ns: the last event */
	} throttle;

	struct mc_arbiter *arbiter; /* asked while HELD */
	uint64_t ask_at;            /* ns: not before, after one that gave no answer */
	/* HELD for overload: an epoch is tried of the guest that stands still */
	struct {
		uint64_t at, wait;  /* ns: of the next one, and until the one after it */
		uint64_t committed; /* before the first one */
	} attempt;

	/* hot-plug: sections of the first device state */
	char *sections;
};

/* capture.c: wakes the loop at @at_ns (CLOCK_MONOTONIC). */
void capture_arm_timer(struct capture *c, uint64_t at_ns);

/* attach.c: QMP, tracking, mappings, control block. 0 or negative errno (logged, refusal set). */
int capture_attach(struct capture *c);
/*
 * Option rdma-copy: without a device, or where a page may be taken from under it, memcpy does it.
 * Not before the process is confined: the kernel takes no request for a device from one whose
 * credentials changed since it opened it.
 */
void capture_set_up_rdma(struct capture *c);
/* Starts a guard. 0 or negative errno. */
int capture_guard(struct capture *c);
void capture_detach(struct capture *c, bool release_guest);

/*
 * pause.c: short stops of the guest.  pause_begin() returns once it stands still; -EAGAIN:
 * somebody else holds it.  With @save QEMU goes on to write its device state to state_out, and
 * pause_end(), which asks for the guest's going on before that is answered, leaves the
 * result in c->saved.
 */
int pause_begin(struct capture *c, bool save, uint64_t *began);
int pause_end(struct capture *c, uint64_t began, uint64_t *took);
/* Instead: all is done but for the guest to go on; pause_end() lets it, later. */
int pause_keep(struct capture *c, uint64_t began, uint64_t *took);
/* After an epoch: pause_keep() of a guest that is held by policy, else pause_end(). */
int pause_leave(struct capture *c, uint64_t began, uint64_t *took);
/* Makes QEMU read the beginning of the next pause's first command; between pauses. */
void pause_prepare(struct capture *c);
/* Waits for the device state of the pause that is on; its result is in c->saved. */
void pause_await_saved(struct capture *c);
/* ns that QEMU has to answer in a pause before it is taken for dead. */
uint64_t pause_patience(const struct capture *c);

/* copy.c */
void copy_list_init(struct capture *c);
/* Copies the pages of @bitmap in words [*word, to) into slabs until the list holds @max slabs. */
int copy_pages(struct capture *c, const _Atomic uint64_t *bitmap, uint64_t *word, uint64_t to,
               uint64_t epoch, bool in_pause, uint32_t max, uint64_t *pages);
int copy_state(struct capture *c, uint64_t epoch, uint64_t bytes);
void copy_list_free(struct capture *c);
/* Pushes the list with seq from @seq; rings the workers. */
int copy_list_push(struct capture *c, uint32_t seq);
bool copy_has_room(const struct capture *c, uint64_t slabs);
/* RAM block that a page lies in, or in whose padding. */
unsigned copy_block_of(const struct capture *c, uint64_t page);
uint64_t bitmap_count(const _Atomic uint64_t *b, uint64_t words);
void bitmap_or(_Atomic uint64_t *to, const _Atomic uint64_t *from, uint64_t words);
void bitmap_and_not(_Atomic uint64_t *to, const _Atomic uint64_t *from, uint64_t words);
void bitmap_clear(_Atomic uint64_t *b, uint64_t words);

/* sync.c: one step of the first copy. 1 did something, 0 must wait, 2 finished, negative errno. */
int sync_step(struct capture *c);
/* The first copy broke off, and is to begin again. */
bool sync_again(const struct capture *c);
/* 1: it does; 0: not yet, slabs of the old one are on their way. */
int sync_begin_again(struct capture *c);

/*
 * hashes.c.  hashes_begin(): the first round, from @word on, is a comparison if the standby holds
 * an older copy (c->hash.on).  Then: up to which word c->cursor may go now; which pages of a word
 * (@bits: those that aren't holes of the guest's RAM) must be sent, holes among them as zero; and
 * the words [from, to) were compared, and what differs lies in slabs that are about to be pushed.
 */
void hashes_begin(struct capture *c, uint64_t word);
uint64_t hashes_limit(struct capture *c);
uint64_t hashes_differ(struct capture *c, uint64_t word, uint64_t bits, uint64_t *holes);
void hashes_passed(struct capture *c, uint64_t from, uint64_t to);
/* Which pages of @bits are as the 64 hashes say. */
uint64_t hashes_equal(const struct capture *c, uint64_t word, uint64_t bits,
                      const struct mc_page_hash there[64]);
void hashes_draw(struct capture *c); /* a new seed; what was asked before is forgotten */
void hashes_tell(struct capture *c, uint64_t epoch, uint64_t equal, uint64_t compared);

/* overload.c: epochs fail, here or at the backup. true: the phase has changed. */
bool overload_policy(struct capture *c);

/*
 * resync.c: to be asked before the overload policy; once true, resync_step() goes on, instead of
 * epochs, while c->resync.on.  1 did something, 0 must wait.
 */
bool resync_wanted(struct capture *c);
int resync_step(struct capture *c);
void resync_begin(struct capture *c); /* after the scan */

/* epoch.c: takes one epoch. 0 taken, -EAGAIN not now, negative errno: aborted, or QEMU is gone. */
int epoch_take(struct capture *c);
/* The slabs that the next one is likely to need can be had. */
bool epoch_has_room(const struct capture *c);

/*
 * throttle.c: pauses a guest whose epochs can't be taken for long, and lets it go on when they can,
 * or something else is to be done with it.  0, or negative errno of QMP.
 */
int throttle_begin(struct capture *c);
int throttle_end(struct capture *c);

/* carry.c */
/* After a predecessor's death: whose pages the bitmaps hold; those of aborted epochs are carried.
 */
void carry_recover(struct capture *c);
/*
 * Adds the pages of epochs that were aborted to those that the next one must hold, without a
 * base.  To be called before an epoch begins, so that none comes in between.
 */
void carry_merge(struct capture *c);
/* The next epoch's number: its bitmap is free. Numbers may be left out. -EAGAIN: none is. */
int carry_number(const struct capture *c, uint64_t *ret);
/*
 * What the next epoch builds on: the newest one that was handed over and not aborted.  Should it
 * be aborted at this very moment, stage finds that and aborts the next one as well.
 */
uint64_t carry_base(const struct capture *c);

/* sections.c: compares the device sections of a state with the first one's; 1 when they differ. */
int sections_changed(struct capture *c, const uint8_t *state, size_t len, char *what,
                     size_t what_len);

/* held.c: the guest is paused and its peer unknown. */
int held_hold(struct capture *c, enum mc_reason why, const char *text);
int held_step(struct capture *c);
void held_stop_for_good(struct capture *c); /* it goes on elsewhere */

/* switchover.c */
bool switchover_wanted(struct capture *c);
int switchover_step(struct capture *c);

/* end.c */
void end_qemu_gone(struct capture *c);
int end_watch_death(struct capture *c); /* begins to listen to c->death */
void end_watch_done(struct capture *c);
int end_step(struct capture *c);
/* An operator wants the protection to end, or we, since the backup can't follow any more. */
bool end_wanted(const struct capture *c);

/* inspect.c: `mc-capture --inspect`. Exit status. */
int inspect_main(int argc, char **argv);

extern const struct mc_worker_ops capture_ops;

#endif
