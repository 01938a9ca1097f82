"""From the hub to the device: files, tensors, voices, int8, and how much of them fits."""
