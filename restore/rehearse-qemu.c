/* SPDX-License-Identifier: GPL-2.0-or-later */
/* `mc-restore --rehearse`: starts the throw-away QEMU, loads a state into it, ends it. */
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "../ipc/copyset.h"
#include "../ipc/pass-fd.h"
#include "../ipc/util.h"
#include "../qmp/qmp.h"
#include "rehearse.h"

#define START_MS   12000
#define COMMAND_MS 5000
#define LOAD_NS    (5 * MC_NS_PER_S)
#define ARGS_MAX   4096
#define PM_PRESENT (1ULL << 63)
#define PM_SWAPPED (1ULL << 62)
#define PM_FILE    (1ULL << 61)

/* A page of RAM that QEMU wrote by itself: its private copy hides the file's. */
struct own_page {
	uint64_t address, offset;
	unsigned block;
};

struct helper {
	pid_t standby, pid; /* pid: of the throw-away, 0: none */
	struct rehearse_ram ram[REHEARSE_RAM];
	unsigned nram;
	struct qmp *q;
	int err; /* its stderr, a memfd */
	struct own_page *own;
	size_t nown, room;
	char why[256];
};

/* The standby's arguments, NULL at the end; *buf holds the strings. */
static char **read_args(pid_t pid, char **buf)
{
	char **argv = calloc(ARGS_MAX + 1, sizeof(*argv)), path[64];
	int mc_autoclose fd = -1;
	size_t len = 0, n = 0, room = 1 << 20;
	ssize_t k;

	*buf = malloc(room + 1);
	snprintf(path, sizeof(path), "/proc/%d/cmdline", (int)pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	while (fd >= 0 && *buf && len < room && (k = read(fd, *buf + len, room - len)) > 0)
		len += (size_t)k;
	if (!argv || !*buf || !len) {
		free(argv);
		return NULL;
	}
	(*buf)[len] = '\0';
	for (char *p = *buf; p < *buf + len && n < ARGS_MAX; p += strlen(p) + 1)
		argv[n++] = p;
	return argv;
}

/* In the child that becomes QEMU; @qmp is moved to fd 3. */
static void become(const struct helper *h, char **argv, int qmp)
{
	char exe[64], path[512], cwd[64];
	int null = open("/dev/null", O_RDWR);
	ssize_t n;

	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(exe, sizeof(exe), "/proc/%d/exe", (int)h->standby);
	snprintf(cwd, sizeof(cwd), "/proc/%d/cwd", (int)h->standby);
	n = readlink(exe, path, sizeof(path) - 1);
	if (n <= 0 || chdir(cwd) < 0 || dup2(null, 0) < 0 || dup2(null, 1) < 0 ||
	    dup2(h->err, 2) < 0 || dup2(qmp, 3) < 0)
		_exit(126);
	path[n] = '\0';
	(void)syscall(SYS_close_range, 4, ~0U, 0);
	execv(path, argv);
	fprintf(stderr, "can't run %s: %s\n", path, strerror(errno));
	_exit(127);
}

/* The last line that QEMU said, as the reason. */
static void ask_stderr(struct helper *h)
{
	char buf[1024];
	off_t size = lseek(h->err, 0, SEEK_END);
	ssize_t n = pread(h->err, buf, sizeof(buf) - 1,
	                  size >= (off_t)sizeof(buf) ? size - (off_t)sizeof(buf) + 1 : 0);
	char *line;

	while (n > 0 && buf[n - 1] == '\n')
		n--;
	if (n <= 0)
		return;
	buf[n] = '\0';
	line = strrchr(buf, '\n');
	snprintf(h->why, sizeof(h->why), "%.255s", line ? line + 1 : buf);
}

static int start_qemu(struct helper *h)
{
	mc_autofree char *buf = NULL;
	char **standby = read_args(h->standby, &buf), **argv = NULL;
	int pair[2] = {-1, -1}, e = standby ? 0 : -ESRCH;

	if (e == 0)
		e = rehearse_args(standby, h->ram, h->nram, 3, &argv, h->why, sizeof(h->why));
	free(standby);
	if (e == 0 && socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, pair) < 0)
		e = -errno;
	if (e == 0) {
		h->pid = fork();
		if (h->pid < 0)
			e = -errno;
		else if (h->pid == 0)
			become(h, argv, pair[1]);
	}
	rehearse_args_free(argv);
	mc_closep(&pair[1]);
	if (e == 0)
		e = qmp_open(&h->q, pair[0], h->pid, START_MS);
	if (e < 0) {
		mc_closep(&pair[0]);
		if (h->pid > 0 && !h->why[0])
			ask_stderr(h);
	}
	return e;
}

