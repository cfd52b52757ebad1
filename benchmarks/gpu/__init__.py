"""The GPU program: python -m benchmarks gpu. program.py is its command line, plan.py lists what it finds out."""
