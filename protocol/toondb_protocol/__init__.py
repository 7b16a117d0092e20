"""The contract between ToonDB processes: frames, messages, records and errors. No I/O.

Import the submodule you need: ``errors``, ``opcodes``, ``frames``, ``messages``, ``layout``, ``hello``,
``client_core``, ``record``, ``keys``, ``paths``; ``spec`` renders ``protocol/SPEC.md`` from them.
"""
