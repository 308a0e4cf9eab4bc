/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "config.h"

#include <ctype.h>
#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "util.h"

#define INTERVAL_MIN_US 1000
#define INTERVAL_MAX_US 60000000

void mc_config_defaults(struct mc_config *c)
{
	memset(c, 0, sizeof(*c));
	atomic_store(&c->interval_us, 100000);
	atomic_store(&c->max_in_flight, 2);
	atomic_store(&c->restart_grace_ms, 60);
	atomic_store(&c->failure_timeout_ms, 500);
	atomic_store(&c->lease_margin_ms, 50);
	atomic_store(&c->shrink_delay_s, 10);
	atomic_store(&c->abort_limit, 10);
	atomic_store(&c->overload, MC_OVERLOAD_THROTTLE);
	atomic_store(&c->stage_workers, 1);
	atomic_store(&c->streams, 1);
	atomic_store(&c->decoders, 1);
	atomic_store(&c->arbiter_timeout_ms, 5000);
	atomic_store(&c->zstd_level, -1);
	atomic_store(&c->gate_limit, 125000000);
	strcpy(c->transport, "tcp");
	strcpy(c->arbiter, "none");
}

static const char *const tracker_names[] = {"auto", "uffd", "soft-dirty"};

const char *mc_tracker_name(enum mc_tracker t)
{
	return (size_t)t < MC_ARRAY_SIZE(tracker_names) ? tracker_names[t] : "?";
}

int mc_tracker_parse(const char *name, enum mc_tracker *ret)
{
	for (size_t i = 0; i < MC_ARRAY_SIZE(tracker_names); i++) {
		if (strcmp(name, tracker_names[i]) != 0)
			continue;
		*ret = (enum mc_tracker)i;
		return 0;
	}
	return -EINVAL;
}

int mc_guest_name_check(const char *name)
{
	size_t n = strnlen(name, MC_NAME_MAX);

	if (!n || n >= MC_NAME_MAX || !isalnum((unsigned char)name[0]))
		return -EINVAL;
	for (size_t i = 0; i < n; i++)
		if (!isalnum((unsigned char)name[i]) && !strchr("._-", name[i]))
			return -EINVAL;
	return 0;
}

const char *mc_nic_name(const struct mc_nic *n)
{
	return n->netdev[0] ? n->netdev : n->tap;
}

uint64_t mc_config_interval_ns(const struct mc_config *c)
{
	uint64_t us = atomic_load_explicit(&c->interval_us, memory_order_relaxed);

	if (us < INTERVAL_MIN_US)
		us = INTERVAL_MIN_US;
	if (us > INTERVAL_MAX_US)
		us = INTERVAL_MAX_US;
	return us * MC_NS_PER_US;
}

static int bad(char *why, size_t len, const char *text)
{
	snprintf(why, len, "%s", text);
	return -EINVAL;
}

