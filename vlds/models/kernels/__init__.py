"""Computations of a step that suit a CPU, or a frozen backbone, better than a library's."""

from __future__ import annotations
