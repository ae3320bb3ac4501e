"""What users set: the schema of the groups, what Hydra has to know, what configs may make."""

from asynclab.config.output import CheckOutput, check_writable, lock
from asynclab.config.registry import AUTO, CONF, DATABASE, PLUGINS, is_installed, register, subfolder
from asynclab.config.schema import EvalConfig, refuse_unknown_keys

__all__ = [
    "AUTO",
    "CONF",
    "DATABASE",
    "PLUGINS",
    "CheckOutput",
    "EvalConfig",
    "check_writable",
    "is_installed",
    "lock",
    "refuse_unknown_keys",
    "register",
    "subfolder",
]
