/* SPDX-License-Identifier: GPL-2.0-or-later */
/* Text that somebody else wrote: a process by the arena or its connection, a file. */
#ifndef MC_SUPERVISOR_TEXT_H
#define MC_SUPERVISOR_TEXT_H

#include <stdbool.h>

/*
 * Makes @s, in place, fit for the bus, JSON and a terminal: control characters and what isn't UTF-8
 * (a character that was cut, too) become '?', tabs blanks, and line ends as well unless @lines may
 * stay. Returns @s.
 */
char *text_clean(char *s, bool lines);

#endif
