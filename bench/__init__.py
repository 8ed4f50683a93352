"""Measurements of tritongru against torch.nn.GRU: `python3 -m bench gate`, `pytest bench`."""
