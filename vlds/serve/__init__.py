"""`vlds predict --serve`: one run stays open and answers questions, on a page and as JSON."""

from vlds.serve.open_run import OpenRun, RunAnswer, open_run
from vlds.serve.server import serve

__all__ = ["OpenRun", "RunAnswer", "open_run", "serve"]
