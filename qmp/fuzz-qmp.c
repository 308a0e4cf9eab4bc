/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * What a QEMU, or something in its place, may answer: greeting, events and the answers to all
 * that an inspection asks, as one stream of lines.  The process inspected is this one.
 */
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "../ipc/fuzz.h"
#include "../ipc/util.h"
#include "io.h"
#include "qmp.h"
#include "scan.h"
#include "vm.h"

#define INPUT_MAX 200000 /* fits a socket's buffer */
#define RAM_AT    ((void *)0x7e0000000000)
#define RAM_SIZE  (16U << 20)

/* The monitor that the input plays: one answer, and the events before it, for each command. */
static struct {
	struct fuzz_input in;
	int fd;
} peer;

static void answer(void)
{
	bool event = true;

	while (event && peer.in.left) {
		const uint8_t *nl = memchr(peer.in.p, '\n', peer.in.left);
		size_t n = nl ? (size_t)(nl - peer.in.p) + 1 : peer.in.left;

		event = memmem(peer.in.p, n, "\"event\"", 7);
		if (send(peer.fd, peer.in.p, n, MSG_NOSIGNAL) != (ssize_t)n)
			peer.in.left = n;
		peer.in.p += n;
		peer.in.left -= n;
	}
	if (!peer.in.left)
		shutdown(peer.fd, SHUT_WR);
}

/* Instead of the socket below the client (the linker's --wrap). */
int __wrap_qmp_io_connect(const char *path, int *fd, pid_t *pid);
int __wrap_qmp_io_connect(const char *path, int *fd, pid_t *pid)
{
	*fd = atoi(path);
	*pid = getpid();
	answer();
	return 0;
}

int __wrap_qmp_io_send(int fd, const char *text, size_t len, int pass, uint64_t deadline_ns,
                       bool *partly);
int __wrap_qmp_io_send(int fd, const char *text, size_t len, int pass, uint64_t deadline_ns,
                       bool *partly)
{
	(void)fd, (void)pass, (void)deadline_ns;
	*partly = false;
	for (size_t i = 0; i < len; i++)
		if (text[i] == '\n')
			answer();
	return 0;
}

/* The guest's RAM: there where the corpus' answers to gpa2hva say. */
static void map_ram(void)
{
	int fd = memfd_create("ram", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, RAM_SIZE) < 0 ||
	    mmap(RAM_AT, RAM_SIZE, PROT_READ, MAP_SHARED | MAP_FIXED_NOREPLACE, fd, 0) != RAM_AT)
		abort();
	close(fd);
}

static void on_event(void *ctx, const char *name, json_t *data)
{
	unsigned *n = ctx;

	*n += (unsigned)strlen(name) + (unsigned)json_object_size(data);
}

static void inspect(struct qmp *q)
{
	struct vm_info i = {0};
	char why[512], *text = NULL;
	json_t *paths = NULL;

	if (vm_inspect(q, &i, why, sizeof(why)) < 0) {
		FUZZ_CHECK(memchr(why, '\0', sizeof(why)));
		return;
	}
	if (vm_check(q, &i, "isa-serial", "n0", why, sizeof(why), &text) < 0)
		FUZZ_CHECK(memchr(why, '\0', sizeof(why)));
	free(text);
	text = NULL;
	if (vm_standby_args(q, &i, &text) == 0)
		free(text);
	if (vm_dgram_paths(q, &paths) == 0)
		json_decref(paths);
	vm_info_done(&i);
}

/* The way of capture's pause. */
static void raw(struct qmp *q)
{
	static const char two[] = "{\"execute\":\"query-status\"}\n{\"execute\":\"stop\"}\n";
	bool running;

	if (qmp_send_raw(q, two, sizeof(two) - 1) < 0)
		return;
	(void)qmp_wait_running(q, 0, &running);
	(void)qmp_wait(q, 0);
	(void)qmp_dispatch(q);
}

static void scan_lines(const uint8_t *p, size_t len)
{
	while (len) {
		const uint8_t *nl = memchr(p, '\n', len);
		size_t n = nl ? (size_t)(nl - p) : len;
		enum qmp_kind kind;
		struct qmp_span v, in;
		char text[64];

		if (qmp_scan((const char *)p, n, &kind, &v) == 0) {
			FUZZ_CHECK(v.p >= (const char *)p && v.p + v.len <= (const char *)p + n);
			if (qmp_scan_find(&v, "desc", &in) == 0)
				qmp_scan_text(&in, text, sizeof(text));
			qmp_scan_text(&v, text, sizeof(text));
		}
		p += n + !!nl;
		len -= n + !!nl;
	}
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct fuzz_input in = {data, size};
	uint8_t mode = fuzz_u8(&in);
	static bool mapped;
	int sp[2], big = 1 << 20;
	struct qmp *q = NULL;
	char number[16];
	unsigned events = 0;

	if (in.left > INPUT_MAX)
		return 0;
	if (!mapped)
		map_ram();
	mapped = true;
	scan_lines(in.p, in.left);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sp) < 0)
		abort();
	(void)setsockopt(sp[1], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
	peer.in = in;
	peer.fd = sp[1];
	snprintf(number, sizeof(number), "%d", sp[0]);
	if (qmp_connect(&q, number, 1000) == 0) {
		qmp_on_event(q, on_event, &events);
		if (mode & 1)
			raw(q);
		inspect(q);
		qmp_free(q);
	}
	close(sp[1]);
	return 0;
}
