"""Recurrent reinforcement learning in the style of PPO: step by step in the rollout, whole sequences in the update.

The task needs memory. At the first step of an episode an agent sees a cue, +1 or -1; at the last step, a few steps
later, it has to answer with the matching action. Episodes have different lengths, so the environments of a batch begin
anew at different times. Run: python docs/examples/rollout.py
"""

import argparse

import torch
from torch import nn

import tritongru

CLIP, VALUE_COST, ENTROPY_GAIN, GAMMA = 0.2, 0.5, 0.01, 0.95


class Cues:
    """A batch of environments. An observation is (cue or 0, whether an answer is due)."""

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.left = torch.zeros(batch, dtype=torch.int64)  # steps of the episode that follow this one
        self.cue = torch.zeros(batch)
        self.begin(torch.ones(batch, dtype=torch.bool))

    def begin(self, which: torch.Tensor) -> None:
        lengths = torch.randint(3, 9, (self.batch,))
        cues = torch.randint(0, 2, (self.batch,)) * 2.0 - 1
        self.left = torch.where(which, lengths - 1, self.left)
        self.cue = torch.where(which, cues, self.cue)
        self.first = which

    def observe(self) -> torch.Tensor:
        return torch.stack((torch.where(self.first, self.cue, 0.0), (self.left == 0).float()), dim=1)

    def act(self, action: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The reward, and which episodes are over."""
        due = self.left == 0
        right = (action * 2 - 1) == self.cue
        reward = torch.where(due, torch.where(right, 1.0, -1.0), 0.0)
        self.left = self.left - 1
        self.begin(due)
        return reward, due


class Agent(nn.Module):
    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.gru = tritongru.GRU(2, hidden)
        self.policy, self.value = nn.Linear(hidden, 2), nn.Linear(hidden, 1)

    def heads(self, y: torch.Tensor) -> tuple[torch.distributions.Categorical, torch.Tensor]:
        return torch.distributions.Categorical(logits=self.policy(y)), self.value(y).squeeze(-1)


def train(updates: int, batch: int, steps: int, hidden: int) -> list[float]:
    """The mean reward of an answer, update by update: 0 is guessing, 1 is perfect."""
    world, agent = Cues(batch), Agent(hidden)
    optimizer = torch.optim.Adam(agent.parameters(), lr=5e-3)
    state, began = torch.zeros(1, batch, hidden), torch.ones(batch, dtype=torch.bool)
    rewards = []
    for _ in range(updates):
        # Rollout: one step of the layer at a time. `reset` forgets what belongs to an episode that is over.
        first, kept = state, []
        with torch.no_grad():
            for _ in range(steps):
                x = world.observe()
                y, state = agent.gru.step(x, state, reset=began)
                policy, value = agent.heads(y)
                action = policy.sample()
                reward, over = world.act(action)
                kept.append((x, began, action, policy.log_prob(action), value, reward, over))
                began = over
        x, resets, action, old, value, reward, over = map(torch.stack, zip(*kept, strict=True))
        returns, after = torch.zeros_like(reward), torch.zeros(batch)
        for t in reversed(range(steps)):
            after = reward[t] + GAMMA * torch.where(over[t], 0.0, after)
            returns[t] = after
        advantage = returns - value
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-6)
        # Update: the same steps as one call. `resets` cuts states and gradients where episodes begin.
        for _ in range(4):
            y, _ = agent.gru(x, first, resets=resets)
            policy, value = agent.heads(y)
            ratio = (policy.log_prob(action) - old).exp()
            gain = torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage).mean()
            loss = VALUE_COST * (value - returns).square().mean() - gain - ENTROPY_GAIN * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            optimizer.step()
        rewards.append((reward.sum() / over.sum()).item())
    return rewards


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--batch", type=int, default=64, help="environments")
    parser.add_argument("--steps", type=int, default=32, help="steps of a rollout")
    parser.add_argument("--hidden", type=int, default=32)
    given = parser.parse_args()
    torch.manual_seed(0)
    rewards = train(given.updates, given.batch, given.steps, given.hidden)
    for update in range(0, given.updates, max(1, given.updates // 10)):
        print(f"update {update:3d}: mean reward of an answer {rewards[update]:+.2f}")
    print(f"at the end: {rewards[-1]:+.2f}")


if __name__ == "__main__":
    main()
