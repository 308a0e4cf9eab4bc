/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Shared by relay.c and relay-in.c only. */
#ifndef MC_NETGATE_RELAY_PRIVATE_H
#define MC_NETGATE_RELAY_PRIVATE_H

#include <sys/socket.h>
#include <sys/un.h>

#include "backend.h"
#include "queue.h"

#define BURST  32 /* frames a system call */
#define BURSTS 8  /* before others get their turn */
#define MARKS  64

/* Frames on their way through. */
struct burst {
	struct mmsghdr m[BURST];
	struct iovec v[BURST];
	struct sockaddr_un from[BURST];
	uint8_t data[BURST][FRAME_MAX];
};

struct relay {
	struct gate_nic nic;
	struct mc_nic spec;
	struct mc_metrics_block *m;
	sd_event_source *qemu_io, *world_io, *room_io;
	int qemu, world;
	int to_qemu; /* connected while we may: its socket belongs to another user */
	sd_event *event;
	bool world_is_sock;
	struct sockaddr_un qemu_addr, world_addr;
	enum gate_mode mode;
	struct queue held;
	uint64_t released; /* newest epoch that was released */
	sd_event_source *retry, *read_again;
	uint64_t read_at; /* ns, when QEMU's frames were read last */
	/* The check that never finds anything: bytes that left against what marks allow. */
	uint64_t in, out, allowed;
	struct {
		uint64_t epoch, in;
	} mark[MARKS];
	struct burst b;             /* read */
	uint8_t waiting[FRAME_MAX]; /* a frame for the guest that QEMU has no room for */
	size_t waits;               /* its bytes; 0: none */
	struct mmsghdr out_m[BURST];
	struct iovec out_v[BURST];
};

/*
 * relay-in.c: frames for the guest.  Opens the socket that they leave by, and its events; 0 or
 * negative errno.
 */
int relay_in_open(struct relay *r);
int relay_in_start(struct relay *r);
void relay_in_close(struct relay *r);
/* Where to send them to is learnt from where the guest's own come from, @h. */
void relay_in_learn(struct relay *r, const struct msghdr *h);
/* The gate is shut: what waits for QEMU is dropped. */
void relay_in_drop(struct relay *r);

#endif
