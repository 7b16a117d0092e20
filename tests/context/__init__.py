"""Tests of contexts for language models."""
