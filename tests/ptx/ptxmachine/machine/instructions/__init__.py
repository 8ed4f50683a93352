"""What the generated code calls for each group of instructions: the parts of `Group`."""
