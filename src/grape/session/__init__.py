"""A run from its beginning to its end: `Session`, and its parts by what they are busy with."""

from grape.session.options import Options
from grape.session.session import Outcomes, Session
from grape.session.taking import Taker

__all__ = ["Options", "Outcomes", "Session", "Taker"]
