"""The SQL shell behind ``toondb-server sql``, ``sql-import`` and ``sql-export``."""
