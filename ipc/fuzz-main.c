/* SPDX-License-Identifier: GPL-2.0-or-later */
/*
 * A plain main for a fuzz target: runs it once over every file of the folders, or over the
 * files, that are named.  Prints "ok N - FILE" for each, so that what a target once choked on
 * counts as a test.
 */
#include <dirent.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#include "util.h"

#define INPUT_MAX (1U << 20)

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static int replay(const char *path, unsigned *n)
{
	struct stat st;
	uint8_t *buf;
	size_t len;
	FILE *f = fopen(path, "re");

	if (!f)
		return -errno;
	/* Of the exact size: a read beyond the end is seen. */
	len = fstat(fileno(f), &st) == 0 && st.st_size < INPUT_MAX ? (size_t)st.st_size : 0;
	buf = malloc(len ? len : 1);
	len = buf ? fread(buf, 1, len, f) : 0;
	fclose(f);
	if (!buf)
		return -ENOMEM;
	(void)LLVMFuzzerTestOneInput(buf, len);
	free(buf);
	printf("ok %u - %s\n", ++*n, path);
	return 0;
}

static int replay_folder(const char *path, unsigned *n)
{
	struct dirent **list;
	int count = scandir(path, &list, NULL, alphasort), r = 0;

	if (count < 0)
		return -errno;
	for (int i = 0; i < count; i++) {
		char file[4096];

		snprintf(file, sizeof(file), "%s/%s", path, list[i]->d_name);
		if (r == 0 && list[i]->d_name[0] != '.')
			r = replay(file, n);
		free(list[i]);
	}
	free(list);
	return r;
}

int main(int argc, char **argv)
{
	unsigned n = 0;
	int r = 0;

	for (int i = 1; r == 0 && i < argc; i++) {
		struct stat st;

		if (stat(argv[i], &st) < 0)
			r = -errno;
		else
			r = S_ISDIR(st.st_mode) ? replay_folder(argv[i], &n) : replay(argv[i], &n);
		if (r < 0)
			fprintf(stderr, "%s: %s\n", argv[i], strerror(-r));
	}
	return r < 0 || !n;
}
