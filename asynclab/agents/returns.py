"""Returns and advantages as pure functions.  T: horizon, B: environments."""

import torch
from torch import Tensor


def gae(
    reward: Tensor, value: Tensor, v_next: Tensor, terminated: Tensor, done: Tensor, gamma: float, lam: float
) -> Tensor:
    """Generalised advantage estimation (Schulman et al., 2016, eq. 16).

    ``lam=1`` gives the advantage of the n-step returns of A3C (Mnih et al., 2016, algorithm S3): every step is
    bootstrapped from the end of the rollout or of its episode, whichever comes first.

    Args:
        reward: [T, B] reward of each transition.
        value: [T, B] V(s_t).
        v_next: [T, B] V of the transition's true successor, which at an episode's end is its final observation.
        terminated: [T, B] bool; the successor is a terminal state and is worth nothing.
        done: [T, B] bool; the episode ended here, by termination or truncation, and the next row is another one.
        gamma: Discount.
        lam: Weight of longer returns, in [0, 1].

    Returns:
        [T, B] advantage; add ``value`` for the lambda-return.
    """
    # delta_t = r_t + gamma V(s_{t+1}) - V(s_t);  a truncated episode is bootstrapped, a terminated one is not
    delta = reward + gamma * v_next * ~terminated - value
    return _discounted(delta, done, gamma * lam)


def successors(value: Tensor, ends: Tensor, final_index: Tensor) -> Tensor:
    """Return V of each transition's true successor [T, B]: of the next row, but where an episode or the rollout ends.

    Args:
        value: [T, B] V(s_t).
        ends: [B + K] V of what nobody has acted on: ``cat([batch.obs[-1], batch.final_obs])``.
        final_index: [K] places t B + b of the truncated steps.
    """
    v_last, v_final = ends.split([value.shape[1], len(final_index)])
    return torch.cat([value[1:], v_last[None]]).flatten().index_copy_(0, final_index, v_final).view_as(value)


def vtrace(
    reward: Tensor,
    value: Tensor,
    v_next: Tensor,
    terminated: Tensor,
    done: Tensor,
    ratio: Tensor,
    gamma: float,
    lam: float,
) -> Tensor:
    """V-trace (Espeholt et al., 2018, eq. 1 and section 4.2), both importance weights clipped at 1.

    Where the policy that acted is the one that learns (``ratio`` is 1) this is what ``gae`` returns.

    Args:
        reward: [T, B], as of ``gae``, like all that is not told here.
        value: [T, B].
        v_next: [T, B].
        terminated: [T, B] bool.
        done: [T, B] bool.
        ratio: [T, B] pi(a|s) / mu(a|s), of the policy that learns and the one that acted.
        gamma: Discount.
        lam: Factor on the weights c of the trace, in [0, 1].

    Returns:
        [T, B] v_s - V(s), which is also the policy's advantage rho_s (r_s + gamma v_{s+1} - V(s_s)), for lam < 1 with
        lam v_{s+1} + (1 - lam) V(s_{s+1}) in place of v_{s+1}: both clips are the same.
    """
    delta = reward + gamma * v_next * ~terminated - value
    # v_s - V(s) = rho_s delta_s + gamma c_s (v_{s+1} - V(s_{s+1})),  c_s = lam rho_s
    return _discounted(delta, done, gamma * lam, ratio.clamp(max=1.0))


def _discounted(delta: Tensor, done: Tensor, decay: float, rho: Tensor | None = None) -> Tensor:
    """Return x_t = rho_t (delta_t + decay x_{t+1}) [T, B], where x_{t+1} is 0 after an episode's end; rho may be 1."""
    decays = decay * ~done
    result = torch.empty_like(delta)
    x = torch.zeros_like(delta[0])
    for t in reversed(range(len(delta))):
        # masked besides: 0 times what is not finite would not be 0, and would spoil the episodes before
        x = torch.addcmul(delta[t], decays[t], x.masked_fill(done[t], 0.0))
        if rho is not None:
            x = rho[t] * x
        result[t] = x
    return result
