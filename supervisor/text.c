/* SPDX-License-Identifier: GPL-2.0-or-later */
#include "text.h"

#include <stddef.h>
#include <stdint.h>

/* Length of the character at @s, 2 to 4 bytes; 0: it isn't one that may stay. */
static size_t beyond_ascii(const unsigned char *s)
{
	/* The smallest that needs so many bytes; C1, below 0xa0, are control characters. */
	static const uint32_t smallest[] = {0, 0, 0xa0, 0x800, 0x10000};
	size_t n = *s < 0xc0 ? 0 : *s < 0xe0 ? 2 : *s < 0xf0 ? 3 : *s < 0xf8 ? 4 : 0;
	uint32_t c = *s & (0x7fU >> n);

	if (!n)
		return 0;
	for (size_t i = 1; i < n; i++) {
		if ((s[i] & 0xc0) != 0x80)
			return 0; /* the end is none either */
		c = c << 6 | (s[i] & 0x3f);
	}
	/* Surrogates and what is no character: the bus takes neither. */
	if (c < smallest[n] || c > 0x10ffff || (c & 0xfffff800) == 0xd800 ||
	    (c >= 0xfdd0 && c <= 0xfdef) || (c & 0xfffe) == 0xfffe)
		return 0;
	return n;
}

char *text_clean(char *s, bool lines)
{
	for (unsigned char *p = (unsigned char *)s; *p;) {
		size_t n = *p < 0x80 ? 0 : beyond_ascii(p);

		if (n) {
			p += n;
			continue;
		}
		if (*p == '\t' || *p == '\r' || (*p == '\n' && !lines))
			*p = ' ';
		else if ((*p < ' ' && *p != '\n') || *p >= 0x7f)
			*p = '?';
		p++;
	}
	return s;
}
