/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "../ipc/fault.h"
#include "../ipc/log.h"
#include "supervisor.h"

static void usage(FILE *f)
{
	fprintf(f,
	        "usage: mc-supervisor [--bus=system|session|ADDRESS] [--runtime-dir DIR]\n"
	        "                     [--state-dir DIR] [--listen ADDRESS:PORT] [--libexec DIR]\n"
	        "                     [--conf-dir DIR] [--user NAME] [--debug] [--version]\n");
}

/* Where the other programs are: beside this one, unless told otherwise. */
static const char *own_directory(char *buf, size_t len)
{
	ssize_t n = readlink("/proc/self/exe", buf, len - 1);
	char *slash;

	if (n <= 0)
		return ".";
	buf[n] = '\0';
	slash = strrchr(buf, '/');
	if (slash)
		*slash = '\0';
	return buf;
}

static int parse(int argc, char **argv, struct manager *m)
{
	static const struct option options[] = {
	        {"bus", required_argument, NULL, 'b'},
	        {"runtime-dir", required_argument, NULL, 'r'},
	        {"state-dir", required_argument, NULL, 's'},
	        {"listen", required_argument, NULL, 'l'},
	        {"libexec", required_argument, NULL, 'x'},
	        {"conf-dir", required_argument, NULL, 'c'},
	        {"user", required_argument, NULL, 'u'},
	        {"debug", no_argument, NULL, 'd'},
	        {"version", no_argument, NULL, 'v'},
	        {"help", no_argument, NULL, 'h'},
	        {NULL, 0, NULL, 0},
	};
	int c;

	while ((c = getopt_long(argc, argv, "", options, NULL)) != -1) {
		switch (c) {
		case 'b':
			m->bus_address = optarg;
			break;
		case 'r':
			m->runtime_dir = optarg;
			break;
		case 's':
			m->state_dir = optarg;
			break;
		case 'l':
			m->listen = optarg;
			break;
		case 'x':
			m->libexec = optarg;
			break;
		case 'c':
			m->conf_dir = optarg;
			break;
		case 'u':
			m->user = optarg;
			break;
		case 'd':
			m->debug = true;
			break;
		case 'v':
			printf("mc-supervisor %s abi %d\n", mc_build_id(), MC_ABI_VERSION);
			return 1;
		case 'h':
			usage(stdout);
			return 1;
		default:
			return -EINVAL;
		}
	}
	return optind == argc ? 0 : -EINVAL;
}

int main(int argc, char **argv)
{
	static char dir[PATH_MAX];
	struct manager m = {
	        .bus_address = "system",
	        .runtime_dir = "/run/microcheckpoint",
	        .state_dir = "/var/lib/microcheckpoint",
	        .conf_dir = CONF_DIR,
	        .user = "microcheckpoint",
	        .listen = "[::]:7911",
	};
	int r;

#ifdef MC_FAULTS
	if (argc == 2 && strcmp(argv[1], "--fault-points") == 0) {
		mc_fault_list(MC_ROLE_SUPERVISOR);
		return 0;
	}
#endif
	m.libexec = own_directory(dir, sizeof(dir));
	r = parse(argc, argv, &m);
	if (r < 0) {
		usage(stderr);
		return 2;
	}
	if (r > 0)
		return 0;
	mc_log_setup("mc-supervisor", NULL, m.debug ? LOG_DEBUG : LOG_INFO);
	return manager_run(&m);
}
