"""Train stable-baselines3's PPO with the numbers of one of our configurations, to compare the returns at equal frames.

Example: ``python benchmarks/sb3_ppo.py env=cartpole algo.agent.shared=false algo.precision=fp32 env.max_frame=300_000``

Network, optimizer and all numbers are the configuration's; environments, their wrappers and the rest are theirs.  On
Atari the environments are ours, whose emulators have threads.  What remains different: they clip the gradient of actor
and critic together, we each network's own; they start with other weights; and where a value is clipped they take the
clipped error, we the larger one.
"""

import json
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from asynclab import config, machine
from asynclab.analysis.curves import WINDOW
from asynclab.config.command import configured
from asynclab.envs import is_atari

config.register()

POINTS = 100  # of a curve

COMPARED = {  # what theirs cannot be told, or what ours alone has
    "algo.agent._target_": "asynclab.agents.PPO",
    "algo.agent.lstm": 0,
    "algo.agent.entropy_schedule._target_": "asynclab.schedules.Constant",
    "algo.optimizer._target_": "asynclab.optim.GlobalAdam",
    "algo.optimizer.betas": [0.9, 0.999],
    "algo.optimizer.weight_decay": 0.0,
    "algo.precision": "fp32",
}
VECTORS = {"algo.agent.shared": False, "env.make.clip_reward": False}
ATARI = {
    "algo.agent.shared": True,
    "env.torso.layer_norm": False,
    "env.make.normalize_obs": False,  # ours are told already, and theirs would do it again
    "env.make.scale_reward": None,
}


@configured("sb3_ppo")
def main(cfg: DictConfig) -> None:
    """Train; now and then print the mean return of the last 100 episodes, and write the curve so far to ``out``."""
    out = _check(cfg)
    start = time.perf_counter()  # before their imports, which are part of their time

    import stable_baselines3 as sb3
    import torch

    torch.set_num_threads(cfg.distributed.num_threads or machine.cores())
    model = _model(cfg)
    versions = {"stable_baselines3": sb3.__version__, "torch": torch.__version__}
    settings = OmegaConf.to_container(cfg, resolve=True)
    curve: list[tuple[int, float, float]] = []
    point = max(1, cfg.env.max_frame // POINTS)

    def note(local: dict[str, Any], _: Any) -> bool:
        frames, recent = model.num_timesteps, [episode["r"] for episode in model.ep_info_buffer or ()]
        if not recent or (curve and frames // point == curve[-1][0] // point):
            return True
        seconds, mean = time.perf_counter() - start, sum(recent) / len(recent)
        curve.append((frames, round(seconds, 1), mean))
        print(f"frames {frames:,}  seconds {seconds:,.0f}  return {mean:.2f}", flush=True)
        out.write_text(json.dumps({"curve": curve, "versions": versions, "config": settings}, indent=2) + "\n")
        return cfg.stop_at is None or len(recent) < WINDOW or mean < cfg.stop_at

    model.learn(cfg.env.max_frame, callback=note)
    print(f"wrote {out}" if curve else "nothing is written: no episode has ended")


def _check(cfg: DictConfig) -> Path:
    """Refuse what cannot be compared; return the file to be written."""
    from hydra.errors import CompactHydraException

    from asynclab import build

    if find_spec("stable_baselines3") is None:
        raise CompactHydraException("stable-baselines3 is not installed: pip install 'asynclab[bench]'")
    with tempfile.TemporaryDirectory() as folder:  # what train.py would refuse, this refuses too
        build.make_trial(cfg, Path(folder))
    for key, value in (COMPARED | (ATARI if is_atari(cfg.env.id) else VECTORS)).items():
        if (given := OmegaConf.select(cfg, key)) != value:
            raise CompactHydraException(f"{key}={given} is not compared; set {key}={json.dumps(value)}")
    if cfg.algo.max_grad_norm is None:
        raise CompactHydraException("algo.max_grad_norm=null is not compared; set a bound on the gradient")
    out = Path(str(cfg.out))
    if out.exists():
        raise CompactHydraException(f"out={out} exists; set out to another file")
    config.check_writable(str(out.parent), "out")
    return out


def _model(cfg: DictConfig) -> Any:
    """Return their PPO with our numbers."""
    import stable_baselines3 as sb3
    import torch
    from stable_baselines3.common.env_util import make_vec_env
    from stable_baselines3.common.vec_env import VecNormalize
    from torch import nn

    agent, make = cfg.algo.agent, cfg.env.make
    policy = {"activation_fn": nn.ReLU, "optimizer_kwargs": {"eps": cfg.algo.optimizer.eps}}
    if is_atari(cfg.env.id):
        from sb3_baseline import Adapter, Layers

        made = {k: v for k, v in make.items() if not k.startswith("_")}
        env: Any = Adapter(cfg.seed, num_threads=torch.get_num_threads(), **made)
        layers = {"conv": cfg.env.torso.conv, "hidden": cfg.env.torso.hidden}
        policy |= {"features_extractor_class": Layers, "features_extractor_kwargs": layers, "net_arch": []}
    else:
        env = make_vec_env(cfg.env.id, cfg.env.num_envs, seed=cfg.seed)
        policy["net_arch"] = list(cfg.env.torso.hidden)
    if make.normalize_obs or make.scale_reward is not None:
        env = VecNormalize(
            env, norm_obs=make.normalize_obs, norm_reward=make.scale_reward is not None, gamma=make.scale_reward or 1.0
        )
    lr_schedule, clip_schedule = instantiate(cfg.algo.lr_schedule), instantiate(agent.clip_schedule)
    lr, clip = cfg.algo.optimizer.lr, agent.clip

    def clip_range(left: float) -> float:
        return clip * clip_schedule(1 - left)

    return sb3.PPO(
        "CnnPolicy" if is_atari(cfg.env.id) else "MlpPolicy", env, seed=cfg.seed, device="cpu",
        learning_rate=lambda left: lr * lr_schedule(1 - left),
        n_steps=cfg.algo.memory.horizon, batch_size=agent.minibatch_size, n_epochs=agent.epochs,
        gamma=agent.gamma, gae_lambda=agent.lam, clip_range=clip_range,
        clip_range_vf=clip_range if agent.clip_value else None,
        normalize_advantage=agent.normalize_advantage, ent_coef=agent.entropy_coef, vf_coef=agent.value_coef,
        max_grad_norm=cfg.algo.max_grad_norm,
        policy_kwargs=policy,
    )  # fmt: skip


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        sys.exit(130)
