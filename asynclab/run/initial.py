"""Weights of another run, or of an agent of a zoo, to begin with: whole, or some of its networks.  P: parameters."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from torch import Tensor

from asynclab.envs.normalize import Moments
from asynclab.evaluation.play import weights_of
from asynclab.storage import checkpoint, zoo
from asynclab.storage.folder import instead, is_agent
from asynclab.storage.names import CHECKPOINTS
from asynclab.text import located, short

SETTINGS = {"obs": "normalize_obs", "return": "scale_reward"}  # of env.make, that moments are for


@dataclass(frozen=True)
class Initial:
    """What a run begins with.

    Attributes:
        folder: As it was given.
        weights: Of session 0, with the moments that observations are normalised by.
        networks: Names of those that are taken; None for all.
    """

    folder: Path
    weights: zoo.Weights
    networks: Sequence[str] | None = None

    def __str__(self) -> str:
        networks = "all networks" if self.networks is None else ", ".join(self.networks)
        number, frames = self.weights.checkpoint, f"{self.weights.frames:,}"
        return f"{networks} of {short(self.folder)}, checkpoint {number} at {frames} frames"

    def copy_to(self, theta: Tensor, layout: Sequence[str]) -> None:
        """Overwrite what is taken over in theta [P].

        Args:
            theta: Of the new run.
            layout: What lies where in it (``flat.signature``).

        Raises:
            ValueError: Something has no counterpart of the same shape.
        """
        mine, other = _places(layout), _places(self.weights.layout)
        names, others = _networks(mine), _networks(other)
        fitting = [name for name in names if name in others and _part(mine, name) == _part(other, name)]
        if missing := [name for name in self.networks or names if name not in names or name not in others]:
            raise ValueError(
                f"init_from={self.folder} has the networks {', '.join(others)}, and this run has {', '.join(names)}, so"
                f" {', '.join(missing)} cannot be taken over{_advice(fitting)}"
            )
        for name in self.networks or names:
            if name not in fitting:
                a, b = _difference(_part(other, name), _part(mine, name))
                raise ValueError(
                    f"init_from={self.folder} has {a} in {name}, where this run has {b}: observations, actions, or the"
                    f" network (env.torso, algo.agent) are others{_advice(fitting)}"
                )
            for place, (start, shape) in mine.items():
                if place.partition(".")[0] == name:
                    begin, size = other[place][0], prod(shape)
                    theta[start : start + size] = self.weights.theta[begin : begin + size]

    def copy_moments_to(self, moments: Mapping[str, Moments]) -> None:
        """Take over what observations are normalised and rewards scaled by.

        Raises:
            ValueError: The other run did so with something that this one leaves alone, or the reverse.
        """
        for name, key in SETTINGS.items():
            has, wants = name in self.weights.moments, name in moments
            if has != wants and name == "obs":
                raise ValueError(
                    f"init_from={self.folder} was trained with env.make.{key}={str(has).lower()}, so its networks"
                    f" expect that; set it so"
                )
            if has and wants:
                moments[name].begin(self.weights.moments[name])


def begin(folder: str | None, networks: Sequence[str] | None) -> Initial | None:
    """Return what ``init_from`` and ``init_networks`` ask for; None for new weights.

    Raises:
        ValueError: There are no such weights, or networks are named and no folder.
    """
    if folder is None and networks is not None:
        raise ValueError(f"init_networks={networks} needs init_from: the folder that they are taken from")
    return None if folder is None else read(located(Path(folder)), networks)


def read(folder: Path, networks: Sequence[str] | None = None) -> Initial:
    """Return the weights of a run's latest checkpoint, of one that is named by its folder, or of a zoo's agent.

    Args:
        folder: An output folder, ``<output folder>/checkpoints/best`` or the like, or an agent's.
        networks: Names of those that are taken; None for all.

    Raises:
        ValueError: There are none, or they are damaged.
    """
    if not folder.is_dir() and folder.parent.name != CHECKPOINTS:
        raise ValueError(f"init_from={folder} is not a folder{instead(folder)}")
    try:
        if is_agent(folder):
            return Initial(folder, zoo.read(folder), networks)
        run, name = folder, "latest"
        if folder.parent.name == CHECKPOINTS:
            run, name = folder.parent.parent, folder.name
        return Initial(folder, weights_of(checkpoint.load(run, name, memories=False), 0), networks)
    except ValueError as error:
        raise ValueError(f"init_from={folder} cannot be read: {error}") from error


def _places(layout: Sequence[str]) -> dict[str, tuple[int, list[int]]]:
    """Return where each parameter begins, and its shape."""
    places, start = {}, 0
    for line in layout:
        name, _, text = line.partition(" ")
        shape = json.loads(text)
        places[name] = (start, shape)
        start += prod(shape)
    return places


def _networks(places: Mapping[str, object]) -> list[str]:
    return list(dict.fromkeys(place.partition(".")[0] for place in places))


def _part(places: Mapping[str, tuple[int, list[int]]], network: str) -> list[str]:
    """Return names and shapes of a network's parameters."""
    return [f"{place} {shape}" for place, (_, shape) in places.items() if place.partition(".")[0] == network]


def _difference(first: Sequence[str], second: Sequence[str]) -> tuple[str, str]:
    """Return the first of either that is not in the other, or nothing."""
    return next((x for x in first if x not in second), "nothing"), next(
        (x for x in second if x not in first), "nothing"
    )


def _advice(fitting: Sequence[str]) -> str:
    return f"; init_networks=[{','.join(fitting)}] takes what fits" if fitting else ""
