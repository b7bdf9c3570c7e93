"""Text from others, made fit to be shown.

Questions, ids, file names and servers' answers come from others. In a terminal, control characters
in them would move the cursor, recolour, rename the window or hide what follows; bidi controls would
show text in another order than it has, in a browser too. So they are shown as escapes, and URLs
without credentials.
"""

from __future__ import annotations

import re

from vlds.runtime.credentials import without_credentials

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters, but for tab and newline
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # order of writing, nothing to see
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufff9-\ufffb"  # likewise
    "\u2028\u2029"  # new lines for some programs only
    "\ud800-\udfff"  # halves of characters, which cannot be written
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # likewise, and invisible copies of ASCII
)


def visible(text: object) -> str:
    """Text from anybody, fit to be shown: what a terminal would obey, or nobody would see, as
    escapes such as `\\x1b` and `\\u202e`."""
    return HIDDEN.sub(_escape, without_credentials(str(text)))


def _escape(found: re.Match[str]) -> str:
    return found[0].encode("unicode_escape").decode("ascii")
