/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "plug.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/sockios.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include <netlink/route/link.h>

#include "../../ipc/util.h"

#define QUEUE    20000 /* frames that wait for a reader */
#define QUIET_MS 60    /* nothing within this time: nothing comes */
#define LATE_MS  5000  /* what must come */

static int open_tap(const char *name)
{
	struct ifreq ifr = {.ifr_flags = IFF_TAP | IFF_NO_PI};
	int fd = open("/dev/net/tun", O_RDWR | O_CLOEXEC | O_NONBLOCK);

	assert_true(fd >= 0);
	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	assert_int_equal(ioctl(fd, TUNSETIFF, &ifr), 0);
	return fd;
}

static void set_up(int fd, const char *name)
{
	struct ifreq ifr = {.ifr_qlen = QUEUE};

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	assert_int_equal(ioctl(fd, SIOCSIFTXQLEN, &ifr), 0);
	assert_int_equal(ioctl(fd, SIOCGIFFLAGS, &ifr), 0);
	ifr.ifr_flags |= IFF_UP;
	assert_int_equal(ioctl(fd, SIOCSIFFLAGS, &ifr), 0);
}

static int index_of(int fd, const char *name)
{
	struct ifreq ifr = {0};

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", name);
	assert_int_equal(ioctl(fd, SIOCGIFINDEX, &ifr), 0);
	return ifr.ifr_ifindex;
}

static void add_port(int fd, const char *bridge, const char *name)
{
	struct ifreq ifr = {.ifr_ifindex = index_of(fd, name)};

	snprintf(ifr.ifr_name, sizeof(ifr.ifr_name), "%s", bridge);
	assert_int_equal(ioctl(fd, SIOCBRADDIF, &ifr), 0);
	set_up(fd, name);
}

/* The kernel notices a moment later that ports have a carrier. */
static void wait_up(struct rig *g, const char *name)
{
	uint64_t end = mc_now_ns() + 5 * MC_NS_PER_S;
	uint8_t state;

	do {
		struct rtnl_link *l = NULL;

		assert_int_equal(rtnl_link_get_kernel(g->other.sk, 0, name, &l), 0);
		state = rtnl_link_get_operstate(l);
		rtnl_link_put(l);
	} while (state != IF_OPER_UP && mc_now_ns() < end);
	assert_int_equal(state, IF_OPER_UP);
}

static void port_up(struct rig *g, struct port *p, unsigned i)
{
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);

	snprintf(p->tap, sizeof(p->tap), "tap%u", i);
	snprintf(p->bridge, sizeof(p->bridge), "br%u", i);
	snprintf(p->out, sizeof(p->out), "out%u", i);
	p->guest = open_tap(p->tap);
	p->world = open_tap(p->out);
	assert_int_equal(ioctl(fd, SIOCBRADDBR, p->bridge), 0);
	set_up(fd, p->bridge);
	add_port(fd, p->bridge, p->tap);
	add_port(fd, p->bridge, p->out);
	close(fd);
	wait_up(g, p->bridge);
}

static void no_ipv6(void)
{
	int fd = open("/proc/sys/net/ipv6/conf/default/disable_ipv6", O_WRONLY | O_CLOEXEC);

	if (fd >= 0)
		assert_int_equal(write(fd, "1", 1), 1);
	mc_closep(&fd);
}

void rig_up(struct rig *g, unsigned ports)
{
	size_t size = sizeof(*g->m) + NICS_MAX * sizeof(*g->record);
	uint8_t *shared =
	        mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);

	*g = (struct rig){.nports = ports};
	assert_true(shared != MAP_FAILED);
	g->record = (struct mc_gate_record *)shared;
	g->m = (struct mc_metrics_block *)(shared + NICS_MAX * sizeof(*g->record));
	assert_int_equal(unshare(CLONE_NEWNET), 0);
	/* The interfaces send nothing by themselves. */
	no_ipv6();
	assert_int_equal(netlink_open(&g->other, "", NULL), 0);
	for (unsigned i = 0; i < ports; i++)
		port_up(g, &g->port[i], i);
	assert_true(sd_event_new(&g->event) >= 0);
}

void rig_down(struct rig *g)
{
	for (unsigned i = 0; i < g->nports; i++) {
		if (g->nic[i])
			rig_close(g, i, true);
		close(g->port[i].guest);
		close(g->port[i].world);
	}
	netlink_close(&g->other);
	sd_event_unref(g->event);
	munmap(g->record, sizeof(*g->m) + NICS_MAX * sizeof(*g->record));
}

static void on_report(void *ctx, const char *id, const char *text)
{
	struct rig *g = ctx;

	(void)text;
	if (g->nreported < MC_ARRAY_SIZE(g->reported))
		snprintf(g->reported[g->nreported++], sizeof(g->reported[0]), "%s", id);
}

bool rig_reported(const struct rig *g, const char *id)
{
	for (unsigned i = 0; i < g->nreported; i++)
		if (!strcmp(g->reported[i], id))
			return true;
	return false;
}

int rig_try_open(struct rig *g, unsigned i, enum gate_mode mode, const char *netns, char *why,
                 size_t len)
{
	struct mc_nic spec = {.kind = MC_GATE_PLUG};
	struct gate_env env = {.event = g->event,
	                       .guest = "vm",
	                       .m = g->m,
	                       .record = &g->record[i],
	                       .limit = 125000000,
	                       .mode = mode,
	                       .fenced = true,
	                       .report = on_report,
	                       .ctx = g};

	snprintf(spec.tap, sizeof(spec.tap), "%s", g->port[i].tap);
	snprintf(spec.netns, sizeof(spec.netns), "%s", netns);
	return plug_ops.open(&g->nic[i], &spec, &env, why, len);
}

