/* SPDX-License-Identifier: GPL-2.0-or-later */
/* The files behind tls-dir and psk-file, read for the transport (ipc/creds.h). */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ipc/creds.h"
#include "../ipc/util.h"
#include "supervisor.h"

static int fail(char *why, size_t len, const char *path, int r, const char *text)
{
	snprintf(why, len, "%.200s: %s%s", path, text ? text : strerror(-r),
	         text ? "" : "; look at its name, owner and mode");
	return r;
}

/* @secret: nobody but its owner and group may be able to read it. */
static int read_part(const char *path, bool secret, struct mc_creds *c, enum mc_creds_part part,
                     char *why, size_t len)
{
	int mc_autoclose fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	ssize_t n;

	if (fd < 0 || fstat(fd, &st) < 0)
		return fail(why, len, path, -errno, NULL);
	if (!S_ISREG(st.st_mode) || !st.st_size || st.st_size > (off_t)MC_CREDS_PART_MAX)
		return fail(why, len, path, -EINVAL,
		            "is empty, too large, or no file; make it anew (README.md says how)");
	if (secret && st.st_mode & S_IRWXO)
		return fail(why, len, path, -EPERM,
		            "is a secret that everybody on this host can read; chmod o= it");
	c->part[part] = calloc(1, (size_t)st.st_size + 1);
	if (!c->part[part])
		return fail(why, len, path, -ENOMEM, NULL);
	n = read(fd, c->part[part], (size_t)st.st_size);
	if (n != st.st_size)
		return fail(why, len, path, n < 0 ? -errno : -EIO, NULL);
	c->len[part] = (size_t)n;
	return 0;
}

static int read_dir(const struct mc_config *cfg, enum mc_side side, struct mc_creds *c, char *why,
                    size_t len)
{
	const char *end = side == MC_SIDE_PRIMARY ? "client" : "server";
	char path[MC_PATH_MAX_ + 32];
	int r;

	snprintf(path, sizeof(path), "%s/ca-cert.pem", cfg->tls_dir);
	r = read_part(path, false, c, MC_CREDS_CA, why, len);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "%s/%s-cert.pem", cfg->tls_dir, end);
	r = read_part(path, false, c, MC_CREDS_CERT, why, len);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "%s/%s-key.pem", cfg->tls_dir, end);
	r = read_part(path, true, c, MC_CREDS_KEY, why, len);
	if (r < 0)
		return r;
	snprintf(path, sizeof(path), "%s/ca-crl.pem", cfg->tls_dir);
	r = read_part(path, false, c, MC_CREDS_CRL, why, len);
	return r == -ENOENT ? 0 : r;
}

int creds_open(const struct mc_config *cfg, enum mc_side side, char *why, size_t len)
{
	struct mc_creds c = {0};
	int r;

	if (cfg->tls == MC_TLS_PSK)
		r = read_part(cfg->psk_file, true, &c, MC_CREDS_PSK, why, len);
	else
		r = read_dir(cfg, side, &c, why, len);
	if (r == 0) {
		r = mc_creds_pack(&c);
		if (r < 0)
			snprintf(why, len,
			         "can't keep the credentials in memory: %s; free memory on this "
			         "host",
			         strerror(-r));
	}
	mc_creds_done(&c);
	return r;
}
