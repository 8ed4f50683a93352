"""Benchmarks of tritongru against torch.nn.GRU: `python -m bench gate`, `pytest bench`."""
