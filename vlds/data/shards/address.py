"""URLs of data sets: files below them, and the login that goes with them.

A login in a web address goes into the header of the request, so that no library's error can show
it. An address without login may have one in ~/.netrc.
"""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import TypeAlias
from urllib.parse import unquote, urlsplit, urlunsplit

from vlds.data.errors import FetchError
from vlds.runtime.credentials import lost_credentials, without_credentials

WEB = ("http://", "https://")
Login: TypeAlias = tuple[str, str]
"""User and password."""


def is_web(url: str) -> bool:
    """True for a URL of a web server."""
    return url.startswith(WEB)


def below(url: str, name: str) -> str:
    """The URL of a file in a folder. The query of a web address stays at the end: it may hold a
    signature for the whole folder."""
    if not is_web(url):
        return f"{url.rstrip('/')}/{name}"
    parts = urlsplit(url)
    return urlunsplit(parts._replace(path=f"{parts.path.rstrip('/')}/{name}"))


def split_login(url: str) -> tuple[str, Login | None]:
    """A web address without its login, and the login: from the address, or else from ~/.netrc.

    Errors: FetchError if ~/.netrc cannot be read, or the address was stored without its secrets.
    """
    check_whole(url)
    parts = urlsplit(url)
    login, at, host = parts.netloc.rpartition("@")
    if not at:
        return url, login_from_netrc(parts.hostname or "")
    user, _, password = login.partition(":")
    return urlunsplit(parts._replace(netloc=host)), (unquote(user), unquote(password))


def check_whole(url: str) -> None:
    """Errors: FetchError for a URL from a run, which was stored without its secrets."""
    if lost_credentials(url):
        raise FetchError(
            f"{without_credentials(url)}: the secrets of this URL are not stored with a run; give "
            "the whole URL again, such as --tasks.TASK.train '[URL]'"
        )


def login_from_netrc(host: str) -> Login | None:
    """The login for a host in the file that NETRC names, by default ~/.netrc.

    Errors: FetchError for a file that cannot be read.
    """
    file = Path(os.environ.get("NETRC") or "~/.netrc").expanduser()
    try:
        entry = netrc.netrc(file).authenticators(host)
    except FileNotFoundError:
        return None
    except netrc.NetrcParseError as error:  # its message may hold the password
        raise FetchError(f"{file}, line {error.lineno}: not a line of netrc; correct it") from None
    except (OSError, UnicodeDecodeError):
        raise FetchError(f"{file}: cannot be read; make it a readable file") from None
    return (entry[0], entry[2]) if entry and entry[2] is not None else None
