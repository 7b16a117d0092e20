"""Tests of SQL on the pages of the store."""
