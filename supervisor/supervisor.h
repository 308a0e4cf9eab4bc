/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * mc-supervisor: the D-Bus service that starts, watches and restarts the processes of every
 * guest.  One manager, a list of guests, per guest one child per role.
 */
#ifndef MC_SUPERVISOR_SUPERVISOR_H
#define MC_SUPERVISOR_SUPERVISOR_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

#include <systemd/sd-bus.h>
#include <systemd/sd-event.h>

#include "../ipc/arena.h"
#include "conf.h"
#include "options.h"
#include "rate.h"
#include "term.h"

#define MC_BUS_NAME    "org.microcheckpoint1"
#define MC_BUS_ROOT    "/org/microcheckpoint1"
#define MC_IFACE_MGR   "org.microcheckpoint1.Manager"
#define MC_IFACE_GUEST "org.microcheckpoint1.Guest"
#define MC_IFACE_STAGE "org.microcheckpoint1.Stage"
#define MC_ERROR(x)    "org.microcheckpoint1.Error." x

#define GUESTS_MAX  256
#define JOBS_MAX    16   /* inspections at a time */
#define REHEARSALS  4    /* at a time: each is a QEMU with the guest's RAM */
#define WORKERS_MAX 8192 /* connections to the control socket */
#define DEATHS_KEPT 20

struct manager;
struct guest;

/* One process of a guest. */
struct child {
	struct guest *g;
	enum mc_role role;
	pid_t pid; /* 0: none */
	int pidfd;
	bool ours;   /* forked by this supervisor: to be reaped */
	bool wanted; /* restart it when it dies */
	bool given_up;
	uint64_t restarts;
	uint64_t death[DEATHS_KEPT]; /* ns, newest last */
	uint64_t started;            /* ns: spawned or found */
	uint64_t beat, beat_seen;    /* hung.c: its heartbeat, and when that was new to us, ns */
	uint64_t rung;               /* hung.c: since when it owes an answer to the bell, ns */
	bool hung;                   /* killed for it */
	unsigned busy;               /* found its place taken, in a row */
	bool asked;                  /* mcctl restart: its end is no death */
	struct rate events;          /* what it may write into the history */
	uint64_t events_lost;
	sd_event_source *source, *again;
	sd_bus *bus;         /* its control connection; NULL until it registers */
	sd_bus_slot *object; /* on the public bus */
};

struct guest {
	struct manager *m;
	struct guest *next;
	char name[MC_NAME_MAX];
	char shm_name[128];
	enum mc_side side;
	struct mc_arena arena;
	struct child child[MC_ROLE_MAX];
	sd_event_source *bell, *throttle;
	sd_bus_slot *object; /* on the public bus */
	uint64_t looked_at;  /* ns: at its words, unasked */
	uint64_t seen_state, seen_committed, seen_sync;
	uint64_t state_since; /* ns */
	bool settled;         /* reaction to a final state was taken */
	bool dying;
	bool begun_again;           /* by again.c, not by a caller */
	bool again_busy;            /* its QEMU is being examined for that */
	uint64_t again_wait;        /* us until the next try */
	sd_event_source *again;     /* that one; of the whole guest, unlike child.again */
	bool gate_cleared;          /* or can't be: gate_clear() tries once */
	sd_bus_message *checkpoint; /* a caller waits for the next commit */
	uint64_t checkpoint_after;
	sd_bus_message *unprotect, *switchover, *rehearsal;
	sd_event_source *unprotect_limit, *checkpoint_limit, *switchover_limit, *rehearsal_limit;
};

struct expected;   /* adopt.c */
struct connection; /* accepted, HELLO not read yet (listen.c) */
struct newcomer;   /* connected, not registered yet (control.c) */

struct manager {
	sd_event *event;
	sd_bus *bus;
	const char *runtime_dir, *state_dir, *listen, *libexec, *bus_address;
	bool debug;
	const char *user; /* whom workers become */
	uid_t uid;        /* of that user; (uid_t)-1: they stay who they are */
	gid_t gid;
	int lock_fd;
	int control_fd, listen_fd;
	sd_event_source *control_source, *listen_source, *hung_timer;
	uint64_t hung_at; /* ns of hung.c's last look */
	unsigned hung_ticks;
	struct guest *guests;
	unsigned nguests;
	struct expected *expected; /* guests of a predecessor that haven't registered yet */
	sd_event_source *adopt_timer;
	unsigned questions;    /* to polkit, unanswered */
	struct rate strangers; /* what they may call together */
	struct caller callers[CALLERS_MAX];
	unsigned njobs;             /* inspections that run */
	unsigned nworkers;          /* connections to the control socket, */
	struct newcomer *newcomers; /* and those that haven't registered yet */
	const char *conf_dir;
	struct guest_conf *confs; /* what the files of conf_dir say (boot.c) */
	char conf_mistakes[2048]; /* and what is wrong in them, by lines */
	sd_event_source *boot_timer;
	struct connection *connections;
	unsigned nconnections;
	struct rate port_words;                   /* what is said about them, */
	uint64_t port_silent;                     /* and what wasn't since */
	sd_bus_vtable *stage_vtable[MC_ROLE_MAX]; /* made at the first use, by role */
	uint32_t hash; /* of the runtime directory: part of arena names */
};

