"""Benchmarks: a YAML file of data sets, systems and seeds -> runs on disk -> tables and figures."""
