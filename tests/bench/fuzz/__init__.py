"""Mutated files through the command line: whatever comes in, only the exit codes 0, 3 and 4 come out.

python -m tests.bench.fuzz --count 20000
"""
