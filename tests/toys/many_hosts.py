"""Many hosts on this machine: each is a fork that runs DeepSpeed's launcher, and forks its ranks.

`vlds train` with a host file goes its own way up to pdsh: its supervisor, DeepSpeed's runner, `ssh`
to the first host. The programs `pdsh` and `ssh` in `commands` stand for the real ones: pdsh hands
the command line for each host to `Hosts`, a process that has imported everything, where a host of
its own would import for seconds and take 300 MB.
"""

from __future__ import annotations

import ctypes
import json
import os
import runpy
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from tests.toys.files import ROOT
from vlds.runtime.process import PR_SET_PDEATHSIG
from vlds.runtime.rank_environment import free_port

SSH = """#!/bin/sh
case "$*" in *"hostname -I") echo 127.0.0.1 ;; esac
"""
PDSH = """#!{python} -S
import array, os, socket, sys
words = sys.argv[1:]
hosts = words[words.index("-w") + 1].split(",")
line = " ".join(words[words.index("-w") + 2:])
connections = []
for number, host in enumerate(hosts):
    if host in {lost}:
        print(f"pdsh@here: {{host}}: ssh exited with exit code 255", file=sys.stderr, flush=True)
        continue
    connections.append(socket.socket(socket.AF_UNIX))
    connections[-1].connect({socket!r})
    message = f"{{host}}\\n{{line.replace('%n', str(number))}}\\0".encode()
    socket.send_fds(connections[-1], [message], [1, 2])
sys.exit(max(int(connection.recv(9) or 1) for connection in connections))
"""
PADDING = 1 << 15
"""Characters of the words that a host's processes can show as theirs."""


@contextmanager
def many_hosts(
    folder: Path,
    number: int,
    *,
    slots: int = 1,
    lost: Sequence[str] = (),
    odd: Mapping[str, str] | None = None,
) -> Iterator[dict[str, str]]:
    """The environment in which `vlds train` runs on so many hosts, `node000`, ...

    `slots`: ranks of each. `lost`: hosts that ssh does not reach. `odd`: host -> "late SECONDS", or
    "torch VERSION".
    """
    commands = folder / "commands"
    commands.mkdir()
    place = str(folder / "hosts.socket")
    python = f"{sys.executable}"
    for name, text in (
        ("ssh", SSH),
        ("pdsh", PDSH.format(python=python, lost=list(lost), socket=place)),
    ):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    names = [f"node{n:03d}" for n in range(number)]
    (folder / "hosts").write_text("".join(f"{name} slots={slots}\n" for name in names))
    environment = {
        **os.environ,
        "PATH": f"{commands}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "VLDS_LAUNCHER_ARGS": f"--hostfile {folder / 'hosts'} --master_port {free_port()}",
        "DS_ACCELERATOR": "cpu",
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
        "TORCH_CPP_LOG_LEVEL": "ERROR",
        "PYTHONWARNINGS": "ignore",
    }
    words = [sys.executable, "-m", "tests.toys.many_hosts", place, json.dumps(odd or {})]
    server = subprocess.Popen([*words, " " * PADDING], cwd=ROOT, env=environment)
    try:
        while not os.path.exists(place):
            assert server.poll() is None
            time.sleep(0.1)
        yield environment
    finally:
        server.kill()
        server.wait()


def serve(place: str, odd: Mapping[str, str]) -> None:
    """Fork a host for each connection."""
    _import_all()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{place}.new")
        listener.listen(1024)
        os.rename(f"{place}.new", place)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for hosts
        while True:
            connection, _ = listener.accept()
            data, outputs, _, _ = socket.recv_fds(connection, 1 << 16, 2)
            while not data.endswith(b"\0"):
                data += connection.recv(1 << 16)
            if not os.fork():
                listener.close()
                for number, output in zip((1, 2), outputs, strict=True):
                    os.dup2(output, number)
                host, _, line = data[:-1].decode().partition("\n")
                _be_host(host, line, connection, odd.get(host, ""))
            for output in outputs:
                os.close(output)
            connection.close()


def _be_host(host: str, line: str, connection: socket.socket, oddity: str) -> NoReturn:
    """Run a line of pdsh's, as a shell on the host would."""
    os.setsid()
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    setattr(socket, "gethostname", lambda: host)  # noqa: B010
    kind, _, value = oddity.partition(" ")
    if kind == "late":
        time.sleep(float(value))
    if kind == "torch":
        from vlds.runtime import roll_call
        from vlds.runtime.cluster import software

        other = {**software(), "torch": value}
        setattr(roll_call, "software", lambda: other)  # noqa: B010
    for part in filter(None, map(str.strip, line.split(";"))):
        words = shlex.split(part)
        if words[0] == "export":
            name, _, value = words[1].partition("=")
            os.environ[name] = value
        elif words[0] == "cd":
            os.chdir(words[1])
        else:
            # By it, the launcher starts its ranks. They have the real one again.
            setattr(subprocess, "Popen", Forked)  # noqa: B010
            code = _run(words)
            connection.send(str(code).encode())
            os._exit(code)
    raise AssertionError(line)


def _run(words: Sequence[str]) -> int:
    """Run Python's words in this process: python -u -m MODULE ARGUMENT ..."""
    module = words.index("-m")
    _show(words)
    sys.argv = [words[module + 1], *words[module + 2 :]]
    try:
        runpy.run_module(words[module + 1], run_name="__main__")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        return 1
    return 0


def _show(words: Sequence[str]) -> None:
    """Let the system show other words as those of this process: ranks look at their launcher's."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    begin, end = int(fields[45]), int(fields[46])  # arg_start and arg_end: 48 and 49 of man proc
    data = "\0".join(words).encode() + b"\0"
    assert len(data) <= end - begin
    ctypes.memset(begin, 0, end - begin)
    ctypes.memmove(begin, data, len(data))


class Forked:
    """What DeepSpeed's launcher needs of a process that it starts."""

    real = subprocess.Popen

    def __init__(self, words: Sequence[str], env: Mapping[str, str], **_: Any) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if not self.pid:
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            setattr(subprocess, "Popen", Forked.real)  # noqa: B010
            os.environ.clear()
            os.environ.update(env)
            os._exit(_run(words))

    def poll(self) -> int | None:
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode


def _import_all() -> None:
    """What every host and rank imports, so that their forks share it."""
    import gc

    import deepspeed.launcher.launch
    import deepspeed.runtime.zero.muon.muon_optimizer  # noqa: F401

    import vlds.cli.main
    import vlds.cli.rank
    import vlds.training.loop  # noqa: F401
    from vlds.models.kernels.dropout import SOURCE
    from vlds.models.kernels.fused import compiled_functions
    from vlds.runtime.cluster import software

    compiled_functions(SOURCE)
    software()
    gc.collect()
    gc.freeze()


if __name__ == "__main__":
    serve(sys.argv[1], json.loads(sys.argv[2]))
