/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What is said in the clear before the handshake.  Nothing here is trusted: it names the guest, so
 * that the supervisor finds its transport, and lets an end say that it doesn't use TLS.
 */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "../ipc/util.h"
#include "tls.h"

size_t tls_preamble_pack(enum mc_side side, const char *guest, void *buf)
{
	static const struct mc_term none;
	struct mc_wire_tls payload = {.guest = ""};
	size_t len = side == MC_SIDE_PRIMARY ? sizeof(payload) : 0;
	struct mc_wire_header h;

	snprintf(payload.guest, sizeof(payload.guest), "%s", guest);
	mc_wire_header_init(&h, MC_MSG_TLS, &none, 0, (uint32_t)len);
	h.checksum = mc_wire_checksum(&h, &payload, len, NULL, 0);
	memcpy(buf, &h, sizeof(h));
	memcpy((uint8_t *)buf + sizeof(h), &payload, len);
	return sizeof(h) + len;
}

static int say(char *why, size_t len, int r, const char *text)
{
	snprintf(why, len, "%s", text);
	return r;
}

static int check_guest(const void *payload, size_t len, const char *guest, char *why,
                       size_t why_len)
{
	struct mc_wire_tls p;

	if (len != sizeof(p))
		return say(why, why_len, -EPROTO, "TLS message of the wrong length");
	memcpy(&p, payload, sizeof(p));
	if (!mc_terminated(p.guest, sizeof(p.guest)) || strcmp(p.guest, guest) != 0)
		return say(why, why_len, -EPROTO, "TLS message for another guest");
	return 0;
}

/* The backup says no, before it has proved to be the backup: its words, and who vouches for them.
 */
static int refused(const void *payload, size_t len, char *why, size_t why_len)
{
	char text[MC_WHY_MAX];
	uint32_t reason;

	if (mc_wire_reason_parse(payload, len, &reason, text) < 0)
		return say(why, why_len, -EPROTO, "malformed END");
	snprintf(why, why_len, "refused before any encryption: %.400s", text);
	return -EKEYREJECTED;
}

int tls_preamble_check(enum mc_side from, const char *guest, const void *buf, size_t len, char *why,
                       size_t why_len)
{
	struct mc_wire_limits lim = {.from = from, .slab_size = 1};
	const uint8_t *payload = (const uint8_t *)buf + MC_WIRE_HEADER;
	struct mc_wire_header h;
	int r;

	if (len < sizeof(h))
		return (int)(sizeof(h) - len);
	memcpy(&h, buf, sizeof(h));
	r = mc_wire_header_check(&h, &lim, why, why_len);
	if (r < 0)
		return r;
	if (h.type == MC_MSG_HELLO)
		return say(why, why_len, -EKEYREJECTED,
		           "the primary connects without encryption, but this standby was started "
		           "with TLS; give both the same tls-dir or psk-file");
	if (h.type != MC_MSG_TLS && h.type != MC_MSG_END)
		return say(why, why_len, -EPROTO, "the link begins with the wrong message");
	if (len < sizeof(h) + h.length)
		return (int)(sizeof(h) + h.length - len);
	if (mc_wire_checksum(&h, payload, h.length, NULL, 0) != h.checksum)
		return say(why, why_len, -EPROTO, "message with a wrong checksum");
	if (h.type == MC_MSG_END)
		return refused(payload, h.length, why, why_len);
	if (from == MC_SIDE_PRIMARY)
		return check_guest(payload, h.length, guest, why, why_len);
	return h.length ? say(why, why_len, -EPROTO, "TLS message of the wrong length") : 0;
}
