/* SPDX-License-Identifier: GPL-2.0-or-later */
/* What is said between a process that asks its arbiter and its helper; one message a packet. */
#ifndef MC_IPC_ARBITER_PRIVATE_H
#define MC_IPC_ARBITER_PRIVATE_H

#include <stdint.h>

#define MC_ARBITER_PREFIX "exec:"

struct mc_arbiter_question {
	uint32_t number; /* of this question; 0: forget the last one */
	uint32_t reason;
	uint64_t term, epoch;
	uint32_t limit_ms;
	uint32_t zero;
};

struct mc_arbiter_answer {
	uint32_t number;
	int32_t status; /* as waitpid() gives it; negative: no process, an errno */
	uint32_t late;  /* it was killed when its time was over */
	uint32_t zero;
};

#endif
