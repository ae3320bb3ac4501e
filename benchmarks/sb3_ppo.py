"""Train stable-baselines3's PPO with the numbers of one of our configurations, to compare the returns at equal frames.

Example: ``python benchmarks/sb3_ppo.py env=cartpole algo.agent.shared=false algo.precision=fp32 env.max_frame=300_000``

Network, optimizer and all numbers are the configuration's; environments, their wrappers and the rest are theirs.  What
remains different: they clip the gradient of actor and critic together, we each network's own; they start with other
weights; and where a value is clipped they take the clipped error, we the larger one.
"""

import json
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import hydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from asynclab import config, machine
from asynclab.envs import is_atari

config.register()

COMPARED = {  # what theirs cannot be told, or what ours alone has
    "algo.agent._target_": "asynclab.agents.PPO",
    "algo.agent.shared": False,
    "algo.agent.lstm": 0,
    "algo.agent.entropy_schedule._target_": "asynclab.schedules.Constant",
    "algo.optimizer._target_": "asynclab.optim.GlobalAdam",
    "algo.optimizer.betas": [0.9, 0.999],
    "algo.optimizer.weight_decay": 0.0,
    "algo.precision": "fp32",
    "env.make.clip_reward": False,
}


@hydra.main(version_base="1.3", config_path=config.CONF, config_name="sb3_ppo")
def main(cfg: DictConfig) -> None:
    """Train, print the mean return of the last 100 episodes now and then, and write it to ``out``."""
    out = _check(cfg)

    import stable_baselines3 as sb3
    import torch

    torch.set_num_threads(cfg.distributed.num_threads or machine.cores())
    model = _model(cfg)
    curve: list[tuple[int, float]] = []

    def note(local: dict[str, Any], _: Any) -> bool:
        frames, recent = model.num_timesteps, [episode["r"] for episode in model.ep_info_buffer or ()]
        if recent and frames >= (len(curve) + 1) * cfg.env.max_frame / 20:
            curve.append((frames, sum(recent) / len(recent)))
            print(f"frames {frames:,}  return {curve[-1][1]:.2f}", flush=True)
        return True

    model.learn(cfg.env.max_frame, callback=note)
    versions = {"stable_baselines3": sb3.__version__, "torch": torch.__version__}
    result = {"curve": curve, "versions": versions, "config": OmegaConf.to_container(cfg, resolve=True)}
    out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"wrote {out}")


def _check(cfg: DictConfig) -> Path:
    """Refuse what cannot be compared; return the file to be written."""
    from hydra.errors import CompactHydraException

    from asynclab import build

    if find_spec("stable_baselines3") is None:
        raise CompactHydraException("stable-baselines3 is not installed: pip install 'asynclab[bench]'")
    with tempfile.TemporaryDirectory() as folder:  # what train.py would refuse, this refuses too
        build.make_trial(cfg, Path(folder))
    for key, value in COMPARED.items():
        if (given := OmegaConf.select(cfg, key)) != value:
            raise CompactHydraException(f"{key}={given} is not compared; set {key}={str(value).lower()}")
    if is_atari(cfg.env.id) or cfg.algo.max_grad_norm is None:
        raise CompactHydraException(
            f"env.id={cfg.env.id} with algo.max_grad_norm={cfg.algo.max_grad_norm} is not compared; use an environment"
            " without images and a bound on the gradient"
        )
    out = Path(str(cfg.out))
    if out.exists():
        raise CompactHydraException(f"out={out} exists; set out to another file")
    config.check_writable(str(out.parent), "out")
    return out


def _model(cfg: DictConfig) -> Any:
    """Return their PPO with our numbers."""
    import stable_baselines3 as sb3
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize
    from torch import nn

    agent, make = cfg.algo.agent, cfg.env.make
    env: Any = make_vec_env(cfg.env.id, cfg.env.num_envs, seed=cfg.seed)
    if make.normalize_obs or make.scale_reward is not None:
        env = VecNormalize(
            env, norm_obs=make.normalize_obs, norm_reward=make.scale_reward is not None, gamma=make.scale_reward or 1.0
        )
    lr_schedule, clip_schedule = instantiate(cfg.algo.lr_schedule), instantiate(agent.clip_schedule)
    lr, clip = cfg.algo.optimizer.lr, agent.clip

    def clip_range(left: float) -> float:
        return clip * clip_schedule(1 - left)

    return sb3.PPO(
        "MlpPolicy", env, seed=cfg.seed, device="cpu",
        learning_rate=lambda left: lr * lr_schedule(1 - left),
        n_steps=cfg.algo.memory.horizon, batch_size=agent.minibatch_size, n_epochs=agent.epochs,
        gamma=agent.gamma, gae_lambda=agent.lam, clip_range=clip_range,
        clip_range_vf=clip_range if agent.clip_value else None,
        normalize_advantage=agent.normalize_advantage, ent_coef=agent.entropy_coef, vf_coef=agent.value_coef,
        max_grad_norm=cfg.algo.max_grad_norm,
        policy_kwargs={
            "net_arch": list(cfg.env.torso.hidden), "activation_fn": nn.ReLU,
            "optimizer_kwargs": {"eps": cfg.algo.optimizer.eps},
        },
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
