/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "options.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ipc/util.h"

#define MAX_MEMORY_DEFAULT  (1ULL << 30)
#define DELTA_CACHE_DEFAULT (64ULL << 20)

struct option_def {
	const char *key;
	const char *allowed;
	bool running, flag;
	int (*set)(struct request *rq, const struct option_def *d, const char *v);
	double scale;    /* number options: value * scale */
	double min, max; /* of the value as given */
	size_t offset;   /* in struct mc_config */
	char type;       /* 'u': _Atomic uint32_t, 't': _Atomic uint64_t, 'i': _Atomic int32_t */
};

static int parse_number(const char *v, double *ret)
{
	char *end;
	double d;

	if (!*v)
		return -EINVAL;
	d = strtod(v, &end);
	switch (*end) {
	case 'k':
	case 'K':
		d *= 1024, end++;
		break;
	case 'M':
		d *= 1048576, end++;
		break;
	case 'G':
		d *= 1073741824, end++;
		break;
	}
	if (*end || d != d)
		return -EINVAL;
	*ret = d;
	return 0;
}

static int set_number(struct request *rq, const struct option_def *d, const char *v)
{
	uint8_t *p = (uint8_t *)&rq->cfg + d->offset;
	double n;

	if (parse_number(v, &n) < 0 || n < d->min || n > d->max)
		return -EINVAL;
	n *= d->scale;
	if (d->type == 'u')
		atomic_store((_Atomic uint32_t *)p, (uint32_t)n);
	else if (d->type == 'i')
		atomic_store((_Atomic int32_t *)p, (int32_t)n);
	else
		atomic_store((_Atomic uint64_t *)p, (uint64_t)n);
	return 0;
}

static int set_size(struct request *rq, const struct option_def *d, const char *v)
{
	uint64_t *to = d->type == 's'   ? &rq->params.slab_size
	               : d->type == 'm' ? &rq->params.max_memory
	                                : &rq->params.delta_cache;
	double n;

	if (parse_number(v, &n) < 0 || n < d->min || n > d->max)
		return -EINVAL;
	if (d->type == 's' && (uint64_t)n % 4096)
		return -EINVAL;
	*to = (uint64_t)n;
	return 0;
}

static int set_text(struct request *rq, const struct option_def *d, const char *v)
{
	char *to = (char *)&rq->cfg + d->offset;

	if (!*v || strlen(v) >= (size_t)d->max)
		return -EINVAL;
	strcpy(to, v);
	return 0;
}

static int set_peer(struct request *rq, const struct option_def *d, const char *v)
{
	return options_peer_check(v) < 0 ? -EINVAL : set_text(rq, d, v);
}

static int set_accept(struct request *rq, const struct option_def *d, const char *v)
{
	char *to = rq->cfg.accept;
	size_t have = strlen(to);

	(void)d;
	if (!*v || have + strlen(v) + 2 > sizeof(rq->cfg.accept))
		return -EINVAL;
	snprintf(to + have, sizeof(rq->cfg.accept) - have, "%s%s", have ? "," : "", v);
	return 0;
}

static int set_arbiter(struct request *rq, const struct option_def *d, const char *v)
{
	(void)d;
	if (strcmp(v, "none") != 0 && (strncmp(v, "exec:", 5) != 0 || !v[5]))
		return -EINVAL;
	if (strlen(v) >= sizeof(rq->cfg.arbiter))
		return -EINVAL;
	strcpy(rq->cfg.arbiter, v);
	return 0;
}

/* Either of the two that secure the link. */
static int set_tls(struct request *rq, const struct option_def *d, const char *v)
{
	bool dir = strcmp(d->key, "tls-dir") == 0;
	uint32_t kind = dir ? MC_TLS_X509 : MC_TLS_PSK;

	if (*v != '/' || (rq->cfg.tls && rq->cfg.tls != kind) || set_text(rq, d, v) < 0)
		return -EINVAL;
	rq->cfg.tls = kind;
	return 0;
}

/* May be given again: one a line, since a distinguished name has commas. */
static int set_allow_peer(struct request *rq, const struct option_def *d, const char *v)
{
	char *to = rq->cfg.allow_peer;
	size_t have = strlen(to);

	(void)d;
	if (!*v || strchr(v, '\n') || have + strlen(v) + 2 > sizeof(rq->cfg.allow_peer))
		return -EINVAL;
	snprintf(to + have, sizeof(rq->cfg.allow_peer) - have, "%s%s", have ? "\n" : "", v);
	return 0;
}

