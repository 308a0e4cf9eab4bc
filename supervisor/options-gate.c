/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Which gate the NICs of a request get. */
#include <stdio.h>

#include "options.h"

bool request_takes_taps(const struct request *rq)
{
	for (uint32_t i = 0; i < rq->cfg.nnics; i++)
		if (rq->cfg.nic[i].kind == MC_GATE_PLUG)
			return false;
	return rq->gate == REQUEST_GATE_AUTO || rq->gate == REQUEST_GATE_PLUG;
}

void request_set_gate(struct request *rq)
{
	rq->cfg.gate = MC_GATE_NONE;
	for (uint32_t i = 0; i < rq->cfg.nnics; i++)
		if (rq->cfg.nic[i].kind > rq->cfg.gate)
			rq->cfg.gate = rq->cfg.nic[i].kind;
}

const char *request_gate_mistake(const struct request *rq)
{
	for (uint32_t i = 0; i < rq->cfg.nnics; i++) {
		uint32_t kind = rq->cfg.nic[i].kind;

		if (rq->gate == REQUEST_GATE_NONE)
			return "gate none excludes relay and nic";
		if (rq->gate == REQUEST_GATE_RELAY && kind == MC_GATE_PLUG)
			return "gate relay can't hold a tap of QEMU's own; use -netdev dgram and "
			       "relay instead of nic, or gate plug";
		if (rq->gate == REQUEST_GATE_PLUG && kind == MC_GATE_RELAY)
			return "gate plug can't hold a -netdev dgram; use -netdev tap and nic "
			       "instead of relay, or gate relay";
	}
	return NULL;
}

void request_gated(const struct request *rq, char *buf, size_t len)
{
	size_t n = 0;

	buf[0] = '\0';
	for (uint32_t i = 0; i < rq->cfg.nnics && n < len; i++)
		n += (size_t)snprintf(buf + n, len - n, "%s%s", i ? "," : "",
		                      mc_nic_name(&rq->cfg.nic[i]));
}
