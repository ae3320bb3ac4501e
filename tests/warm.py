"""The last of the fork server's imports in tests: what their commands need besides what sessions do.

Without it every command imports that, and its collector visits, and so copies, all that the server has: half of the
processor time of a command that is refused.
"""

import gc
import importlib
import os

for module in ("hydra._internal.hydra", "torch.utils.tensorboard", "asynclab.build", "asynclab.job"):
    importlib.import_module(module)
os.environ["PYTHONPATH"] = os.environ["PYTHONPATH"].partition(os.pathsep)[2]  # conftest's folder, for this import
gc.collect()
gc.freeze()
