"""PTX text as a ``Program``: instructions, cut into segments, each translated to a Python function over NumPy arrays."""