static int set_choice(struct request *rq, const struct option_def *d, const char *v)
{
	if (strcmp(d->key, "transport") == 0) {
		if (strcmp(v, "tcp") != 0 && strcmp(v, "rdma") != 0 && strcmp(v, "auto") != 0)
			return -EINVAL;
		strcpy(rq->cfg.transport, v);
		return 0;
	}
	if (strcmp(d->key, "tracker") == 0) {
		enum mc_tracker t;

		if (mc_tracker_parse(v, &t) < 0)
			return -EINVAL;
		rq->cfg.tracker = t;
		return 0;
	}
	if (strcmp(d->key, "on-host-shutdown") == 0) {
		rq->cfg.on_host_shutdown = strcmp(v, "stop") == 0;
		return strcmp(v, "stop") == 0 || strcmp(v, "failover") == 0 ? 0 : -EINVAL;
	}
	if (strcmp(v, "throttle") == 0)
		atomic_store(&rq->cfg.overload, MC_OVERLOAD_THROTTLE);
	else if (strcmp(v, "hold") == 0)
		atomic_store(&rq->cfg.overload, MC_OVERLOAD_HOLD);
	else if (strcmp(v, "unprotect") == 0)
		atomic_store(&rq->cfg.overload, MC_OVERLOAD_UNPROTECT);
	else
		return -EINVAL;
	return 0;
}

static int set_gate(struct request *rq, const struct option_def *d, const char *v)
{
	static const char *const names[] = {[REQUEST_GATE_AUTO] = "auto",
	                                    [REQUEST_GATE_PLUG] = "plug",
	                                    [REQUEST_GATE_RELAY] = "relay",
	                                    [REQUEST_GATE_NONE] = "none"};

	(void)d;
	for (size_t i = 0; i < MC_ARRAY_SIZE(names); i++) {
		if (strcmp(v, names[i]) != 0)
			continue;
		rq->gate = (enum request_gate)i;
		if (rq->gate == REQUEST_GATE_NONE)
			rq->gate_given = true;
		return 0;
	}
	return -EINVAL;
}

static int set_flag(struct request *rq, const struct option_def *d, const char *v)
{
	bool on = strcmp(v, "true") == 0 || strcmp(v, "1") == 0 || strcmp(v, "yes") == 0;

	if (!on && strcmp(v, "false") != 0 && strcmp(v, "0") != 0 && strcmp(v, "no") != 0)
		return -EINVAL;
	if (d->type == 'd')
		rq->dry_run = on;
	else if (d->type == 'p')
		rq->cfg.poll = on;
	else if (d->type == 'r')
		rq->cfg.rdma_copy = on;
	else
		rq->cfg.insecure = on;
	return 0;
}

static int copy_field(char *to, size_t size, const char *from)
{
	if (!*from || strlen(from) >= size)
		return -EINVAL;
	strcpy(to, from);
	return 0;
}

static int relay_field(struct mc_nic *n, const char *word)
{
	if (strncmp(word, "tap=", 4) == 0)
		return copy_field(n->tap, sizeof(n->tap), word + 4);
	if (strncmp(word, "netns=", 6) == 0)
		return copy_field(n->netns, sizeof(n->netns), word + 6);
	if (strncmp(word, "qemu=", 5) == 0)
		return copy_field(n->qemu_path, sizeof(n->qemu_path), word + 5);
	if (strncmp(word, "sock=", 5) == 0)
		return copy_field(n->sock, sizeof(n->sock), word + 5);
	if (strncmp(word, "local=", 6) == 0)
		return copy_field(n->sock_local, sizeof(n->sock_local), word + 6);
	return -EINVAL;
}

