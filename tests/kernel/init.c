/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * PID 1 of the kernel test machines: mounts, loads the modules that /modules.load names,
 * then runs what the host asks for over a virtio-serial port.  With mc.root=DEVICE on the
 * kernel's command line it hands the machine to that file system's own init and keeps
 * serving the host from a process beside it.
 *
 * Both directions carry frames: type, id, length (32 bits each, little-endian), payload.
 * An id names one running command; the host chooses it.
 */
#include <errno.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <poll.h>
#include <pty.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/io.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAYLOAD_MAX 65536u
#define JOBS_MAX    64
#define ARGS_MAX    256
#define EXIT_PORT   0xf4 /* QEMU's isa-debug-exit */

enum frame {
	F_EXEC = 1, /* payload: arguments, each ended by NUL */
	F_TTY,      /* the same, on a terminal */
	F_STDIN,
	F_EOF,
	F_KILL, /* payload: signal, to the whole process group */
	F_QUIT, /* payload: status; the machine ends */
	F_READY = 16,
	F_OUT,
	F_ERR,
	F_EXIT, /* payload: wait status, or INT_MIN: could not be started */
	F_KMSG, /* payload: one record of /dev/kmsg */
};

struct head {
	uint32_t type, id, len;
};

struct job {
	int used;
	uint32_t id;
	pid_t pid; /* 0: has ended, its output may still be held open by others */
	int in, out, err;
	unsigned char *pending; /* input that the pipe did not take yet */
	size_t npending;
};

struct agent {
	int port, kmsg, sig;
	struct job job[JOBS_MAX];
	unsigned char buf[PAYLOAD_MAX];
};

static void die(const char *what)
{
	fprintf(stderr, "init: %s: %s\n", what, strerror(errno));
	exit(1);
}

static void try_mount(const char *fs, const char *at, const char *options)
{
	mkdir(at, 0755);
	if (mount(fs, at, fs, 0, options) < 0 && errno != EBUSY)
		fprintf(stderr, "init: mount %s: %s\n", at, strerror(errno));
}

static void load_modules(void)
{
	FILE *f = fopen("/modules.load", "re");
	char path[PATH_MAX], *options;

	while (f && fgets(path, sizeof(path), f)) {
		int fd;

		path[strcspn(path, "\n")] = '\0';
		options = strchrnul(path, ' ');
		if (*options)
			*options++ = '\0';
		fd = open(path, O_RDONLY | O_CLOEXEC);
		if (fd < 0 || (syscall(SYS_finit_module, fd, options, 0) < 0 && errno != EEXIST))
			fprintf(stderr, "init: module %s: %s\n", path, strerror(errno));
		if (fd >= 0)
			close(fd);
	}
	if (f)
		fclose(f);
}

/* The value of NAME= on the kernel's command line. */
static int cmdline(const char *name, char *value, size_t size)
{
	char line[4096], *save = NULL;
	size_t n = strlen(name);
	FILE *f = fopen("/proc/cmdline", "re");

	if (!f || !fgets(line, sizeof(line), f))
		die("/proc/cmdline");
	fclose(f);
	for (char *w = strtok_r(line, " \n", &save); w; w = strtok_r(NULL, " \n", &save)) {
		if (strncmp(w, name, n) || w[n] != '=')
			continue;
		snprintf(value, size, "%s", w + n + 1);
		return 1;
	}
	return 0;
}

/* Ends the machine; the status becomes QEMU's, as 2 * status + 1. */
static void quit(uint32_t status)
{
	sync();
	if (ioperm(EXIT_PORT, 4, 1) == 0)
		outl(status, EXIT_PORT);
	reboot(RB_POWER_OFF);
}

/* All of it, out or in; without the host there is nothing left to do. */
static void transfer(int fd, void *data, size_t n, int out)
{
	char *p = data;

	while (n) {
		ssize_t r = out ? write(fd, p, n) : read(fd, p, n);

		if (r < 0 && (errno == EINTR || errno == EAGAIN)) {
			struct pollfd pfd = {.fd = fd, .events = out ? POLLOUT : POLLIN};

			poll(&pfd, 1, -1);
			continue;
		}
		if (r <= 0)
			quit(120);
		p += r;
		n -= (size_t)r;
	}
}

static void tell(struct agent *a, uint32_t type, uint32_t id, const void *data, size_t len)
{
	struct head h = {.type = type, .id = id, .len = (uint32_t)len};

	transfer(a->port, &h, sizeof(h), 1);
	transfer(a->port, (void *)data, len, 1);
}

static void close_fd(int *fd)
{
	if (*fd >= 0)
		close(*fd);
	*fd = -1;
}

static struct job *find(struct agent *a, uint32_t id)
{
	for (int i = 0; i < JOBS_MAX; i++)
		if (a->job[i].used && a->job[i].id == id)
			return &a->job[i];
	return NULL;
}

static void exec_child(char **argv)
{
	sigset_t none;

	sigemptyset(&none);
	sigprocmask(SIG_SETMASK, &none, NULL);
	signal(SIGPIPE, SIG_DFL);
	execvp(argv[0], argv);
	fprintf(stderr, "%s: %s\n", argv[0], strerror(errno));
	_exit(127);
}

