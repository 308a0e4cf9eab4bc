/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A whole transport against a peer that sends what it likes: the input is a row of messages whose
 * headers are put right (magic, checksum, mostly the term), so that what lies behind the first
 * checks is reached; both ends.
 */
#include <sys/socket.h>
#include <unistd.h>

#include "../ipc/fuzz.h"
#include "../ipc/log.h"
#include "../ipc/util.h"
#include "transport.h"

#define UNIT     65536
#define MESSAGES 24
#define TURNS    40

static const struct mc_term TERM = {.number = 5, .id = 77};

struct world {
	struct mc_arena sup;
	struct mc_worker w;
	struct transport *t;
	int peer;
	struct mc_hash_asker asker; /* capture's */
};

static void attach(struct world *x, enum mc_side side)
{
	struct mc_arena_params p = {
	        .slab_size = UNIT, .max_memory = 8 * UNIT, .ram_pages = 256, .side = side};
	int bells[MC_ROLE_MAX];
	struct mc_config *c;

	if (mc_arena_create(&x->sup, NULL, &p) < 0)
		abort();
	c = x->sup.config;
	c->side = side;
	c->term = side == MC_SIDE_PRIMARY ? TERM : (struct mc_term){.number = 4, .id = 1};
	c->takeover_term = (struct mc_term){.number = 9, .id = 9};
	c->instance.id[0] = c->instance.id[1] = 3;
	strcpy(c->guest, "vm");
	for (int i = 0; i < MC_ROLE_MAX; i++)
		bells[i] = dup(x->sup.bell_fd[i]);
	if (mc_arena_attach(&x->w.arena, dup(x->sup.fd), mc_arena_config_reader(&x->sup), bells,
	                    MC_ROLE_MAX, MC_ROLE_TRANSPORT) < 0)
		abort();
}

/* What the others have done before a peer comes. */
static void prepare(struct world *x, enum mc_side side)
{
	struct mc_control *c = x->sup.control;

	strcpy(c->block[0].name, "ram");
	c->block[0].size = 1 << 20;
	atomic_store(&c->blocks, 1);
	strcpy(c->description, "machine x");
	(void)mc_state_move(c, side, MC_ROLE_SUPERVISOR, MC_STATE_NONE,
	                    side == MC_SIDE_PRIMARY ? MC_STATE_SYNCING : MC_STATE_WAITING,
	                    MC_REASON_STARTED);
	if (side == MC_SIDE_BACKUP)
		atomic_store(&c->standby_ready, 1);
}

static void connect_them(struct world *x, enum mc_side side)
{
	struct transport *t = x->t;
	int sp[2];

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, sp) < 0)
		abort();
	x->peer = sp[1];
	if (side == MC_SIDE_BACKUP) {
		x->sup.config->insecure = 1;
		if (backup_connection(t, sp[0]) < 0)
			abort();
		return;
	}
	if (tcp_link_new(&t->link, x->w.event, sp[0], NULL, &primary_events, t) < 0)
		abort();
	t->link->limits = (struct mc_wire_limits){.slab_size = UNIT, .from = MC_SIDE_BACKUP};
	t->link->term = TERM;
}

/* Epochs as capture and stage would have made them, so that a primary has something to be told of.
 */
static void make_epochs(struct world *x, unsigned n)
{
	struct mc_journal j = x->sup.journal;

	atomic_store(&x->sup.control->armed_epoch, n ? 1 : 0);
	j.role = MC_ROLE_CAPTURE;
	for (uint64_t e = 1; e <= n; e++) {
		(void)mc_journal_begin(&j, e);
		(void)mc_journal_move(&j, e, MC_EPOCH_CAPTURING, MC_EPOCH_CAPTURED);
	}
	j.role = MC_ROLE_STAGE0;
	for (uint64_t e = 1; e <= n; e++)
		(void)mc_journal_move(&j, e, MC_EPOCH_CAPTURED, MC_EPOCH_STAGED);
}

static void run(struct world *x)
{
	for (int i = 0; i < TURNS; i++) {
		int did = 0;

		for (int n = 0; n < TURNS; n++) {
			did = transport_ops.work(&x->w, x->t);
			if (did <= 0)
				break;
		}
		if (did < 0 || sd_event_run(x->w.event, 0) <= 0)
			return;
	}
}

