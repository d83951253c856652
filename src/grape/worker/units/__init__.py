"""How a node's events are run: one stage in, what it emitted out, every event undone alone if it fails.

There are several loops instead of one because this is the only code of Grape that runs once per event: `FunctionUnit`
(payload in, result out), `NodeUnit` (``process`` and ``emit``), `CountingUnit` (a node with one plain State),
`BatchUnit`, and `GeneralUnit` for every other shape. ``benchmarks/`` has a row for each.
"""