/* Starts a command with pipes; parent's ends in @j. */
static pid_t start_piped(struct job *j, char **argv)
{
	int in[2], out[2], err[2];
	pid_t pid;

	if (pipe2(in, O_CLOEXEC) < 0 || pipe2(out, O_CLOEXEC) < 0 || pipe2(err, O_CLOEXEC) < 0)
		die("pipe");
	pid = fork();
	if (pid == 0) {
		setsid();
		dup2(in[0], 0);
		dup2(out[1], 1);
		dup2(err[1], 2);
		exec_child(argv);
	}
	close(in[0]);
	close(out[1]);
	close(err[1]);
	j->in = in[1];
	j->out = out[0];
	j->err = err[0];
	fcntl(j->in, F_SETFL, O_NONBLOCK);
	return pid;
}

static pid_t start_tty(struct job *j, char **argv)
{
	int master = -1;
	pid_t pid = forkpty(&master, NULL, NULL, NULL);

	if (pid == 0)
		exec_child(argv);
	j->out = master;
	j->in = fcntl(master, F_DUPFD_CLOEXEC, 3);
	fcntl(master, F_SETFD, FD_CLOEXEC);
	j->err = -1;
	return pid;
}

static void start(struct agent *a, const struct head *h)
{
	char *argv[ARGS_MAX + 1] = {0};
	const int failed = INT_MIN;
	struct job *j = NULL;
	uint32_t at = 0;

	for (int i = 0; i < JOBS_MAX && !j; i++)
		if (!a->job[i].used)
			j = &a->job[i];
	for (int i = 0; i < ARGS_MAX && at < h->len; i++) {
		argv[i] = (char *)a->buf + at;
		at += (uint32_t)strnlen(argv[i], h->len - at) + 1;
	}
	if (!j || !argv[0] || a->buf[h->len - 1] || at < h->len) {
		tell(a, F_EXIT, h->id, &failed, sizeof(failed));
		return;
	}
	*j = (struct job){.used = 1, .id = h->id, .in = -1, .out = -1, .err = -1};
	j->pid = h->type == F_TTY ? start_tty(j, argv) : start_piped(j, argv);
	if (j->pid < 0)
		die("fork");
}

/* Input goes on as the command takes it; the host's other frames wait meanwhile. */
static void feed(struct job *j)
{
	while (j->npending) {
		ssize_t n = write(j->in, j->pending, j->npending);

		if (n < 0 && errno == EAGAIN)
			return;
		if (n < 0) {
			close_fd(&j->in);
			j->npending = 0;
			break;
		}
		j->npending -= (size_t)n;
		memmove(j->pending, j->pending + n, j->npending);
	}
	free(j->pending);
	j->pending = NULL;
}

static void handle(struct agent *a)
{
	struct head h;
	struct job *j;
	uint32_t arg = 0;

	transfer(a->port, &h, sizeof(h), 0);
	if (h.len > PAYLOAD_MAX)
		quit(122);
	transfer(a->port, a->buf, h.len, 0);
	if (h.len >= sizeof(arg))
		memcpy(&arg, a->buf, sizeof(arg));
	if (h.type == F_QUIT)
		quit(arg);
	if (h.type == F_EXEC || h.type == F_TTY) {
		start(a, &h);
		return;
	}
	j = find(a, h.id);
	if (!j)
		return;
	if (h.type == F_KILL && j->pid > 0) {
		kill(-j->pid, (int)arg);
	} else if (h.type == F_EOF) {
		close_fd(&j->in);
	} else if (h.type == F_STDIN && j->in >= 0 && h.len) {
		j->pending = malloc(h.len);
		if (!j->pending)
			die("memory");
		memcpy(j->pending, a->buf, h.len);
		j->npending = h.len;
		feed(j);
	}
}

/* Passes on what a command printed; 0 at its end. */
static int drain(struct agent *a, struct job *j, int *fd, uint32_t type, int wait)
{
	struct pollfd pfd = {.fd = *fd, .events = POLLIN};
	ssize_t n;

	if (*fd < 0 || (!wait && poll(&pfd, 1, 0) <= 0))
		return 0;
	n = read(*fd, a->buf, sizeof(a->buf));
	if (n > 0) {
		tell(a, type, j->id, a->buf, (size_t)n);
		return 1;
	}
	close_fd(fd);
	return 0;
}

static void reap(struct agent *a)
{
	struct signalfd_siginfo si;
	int status;
	pid_t pid;

	while (read(a->sig, &si, sizeof(si)) > 0)
		;
	while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
		for (int i = 0; i < JOBS_MAX; i++) {
			struct job *j = &a->job[i];

			if (!j->used || j->pid != pid)
				continue;
			while (drain(a, j, &j->out, F_OUT, 0) || drain(a, j, &j->err, F_ERR, 0))
				;
			j->pid = 0;
			j->npending = 0;
			close_fd(&j->in);
			tell(a, F_EXIT, j->id, &status, sizeof(status));
		}
	}
}

