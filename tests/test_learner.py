"""What a whole session does to the weights, in every mode."""

from dataclasses import replace
from functools import partial

import pytest
import torch
from conftest import TORSO, run_session

from asynclab import flat
from asynclab.agents import A3C
from asynclab.distributed import Off, Shared, Synced
from asynclab.processes.control import Control
from asynclab.processes.launch import FatalError
from asynclab.profile import Profile
from asynclab.training.instruments import Instruments
from asynclab.training.learner import Turn, clip_norm_


def learner_of(trial):
    session = trial.session
    envs = session.make_envs()
    agent = session.make_agent(envs.obs_space, envs.action_space)
    return Instruments(Profile(False), agent, trial.mode, trial.stores[0], 0, "cpu", session.rules)


def some_batches(trial, n=2):
    """Return batches of a random policy."""
    envs = trial.session.make_envs()
    memory = trial.session.make_memory(envs.obs_space, envs.action_space, envs.num_envs, 0)
    memory.reset(envs.reset([1, 2]))
    envs.action_space.seed(0)
    batches = []
    while len(batches) < n:
        action = torch.tensor([envs.action_space.sample().tolist() for _ in range(2)]).numpy()
        memory.add(action, envs.step(action))
        batches += [type(b)(*(x.clone() for x in b)) for b in memory.batches(10**6)]
    return batches[:n]


