"""The ToonDB daemon: lifecycle, sessions, limits, statistics and the ``toondb-server`` command."""

__version__ = "0.1.0"
