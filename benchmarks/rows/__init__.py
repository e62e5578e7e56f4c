"""The rows, in the order of DESIGN.md's table of figures; importing this registers them."""

from __future__ import annotations

from importlib import import_module

for _name in (
    "threads",
    "processes",
    "streams",
    "lone",
    "cpu",
    "arrays",
    "sharing",
    "care",
    "lateness",
    "startup",
    "queued",
    "engines",
    "journal",
    "limits",
):
    import_module(f"{__name__}.{_name}")