def final_weights(trial, updates):
    """Run the only session to its end in this process; it must have made at least so many updates."""
    run_session(trial.session, 0, trial.stores[0])
    assert trial.stores[0].total_updates() >= updates
    return trial.stores[0].theta.clone()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(
    ("algo", "max_frame"),
    [
        ("a3c", 1_000), ("lstm", 1_000), ("ppo", 200), ("ppo_normalized", 200), ("nstep_q", 1_000),
        ("pqn", 200), ("dqn", 152), ("sac", 152), ("discrete_sac", 152),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", [Synced, Shared])
def test_one_session_equals_off_bit_for_bit_after_50_updates(make_trial, algo, max_frame, mode, precision):
    settings = {"algo": algo, "max_frame": max_frame, "precision": precision}
    alone = final_weights(make_trial(mode=Off(1), **settings), 50)
    assert torch.equal(final_weights(make_trial(mode=mode(1), **settings), 50), alone)
    assert not torch.equal(alone, make_trial(**settings).stores[0].theta)  # it has learned something


@pytest.mark.parametrize(
    ("algo", "max_frame"),
    [("a3c", 500), ("lstm", 500), ("ppo", 100), ("nstep_q", 500), ("pqn", 100), ("dqn", 130), ("sac", 130)],
)
def test_the_same_seed_gives_the_same_weights(make_trial, algo, max_frame):
    first, again, other = (final_weights(make_trial(algo, max_frame=max_frame, seed=s), 20) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_sessions_of_off_start_from_different_weights(make_trial):
    a, b = make_trial(mode=Off(2)).stores
    assert not torch.equal(a.theta, b.theta)


@pytest.mark.parametrize("mode", [Synced, Shared])
def test_targets_of_a_sessions_own_do_not_lag_more_when_there_are_others(make_trial, mode):
    batches = some_batches(make_trial("sac"), 4)
    trial = make_trial("sac", mode=mode(2))
    mine, others = learner_of(trial), learner_of(trial)
    before = mine.agent.target.weights.clone()
    for batch in batches[1:]:
        list(others.update(batch))
    list(mine.update(batches[0]))
    theta = trial.stores[0].theta[mine.agent._critics_part]
    torch.testing.assert_close(mine.agent.target.weights, before.lerp(theta, 1 - 0.995**4))


@pytest.mark.parametrize("algo", ["a3c", "sac"])
@pytest.mark.parametrize("mode", [Off, Synced, Shared])
def test_a_second_update_pushes_only_its_own_gradient(make_trial, algo, mode):
    """Gradients that pile up, or stay those of the first rollout, are the classic silent failure."""
    first, second = some_batches(make_trial(algo), 2)
    trial = make_trial(algo, mode=mode(1))
    learner = learner_of(trial)
    pushed = []
    apply = trial.stores[0].apply
    trial.stores[0].apply = lambda grad, scale: (pushed.append(grad.clone()), apply(grad, scale))
    list(learner.update(first))
    at_second = learner.weights.full.clone()
    torch.manual_seed(5)
    list(learner.update(second))

    fresh = learner_of(make_trial(algo))
    fresh.weights.full.copy_(at_second)
    if algo == "sac":
        fresh.agent.target.weights.copy_(learner.agent.target.weights)
        # the first learner's targets have moved once more since its second gradient
        critics = learner.weights.full[learner.agent._critics_part]
        fresh.agent.target.weights.lerp_(critics, -0.005 / 0.995)
    torch.manual_seed(5)
    losses, _ = fresh.agent.loss(second, 0.0)
    sum(losses.values()).backward()
    clip_norm_(fresh.grad.full, fresh.store.networks, 0.5)
    torch.testing.assert_close(pushed[1], fresh.grad.full, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(pushed[0], pushed[1], atol=1e-3)


@pytest.mark.parametrize("mode", [Off, Synced, Shared])
def test_the_first_pull_precedes_the_first_rollout(make_trial, mode):
    seen = []

    class Spy(A3C):
        def act(self, obs, *args, **kwargs):
            seen.append(flat.flatten(self.nets))
            return super().act(obs, *args, **kwargs)

    trial = make_trial(mode=mode(1), max_frame=20)
    theta = trial.stores[0].theta.normal_().clone()
    run_session(replace(trial.session, make_agent=partial(Spy, torso=TORSO)), 0, trial.stores[0])
    assert torch.equal(seen[0], theta)


def test_synced_refreshes_after_every_update_and_shared_needs_none(make_trial):
    for mode, private in ((Synced, True), (Shared, False)):
        trial = make_trial(mode=mode(1))
        learner = learner_of(trial)
        assert (learner.weights.full.data_ptr() != trial.stores[0].theta.data_ptr()) is private
        for batch in some_batches(trial, 2):
            list(learner.update(batch))
            assert torch.equal(learner.weights.full, trial.stores[0].theta)


def test_clipping_is_per_network():
    grad = torch.tensor([3.0, 4.0, 0.03, 0.04])
    norms = clip_norm_(grad, {"actor": slice(0, 2), "q1": slice(2, 4)}, 0.5)
    torch.testing.assert_close(grad, torch.tensor([0.3, 0.4, 0.03, 0.04]))
    assert {k: round(v.item(), 4) for k, v in norms.items()} == {"grad_norm/actor": 5.0, "grad_norm/q1": 0.05}


def test_one_optimizer_call_per_update(make_trial):
    trial = make_trial("sac")
    learner = learner_of(trial)
    steps = []
    trial.stores[0].optimizer.register_step_post_hook(lambda *_: steps.append(1))
    for batch in some_batches(trial, 5):
        list(learner.update(batch))
    assert len(steps) == trial.stores[0].total_updates() == 5


def test_metrics_are_means_since_the_last_call(make_trial):
    trial = make_trial()
    learner = learner_of(trial)
    first, second = some_batches(trial, 2)
    list(learner.update(first))
    a = learner.metrics()
    list(learner.update(second))
    assert {"loss/policy", "loss/value", "loss/entropy", "train/entropy", "grad_norm/actor_critic", "train/lr"} <= set(
        a
    )
    assert a["train/lr"] == 1e-3
    assert learner.metrics() != a
    assert learner.metrics() == {}


@pytest.mark.parametrize("mode", [Off, Synced])
def test_the_budget_is_met_to_one_step(make_trial, mode):
    trial = make_trial(mode=mode(2), max_frame=501)
    records = [run_session(trial.session, rank, trial.store_of(rank)) for rank in (0, 1)]
    frames = [store.total_frames() for store in trial.stores]
    if mode is Off:
        assert frames == [502, 502]
    else:
        assert frames == [502]  # one after the other: the first used up the budget of both
        assert records[1][-1].frames == 0


@pytest.mark.parametrize("mode", [Synced, Shared])
@pytest.mark.parametrize("algo", ["a3c", "sac"])
def test_an_update_that_is_not_finite_never_reaches_theta(make_trial, algo, mode):
    trial = make_trial(algo, mode=mode(1))
    learner, (store,) = learner_of(trial), trial.stores
    good, bad = some_batches(trial, 2)
    bad = bad._replace(reward=torch.full_like(bad.reward, float("nan")))
    list(learner.update(good))
    before = store.state_dict()
    for _ in range(3):
        list(learner.update(bad))
    assert torch.equal(store.theta, before["theta"])
    assert store.optimizer.state_dict()["state"][0]["step"] == before["optimizer"]["state"][0]["step"] == 1
    assert (store.total_updates(), int(store.dropped.sum())) == (1, 3)
    list(learner.update(good))  # one good update and the count begins again
    assert (store.total_updates(), int(store.dropped.sum())) == (2, 3)
    assert all(value == value for value in learner.metrics().values())
    for _ in range(3):
        list(learner.update(bad))
    with pytest.raises(FatalError, match=r"4 updates in a row were not finite .* nan"):
        list(learner.update(bad))
    assert store.is_finite()


def test_what_is_left_of_a_rollout_is_dropped_with_its_first_bad_minibatch(make_trial):
    trial = make_trial("ppo")  # 20 steps in minibatches of 8, twice
    learner, (store,) = learner_of(trial), trial.stores
    learner.agent.start(2)
    good, bad = some_batches(trial, 2)
    assert list(learner.learn(good)).count(Turn.PULL) == store.total_updates() == 6
    bad = bad._replace(reward=torch.full_like(bad.reward, float("nan")))
    assert list(learner.learn(bad)).count(Turn.PULL) == 1
    assert (store.total_updates(), int(store.dropped.sum())) == (6, 1)


@pytest.mark.timeout(60)
def test_a_session_that_begins_when_the_end_has_been_asked_for_saves_and_ends(make_trial):
    trial, control = make_trial(), Control(1)
    control.ask()
    control.finish()
    *_, saved = trial.session.run(0, trial.stores[0], control)
    assert (saved.number, set(saved.files)) == (2, {"session_00.pt", "session_00.npz"})
    assert trial.stores[0].total_frames() == 0
