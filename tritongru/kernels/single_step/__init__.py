"""The kernel of a single time step without gradients, for streaming and rollouts: one launch for a layer's products and
gates. A program owns BH hidden units of BB batch rows.
"""
