"""Every error of ToonDB; see ``toondb_protocol.errors`` for the hierarchy."""

from toondb_protocol.errors import *  # noqa: F403
from toondb_protocol.errors import __all__ as __all__
