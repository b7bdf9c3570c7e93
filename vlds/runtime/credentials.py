"""URLs without the secrets in them, for all that is stored or shown.

A URL may carry a login (`https://user:password@host/`) or secrets in its query (a presigned
`?X-Amz-Signature=...`). It works for the process that it was given to. Recipes, artifacts, logs,
errors and names of cached files get what `without_credentials` leaves of it.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

MASK = "..."
"""Stands for the value of a secret in a query."""
PASSWORD = r"[^\s/?#@:'\"<>]*:(?!\d*['\"<>])[^\s/?#@]*@"
"""A login whose password holds quotes, at which URLs end in texts elsewhere."""
URL = re.compile(
    rf"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]{{0,30}})://(?P<rest>(?:{PASSWORD})?[^\s'\"<>]+)"
)
LOGIN = re.compile(
    r"[^/?#]*@"
    # A password with a slash and the like, pasted as it is: what follows the colon is no port.
    r"|(?!\[)[^/?#@:]*:(?!\d*(?:[/?#]|$)).*@"
)
PARAMETER = re.compile(r"(?P<name>[?&#;][^=&#;]*)=(?P<value>[^&#;]*(?:;[^=&#;]*(?=[&#;]|$))*)")
SECRET = re.compile(
    r"sign|token|key|secret|pass|pwd|cred|auth|jwt|session|hmac|policy|cookie|bearer|ticket|verify"
    r"|(?:^|[^a-z])(?:sig|sas|code|pw|md5|hdnts|hdnea|hdntl)(?:$|[^a-z])",
    re.IGNORECASE,
)
"""Names of parameters whose values are secrets; also names of AWS, Google Cloud, Azure,
Akamai, Cloudflare and nginx."""
WEB = ("http", "https", "ftp", "ftps", "ws", "wss")
"""Schemes whose login goes as a whole. Others need its user: sftp://user@host, abfs://box@host."""
NO_LOGIN = ("github", "gitlab")
"""fsspec writes org:repository in the place of a login."""


def without_credentials(text: str) -> str:
    """Any text, its URLs without logins and with `...` for secrets in their queries."""
    return URL.sub(_clean, text) if "://" in text else text


def lost_credentials(url: str) -> bool:
    """Whether a URL was stored without a secret of its query, which nobody can read back."""
    return any(found["value"] == MASK for found in PARAMETER.finditer(url))


def _clean(found: re.Match[str]) -> str:
    scheme, rest = found["scheme"], found["rest"]
    if (login := LOGIN.match(rest)) and scheme.lower() not in NO_LOGIN:
        user = login[0].partition(":")[0].removesuffix("@")
        kept = "" if scheme.lower() in WEB or not user else f"{user}@"
        rest = kept + rest[login.end() :]
    return f"{scheme}://{PARAMETER.sub(_masked, rest)}"


def _masked(found: re.Match[str]) -> str:
    inner = unquote(found["value"])  # an address in the query has secrets of its own
    secret = _is_secret(found["name"]) or without_credentials(inner) != inner
    return f"{found['name']}={MASK}" if secret else found[0]


def _is_secret(name: str) -> bool:
    return SECRET.search(unquote(name)) is not None
