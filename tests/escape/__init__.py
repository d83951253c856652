"""The escape suite: rows 49-54, 58 and 62-74 of the fault catalogue, tried for real at every level of confinement."""