static int note_page(struct helper *h, uint64_t address, uint64_t offset, unsigned block)
{
	if (h->nown == h->room) {
		size_t room = h->room ? h->room * 2 : 1024;
		struct own_page *p = realloc(h->own, room * sizeof(*p));

		if (!p)
			return -ENOMEM;
		h->own = p;
		h->room = room;
	}
	h->own[h->nown++] = (struct own_page){.address = address, .offset = offset, .block = block};
	return 0;
}

/* Notes the private pages of one mapping. */
static int note_mapping(struct helper *h, int pagemap, uint64_t from, uint64_t to, uint64_t offset,
                        unsigned block)
{
	uint64_t entry[512];
	int e = 0;

	for (uint64_t at = from; e == 0 && at < to;) {
		uint64_t want = mc_min_u64((to - at) / MC_PAGE_SIZE, MC_ARRAY_SIZE(entry));
		ssize_t n = pread(pagemap, entry, want * 8, (off_t)(at / MC_PAGE_SIZE * 8));

		if (n <= 0)
			return -EIO;
		for (ssize_t i = 0; e == 0 && i < n / 8; i++, at += MC_PAGE_SIZE)
			if (entry[i] & (PM_PRESENT | PM_SWAPPED) && !(entry[i] & PM_FILE))
				e = note_page(h, at, offset + at - from, block);
	}
	return e;
}

static int block_of(const struct helper *h, uint64_t dev, uint64_t ino)
{
	for (unsigned i = 0; i < h->nram; i++) {
		struct stat st;

		if (stat(h->ram[i].path, &st) == 0 && st.st_ino == ino && st.st_dev == dev)
			return (int)i;
	}
	return -1;
}

/*
 * Firmware and loaders have written into RAM before any state came: into private copies, which
 * would hide what the standby has there.
 */
static int find_own_pages(struct helper *h)
{
	char path[64], line[512];
	int mc_autoclose pagemap = -1;
	int e = 0;
	FILE *f;

	snprintf(path, sizeof(path), "/proc/%d/pagemap", (int)h->pid);
	pagemap = open(path, O_RDONLY | O_CLOEXEC);
	if (pagemap < 0)
		return -errno;
	snprintf(path, sizeof(path), "/proc/%d/maps", (int)h->pid);
	f = fopen(path, "re");
	while (f && e == 0 && fgets(line, sizeof(line), f)) {
		uint64_t from, to, offset, ino;
		unsigned major, minor;
		char mode[8];
		int block;

		if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %7s %" SCNx64 " %x:%x %" SCNu64, &from,
		           &to, mode, &offset, &major, &minor, &ino) != 7)
			continue;
		block = ino ? block_of(h, (uint64_t)major << 8 | minor, ino) : -1;
		if (block >= 0)
			e = note_mapping(h, pagemap, from, to, offset, (unsigned)block);
	}
	if (!f)
		return -errno;
	fclose(f);
	return e;
}

/* From now on QEMU sees the standby's RAM everywhere. */
static int restore_own_pages(const struct helper *h)
{
	int fd[REHEARSE_RAM], mc_autoclose mem = -1, e = 0;
	uint8_t page[MC_PAGE_SIZE];
	char path[64];

	snprintf(path, sizeof(path), "/proc/%d/mem", (int)h->pid);
	mem = open(path, O_WRONLY | O_CLOEXEC);
	if (mem < 0)
		return -errno;
	for (unsigned i = 0; i < h->nram; i++)
		fd[i] = open(h->ram[i].path, O_RDONLY | O_CLOEXEC);
	for (size_t i = 0; e == 0 && i < h->nown; i++) {
		const struct own_page *p = &h->own[i];

		if (pread(fd[p->block], page, sizeof(page), (off_t)p->offset) != sizeof(page) ||
		    pwrite(mem, page, sizeof(page), (off_t)p->address) != sizeof(page))
			e = -EIO;
	}
	for (unsigned i = 0; i < h->nram; i++)
		mc_closep(&fd[i]);
	return e;
}

