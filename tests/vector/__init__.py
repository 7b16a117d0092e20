"""Tests of vectors: the index, its parts, its files and the command."""