/* NETDEV=unix:PATH,tap=IF[,netns=NS][,qemu=PATH], or sock=PATH[,local=PATH] instead of tap. */
static int set_relay(struct request *rq, const struct option_def *d, const char *v)
{
	struct mc_nic n = {.kind = MC_GATE_RELAY};
	char buf[1024], *word, *save, *eq;

	(void)d;
	if (rq->cfg.nnics == MC_NICS_MAX || strlen(v) >= sizeof(buf))
		return -EINVAL;
	strcpy(buf, v);
	eq = strchr(buf, '=');
	if (!eq || strncmp(eq + 1, "unix:", 5) != 0)
		return -EINVAL;
	*eq = '\0';
	word = strtok_r(eq + 6, ",", &save);
	if (copy_field(n.netdev, sizeof(n.netdev), buf) < 0 || !word ||
	    copy_field(n.path, sizeof(n.path), word) < 0)
		return -EINVAL;
	while ((word = strtok_r(NULL, ",", &save)))
		if (relay_field(&n, word) < 0)
			return -EINVAL;
	if (!n.tap[0] == !n.sock[0])
		return -EINVAL;
	rq->gate_given = true;
	rq->cfg.nic[rq->cfg.nnics++] = n;
	request_set_gate(rq);
	return 0;
}

/* IFNAME[,netns=NS] */
static int set_nic(struct request *rq, const struct option_def *d, const char *v)
{
	struct mc_nic n = {.kind = MC_GATE_PLUG};
	const char *comma = strchr(v, ',');
	size_t len = comma ? (size_t)(comma - v) : strlen(v);

	(void)d;
	if (rq->cfg.nnics == MC_NICS_MAX || !len || len >= sizeof(n.tap) ||
	    (comma && strncmp(comma, ",netns=", 7) != 0))
		return -EINVAL;
	memcpy(n.tap, v, len);
	if (strpbrk(n.tap, "/ \t") || !strcmp(n.tap, ".") || !strcmp(n.tap, "..") ||
	    (comma && copy_field(n.netns, sizeof(n.netns), comma + 7) < 0))
		return -EINVAL;
	for (uint32_t i = 0; i < rq->cfg.nnics; i++)
		if (strcmp(rq->cfg.nic[i].tap, n.tap) == 0 &&
		    strcmp(rq->cfg.nic[i].netns, n.netns) == 0)
			return -EINVAL;
	rq->gate_given = true;
	rq->cfg.nic[rq->cfg.nnics++] = n;
	request_set_gate(rq);
	return 0;
}

#define CFG(f) offsetof(struct mc_config, f)

