import torch

from asynclab.agents.returns import gae, successors

GAMMA, LAM = 0.9, 0.8


def rollout(T=7, B=3):
    g = torch.Generator().manual_seed(1)
    reward, value, v_next = (torch.randn(T, B, generator=g, dtype=torch.float64) for _ in range(3))
    terminated = torch.zeros(T, B, dtype=torch.bool)
    done = terminated.clone()
    terminated[2, 0] = done[2, 0] = True  # environment 0 terminates
    done[4, 1] = True  # environment 1 is truncated; environment 2 goes on
    return reward, value, v_next, terminated, done


def test_gae_equals_the_double_sum():
    reward, value, v_next, terminated, done = rollout()
    T, B = reward.shape
    expected = torch.zeros_like(reward)
    for b in range(B):
        for t in range(T):
            for k in range(t, T):  # A_t = sum_k (gamma lam)^(k-t) delta_k, up to the episode's end
                bootstrap = 0.0 if terminated[k, b] else GAMMA * v_next[k, b]
                expected[t, b] += (GAMMA * LAM) ** (k - t) * (reward[k, b] + bootstrap - value[k, b])
                if done[k, b]:
                    break
    torch.testing.assert_close(gae(reward, value, v_next, terminated, done, GAMMA, LAM), expected)


def test_gae_with_lambda_1_is_the_n_step_return():
    reward, value, v_next, terminated, done = rollout()
    v_next[:-1] = torch.where(done[:-1], v_next[:-1], value[1:])  # within an episode V(s') is the next row's V(s)
    ret = v_next[-1]
    returns = []
    for t in reversed(range(len(reward))):  # Mnih et al. (2016), algorithm S3: R <- r + gamma R
        ret = torch.where(done[t], v_next[t] * ~terminated[t], ret if t < len(reward) - 1 else v_next[t])
        ret = reward[t] + GAMMA * ret
        returns.insert(0, ret)
    advantage = gae(reward, value, v_next, terminated, done, GAMMA, 1.0)
    torch.testing.assert_close(advantage, torch.stack(returns) - value)


def test_gae_bootstraps_truncation_and_not_termination():
    one, no, yes = torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.bool), torch.ones(1, 1, dtype=torch.bool)
    truncated = gae(one, 0 * one, 10 * one, terminated=no, done=yes, gamma=0.5, lam=0.9)
    terminated = gae(one, 0 * one, 10 * one, terminated=yes, done=yes, gamma=0.5, lam=0.9)
    assert (truncated.item(), terminated.item()) == (6.0, 1.0)


def test_gae_does_not_leak_across_episodes():
    reward, value, v_next, terminated, done = rollout()
    before = gae(reward, value, v_next, terminated, done, GAMMA, LAM)
    reward[5:] += 100.0  # after the ends of the episodes of environments 0 and 1
    after = gae(reward, value, v_next, terminated, done, GAMMA, LAM)
    assert torch.equal(before[:3, 0], after[:3, 0])
    assert torch.equal(before[:5, 1], after[:5, 1])
    assert not torch.equal(before[:5, 2], after[:5, 2])


def test_what_is_not_finite_spoils_only_its_own_episode():
    reward, value, v_next, terminated, done = rollout()
    before = gae(reward, value, v_next, terminated, done, GAMMA, LAM)
    reward[5:] = torch.nan
    after = gae(reward, value, v_next, terminated, done, GAMMA, LAM)
    assert torch.equal(before[:3, 0], after[:3, 0])
    assert torch.equal(before[:5, 1], after[:5, 1])
    assert after[:5, 2].isnan().any()


def test_successors_are_the_next_row_the_end_of_the_rollout_and_the_ends_of_cut_episodes():
    value = torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])
    ends = torch.tensor([7.0, 8.0, 30.0, 60.0])  # after the last row; then of two truncated steps
    assert successors(value, ends, torch.tensor([1, 4])).tolist() == [[3.0, 30.0], [5.0, 6.0], [60.0, 8.0]]
    none = torch.tensor([], dtype=torch.long)
    assert successors(value, ends[:2], none).tolist() == [
        [3.0, 4.0],
        [5.0, 6.0],
        [7.0, 8.0],
    ]
    assert value[0].tolist() == [1.0, 2.0]
