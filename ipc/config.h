/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * Configuration of one guest's pipeline, beside the arena: written by the supervisor, read by
 * all, and the others can't but read (arena.h).  Values that may change while running are atomics;
 * `generation` is raised and all bells are rung after a change.  The rest is written before any
 * process starts.
 *
 * Readers never trust it: mc_config_validate() is called at attach; atomics are clamped by
 * their getters where a bad value could hurt.
 */
#ifndef MC_IPC_CONFIG_H
#define MC_IPC_CONFIG_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#include "role.h"

#define MC_NAME_MAX     64 /* guest name incl. NUL: [A-Za-z0-9][A-Za-z0-9._-]* */
#define MC_PATH_MAX_    108
#define MC_NICS_MAX     8
#define MC_STREAMS_MAX  8
#define MC_DECODERS_MAX 16

/* Number (monotonic per guest, fsynced before use) and random id of who raised it. */
struct mc_term {
	uint64_t number; /* < 2^20 */
	uint64_t id;
};

struct mc_instance {
	uint64_t id[2]; /* random; all zero: none */
};

enum mc_gate_kind {
	MC_GATE_NONE = 0,  /* asked for by name: output is not held */
	MC_GATE_RELAY = 1, /* between QEMU's -netdev dgram and a tap or socket */
	MC_GATE_PLUG = 2,  /* sch_plug on an ifb */
};

struct mc_nic {
	uint32_t kind; /* enum mc_gate_kind: RELAY or PLUG */
	uint32_t reserved;
	char netdev[MC_NAME_MAX]; /* QEMU's netdev id (RELAY; PLUG: may be empty) */
	char path[MC_PATH_MAX_];  /* RELAY: unix datagram address that QEMU sends to; we bind it */
	char qemu_path[MC_PATH_MAX_]; /* RELAY: QEMU's own address; empty: learnt from its frames */
	char tap[16];                 /* RELAY: tap to bridge to; PLUG: the guest's tap */
	char sock[MC_PATH_MAX_];      /* RELAY instead of tap: unix datagram peer to bridge to */
	char sock_local[MC_PATH_MAX_]; /* RELAY with sock: our address on that side */
	char netns[MC_PATH_MAX_]; /* network namespace (name under /run/netns or path); empty: own
	                           */
};

/* How the link is secured. */
enum mc_tls {
	MC_TLS_NONE = 0, /* plain TCP: only on loopback, or with `insecure` */
	MC_TLS_X509 = 1, /* mutual certificates */
	MC_TLS_PSK = 2,  /* pre-shared key */
};

enum mc_overload {
	MC_OVERLOAD_THROTTLE = 0,
	MC_OVERLOAD_HOLD = 1,
	MC_OVERLOAD_UNPROTECT = 2,
};

/* How writes to the guest's RAM are tracked: capture/tracker.h. */
enum mc_tracker {
	MC_TRACKER_AUTO = 0, /* the best that the kernel has */
	MC_TRACKER_UFFD = 1,
	MC_TRACKER_SOFT_DIRTY = 2,
	MC_TRACKERS = 3,
};

struct mc_config {
	/* may change while running */
	_Atomic uint64_t generation;
	_Atomic uint32_t interval_us;        /* 1000 .. 60000000 */
	_Atomic uint32_t max_in_flight;      /* 1..8 */
	_Atomic uint32_t restart_grace_ms;   /* 60 */
	_Atomic uint32_t failure_timeout_ms; /* 500 */
	_Atomic uint32_t lease_margin_ms;    /* 50; below failure_timeout_ms */
	_Atomic uint32_t shrink_delay_s;     /* 10 */
	_Atomic uint32_t abort_limit;        /* 10 */
	_Atomic uint32_t overload;           /* enum mc_overload */
	_Atomic uint32_t stage_workers;      /* 1..16: rings 0..n-1 get work */
	_Atomic uint32_t streams;            /* primary: 1..8 connections that carry slabs */
	_Atomic uint32_t decoders;           /* backup: 1..16 threads of restore that decode */
	_Atomic uint32_t arbiter_timeout_ms; /* 5000 */
	_Atomic int32_t zstd_level;          /* -10..19, default -1 */
	_Atomic uint64_t gate_limit;         /* bytes held per NIC; default 125000000 */
	_Atomic uint64_t max_bandwidth;      /* bytes/s of the first copy; 0: no limit */
	uint8_t pad0[64];
	/* fixed before the first process starts */
	uint32_t side; /* enum mc_side */
	uint32_t gate; /* enum mc_gate_kind over all NICs; NONE: output not held */
	uint32_t nnics;
	uint32_t on_host_shutdown; /* QEMU ended by its host: 0 failover, 1 stop */
	uint32_t insecure;         /* 1: plain TCP or RDMA off loopback was asked for by name */
	uint32_t rdma_copy;        /* 1: capture copies pages by an RDMA device */
	uint32_t poll;             /* 1: RDMA completions are polled for, at the cost of a CPU */
	uint32_t tracker;          /* enum mc_tracker */
	uint32_t tls;              /* enum mc_tls */
	struct mc_term term; /* of this protection (backup: adopted from HELLO, see control.h) */
	struct mc_term takeover_term; /* backup: reserved and fsynced, used at takeover */
	struct mc_instance instance;  /* of this end */
	char guest[MC_NAME_MAX];
	char qmp[MC_PATH_MAX_];
	char peer[256];              /* primary: "HOST:PORT", "[V6]:PORT" */
	char transport[16];          /* "tcp", "rdma" or "auto" */
	char arbiter[256];           /* "none" or "exec:COMMAND" (arbiter.h) */
	char accept[1024];           /* comma separated device types of --accept */
	char cpus[128];              /* CPUs of this guest's processes, "2-3,8"; empty: any */
	char cgroup[MC_PATH_MAX_];   /* their control group, a folder; empty: the supervisor's */
	char tls_dir[MC_PATH_MAX_];  /* X509: certificates, read by the supervisor */
	char psk_file[MC_PATH_MAX_]; /* PSK: lines IDENTITY:HEXKEY, read by the supervisor */
	char psk_identity[128];      /* PSK, primary: which of them; empty: the first */
	char tls_peer_name[256];     /* X509: name that the peer's certificate must have; empty: its
	                                address */
	char allow_peer[1024];       /* lines: subject DN, CN or PSK identity; empty: any */
	char rundir[MC_PATH_MAX_];   /* where sockets of this supervisor live */
	struct mc_nic nic[MC_NICS_MAX];
};

/* Fills in every default; side and strings empty. */
void mc_config_defaults(struct mc_config *c);

/*
 * 0, or -EINVAL with a sentence in @why that names the field and what it may be.
 * @why: at least 128 bytes.
 */
int mc_config_validate(const struct mc_config *c, char *why, size_t why_len);

/* 0 or -EINVAL: [A-Za-z0-9][A-Za-z0-9._-]{0,62}, safe in file names and bus paths. */
int mc_guest_name_check(const char *name);

/* "auto", "uffd", "soft-dirty"; "?" beyond. */
const char *mc_tracker_name(enum mc_tracker t);
/* 0 or -EINVAL. */
int mc_tracker_parse(const char *name, enum mc_tracker *ret);

/* What a NIC is called in messages and lists: its netdev, or the tap. */
const char *mc_nic_name(const struct mc_nic *n);

/* Interval clamped to 1 ms .. 60 s, in ns. */
uint64_t mc_config_interval_ns(const struct mc_config *c);

#endif
