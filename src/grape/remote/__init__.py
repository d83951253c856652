"""The clients of a server, `grape.Client` and `grape.AsyncClient`.

What is asked and what comes of it is written once, without I/O: `asked` (what can be asked), `patience` (what is tried
again, and when), `talks` (from the first try to the answer), `items` (events of the user's own), `http` and `sse` (how
HTTP says it). What carries it, a `Wire`, is HTTP by httpx (`web`) or the door of an engine (`door`).
"""
