"""How a worker is confined, one file per level."""
