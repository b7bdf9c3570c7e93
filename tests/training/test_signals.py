"""Signals that ask a rank to save and end."""

from __future__ import annotations

import os
import signal

import pytest

from vlds.runtime.process import signals_collected


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_asks_for_a_stop(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)
    try:
        with signals_collected() as stop:
            os.kill(os.getpid(), number)
        assert stop == [number]
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)


def test_an_ignored_hangup_stays_ignored() -> None:
    """As under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with signals_collected() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop == []
    finally:
        signal.signal(signal.SIGHUP, before)