/* manager.c */
int manager_run(struct manager *m);
struct guest *manager_find(const struct manager *m, const char *name);

/* bus-manager.c, bus-guest.c, bus-stage.c */
int bus_start(struct manager *m);
/* Takes the name: from now on there are callers. 0, or negative errno after saying so. */
int bus_announce(struct manager *m);
int bus_guest_register(struct guest *g);
int bus_stage_add(struct child *c);
void bus_stage_remove(struct child *c);
/* "uid 1000" of a method's caller, for the history. */
void bus_caller(sd_bus_message *m, char *buf, size_t len);
/* Reads an a{sv} into a request. Sets the error. */
int bus_read_options(sd_bus_message *m, struct request *rq, bool running, sd_bus_error *e);
int bus_error(sd_bus_error *e, int error, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));
void bus_guest_path(const struct guest *g, char *buf, size_t len);
void bus_guest_changed(struct guest *g, const char *old, const char *now, const char *reason);
void bus_guest_added(struct guest *g, bool added);
void bus_guest_committed(struct guest *g, uint64_t epoch);
void bus_guest_failed_over(struct guest *g);
uint64_t bus_guest_committed_epoch(const struct guest *g);
uint64_t bus_guest_term(const struct guest *g);
void bus_guest_stage_died(struct guest *g, const struct child *c, const char *how,
                          const char *words);
void bus_guest_progress(struct guest *g, uint64_t done, uint64_t total);

/* guest.c: life of an entry. Errors come with a sentence in @why (512 bytes). */
int guest_start(struct manager *m, const struct request *rq, enum mc_side side, uint64_t ram_bytes,
                char *why, size_t why_len);
struct guest *guest_adopt(struct manager *m, const char *name, int arena_fd, const int *bells);
void guest_remove(struct guest *g);
/* HELD, since too many epochs failed. */
bool guest_overloaded(const struct guest *g);
/* An operator lets such a guest go on, and epochs be tried again. 0, or -ESTALE. */
int guest_relieve(struct guest *g);
bool guest_replaceable(const struct guest *g);
enum mc_state guest_state(const struct guest *g);

/*
 * start.c: from a request to an entry.  Both write a sentence to @why that names the guest.
 * start_check(): may this be begun now?  start_examine(): examines the QEMU in a process of its
 * own, then starts the entry; takes @rq over when it returns 0, and calls rq->done exactly once
 * later, before it frees @rq.
 */
int start_check(struct manager *m, const struct request *rq, bool primary, char *why,
                size_t why_len);
int start_examine(struct manager *m, struct request *rq, bool primary, char *why, size_t why_len);

/*
 * adopt.c: waits for what a predecessor left running, at most a second, then lets callers in and
 * begins what the configuration asks for.  adopt_came(): @name was adopted.
 */
int adopt_start(struct manager *m);
void adopt_came(struct manager *m, const char *name);
void adopt_stop(struct manager *m);

/* boot.c: guests that the configuration protects; what is adopted is there already. */
int boot_start(struct manager *m);
/* An operator decided about @name: its file doesn't until it is read again. */
void boot_leave(struct manager *m, const char *name);
void boot_stop(struct manager *m);
/*
 * Calls @fn for every guest that is configured, but can't be begun yet (@why: the last obstacle),
 * and, with @name "", for every mistake that a file was found to have.
 */
void boot_pending(const struct manager *m, void (*fn)(void *ctx, const char *name, const char *why),
                  void *ctx);
/* Reads the files again. 0 and a summary in @text, or -EINVAL with every mistake, and nothing
 * is changed. */
int boot_reload(struct manager *m, char *text, size_t len);

/* watch.c: what the guest's words say. */
int watch_start(struct guest *g);
void watch_stop(struct guest *g);
void watch_look(struct guest *g);
/* A running guest of a predecessor: its state was told by that one already. */
void watch_adopt(struct guest *g);
/* Ends stage workers beyond the wanted number once their rings are empty. */
void watch_retire(struct guest *g);
/*
 * Answers a call that waits, if one does: done, or (@error < 0) the error @kind with the sentence
 * @text.
 */
void watch_answer(struct guest *g, sd_bus_message **call, sd_event_source **limit, int error,
                  const char *kind, const char *text);
void watch_finish_checkpoint(struct guest *g, int error, const char *text);
void watch_finish_unprotect(struct guest *g, int error, const char *text);

bool watch_asks(const struct guest *g);

/*
 * again.c: what ended with its QEMU, or for want of a standby, is begun again when there is one.
 * again_look(): after a change of state.
 */
