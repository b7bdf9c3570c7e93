"""What DeepSpeed imports that no run of vlds uses."""

from __future__ import annotations

from importlib import import_module

from deepspeed.runtime import compiler

MUON = "deepspeed.runtime.zero.muon.original_muon"


def import_muon() -> None:
    """Import DeepSpeed's optimizer Muon without the compiler that it starts.

    Every stage of ZeRO imports it when it is built. Its functions are compiled as they are
    imported, which takes two to three seconds and 40 MB of each rank.
    """
    own = compiler.compile
    compiler.compile = lambda: lambda function: function
    try:
        import_module(MUON)
    finally:
        compiler.compile = own
