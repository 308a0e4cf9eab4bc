/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "conf.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ipc/util.h"

#define KEYS_MAX 64

/* A file that is being read. */
struct reader {
	const char *path;
	unsigned line;
	struct guest_conf *conf;
	bool role_given;
	struct {
		char key[32];
		unsigned line;
	} seen[KEYS_MAX];
	unsigned nseen;
	unsigned mistakes;
	conf_bad_fn bad;
	void *ctx;
};

static void mistake(struct reader *r, unsigned line, const char *fmt, ...)
        __attribute__((format(printf, 3, 4)));
static void mistake(struct reader *r, unsigned line, const char *fmt, ...)
{
	char text[1024], what[768];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(what, sizeof(what), fmt, ap);
	va_end(ap);
	if (line)
		snprintf(text, sizeof(text), "%s:%u: %s", r->path, line, what);
	else
		snprintf(text, sizeof(text), "%s: %s", r->path, what);
	r->mistakes++;
	r->bad(r->ctx, text);
}

static char *strip(char *s)
{
	size_t n;

	while (isspace((unsigned char)*s))
		s++;
	n = strlen(s);
	while (n && isspace((unsigned char)s[n - 1]))
		s[--n] = '\0';
	return s;
}

/* A key given twice is a mistake unless its values add up. */
static bool given_twice(struct reader *r, const char *key)
{
	for (unsigned i = 0; i < r->nseen; i++) {
		if (strcmp(r->seen[i].key, key) != 0 || option_repeats(key))
			continue;
		mistake(r, r->line, "%s was given in line %u already; remove one of the two", key,
		        r->seen[i].line);
		return true;
	}
	if (r->nseen < KEYS_MAX) {
		snprintf(r->seen[r->nseen].key, sizeof(r->seen[0].key), "%s", key);
		r->seen[r->nseen++].line = r->line;
	}
	return false;
}

static void take_role(struct reader *r, const char *value)
{
	r->role_given = true;
	r->conf->primary = strcmp(value, "primary") == 0;
	if (!r->conf->primary && strcmp(value, "standby") != 0)
		mistake(r, r->line, "role: '%.64s' isn't allowed; it must be primary or standby",
		        value);
}

static void take_line(struct reader *r, char *text)
{
	char *key = strip(text), *value, why[512];
	int e;

	if (!*key || *key == '#')
		return;
	value = strchr(key, '=');
	if (!value) {
		mistake(r, r->line, "'%.64s' isn't KEY = VALUE; comments begin with #", key);
		return;
	}
	*value++ = '\0';
	key = strip(key);
	value = strip(value);
	if (given_twice(r, key))
		return;
	if (strcmp(key, "role") == 0) {
		take_role(r, value);
		return;
	}
	e = strcmp(key, "dry-run") == 0
	            ? -ENOENT
	            : option_set(&r->conf->rq, key, value, false, why, sizeof(why));
	if (e == -ENOENT)
		mistake(r, r->line,
		        "there is no key '%.64s'; mcctl --help lists them all, and there is role",
		        key);
	else if (e < 0)
		mistake(r, r->line, "%s", why);
}

static void take_text(struct reader *r, char *text)
{
	char *next;

	for (char *line = text; line && r->mistakes < 100; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		r->line++;
		take_line(r, line);
	}
}

/* What only the whole file can show. */
static void check_whole(struct reader *r)
{
	char why[512];

	if (!r->role_given) {
		mistake(r, 0, "role is missing: add a line role = primary, or role = standby");
		return;
	}
	if (r->mistakes)
		return;
	request_secure(&r->conf->rq, MC_TLS_DIR);
	if (request_check(&r->conf->rq, r->conf->primary, why, sizeof(why)) < 0)
		mistake(r, 0, "%s", why);
}

