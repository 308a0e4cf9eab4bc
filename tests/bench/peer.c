/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * The peers of a pause, by a C client of QMP that does nothing else:
 *
 *   peer bare SOCKET N GAP_MS      stop, xen-save-devices-state, cont: sent in one write, so
 *                                  that QEMU never waits for us
 *   peer migrate SOCKET N GAP_MS   stop, migrate to fd: with x-ignore-shared, cont: cont can
 *                                  only be sent once the migration has completed
 *   peer incoming SOCKET FILE 0    migrate-incoming of a device state, until RESUME
 *
 * Prints one JSON array of milliseconds; of a pause, from sending `stop` to the answer to
 * `cont`.
 */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#include "../../ipc/util.h"

#define BUF (1U << 20)

struct client {
	int fd;
	size_t used;
	char buf[BUF];
};

static _Noreturn void fail(const char *what)
{
	fprintf(stderr, "peer: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void send_text(struct client *c, const char *text, int pass)
{
	union {
		char buf[CMSG_SPACE(sizeof(int))];
		struct cmsghdr align;
	} ctl = {.buf = {0}};
	struct iovec iov = {.iov_base = (char *)text, .iov_len = strlen(text)};
	struct msghdr m = {.msg_iov = &iov, .msg_iovlen = 1};

	if (pass >= 0) {
		struct cmsghdr *h;

		m.msg_control = ctl.buf;
		m.msg_controllen = sizeof(ctl.buf);
		h = CMSG_FIRSTHDR(&m);
		h->cmsg_level = SOL_SOCKET;
		h->cmsg_type = SCM_RIGHTS;
		h->cmsg_len = CMSG_LEN(sizeof(int));
		memcpy(CMSG_DATA(h), &pass, sizeof(int));
	}
	if (sendmsg(c->fd, &m, MSG_NOSIGNAL) != (ssize_t)iov.iov_len)
		fail("send");
}

/*
 * Reads lines until @n of them hold @word.  An error answer ends the program, but for one that
 * says @unless: then false.
 */
static bool await_unless(struct client *c, const char *word, unsigned n, const char *unless)
{
	bool refused;
	char *nl;

	for (;;) {
		ssize_t k;

		while ((nl = memchr(c->buf, '\n', c->used))) {
			size_t len = (size_t)(nl + 1 - c->buf);

			*nl = '\0';
			if (strstr(c->buf, "\"error\":") &&
			    (!unless || !strstr(c->buf, unless))) {
				fprintf(stderr, "peer: %s\n", c->buf);
				exit(1);
			}
			refused = strstr(c->buf, "\"error\":");
			n -= strstr(c->buf, word) != NULL;
			memmove(c->buf, c->buf + len, c->used - len);
			c->used -= len;
			if (!n || refused)
				return !refused;
		}
		k = recv(c->fd, c->buf + c->used, BUF - c->used, 0);
		if (k <= 0)
			fail("recv");
		c->used += (size_t)k;
	}
}

static void await(struct client *c, const char *word, unsigned n)
{
	(void)await_unless(c, word, n, NULL);
}

static void connect_to(struct client *c, const char *path)
{
	struct sockaddr_un a = {.sun_family = AF_UNIX};

	if (strlen(path) >= sizeof(a.sun_path))
		exit(2);
	strcpy(a.sun_path, path);
	c->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&a, sizeof(a)) < 0)
		fail(path);
	await(c, "\"QMP\"", 1);
	send_text(c, "{\"execute\":\"qmp_capabilities\"}\n", -1);
	await(c, "\"return\"", 1);
}

