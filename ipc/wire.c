/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "wire.h"

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#define XXH_STATIC_LINKING_ONLY /* a hash state on the stack */
#include "hash.h"

#include "util.h"

#define P (1U << MC_SIDE_PRIMARY)
#define B (1U << MC_SIDE_BACKUP)

#define TEXT_MAX (sizeof(struct mc_wire_reason) + MC_WHY_MAX - 1)

/* Who may send a type and how long its payload is; 0 as max: slab size. */
static const struct {
	const char *name;
	uint32_t from;
	uint64_t min, max;
	enum { NONE, NAMED, EITHER } epoch; /* in the header */
} types[MC_MSG_TYPES] = {
        [MC_MSG_HELLO] = {"HELLO", P | B, sizeof(struct mc_wire_hello), MC_WIRE_HELLO_MAX, NONE},
        [MC_MSG_START] = {"START", P, sizeof(struct mc_wire_start), sizeof(struct mc_wire_start),
                          NAMED},
        [MC_MSG_SLAB] = {"SLAB", P, sizeof(struct mc_wire_slab) + 1, 0, EITHER},
        [MC_MSG_COMMIT] = {"COMMIT", P, sizeof(struct mc_wire_commit),
                           sizeof(struct mc_wire_commit), NAMED},
        [MC_MSG_ACK] = {"ACK", B, 0, 0, NAMED},
        [MC_MSG_NACK] = {"NACK", B, sizeof(struct mc_wire_reason), TEXT_MAX, NAMED},
        [MC_MSG_ABORT] = {"ABORT", P, 0, 0, NAMED},
        [MC_MSG_END] = {"END", P | B, sizeof(struct mc_wire_reason), TEXT_MAX, NONE},
        [MC_MSG_END_ACK] = {"END_ACK", P | B, 0, 0, NONE},
        [MC_MSG_PING] = {"PING", P | B, sizeof(struct mc_wire_ping), sizeof(struct mc_wire_ping),
                         NONE},
        [MC_MSG_TLS] = {"TLS", P | B, 0, sizeof(struct mc_wire_tls), NONE},
        [MC_MSG_PONG] = {"PONG", P | B, sizeof(struct mc_wire_ping), sizeof(struct mc_wire_ping),
                         NONE},
        [MC_MSG_RDMA_ASK] = {"RDMA_ASK", P, sizeof(struct mc_wire_rdma_ask),
                             sizeof(struct mc_wire_rdma_ask), NONE},
        [MC_MSG_RDMA_OFFER] = {"RDMA_OFFER", B, sizeof(struct mc_wire_rdma_offer),
                               sizeof(struct mc_wire_rdma_offer) + MC_WHY_MAX - 1, NONE},
        [MC_MSG_BYE] = {"BYE", P, 0, 0, NONE},
        [MC_MSG_HASH_ASK] = {"HASH_ASK", P, sizeof(struct mc_wire_hash_ask),
                             sizeof(struct mc_wire_hash_ask), EITHER},
        [MC_MSG_HASHES] = {"HASHES", B, sizeof(struct mc_wire_hashes), MC_WIRE_HASHES_MAX, EITHER},
};

const char *mc_msg_name(unsigned type)
{
	return type < MC_MSG_TYPES && types[type].name ? types[type].name : "?";
}

void mc_wire_header_init(struct mc_wire_header *h, enum mc_msg type, const struct mc_term *term,
                         uint64_t epoch, uint32_t length)
{
	*h = (struct mc_wire_header){
	        .magic = MC_WIRE_MAGIC,
	        .version = MC_WIRE_VERSION,
	        .type = (uint16_t)type,
	        .length = length,
	        .term = term->number,
	        .term_id = term->id,
	        .epoch = epoch,
	};
}

uint64_t mc_wire_checksum(const struct mc_wire_header *h, const void *a, size_t a_len,
                          const void *b, size_t b_len)
{
	struct mc_wire_header copy = *h;
	XXH3_state_t s;

	copy.checksum = 0;
	XXH3_64bits_reset(&s);
	XXH3_64bits_update(&s, &copy, sizeof(copy));
	if (a_len)
		XXH3_64bits_update(&s, a, a_len);
	if (b_len)
		XXH3_64bits_update(&s, b, b_len);
	return XXH3_64bits_digest(&s);
}

static int length_fits(const struct mc_wire_header *h, const struct mc_wire_limits *lim)
{
	uint64_t max = types[h->type].max;

	if (h->type == MC_MSG_SLAB)
		max = sizeof(struct mc_wire_slab) + lim->slab_size;
	return h->length >= types[h->type].min && h->length <= max;
}