static const struct option_def options[] = {
        {"qmp", "a socket path under 108 characters", false, false, set_text, 0, 0, 108, CFG(qmp),
         0},
        {"peer", "ADDRESS:PORT or [V6ADDRESS]:PORT, in figures (names aren't looked up)", false,
         false, set_peer, 0, 0, 256, CFG(peer), 0},
        {"accept", "device types, comma separated", false, false, set_accept, 0, 0, 0, 0, 0},
        {"relay", "NETDEV=unix:PATH,tap=IF[,netns=NS] (at most 8)", false, false, set_relay, 0, 0,
         0, 0, 0},
        {"nic", "IFNAME[,netns=NS] of a tap that QEMU has open (at most 8, each once)", false,
         false, set_nic, 0, 0, 0, 0, 0},
        {"gate", "auto, plug, relay or none", false, false, set_gate, 0, 0, 0, 0, 0},
        {"transport", "tcp, rdma or auto", false, false, set_choice, 0, 0, 0, 0, 0},
        {"tracker", "auto, uffd or soft-dirty", false, false, set_choice, 0, 0, 0, 0, 0},
        {"on-overload", "throttle, hold or unprotect", true, false, set_choice, 0, 0, 0, 0, 0},
        {"on-host-shutdown", "failover or stop", false, false, set_choice, 0, 0, 0, 0, 0},
        {"arbiter", "none or exec:COMMAND", false, false, set_arbiter, 0, 0, 0, 0, 0},
        {"arbiter-timeout", "100..600000 milliseconds", false, false, set_number, 1, 100, 600000,
         CFG(arbiter_timeout_ms), 'u'},
        {"interval", "1..60000 milliseconds", true, false, set_number, 1000, 1, 60000,
         CFG(interval_us), 'u'},
        {"max-in-flight", "1..8 epochs", true, false, set_number, 1, 1, 8, CFG(max_in_flight), 'u'},
        {"restart-grace", "1..60000 milliseconds", true, false, set_number, 1, 1, 60000,
         CFG(restart_grace_ms), 'u'},
        {"failure-timeout", "100..600000 milliseconds", false, false, set_number, 1, 100, 600000,
         CFG(failure_timeout_ms), 'u'},
        {"shrink-delay", "1..86400 seconds", true, false, set_number, 1, 1, 86400,
         CFG(shrink_delay_s), 'u'},
        {"abort-limit", "1..1000000 epochs", true, false, set_number, 1, 1, 1000000,
         CFG(abort_limit), 'u'},
        {"workers", "1..16 stage workers", false, false, set_number, 1, 1, MC_STAGES_MAX,
         CFG(stage_workers), 'u'},
        {"streams", "1..8 connections that carry slabs", false, false, set_number, 1, 1,
         MC_STREAMS_MAX, CFG(streams), 'u'},
        {"decoders", "1..16 threads that decode", false, false, set_number, 1, 1, MC_DECODERS_MAX,
         CFG(decoders), 'u'},
        {"zstd-level", "-10..19", true, false, set_number, 1, -10, 19, CFG(zstd_level), 'i'},
        {"gate-limit", "64K..1T bytes", true, false, set_number, 1, 65536, 1099511627776.0,
         CFG(gate_limit), 't'},
        {"max-bandwidth", "bytes per second, 0 for no limit", true, false, set_number, 1, 0, 1e12,
         CFG(max_bandwidth), 't'},
        {"slab-size", "a multiple of 4096 bytes, 64K..1G", false, false, set_size, 0, 65536,
         1073741824, 0, 's'},
        {"max-memory", "bytes, at least 4 slabs, at most 16T", false, false, set_size, 0, 262144,
         17592186044416.0, 0, 'm'},
        {"delta-cache", "bytes, 0..1T", false, false, set_size, 0, 0, 1099511627776.0, 0, 'd'},
        {"cpus", "a list of CPUs such as 2-3,8", false, false, set_text, 0, 0, 128, CFG(cpus), 0},
        {"cgroup", "a folder below /sys/fs/cgroup", false, false, set_text, 0, 0, MC_PATH_MAX_,
         CFG(cgroup), 0},
        {"tls-dir",
         "the absolute path of a directory with ca-cert.pem, server-cert.pem, ... (not with "
         "psk-file)",
         false, false, set_tls, 0, 0, MC_PATH_MAX_, CFG(tls_dir), 0},
        {"psk-file", "the absolute path of a file with lines IDENTITY:HEXKEY (not with tls-dir)",
         false, false, set_tls, 0, 0, MC_PATH_MAX_, CFG(psk_file), 0},
        {"psk-identity", "under 128 characters", false, false, set_text, 0, 0, 128,
         CFG(psk_identity), 0},
        {"tls-peer-name", "a host name, under 256 characters", false, false, set_text, 0, 0, 256,
         CFG(tls_peer_name), 0},
        {"allow-peer", "the subject or common name of a certificate, or a PSK identity", false,
         false, set_allow_peer, 0, 0, 0, 0, 0},
        {"insecure", "true or false", false, true, set_flag, 0, 0, 0, 0, 'i'},
        {"poll", "true or false", false, true, set_flag, 0, 0, 0, 0, 'p'},
        {"rdma-copy", "true or false", false, true, set_flag, 0, 0, 0, 0, 'r'},
        {"dry-run", "true or false", false, true, set_flag, 0, 0, 0, 0, 'd'},
};

void request_init(struct request *rq)
{
	memset(rq, 0, sizeof(*rq));
	mc_config_defaults(&rq->cfg);
	rq->params = (struct mc_arena_params){.slab_size = MC_SLAB_DEFAULT,
	                                      .max_memory = MAX_MEMORY_DEFAULT,
	                                      .delta_cache = DELTA_CACHE_DEFAULT};
}

const char *option_name(unsigned i, bool *flag)
{
	if (i >= MC_ARRAY_SIZE(options))
		return NULL;
	*flag = options[i].flag;
	return options[i].key;
}

bool option_repeats(const char *key)
{
	static const char *const keys[] = {"relay", "nic", "accept", "allow-peer"};

	for (size_t i = 0; i < MC_ARRAY_SIZE(keys); i++)
		if (strcmp(keys[i], key) == 0)
			return true;
	return false;
}

