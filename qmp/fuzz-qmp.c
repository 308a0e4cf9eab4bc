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

/*
 * The monitor that the input plays.  A line of the input is an answer, or an event before one; one
 * that begins with the hash of a command in eight hexadecimal digits answers that command whenever
 * it comes, others come in their order.
 */
static struct {
	struct fuzz_input in;
	const char *all; /* NUL at the end */
	bool own_first;  /* the input answers the first command, too */
	int fd;
} peer;

static uint32_t hash(const char *text, size_t len)
{
	uint32_t h = 2166136261;

	for (size_t i = 0; i < len; i++)
		h = (h ^ (uint8_t)text[i]) * 16777619;
	return h;
}

/* Bytes of the hash that a line begins with. */
static size_t key_of(const char *line, size_t n)
{
	return n > 9 && line[8] == ' ' && strspn(line, "0123456789abcdef") == 8 ? 9 : 0;
}

static size_t tell(const char *line, size_t n)
{
	if (send(peer.fd, line, n, MSG_NOSIGNAL) != (ssize_t)n)
		peer.in.left = 0;
	return n;
}

/* True when a line answers this very command. */
static bool answer_known(const char *command, size_t len)
{
	char key[16];
	const char *line, *end;

	snprintf(key, sizeof(key), "\n%08x ", hash(command, len));
	line = strstr(peer.all, key);
	if (!line)
		return false;
	line += strlen(key);
	end = strchrnul(line, '\n');
	tell(line, (size_t)(end - line) + (*end == '\n'));
	return true;
}

/* The first command has an id of the moment, which its answer must repeat. */
static bool answer_first(const char *command, size_t len)
{
	const char *id = memmem(command, len, "\"id\"", 4);
	char line[128];
	int n;

	if (!memmem(command, len, "qmp_capabilities", 16) || !id || peer.own_first)
		return false;
	n = snprintf(line, sizeof(line), "{\"return\": {}, %.*s\n",
	             (int)(len - (size_t)(id - command)), id);
	tell(line, mc_min_u64((uint64_t)n, sizeof(line) - 1));
	return true;
}

static void answer_next(void)
{
	bool event = true;

	while (event && peer.in.left) {
		const uint8_t *nl = memchr(peer.in.p, '\n', peer.in.left);
		size_t n = nl ? (size_t)(nl - peer.in.p) + 1 : peer.in.left;
		size_t key = key_of((const char *)peer.in.p, n);

		event = memmem(peer.in.p, n, "\"event\"", 7);
		tell((const char *)peer.in.p + key, n - key);
		peer.in.p += n;
		peer.in.left -= n < peer.in.left ? n : peer.in.left;
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
	answer_next();
	return 0;
}

int __wrap_qmp_io_send(int fd, const char *text, size_t len, int pass, uint64_t deadline_ns,
                       bool *partly);
int __wrap_qmp_io_send(int fd, const char *text, size_t len, int pass, uint64_t deadline_ns,
                       bool *partly)
{
	(void)fd, (void)pass, (void)deadline_ns;
	*partly = false;
	for (size_t at = 0, n; at < len; at += n + 1) {
		const char *nl = memchr(text + at, '\n', len - at);

		n = nl ? (size_t)(nl - text) - at : len - at;
		if (nl && !answer_first(text + at, n) && !answer_known(text + at, n))
			answer_next();
	}
	return 0;
}

/* The input answered when it was asked: what isn't there will never come. */
int __real_qmp_io_wait_two(int fd, int other, uint64_t deadline_ns);
int __wrap_qmp_io_wait_two(int fd, int other, uint64_t deadline_ns);
int __wrap_qmp_io_wait_two(int fd, int other, uint64_t deadline_ns)
{
	(void)deadline_ns;
	return __real_qmp_io_wait_two(fd, other, 0);
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

static void scan_line(const char *p, size_t n)
{
	enum qmp_kind kind;
	struct qmp_span v, in;
	char text[64];

	if (qmp_scan(p, n, &kind, &v) < 0)
		return;
	FUZZ_CHECK(v.p >= p && v.p + v.len <= p + n);
	if (qmp_scan_find(&v, "desc", &in) == 0)
		qmp_scan_text(&in, text, sizeof(text));
	qmp_scan_text(&v, text, sizeof(text));
}

static void scan_lines(const char *p, size_t len)
{
	while (len) {
		const char *nl = memchr(p, '\n', len);
		size_t n = nl ? (size_t)(nl - p) : len, key = key_of(p, n);

		scan_line(p + key, n - key);
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
	char number[16], *text;
	unsigned events = 0;

	if (in.left > INPUT_MAX)
		return 0;
	if (!mapped)
		map_ram();
	mapped = true;
	text = malloc(in.left + 1);
	if (!text)
		abort();
	memcpy(text, in.p, in.left);
	text[in.left] = '\0';
	scan_lines(text, in.left);
	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, sp) < 0)
		abort();
	(void)setsockopt(sp[1], SOL_SOCKET, SO_SNDBUF, &big, sizeof(big));
	peer.in = in;
	peer.fd = sp[1];
	peer.all = text;
	peer.own_first = mode & 2;
	snprintf(number, sizeof(number), "%d", sp[0]);
	if (qmp_connect(&q, number, 1000) == 0) {
		qmp_on_event(q, on_event, &events);
		if (mode & 1)
			raw(q);
		inspect(q);
		qmp_free(q);
	}
	close(sp[1]);
	free(text);
	return 0;
}
