"""Sequence diagrams of recorded runs: model.py reads the trace, the other modules draw it."""
