"""Evaluation that can be trusted: search policies against random architectures, everything else equal."""