static int check_numbers(const struct mc_config *c, char *why, size_t len)
{
	const struct {
		const char *name;
		uint64_t value, min, max;
	} range[] = {
	        {"interval (microseconds)", atomic_load(&c->interval_us), INTERVAL_MIN_US,
	         INTERVAL_MAX_US},
	        {"max-in-flight", atomic_load(&c->max_in_flight), 1, 8},
	        {"restart-grace (ms)", atomic_load(&c->restart_grace_ms), 1, 60000},
	        {"failure-timeout (ms)", atomic_load(&c->failure_timeout_ms), 50, 600000},
	        {"lease-margin (ms)", atomic_load(&c->lease_margin_ms), 1,
	         atomic_load(&c->failure_timeout_ms) - 1},
	        {"shrink-delay (s)", atomic_load(&c->shrink_delay_s), 1, 86400},
	        {"abort-limit", atomic_load(&c->abort_limit), 1, 1000000},
	        {"on-overload", atomic_load(&c->overload), 0, MC_OVERLOAD_UNPROTECT},
	        {"stage workers", atomic_load(&c->stage_workers), 1, MC_STAGES_MAX},
	        {"streams", atomic_load(&c->streams), 1, MC_STREAMS_MAX},
	        {"decoders", atomic_load(&c->decoders), 1, MC_DECODERS_MAX},
	        {"arbiter-timeout (ms)", atomic_load(&c->arbiter_timeout_ms), 100, 600000},
	        {"gate-limit (bytes)", atomic_load(&c->gate_limit), 65536, 1ULL << 40},
	        {"side", c->side, MC_SIDE_PRIMARY, MC_SIDE_BACKUP},
	        {"gate", c->gate, MC_GATE_NONE, MC_GATE_PLUG},
	        {"number of NICs", c->nnics, 0, MC_NICS_MAX},
	        {"on-host-shutdown", c->on_host_shutdown, 0, 1},
	        {"insecure", c->insecure, 0, 1},
	        {"tracker", c->tracker, 0, MC_TRACKERS - 1},
	        {"poll", c->poll, 0, 1},
	        {"rdma-copy", c->rdma_copy, 0, 1},
	        {"tls", c->tls, MC_TLS_NONE, MC_TLS_PSK},
	        {"term", c->term.number, 0, (1 << 20) - 1},
	        {"takeover term", c->takeover_term.number, 0, (1 << 20) - 1},
	};

	for (size_t i = 0; i < MC_ARRAY_SIZE(range); i++) {
		if (range[i].value >= range[i].min && range[i].value <= range[i].max)
			continue;
		snprintf(why, len, "%s is %llu, must be %llu..%llu", range[i].name,
		         (unsigned long long)range[i].value, (unsigned long long)range[i].min,
		         (unsigned long long)range[i].max);
		return -EINVAL;
	}
	return 0;
}

#define CHECK_TEXT(field)                                                                          \
	do {                                                                                       \
		if (!mc_terminated((field), sizeof(field)))                                        \
			return bad(why, len, #field " has no end");                                \
	} while (0)

static int check_nic(const struct mc_nic *n, char *why, size_t len)
{
	CHECK_TEXT(n->netdev);
	CHECK_TEXT(n->path);
	CHECK_TEXT(n->qemu_path);
	CHECK_TEXT(n->tap);
	CHECK_TEXT(n->sock);
	CHECK_TEXT(n->sock_local);
	CHECK_TEXT(n->netns);
	if (n->kind != MC_GATE_RELAY && n->kind != MC_GATE_PLUG)
		return bad(why, len, "a NIC's gate is neither relay nor plug; give one of the two");
	if (n->kind == MC_GATE_RELAY && (!n->path[0] || !n->tap[0] == !n->sock[0]))
		return bad(why, len, "a relay needs a path and either a tap or a socket");
	if (n->kind == MC_GATE_PLUG && !n->tap[0])
		return bad(why, len, "a plug needs a tap");
	return 0;
}

int mc_config_validate(const struct mc_config *c, char *why, size_t len)
{
	int32_t level = atomic_load(&c->zstd_level);
	int r = check_numbers(c, why, len);

	if (r < 0)
		return r;
	if (level < -10 || level > 19)
		return bad(why, len, "zstd-level must be -10..19");
	CHECK_TEXT(c->guest);
	CHECK_TEXT(c->qmp);
	CHECK_TEXT(c->peer);
	CHECK_TEXT(c->transport);
	CHECK_TEXT(c->accept);
	CHECK_TEXT(c->arbiter);
	CHECK_TEXT(c->tls_dir);
	CHECK_TEXT(c->psk_file);
	CHECK_TEXT(c->psk_identity);
	CHECK_TEXT(c->tls_peer_name);
	CHECK_TEXT(c->allow_peer);
	CHECK_TEXT(c->rundir);
	CHECK_TEXT(c->cpus);
	CHECK_TEXT(c->cgroup);
	if (mc_guest_name_check(c->guest) < 0)
		return bad(why, len, "the guest's name must be letters, digits, '.', '_', '-'");
	if (c->tls && c->insecure)
		return bad(why, len, "insecure and TLS exclude each other; leave one out");
	for (uint32_t i = 0; i < c->nnics; i++)
		if (check_nic(&c->nic[i], why, len) < 0)
			return -EINVAL;
	return 0;
}
