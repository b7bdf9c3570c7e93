"""Metrics: functions from texts to numbers. They know no task and no tensor."""

from __future__ import annotations
