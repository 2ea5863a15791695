"""What a student is asked for: losses between its predictions and its teachers' targets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from distill.engine.parts import Part
from distill.engine.rows import Rows
from distill.losses import token_loss
from distill.pairs import pair_gradients, token_places
from distill.recipe.learning import PAIR_TERMS, LossConfig
from students import TOKEN_KINDS, Features, match_grids
from students.keys import key

if TYPE_CHECKING:
    from distill.engine.stage import Stage
    from distill.engine.trainee import Trainee

Place = tuple[str, str]
"""(teacher, token kind)."""


@dataclass(frozen=True)
class Lesson:
    """A part of a batch as students are taught it: `rows` and `targets` by teacher; `last` if no
    part of the batch follows."""

    part: Part
    rows: dict[str, Rows]
    targets: dict[str, Features]
    last: bool


@dataclass(frozen=True)
class PairTokens:
    """Tokens whose similarities are compared: predictions (n, D), targets (n, D), and which image
    each is of, (n,) int64, its position in the stream."""

    live: Tensor
    target: Tensor
    image: Tensor


def compare(
    teacher: str, predicted: Features, target: Features, config: LossConfig
) -> Iterator[tuple[str, Tensor, Tensor]]:
    """(kind, predictions, targets) of each token kind with a term, dense maps on a common grid."""
    for kind in TOKEN_KINDS:
        ours, theirs = predicted.get(kind), target.get(kind)
        if ours is None or theirs is None or not config.terms(teacher, kind):
            continue
        if kind == "dense":
            ours, theirs = match_grids(ours, theirs, config.grid)
        yield kind, ours, theirs


class Objective:
    """The losses of a stage.

    Args:
        stage: whose recipe, teachers and ranks they are of.
    """

    def __init__(self, stage: Stage):
        self.stage, self.config = stage, stage.config.loss
        pairs = {
            (name, kind)
            for name in stage.teachers
            for kind in TOKEN_KINDS
            if any(term in PAIR_TERMS for term in self.config.terms(name, kind))
        }
        self.pairs = pairs
        # A batch that goes through in parts: tokens are compared with those of all parts.
        parts = stage.config.train.micro_batch is not None or bool(stage.config.partitions)
        self.rehearsed = bool(pairs) and parts

    def losses(
        self,
        trainee: Trainee,
        step: int,
        lesson: Lesson,
        predictions: Mapping[str, Features],
        gradients: Mapping[Place, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """The loss of each teacher (), weighed and balanced; together they are the student's.

        Args:
            trainee: whose predictions they are; its tally is added to.
            step, lesson: what is being taught.
            predictions: by teacher, of its rows.
            gradients: of what compares images across the batch, with respect to the tokens of this
                lesson, where they were found by a rehearsal (default: from these predictions).
        """
        found, by_image = {}, {}
        for name, predicted in predictions.items():
            rows = lesson.rows[name]
            if rows.none:
                found[name] = self._nothing(name, predicted)
                continue
            of_images = torch.zeros((), device=self.stage.device)
            for kind, ours, theirs in compare(name, predicted, lesson.targets[name], self.config):
                terms = self.config.terms(name, kind)
                losses, sums = token_loss(ours, theirs, terms, self.config.beta)
                trainee.tally.add(("loss", kind, name), rows.weight * losses.detach().mean())
                trainee.tally.add(("sums", kind, name), sums)
                of_images = of_images + losses
            by_image[name] = of_images
        kept = trainee.balance.kept(step, lesson, by_image)
        for name, losses in by_image.items():
            weight = lesson.rows[name].weight
            if name in kept:
                losses = losses * kept[name]
                trainee.tally.add(("kept", name), weight * kept[name].mean())
            found[name] = weight * losses.mean()
        if self.pairs:
            self._add_pairs(trainee, step, lesson, predictions, gradients, found)
        weights = trainee.balance.weights()
        return {
            name: self.stage.teachers[name].weight * weights.get(name, 1.0) * loss
            for name, loss in found.items()
        }

    def _nothing(self, name: str, predicted: Features) -> Tensor:
        """Zero, with a gradient of zero for the same weights as where there are rows."""
        total = torch.zeros((), device=self.stage.device)
        for kind in TOKEN_KINDS:
            tokens = predicted.get(kind)
            if tokens is not None and self.config.terms(name, kind):
                total = total + tokens.float().sum()
        return total

    def _add_pairs(
        self,
        trainee: Trainee,
        step: int,
        lesson: Lesson,
        predictions: Mapping[str, Features],
        gradients: Mapping[Place, Tensor] | None,
        found: dict[str, Tensor],
    ) -> None:
        """Add what has the gradients of the pair terms to each teacher's loss."""
        tokens = self.pair_tokens(step, lesson, predictions)
        if gradients is None:
            gradients = self.pair_gradients(trainee, tokens)
        ranks = self.stage.accelerator.num_processes
        for place, own in tokens.items():
            # Ranks average their gradients, and each has those of its own tokens alone.
            found[place[0]] = found[place[0]] + ranks * (own.live * gradients[place]).sum()

    def pair_tokens(
        self, step: int, lesson: Lesson, predictions: Mapping[str, Features]
    ) -> dict[Place, PairTokens]:
        """The tokens of a lesson that pair terms compare; of a teacher without rows none, so that
        all ranks have the same entries."""
        found = {}
        for name, predicted in predictions.items():
            # A teacher that sees no row has no targets: there is as much of them as of predictions.
            target = lesson.targets.get(name, predicted)
            rows, positions = lesson.rows[name], lesson.part.positions
            images = positions if rows.index is None else positions[rows.index]
            for kind, ours, theirs in compare(name, predicted, target, self.config):
                if (name, kind) in self.pairs:
                    found[name, kind] = self._sampled(step, name, kind, ours, theirs, images)
        return found

    def _sampled(
        self, step: int, name: str, kind: str, ours: Tensor, theirs: Tensor, images: Tensor
    ) -> PairTokens:
        count, device = len(ours), ours.device
        if kind == "summary":
            return PairTokens(ours, theirs, images.to(device, non_blocking=True))
        h, w = ours.shape[1:3]
        drawn = key("pairs", self.stage.recipe.seed, self.stage.name, step, name)
        places = token_places(h * w, self.stage.config.train.batch_size, drawn).to(device)
        ours, theirs = (
            tokens.flatten(1, 2).index_select(1, places).flatten(0, 1) for tokens in (ours, theirs)
        )
        of_tokens = images.repeat_interleave(len(places)) if count else images
        return PairTokens(ours, theirs, of_tokens.to(device, non_blocking=True))

    def pair_gradients(
        self, trainee: Trainee, tokens: Mapping[Place, PairTokens]
    ) -> dict[Place, Tensor]:
        """The gradients of the pair terms with respect to these tokens, which are all that a rank
        has of a batch; the losses go to the tally. All ranks call this together."""
        found = {}
        for (name, kind), own in tokens.items():
            loss, found[name, kind] = pair_gradients(
                own.live,
                own.target,
                own.image,
                self.config.terms(name, kind),
                self.config.temperature,
                self.stage.accelerator,
            )
            trainee.tally.add(("loss", kind, name), loss)
        return found

    def rehearse(
        self, trainee: Trainee, step: int, lessons: list[Lesson]
    ) -> list[dict[Place, Tensor]]:
        """For each lesson of a batch the gradients of the pair terms with respect to its tokens,
        found by a pass without gradients through all of them."""
        tokens = []
        for lesson in lessons:
            with torch.no_grad():
                predictions = self.stage.answer(trainee, step, lesson)
            tokens.append(self.pair_tokens(step, lesson, predictions))
        together = {
            place: PairTokens(
                *(
                    torch.cat([getattr(own[place], field) for own in tokens])
                    for field in ("live", "target", "image")
                )
            )
            for place in tokens[0]
        }
        whole = self.pair_gradients(trainee, together)
        counts = {place: [len(own[place].live) for own in tokens] for place in whole}
        split = {place: gradient.split(counts[place]) for place, gradient in whole.items()}
        return [
            {place: parts[number] for place, parts in split.items()}
            for number in range(len(lessons))
        ]
