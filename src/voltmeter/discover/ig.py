"""Edge attribution patching with integrated gradients: along the inputs, and along each writer's own output."""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from voltmeter.discover.attribution import summed_metric
from voltmeter.discover.learning import require
from voltmeter.discover.method import Method, State, register, with_gradient
from voltmeter.discover.question import Batch, Question, reduced
from voltmeter.run.points import moved_point, plain_point
from voltmeter.run.run import run
from voltmeter.wiring.inputs import expand_rows
from voltmeter.wiring.wiring import Wiring


def input_writers(wiring: Wiring) -> frozenset[int]:
    """The numbers of the writers that are computed from no reader: embeddings, in every stream."""
    return frozenset(wiring.writer(name).number for name in wiring.inputs)


@register
@dataclass(frozen=True)
class EapIgInputs(Method):
    """EAP-IG along the inputs: EAP with its gradient averaged over points between the filled and the clean input.

        (out_s - fill_s) · 1/m sum over k = 1 .. m of d metric / d x_r at input = fill + k/m (out - fill)

    The input is what every embedding writes (``input``, or its addends; in an encoder-decoder those of both streams),
    and its fill is the one asked for: under resample the path runs from the corrupted to the clean embeddings, as
    published; the published code refuses other fills. ``out_s`` and ``fill_s`` stay those of the clean and the filled
    run, whatever the writer writes at the point. ``kl`` has a gradient on the way, and can be used.

    Costs m forwards and backwards per batch. Source: Hanna et al. 2403.17806, equation 3 (the authors' code has been
    seen to take k = 0 .. m - 1 too). Default m = ``n_points`` = 5, as in their code's examples.
    """

    name: ClassVar[str] = "eap-ig-inputs"

    n_points: int = 5

    def __post_init__(self) -> None:
        require(self.name, {"n_points": (self.n_points, "a whole number from 1", self.n_points >= 1)})

    def steps(self, question: Question) -> int:
        return question.n_batches

    def start(self, question: Question) -> State:
        return {"total": torch.zeros(question.n_edges, dtype=torch.float64)}

    def step(self, question: Question, state: State, number: int) -> State:
        batch = question.batch(number)
        score, moving = summed_metric(question, batch, self.name), input_writers(question.wiring)
        plain, value = plain_point(question.wiring, batch.clean, batch.fill, score)
        value.backward()
        total = state["total"] + plain.total[0]
        for k in range(1, self.n_points):
            point, value = moved_point(plain, moving, k / self.n_points, score)
            value.backward()
            total = total + point.total[0]
        return {"total": total}

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["total"] / (self.n_points * len(question.task.train))


@register
@dataclass(frozen=True)
class EapIgActivations(Method):
    """EAP-IG along activations: for each writer, EAP of its edges averaged over points between its fill and its output.

        (out_s - fill_s) · 1/m sum over k = 1 .. m of d metric / d x_r at out_s := fill_s + k/m (out_s - fill_s)

    Only the one writer is moved, for all its readers at once; all else is computed from there. This is the mean of
    d metric / d keep of its edges while all their keeps are k/m, so the sum over a writer's edges tends to what cutting
    all of them does. (MIB's code moves a whole attention layer at once, and adds the gradients of *all* edges at every
    such point; an edge's score here takes only the points of its own writer, as the equation says.)

    The dear one: 1 + writers x (m - 1) forwards and backwards per batch, since all paths end in the clean run. Fit for
    heads and MLPs of small and middling models; not for neurons or latents. ``max_rows``: examples run at once (writers
    and points are stacked along the batch axis up to there); memory grows with it, the scores do not depend on it but
    for rounding. Source: MIB, Mueller et al. 2504.13151, after Marks et al. 2403.19647. Default m = ``n_points`` = 5,
    as there.
    """

    name: ClassVar[str] = "eap-ig-activations"

    n_points: int = 5
    max_rows: int = 256

    def __post_init__(self) -> None:
        at_least = {"n_points": self.n_points, "max_rows": self.max_rows}
        require(self.name, {k: (value, "a whole number from 1", value >= 1) for k, value in at_least.items()})

    def steps(self, question: Question) -> int:
        return question.n_batches * len(self._chunks(question))

    def _chunks(self, question: Question) -> list[list[tuple[int, float]]]:
        """Points off the clean run, (writer, share), as many at once as there is room for. At least one chunk."""
        writers = range(len(question.wiring.writers))
        points = [(writer, k / self.n_points) for writer in writers for k in range(1, self.n_points)]
        room = max(1, self.max_rows // min(question.batch_size, len(question.task.train)))
        return [points[at : at + room] for at in range(0, len(points), room)] or [[]]

    def start(self, question: Question) -> State:
        return {"total": torch.zeros(question.n_edges, dtype=torch.float64)}

    def step(self, question: Question, state: State, number: int) -> State:
        chunks = self._chunks(question)
        batch, points = question.batch(number // len(chunks)), chunks[number % len(chunks)]
        total = state["total"]
        if number % len(chunks) == 0:
            score = summed_metric(question, batch, self.name)
            plain, value = plain_point(question.wiring, batch.clean, batch.fill, score)
            value.backward()
            total = total + plain.total[0]
        return {"total": total + self._along(question, batch, points) if points else total}

    def _along(self, question: Question, batch: Batch, points: list[tuple[int, float]]) -> Float[Tensor, "edge"]:
        """The gradients of the edges of each point's writer, summed over points and examples."""
        numbers = question.wiring.edges.writer_numbers
        mine = torch.stack([numbers == writer for writer, _ in points])
        shares = torch.tensor([share for _, share in points], dtype=torch.float64)
        keep = torch.where(mine, shares[:, None], 1.0).requires_grad_()
        value = self._metric(question, batch, keep)
        value.backward()
        assert keep.grad is not None
        return (keep.grad.double() * mine).sum(0)

    def _metric(self, question: Question, batch: Batch, keep: Float[Tensor, "point edge"]) -> Tensor:
        """The metric summed over points and examples."""
        count, size, metric = len(keep), len(batch.pairs), question.task.metric
        pairs = batch.pairs.batch(list(range(size)) * count)
        full = expand_rows(question.full_answers(batch), count) if "full" in metric.needs else None
        outputs = run(
            question.wiring,
            expand_rows(batch.clean, count),
            keep.repeat_interleave(size, 0),
            replace(batch.fill, copies=count),
            axes="example edge",
        )
        values = metric(reduced(outputs, pairs, metric), pairs, full=full)
        return with_gradient(values.sum(), metric.name, self.name)

    def values(self, question: Question, state: State) -> Float[Tensor, "edge"]:
        return state["total"] / (self.n_points * len(question.task.train))
