"""The storage engine: one LMDB environment, snapshots, transactions, group commit.

Import from the submodules; ``engine.Engine`` is the way in.
"""