void again_look(struct guest *g);
void again_stop(struct guest *g);
/* What it was examined for still counts; @g may be NULL. */
bool again_wanted(const struct guest *g);
/* Begun by us, and not protecting yet: somebody who asks for it himself comes first. */
bool again_gives_way(const struct guest *g);

/* switchover.c: a planned one; answers @msg when it is over. */
int switchover_begin(struct guest *g, sd_bus_message *msg, sd_bus_error *e);
void switchover_called_off(struct guest *g, const char *text); /* capture says why */
void switchover_finish(struct guest *g, int error, const char *text);

/* rehearse.c: Rehearse(), answered when restore has. */
int rehearse_begin(struct guest *g, sd_bus_message *msg, sd_bus_error *e);
void rehearse_look(struct guest *g);
void rehearse_finish(struct guest *g, int error, const char *text);

/* workers.c: 0, or negative errno with the error set. */
int workers_set(struct guest *g, const char *stage, uint32_t n, sd_bus_error *e);

/* spawn.c */
int child_spawn(struct child *c);
/* Takes a running process over that another supervisor started. -ESRCH: it isn't that one. */
int child_found(struct child *c, pid_t pid, uint64_t start_time);
/* The process is gone: nothing of it is watched any more. */
void child_forget(struct child *c);
int child_adopt(struct child *c, pid_t pid, sd_bus *bus);
void child_quit(struct child *c); /* asks; it isn't restarted */
/* TERM, KILL, at most 2 s.  False: none ran, or it didn't end as it was asked to. */
bool child_kill_wait(struct child *c);

/* death.c: what follows the end of a process. */
int death_noticed(sd_event_source *s, int fd, uint32_t revents, void *userdata);
/* Starts, or takes over, what a guest's state asks for; for an adopted guest. */
void death_fill_places(struct guest *g);

/* hung.c: finds processes that don't turn, and kills them. */
int hung_start(struct manager *m);

/* abi.c: 0; -EPROTONOSUPPORT with a sentence when the installed program has another ABI. */
int abi_check(const struct manager *m, enum mc_role role, char *why, size_t why_len);

/*
 * place.c: where a guest's processes run (options cpus and cgroup).  place_check(): could they?
 * place_self(): puts the calling process there.  0, or negative errno with a sentence.
 */
int place_check(const struct mc_config *c, char *why, size_t why_len);
int place_self(const struct mc_config *c, char *why, size_t why_len);

/*
 * creds.c: reads the files behind tls-dir or psk-file into what the transport inherits. fd, or
 * negative errno with a sentence that names the file.
 */
int creds_open(const struct mc_config *cfg, enum mc_side side, char *why, size_t len);

/* control.c: where workers register. */
int control_start(struct manager *m);
/* Ends a connection of a worker, or forgets one that ended. Always NULL. */
sd_bus *control_close(struct manager *m, sd_bus *bus);

/* fdstore.c: the port as a predecessor left it with systemd, or -1; leaves ours there. */
int fdstore_take_port(const struct manager *m);
void fdstore_keep_port(const struct manager *m);

/*
 * How many connections are taken, or tried to be, within how many us.  Without descriptors none
 * can be, and it stays at the door: to look again at once would be all that this process does.
 */
#define ACCEPT_BURST 100
#define ACCEPT_US    100000

/* listen.c: where primaries connect. */
int listen_start(struct manager *m);
void listen_stop(struct manager *m);

/*
 * gate-clear.c: removes what a netgate that was given up, or killed, has left in the kernel; at
 * once, and when the guest may speak.
 */
void gate_clear(struct guest *g);
void gate_look(struct guest *g);

/* inspect.c: examines a QEMU, or what a gate needs, in a child process. */
enum inspection {
	INSPECT_PRIMARY, /* mc-capture */
	INSPECT_STANDBY, /* mc-restore */
	INSPECT_GATE,    /* mc-netgate: the taps of rq->cfg.nic */
};
typedef void (*inspect_done_fn)(struct manager *m, struct request *rq, int status,
                                const char *json);
int inspect_run(struct manager *m, struct request *rq, enum inspection what, inspect_done_fn done);

/* metrics-text.c: all metrics as Prometheus reads them, malloc'ed; NULL: no memory. */
char *metrics_text(const struct manager *m);

/*
 * events.c: the history of a guest, JSON lines {time, event, by, term, epoch, text}, bounded.
 * @by: who decided or saw it ("mc-transport", "mc-supervisor", "uid 1000").  @epoch 0: none.
 */
void event_write_by(struct guest *g, const char *id, const char *by, uint64_t epoch,
                    const char *fmt, ...) __attribute__((format(printf, 5, 6)));
#define event_write(g, id, epoch, ...) event_write_by(g, id, "mc-supervisor", epoch, __VA_ARGS__)
/*
 * Up to the last 64 KiB of it, as ASCII, malloc'ed to @ret: 0, or -ENOENT when there is none,
 * -ENOMEM.  What is damaged, or can't be read, is left out, and a last line {event: history} says
 * so.
 */
int event_read(const struct manager *m, const char *name, char **ret);

#endif