static int read_all(struct reader *r, char **ret)
{
	int mc_autoclose fd = open(r->path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
	struct stat st;
	ssize_t n;
	char *buf;

	if (fd < 0 || fstat(fd, &st) < 0) {
		int e = -errno;

		mistake(r, 0, "can't be read: %s; mend its owner and mode", strerror(-e));
		return e;
	}
	if (!S_ISREG(st.st_mode) || st.st_size > CONF_SIZE_MAX) {
		mistake(r, 0, "isn't a file of at most %d bytes; only guests' files belong here",
		        CONF_SIZE_MAX);
		return -EINVAL;
	}
	buf = malloc(CONF_SIZE_MAX + 1);
	if (!buf)
		return -ENOMEM;
	n = read(fd, buf, CONF_SIZE_MAX);
	if (n < 0 || memchr(buf, 0, (size_t)n)) {
		mistake(r, 0,
		        n < 0 ? "can't be read"
		              : "isn't a text file; only KEY = VALUE lines belong here");
		free(buf);
		return -EINVAL;
	}
	buf[n] = '\0';
	*ret = buf;
	return 0;
}

/* "DIR/vm.conf" -> "vm" */
static int take_name(struct reader *r)
{
	const char *base = strrchr(r->path, '/');
	struct mc_config *cfg = &r->conf->rq.cfg;
	size_t n;

	base = base ? base + 1 : r->path;
	n = strlen(base);
	if (n > 5 && n - 5 < sizeof(cfg->guest) && strcmp(base + n - 5, ".conf") == 0) {
		snprintf(cfg->guest, sizeof(cfg->guest), "%.*s", (int)(n - 5), base);
		if (mc_guest_name_check(cfg->guest) == 0)
			return 0;
	}
	mistake(r, 0,
	        "its name must be that of the guest and .conf: letters, digits, '.', '_', '-', at "
	        "most 63, beginning with a letter or digit");
	return -EINVAL;
}

int conf_read(const char *path, struct guest_conf **ret, conf_bad_fn bad, void *ctx)
{
	struct reader r = {.path = path, .bad = bad, .ctx = ctx};
	char mc_autofree *text = NULL;
	int e;

	r.conf = calloc(1, sizeof(*r.conf));
	if (!r.conf)
		return -ENOMEM;
	request_init(&r.conf->rq);
	e = take_name(&r);
	if (e == 0)
		e = read_all(&r, &text);
	if (e == 0) {
		take_text(&r, text);
		check_whole(&r);
	}
	if (e < 0 || r.mistakes) {
		free(r.conf);
		return e < 0 ? e : -EINVAL;
	}
	*ret = r.conf;
	return 0;
}

static int is_conf(const struct dirent *d)
{
	const char *dot = strrchr(d->d_name, '.');

	return d->d_name[0] != '.' && dot && strcmp(dot, ".conf") == 0;
}

int conf_read_dir(const char *dir, struct guest_conf **ret, conf_bad_fn bad, void *ctx)
{
	struct dirent **names = NULL;
	struct guest_conf **end = ret;
	int n = scandir(dir, &names, is_conf, alphasort), mistakes = 0;

	*ret = NULL;
	if (n < 0)
		return errno == ENOENT ? 0 : -errno;
	for (int i = 0; i < n; i++) {
		char path[1024];

		snprintf(path, sizeof(path), "%s/%s", dir, names[i]->d_name);
		if (i >= CONF_FILES_MAX) {
			bad(ctx, "there are more than 256 files in it, and a supervisor takes 256 "
			         "guests; move some to another host");
			mistakes++;
			break;
		}
		if (conf_read(path, end, bad, ctx) < 0)
			mistakes++;
		else
			end = &(*end)->next;
	}
	for (int i = 0; i < n; i++)
		free(names[i]);
	free(names);
	return mistakes;
}

struct guest_conf *conf_free(struct guest_conf *list)
{
	while (list) {
		struct guest_conf *next = list->next;

		free(list);
		list = next;
	}
	return NULL;
}
