"""Removes secrets from URLs before they are stored or shown.

A URL may carry a login (`https://user:password@host/`) or secrets in its query (a presigned
`?X-Amz-Signature=...`). Only the process that got such a URL uses it in full. Recipes, artifacts,
logs, errors and names of cached files get it through `without_credentials`.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "..."
"""Replaces the value of a secret in a query."""
PASSWORD = r"[^\s/?#@:'\"<>]*:(?!\d*['\"<>])[^\s/?#@]*@"
"""A login whose password may contain quotes; elsewhere in a text, a quote ends the URL."""
URL = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{0,30}})://(?P<rest>(?:{PASSWORD})?[^\s'\"<>]+)"
)
LOGIN = re.compile(
    r"[^/?#]*@"
    # A password that was pasted with a slash or the like: a port is all digits.
    r"|(?!\[)[^/?#@:]*:(?!\d*(?:[/?#]|$)).*@"
)
PARAMETER = re.compile(r"(?P<name>[?&#;][^=?&#;]*)=(?P<value>[^&#;]*(?:;[^=&#;]*(?=[&#;]|$))*)")
SECRET = re.compile(
    r"sign|token|key|secret|pass|pwd|cred|auth|jwt|session|hmac|policy|cookie|bearer|ticket|verify"
    r"|(?:^|[^a-z])(?:sig|sas|code|pw|md5|hdnts|hdnea|hdntl)(?:$|[^a-z])",
    re.IGNORECASE,
)
"""Names of parameters whose values are secrets, with those of AWS, Google Cloud, Azure, Akamai,
Cloudflare and nginx."""
WEB = ("http", "https", "ftp", "ftps", "ws", "wss")
"""Schemes that lose the whole login. Others keep its user: sftp://user@host, abfs://box@host."""
NO_LOGIN = ("github", "gitlab")
"""Schemes in which fsspec writes org:repository where others have a login."""


def without_credentials(text: str) -> str:
    """The text with its URLs cleaned: no logins, and `...` for secrets in their queries."""
    return URL.sub(_clean, text) if "://" in text else text


def lost_credentials(url: str) -> bool:
    """True if a URL was stored without a secret of its query, so that it cannot be opened."""
    return any(match["value"] == MASK for match in PARAMETER.finditer(url))


def _clean(url: re.Match[str]) -> str:
    scheme, rest = url["scheme"], url["rest"]
    if (login := LOGIN.match(rest)) and scheme.lower() not in NO_LOGIN:
        user = login[0].partition(":")[0].removesuffix("@")
        user_part = "" if scheme.lower() in WEB or not user else f"{user}@"
        rest = user_part + rest[login.end() :]
    return f"{scheme}://{PARAMETER.sub(_masked, rest)}"


def _masked(parameter: re.Match[str]) -> str:
    value = unquote(parameter["value"])  # may be a URL with credentials
    secret = SECRET.search(unquote(parameter["name"])) or without_credentials(value) != value
    return f"{parameter['name']}={MASK}" if secret else parameter[0]