/* A HELLO that fits; the input says in what it doesn't. */
static size_t make_hello(struct world *x, struct fuzz_input *in, uint8_t *to)
{
	static struct mc_hello h;
	uint8_t wrong = fuzz_u8(in);

	transport_fill_hello(x->t, &h);
	h.h.side = x->t->side == MC_SIDE_PRIMARY ? MC_SIDE_BACKUP : MC_SIDE_PRIMARY;
	h.h.instance[0] = wrong & 1 ? fuzz_u8(in) : 8;
	h.h.resync = wrong & 2 ? 1 + (wrong >> 7) : 0;
	h.h.taken_over = wrong >> 2 & 1;
	h.h.last_committed = wrong & 8 ? fuzz_u64(in) : 0;
	h.h.slab_size += wrong & 16 ? 4096 : 0;
	h.block[0].size += wrong & 32 ? 4096 : 0;
	h.description[0] = wrong & 64 ? 'X' : h.description[0];
	return mc_wire_hello_pack(&h, to);
}

static void send_message(struct world *x, struct fuzz_input *in)
{
	static uint8_t buf[MC_WIRE_HEADER + UNIT + 64];
	uint8_t *payload = buf + MC_WIRE_HEADER;
	uint8_t type = fuzz_u8(in), how = fuzz_u8(in);
	uint64_t epoch = how & 1 ? fuzz_u64(in) : fuzz_u8(in);
	struct mc_term term = TERM;
	struct mc_wire_header h;
	size_t len;

	if (how & 2)
		term.number = fuzz_u8(in);
	if (type == MC_MSG_HELLO && !(how & 4)) {
		len = make_hello(x, in, payload);
		epoch = 0;
	} else {
		len = fuzz_u16(in) % UNIT;
		fuzz_take(in, payload, len);
	}
	mc_wire_header_init(&h, (enum mc_msg)(type % 32), &term, epoch, (uint32_t)len);
	h.checksum = mc_wire_checksum(&h, payload, len, NULL, 0);
	if (how & 8)
		h.length = fuzz_u32(in);
	memcpy(buf, &h, sizeof(h));
	(void)send(x->peer, buf, MC_WIRE_HEADER + len, MSG_NOSIGNAL | MSG_DONTWAIT);
	while (recv(x->peer, buf, sizeof(buf), MSG_DONTWAIT) > 0)
		;
}

/* As capture and restore do their part: a question before each message, answers after it. */
static void ask_hashes(struct world *x)
{
	struct mc_hash_question q = {.seed = 1, .pages = 64};

	if (x->t->side == MC_SIDE_PRIMARY && x->t->up)
		(void)mc_hash_ask(&x->asker, &q);
}

static void answer_hashes(struct world *x)
{
	struct mc_hash_box *box = x->sup.hashes;

	while (x->t->side == MC_SIDE_BACKUP && mc_hash_question(box, atomic_load(&box->answered)))
		mc_hash_answered(box, true);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = {data, size};
	uint8_t mode = fuzz_u8(&in);
	enum mc_side side = mode & 1 ? MC_SIDE_PRIMARY : MC_SIDE_BACKUP;
	struct world x = {.w = {.role = MC_ROLE_TRANSPORT, .guest = "vm", .creds_fd = -1}};

	mc_log_setup("fuzz", NULL, -1);
	attach(&x, side);
	prepare(&x, side);
	atomic_store(&x.sup.control->ram_kept, mode >> 3 & 1);
	mc_hash_asker_init(&x.asker, x.sup.hashes);
	x.t = calloc(1, sizeof(*x.t));
	if (!x.t || sd_event_new(&x.w.event) < 0 || transport_ops.start(&x.w, x.t) < 0)
		abort();
	if (side == MC_SIDE_PRIMARY)
		make_epochs(&x, mode >> 1 & 3);
	connect_them(&x, side);
	for (int i = 0; i < MESSAGES && in.left; i++) {
		if (mode & 16)
			ask_hashes(&x);
		send_message(&x, &in);
		run(&x);
		answer_hashes(&x);
	}
	close(x.peer);
	run(&x);
	transport_ops.quit(&x.w, x.t);
	free(x.t);
	sd_event_unref(x.w.event);
	mc_arena_done(&x.w.arena);
	mc_arena_done(&x.sup);
	return 0;
}
