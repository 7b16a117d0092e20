"""``python -m toondb_server`` is ``toondb-server``."""

from toondb_server.cli import main

if __name__ == "__main__":
    main()
