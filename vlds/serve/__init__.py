"""`vlds predict --serve`: one run stays open and answers questions, on a page and as JSON."""

from vlds.serve.open_run import Answer, OpenRun, open_run
from vlds.serve.server import serve

__all__ = ["Answer", "OpenRun", "open_run", "serve"]
