"""What an attack needs of a LeRobot policy: objectives that go from the camera's pictures to a number.

The pictures are attacked as the cameras give them, in [0, 1] and at their native size; each evaluation of an
objective runs the policy's own pre-processor and looks as the policy looks when it acts, so health, presence
and what the policy derives of RGB follow from the attacked picture. Noise and time of flow matching are fixed
for one attack.

The objective ``policy`` is the training loss of the actions that the policy itself plans on the clean
pictures: there is no demonstration in a roll-out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.utils.constants import ACTION
from torch import Generator, Tensor

from lerobot_policy_multismolvla.flow import velocities
from lerobot_policy_multismolvla.modeling_multismolvla import MultiSmolVLAPolicy
from lerobot_policy_multismolvla.visual import RGB, VisualPrefix
from multismolvla.corruption.adversarial import (
    Attack,
    Attacked,
    attack,
    preserved_random_state,
    random_signs,
    token_shift,
    velocity_error,
)
from multismolvla.modalities import padding_mask_key
from multismolvla_eval.policies.lerobot import FLOW_TYPES, mixed_precision, takes_noise

#: A batch before or after the pre-processor, typed as LeRobot types it; instructions are in it, too.
Observation = dict[str, Tensor]
#: Draws of noise and time over which the objective ``policy`` is a mean.
DRAWS = 8


@dataclass(frozen=True)
class PolicyAttack:
    """What an attack found, and what random signs of the same radius do.

    Attributes:
        found: the attack.
        signs: pictures changed by random signs.
        control: float (B,), the objective of ``signs``.
        available: name -> bool (B,), which pictures were attacked.
    """

    found: Attacked
    signs: dict[str, Tensor]
    control: Tensor
    available: dict[str, Tensor]


class Attacker:
    """Attacks one policy.

    Args:
        policy: LeRobot's policy, possibly inside PEFT's wrapper, in evaluation mode.
        prepare: its pre-processor.

    Attributes:
        config: LeRobot's configuration of the policy.
        inner: the policy without a wrapper.
        prepare: its pre-processor.
    """

    def __init__(self, policy: Any, prepare: Callable[[Observation], Observation]) -> None:
        self._policy, self.prepare = policy, prepare
        self.inner: Any = next(m for m in policy.modules() if isinstance(m, PreTrainedPolicy))
        self.config: Any = self.inner.config

    def reset(self) -> None:
        """Forget the looks before."""
        self._policy.reset()

    def chunk(self, batch: Observation, **noise: Tensor) -> Tensor:
        """The actions (B, T, A) that the policy plans on a raw batch when it knows no look before."""
        self.reset()
        with mixed_precision(self.config):
            return self._policy.predict_action_chunk(self.prepare(dict(batch)), **noise)

    def available(self, batch: Observation, keys: Mapping[str, str]) -> dict[str, Tensor]:
        """Which samples have a picture that the policy looks at: name in the batch -> bool (B,).

        Args:
            batch: raw, before the pre-processor.
            keys: name of a picture in the batch -> its name for the policy.
        """
        prepared = self.prepare(dict(batch))
        if isinstance(self.inner, MultiSmolVLAPolicy) and self.config.uses_fourm:
            places = {key: view for key, (view, _) in self.config.stream_keys().items()}
            with self.inner.trial():
                there = self.inner.availability(prepared)[:, :, RGB]
            views = list(self.config.views)
            return {k: there[:, views.index(places[name])] for k, name in keys.items()}
        found = {}
        for key, name in keys.items():
            mask = prepared.get(padding_mask_key(name))
            rows = torch.full((len(batch[key]),), name in prepared)
            found[key] = rows if mask is None else rows & mask.bool().flatten().to(rows.device)
        return found

    def signs(
        self, batch: Observation, keys: Mapping[str, str], radius: float, generator: Generator
    ) -> dict[str, Tensor]:
        """The control alone; arguments as of :meth:`attack`."""
        return random_signs({k: batch[k] for k in keys}, radius, generator, self.available(batch, keys))

    def attack(
        self,
        batch: Observation,
        keys: Mapping[str, str],
        against: str,
        how: Attack,
        generator: Generator,
        **noise: Tensor,
    ) -> PolicyAttack:
        """Search for the worst pictures of a batch.

        Args:
            batch: raw, before the pre-processor.
            keys: pictures to be attacked, name in the batch -> name for the policy.
            against: ``policy`` or ``feature``, one of `possible_attacks`.
            how: radius and search.
            generator: CPU generator of all that is drawn; radius 0 does not advance it.
            noise: of the chunk that the policy plans on the clean pictures; without it the policy's own next
                draw, which it will make again when it acts.
        """
        pictures = {k: batch[k] for k in keys}
        available = self.available(batch, keys)
        with preserved_random_state(), mixed_precision(self.config):
            make = self._against_actions if against == "policy" else self._against_tokens
            drawing = generator if how.radius > 0 else generator.clone_state()
            objective = make(self.prepare(dict(batch)), drawing, noise)

            def value(changed: Mapping[str, Tensor]) -> Tensor:
                return objective(self.prepare({**batch, **changed})).to(next(iter(pictures.values())).device)

            found = attack(pictures, value, how, generator, available)
            signs = random_signs(pictures, how.radius, generator, available)
            with torch.no_grad():
                control = value(signs).float()
        return PolicyAttack(found, signs, control, available)

    @contextmanager
    def _trial(self) -> Iterator[None]:
        """Looks inside leave no trace in what the policy remembers."""
        with self.inner.trial() if isinstance(self.inner, MultiSmolVLAPolicy) else nullcontext():
            yield

    # -- objectives -----------------------------------------------------------------------------------------

    def _against_tokens(
        self, prepared: Observation, generator: Generator, noise: Mapping[str, Tensor]
    ) -> Callable[[Observation], Tensor]:
        with torch.no_grad():
            clean, there = self.tokens(prepared)
        return lambda batch: token_shift(self.tokens(batch)[0], clean, there)

    def tokens(self, prepared: Observation) -> tuple[list[Tensor], list[Tensor]]:
        """What the language model reads of the pictures (B, N, D), and whether anything was there (B,)."""
        with self._trial():
            visual = VisualPrefix(*self.inner.prepare_images(prepared))
            look = self.inner.last_look() if isinstance(self.inner, MultiSmolVLAPolicy) else None
        # the tokens of a view of which nothing is seen are read, too, and say so
        there = list(visual.attended) if look is None else list(look.seen.unbind(1))
        embed = self.inner.model.vlm_with_expert.embed_image
        return [embed(tokens) for tokens in visual.tokens], there

    def _visual(self, prepared: Observation) -> VisualPrefix:
        with self._trial():
            return VisualPrefix(*self.inner.prepare_images(prepared))

    def _against_actions(
        self, prepared: Observation, generator: Generator, noise: Mapping[str, Tensor]
    ) -> Callable[[Observation], Tensor]:
        config = self.config
        with self._trial():
            chunk = self._policy.predict_action_chunk(dict(prepared), **noise)  # (B, T, A)
        executed = config.n_action_steps
        seed = int(torch.randint(2**31, (1,), generator=generator))
        if config.type not in FLOW_TYPES:
            return lambda batch: self._training_error(batch, chunk, seed)
        torch.manual_seed(seed)
        model, draws = self.inner.model, DRAWS * len(chunk)
        shape = (draws, config.chunk_size, config.max_action_dim)
        fixed = model.sample_noise(shape, chunk.device), model.sample_time(draws, chunk.device)

        def error(batch: Observation) -> Tensor:
            visual = self._visual(batch)
            pair = velocities(self.inner, {**batch, ACTION: chunk}, visual, *fixed)
            return velocity_error(*pair, executed)

        return error

    def _training_error(self, batch: Observation, chunk: Tensor, seed: int) -> Tensor:
        """Of a policy of another kind: its own training loss, sample by sample, with fixed draws."""
        beyond = torch.arange(chunk.shape[1], device=chunk.device) >= self.config.n_action_steps
        draws = DRAWS if takes_noise(self.config) else 1
        rows = []
        for row in range(len(chunk)):
            one = {k: v[row : row + 1] if isinstance(v, Tensor | list) else v for k, v in batch.items()}
            one |= {ACTION: chunk[row : row + 1], "action_is_pad": beyond[None]}
            losses = []
            for draw in range(draws):
                torch.manual_seed(seed + draw)
                losses.append(self.inner.forward(dict(one))[0])
            rows.append(torch.stack(losses).mean())
        return torch.stack(rows)
