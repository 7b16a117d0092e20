"""Namespaces and collections of a store: documents, their vectors and words, and searches over them.

Importing this package is light; its engine, which brings in NumPy, faiss and SQLite, is made when it is first used.
"""
