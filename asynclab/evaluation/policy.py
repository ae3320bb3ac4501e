"""A trained agent for use in other programs."""

from pathlib import Path
from typing import Any

import gymnasium
import torch

from asynclab.evaluation import play


class Policy:
    """Acts in one environment that is somebody else's; made by ``asynclab.load``.

    Observations and actions are those of the plain environment: what training did to them (one array, channels first,
    normalisation, actions in [-1, 1]) is done here.  Torch's random numbers are left as they were.

    Attributes:
        env_id: For ``gymnasium.make``; settings in the run's ``env.make`` must be given to it likewise.  ``wrap``
            puts the run's ``env.wrappers`` around what it makes.

    Args:
        folder: Output folder of a run.
        checkpoint: ``latest``, ``best`` or a number.
        session: Whose network, where sessions have one each.

    Raises:
        ValueError: There is nothing to load, or it is damaged.
    """

    def __init__(self, folder: Path, checkpoint: str, session: int) -> None:
        with torch.random.fork_rng(devices=[]):
            self._agent, self._envs, self.env_id, *_ = play.load(folder, session, checkpoint)

    def wrap(self, env: gymnasium.Env) -> gymnasium.Env:
        """Return an environment of ``gymnasium.make`` with the run's wrappers around it, as it was trained in."""
        return self._envs.wrap(env)

    def reset(self) -> None:
        """Forget what a recurrent agent remembers; to be called with the environment's own ``reset``."""
        self._agent.start(1)

    def act(self, obs: Any, deterministic: bool | None = None) -> Any:
        """Return the action for one observation: an int or an array, of the action space.

        Args:
            obs: As ``policy.wrap(gymnasium.make(policy.env_id))`` gives it.  For Atari the last four
                frames [4, 84, 84], uint8; to the bit what ale-py gave in training is (with OpenCV, which these need)
                ``AtariPreprocessing(gymnasium.make(policy.env_id, frameskip=1))`` in
                ``FrameStackObservation(env, 4, padding_type="zero")``.
            deterministic: Take the likeliest or best action; else actions are drawn with torch's random numbers.  None
                for the agent's own way: SAC and Q-learning take the best one, actor-critics draw.

        Raises:
            ValueError: The observation is of another environment, or not finite.
        """
        if deterministic is None:
            deterministic = self._agent.deterministic
        tensor = torch.from_numpy(self._envs.observe(obs))
        return self._envs.actions.one(self._agent.act(tensor, deterministic)[0].numpy())
