/* SPDX-License-Identifier: GPL-2.0-or-later */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "qmp.h"

void qmp_connect_why(int error, const char *path, char *why, size_t len)
{
	switch (error) {
	case -EBUSY:
		snprintf(why, len,
		         "monitor %s is in use; add a second -qmp socket to QEMU and name that one",
		         path);
		break;
	case -EBADMSG:
		snprintf(why, len, "%s is not a QMP monitor; name the socket of QEMU's -qmp", path);
		break;
	case -ENOENT:
		snprintf(why, len,
		         "there is no QMP socket %s; start QEMU with -qmp "
		         "unix:%s,server=on,wait=off",
		         path, path);
		break;
	case -ECONNREFUSED:
		snprintf(why, len,
		         "nobody listens on QMP socket %s: its QEMU has ended; start it again",
		         path);
		break;
	case -ETIMEDOUT:
		snprintf(
		        why, len,
		        "QEMU greets on %s but doesn't answer in time; is the host overloaded? Try "
		        "again",
		        path);
		break;
	case -EACCES:
		snprintf(why, len,
		         "can't connect to QMP socket %s: %s; give the service's user the right to",
		         path, strerror(-error));
		break;
	default:
		snprintf(why, len,
		         "can't connect to QMP socket %s: %s; is it QEMU's -qmp "
		         "unix:...,server=on,wait=off?",
		         path, strerror(-error));
	}
}