static void kernel_log(struct agent *a)
{
	ssize_t n = read(a->kmsg, a->buf, 8192);

	if (n > 0)
		tell(a, F_KMSG, 0, a->buf, (size_t)n);
}

/* One turn; without end. */
static void turn(struct agent *a)
{
	struct pollfd p[3 + 3 * JOBS_MAX];
	int blocked = 0, n = 3;

	for (int i = 0; i < JOBS_MAX; i++) {
		struct job *j = &a->job[i];

		if (j->used && !j->pid && j->out < 0 && j->err < 0)
			j->used = 0;
		p[n++] = (struct pollfd){.fd = j->used ? j->out : -1, .events = POLLIN};
		p[n++] = (struct pollfd){.fd = j->used ? j->err : -1, .events = POLLIN};
		p[n++] = (struct pollfd){.fd = j->used && j->npending ? j->in : -1,
		                         .events = POLLOUT};
		blocked |= j->used && j->npending;
	}
	p[0] = (struct pollfd){.fd = blocked ? -1 : a->port, .events = POLLIN};
	p[1] = (struct pollfd){.fd = a->kmsg, .events = POLLIN};
	p[2] = (struct pollfd){.fd = a->sig, .events = POLLIN};
	if (poll(p, (nfds_t)n, -1) < 0)
		return;
	if (p[1].revents)
		kernel_log(a);
	for (int i = 0; i < JOBS_MAX; i++) {
		struct job *j = &a->job[i];

		if (p[3 + 3 * i].revents)
			drain(a, j, &j->out, F_OUT, 1);
		if (p[4 + 3 * i].revents)
			drain(a, j, &j->err, F_ERR, 1);
		if (p[5 + 3 * i].revents)
			feed(j);
	}
	if (p[2].revents)
		reap(a);
	if (p[0].revents)
		handle(a);
}

static int open_port(void)
{
	int fd = -1;

	/* The device node appears when the driver has bound; it has the number of the virtio
	 * device. */
	for (int i = 0; i < 500 && fd < 0; i++) {
		glob_t g = {0};

		if (glob("/dev/vport*p1", 0, NULL, &g) == 0)
			fd = open(g.gl_pathv[0], O_RDWR | O_CLOEXEC);
		globfree(&g);
		if (fd < 0)
			usleep(10000);
	}
	if (fd < 0)
		die("/dev/vport*p1: is virtio_console loaded?");
	return fd;
}

static void serve(void)
{
	static struct agent a;
	sigset_t chld;

	sigemptyset(&chld);
	sigaddset(&chld, SIGCHLD);
	sigprocmask(SIG_BLOCK, &chld, NULL);
	signal(SIGPIPE, SIG_IGN);
	a.sig = signalfd(-1, &chld, SFD_CLOEXEC | SFD_NONBLOCK);
	a.kmsg = open("/dev/kmsg", O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	a.port = open_port();
	if (a.sig < 0 || a.kmsg < 0)
		die("/dev/kmsg");
	tell(&a, F_READY, 0, "", 0);
	for (;;)
		turn(&a);
}

/* Mounts the real root and hands over to its init; returns in the process that serves. */
static void enter_root(const char *device)
{
	const char *move[] = {"dev", "proc", "sys"};
	char to[PATH_MAX];
	int r = -1;

	mkdir("/new", 0755);
	for (int i = 0; i < 500 && r < 0; i++) {
		r = mount(device, "/new", "ext4", 0, "");
		if (r < 0)
			usleep(10000);
	}
	if (r < 0)
		die(device);
	for (size_t i = 0; i < sizeof(move) / sizeof(*move); i++) {
		snprintf(to, sizeof(to), "/new/%s", move[i]);
		mkdir(to, 0755);
		if (mount(move[i], to, NULL, MS_MOVE, NULL) < 0)
			die(to);
	}
	if (chdir("/new") < 0 || mount(".", "/", NULL, MS_MOVE, NULL) < 0 || chroot(".") < 0 ||
	    chdir("/") < 0)
		die("/new");
	if (fork() == 0)
		return;
	execl("/sbin/init", "/sbin/init", NULL);
	die("/sbin/init");
}

int main(void)
{
	char root[128];

	if (chdir("/") < 0)
		die("/");
	try_mount("devtmpfs", "/dev", "");
	try_mount("proc", "/proc", "");
	try_mount("sysfs", "/sys", "");
	load_modules();
	setenv("PATH", "/usr/sbin:/usr/bin:/sbin:/bin", 1);
	setenv("HOME", "/root", 1);
	setenv("TERM", "linux", 1);
	if (cmdline("mc.root", root, sizeof(root))) {
		enter_root(root);
	} else {
		try_mount("devpts", "/dev/pts", "");
		try_mount("tmpfs", "/dev/shm", "");
		try_mount("tmpfs", "/tmp", "");
		try_mount("tmpfs", "/run", "");
		try_mount("cgroup2", "/sys/fs/cgroup", "");
		try_mount("debugfs", "/sys/kernel/debug", "");
	}
	serve();
}
