"""What is measured, against which programs, and how: `python -m benchmarks`, `vit-fast bench`, `pytest benchmarks`.

Installed it is vit_fast.benchmarks; imports inside are relative.
"""
