/* SPDX-License-Identifier: GPL-2.0-or-later */
/* A configuration file; what is accepted is a valid configuration, what isn't has its mistakes
 * named. */
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "../ipc/fuzz.h"
#include "conf.h"

static char dir[] = "/tmp/mc-fuzz-XXXXXX", path[sizeof(dir) + 16];

static void clean_up(void)
{
	unlink(path);
	rmdir(dir);
}

static void on_mistake(void *ctx, const char *text)
{
	FUZZ_CHECK(strlen(text) > 0);
	++*(unsigned *)ctx;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	struct guest_conf *conf = NULL;
	unsigned mistakes = 0;
	char why[512];
	int fd, r;

	if (!path[0]) {
		if (!mkdtemp(dir))
			abort();
		snprintf(path, sizeof(path), "%s/vm.conf", dir);
		atexit(clean_up);
	}
	fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || write(fd, data, size) != (ssize_t)size)
		abort();
	close(fd);
	r = conf_read(path, &conf, on_mistake, &mistakes);
	FUZZ_CHECK((r < 0) == (mistakes > 0) && (r < 0) == !conf);
	if (conf)
		FUZZ_CHECK(request_check(&conf->rq, conf->primary, why, sizeof(why)) == 0);
	conf_free(conf);
	return 0;
}
