"""The script of `vlds completion` completes in real shells, typed into a terminal."""

from __future__ import annotations

import os
import pty
import select
import shutil
import time
from pathlib import Path

import pytest

from vlds.cli.main import run_command

SHELLS = {
    "bash": (["--norc", "--noprofile", "-i"], ". ./_vlds"),
    "zsh": (["-f", "-i"], "fpath=($PWD $fpath); autoload -Uz compinit; compinit -u"),
}
"""Shell -> its options, and the line that reads the script."""
TYPED = {
    "vlds desc": "vlds describe",
    "vlds train recipes/easy_vqa_pl": "recipes/easy_vqa_plain.yaml",
    "vlds train mine.ya": "vlds train mine.yaml",
    "vlds train mine.yaml --optimizer.lea": "--optimizer.learning_rate",
    "vlds evaluate --predi": "--predictions",
    "vlds data jso": "vlds data jsonl",
    "vlds data jsonl --annot": "--annotations",
    "vlds data refcoco --split testB --split-by goo": "--split-by google",
    "vlds convert pe": "vlds convert peft",
}
"""Typed before a TAB -> what the line then holds."""


@pytest.mark.slow
@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_completes(shell: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["completion", shell]) == 0
    (tmp_path / "_vlds").write_text(capsys.readouterr().out)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    (tmp_path / "mine.yaml").touch()
    options, read = SHELLS[shell]
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.environ |= {"PS1": "> ", "PROMPT": "> ", "TERM": "dumb", "ZDOTDIR": str(tmp_path)}
        os.execvp(shell, [shell, *options])

    def shown_after(keys: str, wanted: str, seconds: float = 30) -> str:
        """What the terminal shows, until it holds `wanted`."""
        os.write(terminal, keys.encode())
        shown, end = "", time.monotonic() + seconds
        while wanted not in shown and time.monotonic() < end:
            if select.select([terminal], [], [], 0.2)[0]:
                shown += os.read(terminal, 65536).decode(errors="replace")
        return shown

    try:
        assert "rea" in shown_after(f"{read}; echo rea''dy\n", "ready\r\n")
        for typed, wanted in TYPED.items():
            shown = shown_after(f"{typed}\t", wanted)
            assert wanted in shown, f"{typed}: {shown!r}"
            shown_after("\x15\n", "> ")  # empty the line
    finally:
        os.kill(process, 9)
        os.waitpid(process, 0)
        os.close(terminal)
