"""asynclab: asynchronous (Hogwild!) deep reinforcement learning, configured by Hydra."""

__version__ = "0.1.0"
