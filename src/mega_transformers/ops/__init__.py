"""Functions of tensors: no configuration, no modules, no global state."""
