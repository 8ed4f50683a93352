"""PTX text as a ``Program``: instructions, cut into segments, each a Python function over NumPy arrays."""
