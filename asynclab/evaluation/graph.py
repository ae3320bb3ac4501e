"""A policy as a file for other programs, which need neither asynclab nor, in ONNX, torch.  N: batch.

From an observation as the agent sees it (float32, or bytes of an image) to the action that the environment takes:
normalisation, network and the scaling of actions are inside, and actions are the best ones.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box
from torch import Tensor, nn

from asynclab.envs.vector import CLIP, EPSILON
from asynclab.evaluation import play
from asynclab.storage.folder import whole

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "torch_export": ".pt2"}
BATCH = 3  # observations to trace with


class Graph(nn.Module):
    """Observations [N, ...] -> best actions [N, ...] of the environment's action space.

    Args:
        player: Its agent and environment; the weights are copied.

    Raises:
        ValueError: The agent remembers what it has seen.
    """

    def __init__(self, player: play.Player) -> None:
        super().__init__()
        if getattr(player.agent, "lstm", None) is not None:
            raise ValueError(
                "algo.agent.lstm cannot be exported: it remembers earlier observations, and what is exported is a"
                " function of one; train with algo.agent.lstm=0"
            )
        self._agent, self._actions = player.agent, player.envs.actions
        self.nets = player.agent.nets
        for p in self.nets.parameters():  # views of one vector, of which each would be saved with all of it
            p.data = p.data.clone(memory_format=torch.contiguous_format)
        self.is_normalized = "obs" in player.envs.moments
        for name, value in zip(("mean", "var"), player.envs.mean_var() if self.is_normalized else (), strict=False):
            self.register_buffer(name, torch.from_numpy(value))
        for name, value in self._actions.numbers().items():
            self.register_buffer(f"action_{name}", torch.as_tensor(value))

    def forward(self, obs: Tensor) -> Tensor:
        """Return the actions.  What an environment's action space has as a tuple of numbers is an array of them."""
        if self.is_normalized:  # in float64, as Envs.normalize
            mean, var = self.get_buffer("mean"), self.get_buffer("var")
            obs = ((obs - mean) / torch.sqrt(var + EPSILON)).clamp(-CLIP, CLIP).to(obs.dtype)
        action = self._agent.act(obs, deterministic=True)
        space: Any = self._actions.plain
        if not isinstance(space, Box):
            return (action + self.get_buffer("action_start")).reshape(-1, *space.shape)
        unit = torch.minimum(
            torch.maximum(action, self.get_buffer("action_unit_low")), self.get_buffer("action_unit_high")
        )
        scaled = self.get_buffer("action_middle") + self.get_buffer("action_half") * unit
        scaled = torch.minimum(torch.maximum(scaled, self.get_buffer("action_low")), self.get_buffer("action_high"))
        if space.dtype.kind in "iub":
            scaled = scaled.round()
        return scaled.reshape(-1, *space.shape).to(torch.from_numpy(np.zeros(0, space.dtype)).dtype)


def export(run: Path, out: Path, kind: str, name: str = "latest", session: int = 0) -> str:
    """Write a policy to a new file, and return a sentence on what goes in and comes out.

    Args:
        run: Output folder, or an agent of a zoo.
        out: The new file.
        kind: A key of ``FORMATS``.
        name: Of the checkpoint: ``latest``, ``best`` or a number.
        session: Whose network, where sessions have one each.

    Raises:
        ValueError: There is no such format or run, the file is there or cannot be written, or the agent cannot be
            exported; the message says which part of it.
        ImportError: The extra ``onnx`` is not installed.
    """
    if kind not in FORMATS:
        raise ValueError(f"format={kind} is unknown; use one of folder, {', '.join(FORMATS)}")
    if out.suffix != FORMATS[kind]:
        raise ValueError(f"out={out} must end in {FORMATS[kind]} for format={kind}")
    if out.exists():
        raise ValueError(f"out={out} exists; set out to another file")
    if kind == "onnx":
        import onnx  # noqa: F401 - its absence is told before anything is done
        import onnxscript  # noqa: F401
    player = play.load(run, session, name)
    try:
        graph = Graph(player).eval()
        space = player.envs.obs_space
        example = torch.from_numpy(np.stack([np.zeros(space.shape, space.dtype)] * BATCH))
        try:
            with whole(out) as new, torch.no_grad(), _quiet():
                _write(graph, example, kind, new)
        except OSError as error:
            raise ValueError(f"out={out} cannot be written: {error.strerror}; set out to another file") from error
        except Exception as error:  # torch's exporters raise whatever they like
            raise ValueError(f"run={run} cannot be exported as {kind}: {_fault(player, example, error)}") from error
        with torch.no_grad():
            action = graph(example)
    finally:
        player.envs.close()
    shapes = [f"[N{''.join(f', {n}' for n in x.shape[1:])}] {str(x.dtype)[6:]}" for x in (example, action)]
    return f"observation {shapes[0]} -> action {shapes[1]} of {player.env_id}, the best one"


def _write(graph: Graph, example: Tensor, kind: str, path: Path) -> None:
    if kind == "torchscript":
        torch.jit.save(torch.jit.trace(graph, example, check_trace=False), str(path))
        return
    shapes = ({0: torch.export.Dim("N")},)
    program = torch.export.export(graph, (example,), dynamic_shapes=shapes)
    if kind == "torch_export":
        with path.open("wb") as file:
            torch.export.save(program, file)
        return
    made = torch.onnx.export(
        program, input_names=["observation"], output_names=["action"], dynamo=True, external_data=False, verbose=False
    )
    assert made is not None
    made.save(str(path))


def _fault(player: play.Player, example: Tensor, error: Exception) -> str:
    """Return which part of a policy cannot be exported, and why."""
    from asynclab.nets import TorsoModule

    reason = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    torsos = [module for module in player.agent.nets.modules() if isinstance(module, TorsoModule)]
    for torso in torsos[:1]:
        try:
            with torch.no_grad(), _quiet():
                torch.export.export(torso, (example,))
        except Exception:
            return f"its torso, {type(torso).__name__} ({reason})"
    return f"its agent, {type(player.agent).__name__}.act ({reason})"


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep what torch says of its own exporters to itself."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