int mc_wire_header_check(const struct mc_wire_header *h, const struct mc_wire_limits *lim,
                         char *why, size_t why_len)
{
	if (h->magic != MC_WIRE_MAGIC) {
		snprintf(why, why_len,
		         "not a microcheckpoint peer (magic %08x); is that its port (7911)?",
		         h->magic);
		return -EPROTO;
	}
	if (h->version != MC_WIRE_VERSION) {
		snprintf(why, why_len,
		         "peer speaks protocol version %u, this is version %u: install the same "
		         "release on both hosts",
		         h->version, (unsigned)MC_WIRE_VERSION);
		return -EPROTONOSUPPORT;
	}
	if (h->type >= MC_MSG_TYPES || !types[h->type].name ||
	    !(types[h->type].from & 1U << lim->from)) {
		snprintf(why, why_len, "message type %u is not for this peer to send", h->type);
		return -EPROTO;
	}
	if (h->reserved || !length_fits(h, lim)) {
		snprintf(why, why_len, "%s with a length of %u bytes", types[h->type].name,
		         h->length);
		return -EPROTO;
	}
	if (h->epoch > MC_EPOCH_MAX || (types[h->type].epoch != EITHER &&
	                                (types[h->type].epoch == NAMED) != (h->epoch != 0))) {
		snprintf(why, why_len, "%s with epoch %llu", types[h->type].name,
		         (unsigned long long)h->epoch);
		return -EPROTO;
	}
	if (lim->have_term && (h->term != lim->term.number || h->term_id != lim->term.id)) {
		snprintf(why, why_len, "%s of term %llu (id %llx), ours is %llu (id %llx)",
		         types[h->type].name, (unsigned long long)h->term,
		         (unsigned long long)h->term_id, (unsigned long long)lim->term.number,
		         (unsigned long long)lim->term.id);
		return -ESTALE;
	}
	return 0;
}

static int check_hello(const struct mc_wire_hello *h, char *why, size_t why_len)
{
	const char *text = NULL;

	if (!mc_terminated(h->guest, sizeof(h->guest)) || mc_guest_name_check(h->guest) < 0)
		text = "HELLO with a bad guest name";
	else if (!mc_terminated(h->build, sizeof(h->build)) || !mc_printable(h->build))
		text = "HELLO with a bad build id";
	else if (h->blocks > MC_BLOCKS_MAX)
		text = "HELLO with too many RAM blocks";
	else if (h->description >= MC_DESC_TEXT)
		text = "HELLO with too long a description";
	else if (h->taken_over > 1 || h->resync > 2 || h->ask > 1 || h->stream >= MC_STREAMS_MAX ||
	         (h->side != MC_SIDE_PRIMARY && h->side != MC_SIDE_BACKUP))
		text = "HELLO with a field out of range";
	if (!text)
		return 0;
	snprintf(why, why_len, "%s", text);
	return -EPROTO;
}

int mc_wire_hello_parse(const void *payload, size_t len, struct mc_hello *ret, char *why,
                        size_t why_len)
{
	const uint8_t *p = payload;
	size_t blocks;
	int r;

	snprintf(why, why_len, "HELLO of the wrong length");
	if (len < sizeof(ret->h))
		return -EPROTO;
	memcpy(&ret->h, p, sizeof(ret->h));
	r = check_hello(&ret->h, why, why_len);
	if (r < 0)
		return r;
	blocks = ret->h.blocks * sizeof(ret->block[0]);
	if (len != sizeof(ret->h) + blocks + ret->h.description) {
		snprintf(why, why_len, "HELLO of the wrong length");
		return -EPROTO;
	}
	memcpy(ret->block, p + sizeof(ret->h), blocks);
	for (uint32_t i = 0; i < ret->h.blocks; i++) {
		if (mc_terminated(ret->block[i].name, sizeof(ret->block[i].name)) &&
		    mc_printable(ret->block[i].name))
			continue;
		snprintf(why, why_len, "HELLO with a bad RAM block name");
		return -EPROTO;
	}
	memcpy(ret->description, p + sizeof(ret->h) + blocks, ret->h.description);
	ret->description[ret->h.description] = '\0';
	if (strlen(ret->description) == ret->h.description && mc_printable(ret->description))
		return 0;
	snprintf(why, why_len, "HELLO with an unprintable description");
	return -EPROTO;
}

size_t mc_wire_hello_pack(const struct mc_hello *h, void *buf)
{
	uint8_t *p = buf;
	size_t blocks = h->h.blocks * sizeof(h->block[0]);

	memcpy(p, &h->h, sizeof(h->h));
	memcpy(p + sizeof(h->h), h->block, blocks);
	memcpy(p + sizeof(h->h) + blocks, h->description, h->h.description);
	return sizeof(h->h) + blocks + h->h.description;
}

int mc_wire_reason_parse(const void *payload, size_t len, uint32_t *reason, char *text)
{
	struct mc_wire_reason r;

	if (len < sizeof(r))
		return -EPROTO;
	memcpy(&r, payload, sizeof(r));
	if (r.length >= MC_WHY_MAX || len != sizeof(r) + r.length)
		return -EPROTO;
	*reason = r.reason;
	for (uint32_t i = 0; i < r.length; i++) {
		char c = ((const char *)payload)[sizeof(r) + i];

		text[i] = c >= ' ' && c < 127 ? c : '?'; /* goes into logs and terminals */
	}
	text[r.length] = '\0';
	return 0;
}

size_t mc_wire_reason_pack(uint32_t reason, const char *text, void *buf)
{
	struct mc_wire_reason r = {.reason = reason,
	                           .length = (uint32_t)strnlen(text, MC_WHY_MAX - 1)};

	memcpy(buf, &r, sizeof(r));
	memcpy((uint8_t *)buf + sizeof(r), text, r.length);
	return sizeof(r) + r.length;
}
