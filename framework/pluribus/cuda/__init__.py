"""Running on CUDA devices: the host plans and replays, the device keeps the state."""