void rig_open(struct rig *g, unsigned i, enum gate_mode mode)
{
	char why[512] = "";
	int r = rig_try_open(g, i, mode, "", why, sizeof(why));

	if (r < 0)
		fail_msg("open: %s (%s)", why, strerror(-r));
	set_mode(g, i, mode);
}

void rig_close(struct rig *g, unsigned i, bool undo)
{
	g->nic[i] = g->nic[i]->ops->close(g->nic[i], undo);
}

void rig_turn(struct rig *g)
{
	while (sd_event_run(g->event, 0) > 0)
		;
}

uint64_t metric(const struct rig *g, enum mc_metric m)
{
	return mc_metric_get(g->m, m);
}

/* --- frames ------------------------------------------------------------------------------ */

static size_t make_frame(uint8_t *f, uint32_t n, enum kind kind, size_t payload)
{
	static const uint16_t type[KINDS] = {0x0800, 0x86dd, 0x0806, 0x8100, 0x88b5, 0x88b6};
	uint32_t be = htonl(n);
	uint16_t t = htons(type[kind]);

	memset(f, 0, 14 + payload);
	memset(f, 0xff, 6);
	f[6] = 0x52;
	f[7] = 0x54;
	memcpy(f + 8, &be, 4);
	memcpy(f + 12, &t, 2);
	if (kind == VLAN) {
		f[15] = 5; /* VLAN 5, then an unknown type */
		f[16] = 0x88;
		f[17] = 0xb5;
	}
	return 14 + payload;
}

void guest_sends_sized(struct rig *g, unsigned i, uint32_t n, size_t payload)
{
	uint8_t f[65536];
	size_t len = make_frame(f, n, UNKNOWN, payload);

	assert_int_equal(write(g->port[i].guest, f, len), len);
}

void guest_sends(struct rig *g, unsigned i, uint32_t n, enum kind kind)
{
	uint8_t f[2048];
	/* tap takes no IP frame that is too short for its header */
	size_t len = make_frame(f, n, kind, kind == BARE ? 0 : 60);

	if (kind == IPV4)
		f[14] = 0x45;
	if (kind == IPV6)
		f[14] = 0x60;
	assert_int_equal(write(g->port[i].guest, f, len), len);
}

void guest_sends_run(struct rig *g, unsigned i, uint32_t from, uint32_t to)
{
	for (uint32_t n = from; n <= to; n++)
		guest_sends(g, i, n, (enum kind)(n % KINDS));
}

int64_t world_takes(struct rig *g, unsigned i, int ms)
{
	struct pollfd p = {.fd = g->port[i].world, .events = POLLIN};
	uint8_t f[65536];
	uint32_t be;

	while (poll(&p, 1, ms) > 0) {
		ssize_t n = read(p.fd, f, sizeof(f));

		if (n < 14 || f[6] != 0x52 || f[7] != 0x54)
			continue;
		memcpy(&be, f + 8, 4);
		return ntohl(be);
	}
	return -1;
}

void world_gets(struct rig *g, unsigned i, uint32_t from, uint32_t to)
{
	int64_t n;

	for (uint32_t want = from; want <= to && to >= from; want++) {
		n = world_takes(g, i, LATE_MS);
		if (n != want)
			fail_msg("NIC %u: frame %lld came where %u was due", i, (long long)n, want);
	}
	n = world_takes(g, i, QUIET_MS);
	if (n >= 0)
		fail_msg("NIC %u: frame %lld came too early", i, (long long)n);
}

bool guest_hears(struct rig *g, unsigned i)
{
	struct pollfd p = {.fd = g->port[i].guest, .events = POLLIN};
	uint8_t f[2048], in[65536];
	size_t len = make_frame(f, 0xabcdef, UNKNOWN, 60);

	f[7] = 0x55; /* not the guest's own */
	assert_int_equal(write(g->port[i].world, f, len), len);
	while (poll(&p, 1, QUIET_MS) > 0)
		if (read(p.fd, in, sizeof(in)) >= 14 && in[6] == 0x52 && in[7] == 0x55)
			return true;
	return false;
}

char *network_state(void)
{
	/* But for the timers of a bridge. */
	FILE *f = popen("(ip -d link; tc qdisc; ip -o link | sed 's/^[0-9]*: \\([^:@]*\\).*/"
	                "filter show dev \\1 ingress\\nfilter show dev \\1 egress/' | tc -batch -) "
	                "2>&1 | sed 's/_timer *[0-9.]*//g'",
	                "r");
	char *text = calloc(1, 65536);

	assert_non_null(f);
	assert_non_null(text);
	assert_true(fread(text, 1, 65535, f) > 0);
	pclose(f);
	return text;
}

void network_is_still(const char *before)
{
	char *now = network_state();
	size_t n = 0;

	while (now[n] && now[n] == before[n])
		n++;
	while (n && now[n] != '\n')
		n--;
	if (strcmp(now, before) != 0)
		fail_msg("the network's state was%.300s\nand is%.300s", before + n, now + n);
	free(now);
}