/* An fd set that QEMU writes its device state to. */
static void make_set(struct client *c, char *text, size_t len)
{
	int fd = memfd_create("peer", 0), out, set;
	char path[64], *p;

	snprintf(path, sizeof(path), "/proc/self/fd/%d", fd);
	out = open(path, O_WRONLY);
	if (fd < 0 || out < 0)
		fail("memfd");
	send_text(c, "{\"execute\":\"add-fd\"}\n", out);
	while (!memchr(c->buf, '\n', c->used)) {
		ssize_t k = recv(c->fd, c->buf + c->used, BUF - 1 - c->used, 0);

		if (k <= 0)
			fail("add-fd");
		c->used += (size_t)k;
	}
	c->buf[c->used] = '\0';
	p = strstr(c->buf, "\"fdset-id\": ");
	set = p ? atoi(p + strlen("\"fdset-id\": ")) : -1;
	c->used = 0;
	if (set < 0)
		fail("fd set");
	snprintf(text, len,
	         "{\"execute\":\"stop\"}\n{\"execute\":\"xen-save-devices-state\",\"arguments\":"
	         "{\"filename\":\"/dev/fdset/%d\",\"live\":false}}\n{\"execute\":\"cont\"}\n",
	         set);
}

static double one_bare(struct client *c, const char *text)
{
	uint64_t t = mc_now_ns();

	send_text(c, text, -1);
	await(c, "\"return\"", 3);
	return (double)(mc_now_ns() - t) / 1e6;
}

static double one_migrate(struct client *c)
{
	int fd = memfd_create("peer", 0);
	struct stat st;
	uint64_t t;

	if (fd < 0)
		fail("memfd");
	send_text(c, "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"mig\"}}\n", fd);
	await(c, "\"return\"", 1);
	t = mc_now_ns();
	send_text(c,
	          "{\"execute\":\"stop\"}\n"
	          "{\"execute\":\"migrate\",\"arguments\":{\"uri\":\"fd:mig\"}}\n",
	          -1);
	await(c, "\"completed\"", 1);
	/* QEMU tells of the completion a moment before it may go on. */
	do
		send_text(c, "{\"execute\":\"cont\"}\n", -1);
	while (!await_unless(c, "\"return\"", 1, "not finalized"));
	t = mc_now_ns() - t;
	if (fstat(fd, &st) < 0 || st.st_size < 4096)
		fail("no state was written");
	close(fd);
	return (double)t / 1e6;
}

static double one_incoming(struct client *c, const char *path)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	uint64_t t = mc_now_ns();

	if (fd < 0)
		fail(path);
	send_text(c, "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"in\"}}\n", fd);
	send_text(c, "{\"execute\":\"migrate-incoming\",\"arguments\":{\"uri\":\"fd:in\"}}\n", -1);
	await(c, "\"RESUME\"", 1);
	return (double)(mc_now_ns() - t) / 1e6;
}

int main(int argc, char **argv)
{
	struct client *c = calloc(1, sizeof(*c));
	bool migrate = argc == 5 && !strcmp(argv[1], "migrate");
	bool incoming = argc == 5 && !strcmp(argv[1], "incoming");
	char text[256] = "";
	int n, gap;

	if (argc != 5 || !c || (!migrate && !incoming && strcmp(argv[1], "bare") != 0)) {
		fprintf(stderr, "usage: %s bare|migrate SOCKET N GAP_MS | incoming SOCKET FILE 0\n",
		        argv[0]);
		return 2;
	}
	if (incoming) {
		connect_to(c, argv[2]);
		printf("[%.4f]\n", one_incoming(c, argv[3]));
		return 0;
	}
	n = atoi(argv[3]);
	gap = atoi(argv[4]);
	connect_to(c, argv[2]);
	if (migrate) {
		send_text(c,
		          "{\"execute\":\"migrate-set-capabilities\",\"arguments\":{"
		          "\"capabilities\":["
		          "{\"capability\":\"x-ignore-shared\",\"state\":true},"
		          "{\"capability\":\"events\",\"state\":true}]}}\n",
		          -1);
		await(c, "\"return\"", 1);
	} else {
		make_set(c, text, sizeof(text));
	}
	printf("[");
	for (int i = 0; i < n; i++) {
		struct timespec ts = {.tv_sec = gap / 1000, .tv_nsec = gap % 1000 * 1000000L};

		nanosleep(&ts, NULL);
		printf("%s%.4f", i ? "," : "", migrate ? one_migrate(c) : one_bare(c, text));
	}
	printf("]\n");
	free(c);
	return 0;
}
