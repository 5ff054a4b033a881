"""Fuzz tests: bounded, the same inputs in every run, and a minimal input where one fails."""

from __future__ import annotations

from hypothesis import HealthCheck, settings


def fuzz(examples: int) -> settings:
    """Settings of hypothesis; files are written again by each example, so a folder of the function is fine."""
    ignored = [HealthCheck.function_scoped_fixture]
    return settings(max_examples=examples, deadline=None, derandomize=True, suppress_health_check=ignored)
