"""The figures of `parallel_exec` against its peers: `python -m benchmarks --help`.

    __main__ ──► _isolate (one fresh interpreter a comparison) ──► _harness.compare ──► rows/*.py ──► _pools, work
        │                                                                │
        └──► _report: table, JSON ──► _chart: SVG  ◄──── Measurement ────┘

Nothing here is imported by `parallel_exec`, and no test asserts a time.
"""