/* 1 loaded; 0 not yet. */
static int is_loaded(struct helper *h)
{
	json_t *v = NULL;
	int e = qmp_command(h->q, "query-status", NULL, COMMAND_MS, &v);
	const char *status = json_string_value(json_object_get(v, "status"));

	if (e == 0)
		e = status && strcmp(status, "inmigrate") != 0;
	json_decref(v);
	return e;
}

static int load(struct helper *h, int state)
{
	uint64_t end = mc_now_ns() + LOAD_NS;
	int e = restore_own_pages(h);

	if (e == 0)
		e = qmp_command_fd(h->q, "getfd", json_pack("{s:s}", "fdname", "mc-state"), state,
		                   COMMAND_MS, NULL);
	if (e == 0)
		e = qmp_command(h->q, "migrate-incoming", json_pack("{s:s}", "uri", "fd:mc-state"),
		                COMMAND_MS, NULL);
	if (e == -EREMOTEIO)
		snprintf(h->why, sizeof(h->why), "%.255s", qmp_error(h->q));
	while (e == 0) {
		struct pollfd p = {.fd = qmp_fd(h->q), .events = POLLIN};

		e = is_loaded(h);
		if (e == 0 && mc_now_ns() > end)
			e = -ETIMEDOUT;
		if (e == 0)
			(void)poll(&p, 1, 2);
	}
	if (e < 0 && !h->why[0])
		ask_stderr(h);
	return e < 0 ? e : 0;
}

static int send_step(const struct helper *h, enum rehearse_step step, int error, uint64_t took)
{
	struct rehearse_message m = {.step = step, .error = error, .took_ns = took};

	snprintf(m.text, sizeof(m.text), "%s", h->why);
	return send(REHEARSE_FD, &m, sizeof(m), MSG_NOSIGNAL) == sizeof(m) ? 0 : -EPIPE;
}

/* The device state's fd, or negative errno. */
static int await_go(void)
{
	struct rehearse_message m;
	int mc_autoclose fd = -1;
	ssize_t n = mc_fd_receive(REHEARSE_FD, &m, sizeof(m), &fd);

	if (n != sizeof(m) || m.step != REHEARSE_GO)
		return -EPIPE;
	return fd < 0 ? -EBADMSG : mc_take_fd(&fd);
}

static int parse(struct helper *h, int argc, char **argv)
{
	if (argc < 4 || argc - 3 > REHEARSE_RAM)
		return -EINVAL;
	h->standby = (pid_t)atoi(argv[2]);
	for (int i = 3; i < argc; i++) {
		struct rehearse_ram *r = &h->ram[h->nram++];

		if (sscanf(argv[i], "%63[^=]=%" SCNu64 "=%63s", r->id, &r->size, r->path) != 3)
			return -EINVAL;
	}
	return h->standby > 0 ? 0 : -EINVAL;
}

static int run(struct helper *h)
{
	uint64_t t = mc_now_ns();
	int mc_autoclose state = -1;
	int e;

	/* Whatever QEMU opens by name, it has no network to open it in. */
	if (unshare(CLONE_NEWNET) < 0)
		return -errno;
	h->err = memfd_create("mc-rehearse-stderr", MFD_CLOEXEC);
	e = h->err < 0 ? -errno : start_qemu(h);
	if (e == 0)
		e = find_own_pages(h);
	if (e == 0)
		e = send_step(h, REHEARSE_READY, 0, mc_now_ns() - t);
	if (e < 0)
		return e;
	state = await_go();
	t = mc_now_ns();
	e = state < 0 ? state : load(h, state);
	return e < 0 ? e : send_step(h, REHEARSE_DONE, 0, mc_now_ns() - t);
}

int rehearse_main(int argc, char **argv)
{
	struct helper h = {.err = -1};
	int e;

	if (parse(&h, argc, argv) < 0) {
		fprintf(stderr, "mc-restore --rehearse is started by mc-restore, not by hand.\n");
		return 2;
	}
	(void)prctl(PR_SET_PDEATHSIG, SIGKILL);
	(void)prctl(PR_SET_NAME, "mc-rehearse");
	e = run(&h);
	if (e < 0 && e != -EPIPE)
		(void)send_step(&h, REHEARSE_DONE, e, 0);
	h.q = qmp_free(h.q);
	if (h.pid > 0) {
		(void)kill(h.pid, SIGKILL);
		(void)waitpid(h.pid, NULL, 0);
	}
	mc_closep(&h.err);
	free(h.own);
	return e < 0;
}
