"""SQL: the SQLite engine on the pages of the store."""