int option_set(struct request *rq, const char *key, const char *value, bool running, char *why,
               size_t why_len)
{
	for (size_t i = 0; i < MC_ARRAY_SIZE(options); i++) {
		const struct option_def *d = &options[i];

		if (strcmp(d->key, key) != 0)
			continue;
		if (running && !d->running) {
			snprintf(why, why_len,
			         "%s can't change while the guest is protected; mcctl unprotect, "
			         "then protect it with the new value",
			         key);
			return -EPERM;
		}
		if (d->set(rq, d, value) == 0)
			return 0;
		snprintf(why, why_len, "%s: '%.200s' isn't allowed; it must be %s", key, value,
		         d->allowed);
		return -EINVAL;
	}
	snprintf(why, why_len, "there is no option '%.100s'; mcctl --help lists all", key);
	return -ENOENT;
}

/* Loopback by its address: what a name resolves to isn't asked here. */
static bool peer_is_loopback(const char *peer)
{
	return strncmp(peer, "127.", 4) == 0 || strncmp(peer, "[::1]", 5) == 0;
}

void request_secure(struct request *rq, const char *dir)
{
	char path[MC_PATH_MAX_ + 16];

	if (rq->cfg.tls || rq->cfg.insecure || strlen(dir) >= sizeof(rq->cfg.tls_dir))
		return;
	snprintf(path, sizeof(path), "%s/ca-cert.pem", dir);
	if (access(path, F_OK) < 0)
		return;
	rq->cfg.tls = MC_TLS_X509;
	strcpy(rq->cfg.tls_dir, dir);
}

int request_check(const struct request *rq, bool primary, char *why, size_t why_len)
{
	const char *text = NULL;

	if (!rq->cfg.qmp[0])
		text = "qmp is missing: the path of QEMU's monitor socket";
	else if (primary && !rq->cfg.peer[0] && !rq->dry_run)
		text = "peer is missing: ADDRESS:PORT of the host with the standby";
	else if (rq->cfg.insecure && rq->cfg.tls)
		text = "insecure excludes tls-dir and psk-file";
	else if (!rq->cfg.tls && (rq->cfg.allow_peer[0] || rq->cfg.tls_peer_name[0]))
		text = "allow-peer and tls-peer-name need TLS: give tls-dir or psk-file";
	else if (rq->cfg.tls == MC_TLS_PSK && rq->cfg.tls_peer_name[0])
		text = "tls-peer-name is of certificates: a pre-shared key has no name; "
		       "allow-peer takes its identity";
	else if (primary && rq->cfg.peer[0] && !rq->cfg.insecure && !rq->cfg.tls &&
	         !peer_is_loopback(rq->cfg.peer))
		text = "the link to the peer would not be encrypted: put certificates "
		       "into " MC_TLS_DIR
		       ", or give tls-dir or psk-file; if its network is trusted, say so with "
		       "insecure";
	else if (strcmp(rq->cfg.transport, "rdma") == 0 && !rq->cfg.insecure &&
	         rq->cfg.tls != MC_TLS_PSK)
		text = "transport rdma isn't encrypted; if its network is trusted, say so with "
		       "insecure, or give psk-file, which tells who connects";
	else if (rq->params.max_memory / rq->params.slab_size < 4)
		text = "max-memory must hold at least 4 slabs of slab-size";
	else
		text = request_gate_mistake(rq);
	if (!text)
		return 0;
	snprintf(why, why_len, "%s", text);
	return -EINVAL;
}

void request_apply_running(const struct request *rq, struct mc_config *to)
{
	const struct mc_config *f = &rq->cfg;

	atomic_store(&to->interval_us, atomic_load(&f->interval_us));
	atomic_store(&to->max_in_flight, atomic_load(&f->max_in_flight));
	atomic_store(&to->restart_grace_ms, atomic_load(&f->restart_grace_ms));
	atomic_store(&to->shrink_delay_s, atomic_load(&f->shrink_delay_s));
	atomic_store(&to->abort_limit, atomic_load(&f->abort_limit));
	atomic_store(&to->overload, atomic_load(&f->overload));
	atomic_store(&to->zstd_level, atomic_load(&f->zstd_level));
	atomic_store(&to->gate_limit, atomic_load(&f->gate_limit));
	atomic_store(&to->max_bandwidth, atomic_load(&f->max_bandwidth));
	atomic_fetch_add(&to->generation, 1);
}

void request_free(struct request *rq)
{
	if (rq)
		free(rq->standby_args);
	free(rq);
}
