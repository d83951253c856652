"""The engine: owns the log, hands batches to workers, commits results. Never runs user code."""
