"""Makes text from others safe to show.

Questions, ids, file names and servers' answers come from others. In a terminal, control characters
in them could move the cursor, change colours, rename the window or hide text; bidi controls reorder
text, in a browser too. So they are shown as escapes, and URLs without credentials.
"""

from __future__ import annotations

import re

from vlds.runtime.credentials import without_credentials

HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters except tab and newline
    "\u061c\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff"  # bidi controls, invisible ones
    "\u00ad\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\uffa0\ufff9-\ufffb"  # likewise
    "\u2028\u2029"  # line ends for some programs only
    "\ud800-\udfff"  # surrogates, which cannot be encoded
    "\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"  # invisible characters and copies of ASCII
)


def visible(text: object) -> str:
    """The text, safe for a terminal: control and invisible characters become escapes such as
    `\\x1b` and `\\u202e`, and URLs lose their credentials."""
    return HIDDEN.sub(_escape, without_credentials(str(text)))


def _escape(character: re.Match[str]) -> str:
    return character[0].encode("unicode_escape").decode("ascii")
