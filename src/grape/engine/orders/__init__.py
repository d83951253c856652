"""Orders: what an operator changes of what is stored while an engine works on it (ADR 21)."""
