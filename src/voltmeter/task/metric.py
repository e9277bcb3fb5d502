"""Metrics: one number per pair, and higher is always better.

    logit-difference   mean logit of the answers − mean logit of the wrong answers, at the pair's position
    log-probability    log of the summed probability of the answers; of a sequence, summed over its tokens
    accuracy           1 if the best answer is above every wrong one (with none given: above the whole vocabulary)
    kl                 −KL(full model ‖ this run) over the whole vocabulary at the pair's position

Sequences. An answer of several tokens is fed in: both inputs end in all of its tokens but the last, and
``answers`` is [pair, 1, token], padded with -1. The logits at ``position + t`` answer token t, so that the sum
of log-probabilities is exactly the log-probability of the whole answer. ``accuracy`` then asks that every token
be the first choice, and ``kl`` is summed over the tokens. A logit difference compares single tokens only.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from voltmeter.errors import MetricError, counted, nearest
from voltmeter.task.pairs import Pairs

Score = Callable[[Any, Pairs, Any], Tensor]


@dataclass(frozen=True)
class Metric:
    """A named function of what a model returns. ``needs`` lists what of ``answers``, ``wrong``, ``full`` it reads.

    ``at_answer``: it reads nothing of the outputs but ``logits_at_answer``. Only then may it be given these logits
    [pair, vocabulary] in place of all that the model returned.
    """

    name: str
    score: Score
    needs: frozenset[str] = frozenset()
    at_answer: bool = False

    def __call__(self, outputs: Any, pairs: Pairs, full: Any = None) -> Float[Tensor, " pair"]:
        """The metric of each pair, given what the model returned for it, and for ``kl`` what the full model did.

        Raises MetricError if the pairs lack what it needs, if the values are not one a pair, or if one is not finite.
        """
        self.require(pairs)
        if "full" in self.needs and full is None:
            raise MetricError(
                f"{self.name} compares with the full model, and its outputs were not given",
                mend="call it as metric(outputs, pairs, full=outputs of the model with all edges kept)",
            )
        return _checked(self.score(outputs, pairs, full), self.name, pairs)

    def require(self, pairs: Pairs) -> None:
        """Raises MetricError if ``pairs`` lack the answers or wrong answers that this metric reads."""
        for field in ("answers", "wrong"):
            if field in self.needs:
                _require_some(getattr(pairs, field), field, self.name, pairs)
        if "wrong" in self.needs and pairs.is_sequence:
            raise MetricError(
                f"{self.name} compares single tokens, the answers here are sequences of up to {pairs.answers.shape[2]}",
                mend="use log-probability, or compare at the token where answers part: long_answers='branch'",
            )


def metric_of(name: str, function: Callable[..., Tensor], needs_full: bool = False) -> Metric:
    """A metric of your own: ``function(outputs, pairs)``, or ``(outputs, pairs, full)`` with ``needs_full``.

    ``outputs`` and ``full`` are what the model returned, all of it. It returns one number a pair, a Float [pair],
    higher is better.
    """
    if needs_full:
        return Metric(name, function, frozenset({"full"}))
    return Metric(name, lambda outputs, pairs, full: function(outputs, pairs))


def metric_named(name: str) -> Metric:
    """The built-in metric called ``name``. Raises MetricError naming the nearest ones."""
    if name not in METRICS:
        raise MetricError(f"there is no metric '{name}'", [nearest(name, list(METRICS))])
    return METRICS[name]


def logits_of(outputs: Any) -> Float[Tensor, "..."]:
    """The logits among what a model returned: a tensor, ``["logits"]``, ``.logits``, or the first of a tuple.

    Raises MetricError if there are none.
    """
    found = _find_logits(outputs)
    if not isinstance(found, Tensor) or not found.is_floating_point():
        raise MetricError(
            f"the model returned a {type(outputs).__name__} in which no logits were found",
            mend="give a metric of your own: metric_of(name, function of the outputs and the pairs)",
        )
    return found


def _find_logits(outputs: Any) -> Any:
    match outputs:
        case Tensor():
            return outputs
        case Mapping():
            return outputs.get("logits")
        case tuple() | list() if not isinstance(getattr(outputs, "logits", None), Tensor):
            return outputs[0] if outputs else None
        case _:
            return getattr(outputs, "logits", None)


def logits_at_answer(outputs: Any, pairs: Pairs) -> Float[Tensor, "pair token vocabulary"]:
    """The logits that answer, in float32 or wider: one token a pair, or each token of the sequence.

    From [pair, position, vocabulary] those at the pair's position; [pair, vocabulary] as they are. A model asked
    for its last position alone returns [pair, 1, vocabulary]: taken where that is the position of every pair.
    Raises MetricError where the logits have other axes, or where it is not known which of their positions answers.
    """
    logits = logits_of(outputs)
    logits = logits if logits.dtype == torch.float64 else logits.float()
    if logits.shape[:1] != (len(pairs),) or logits.ndim not in ((3,) if pairs.is_sequence else (2, 3)):
        raise MetricError(
            f"the logits have shape {list(logits.shape)} for {counted(len(pairs), 'pair', 'pairs')}",
            mend="expected [pair, position, vocabulary], or [pair, vocabulary] where answers are single tokens",
        )
    if logits.ndim == 2:
        return logits[:, None]
    places = _answer_places(pairs).to(logits.device)
    if int(places.min()) < 0:
        raise MetricError(
            f"the logits have {logits.shape[1]} positions, and nothing says at which of them the answer is read",
            mend="the inputs are no tokens, so that no position is the last: give Pairs.of(..., position=...)",
        )
    if logits.shape[1] == 1 and pairs.n_positions and bool((places == pairs.n_positions - 1).all()):
        return logits
    if int(places.max()) >= logits.shape[1]:
        raise MetricError(
            f"the logits have {logits.shape[1]} positions, the answers are at positions up to {int(places.max())}",
            mend="return the logits of every position, or of the last one where all rows are equally long",
        )
    return logits.gather(1, places[..., None].expand(-1, -1, logits.shape[2]))


def _answer_places(pairs: Pairs) -> Int64[Tensor, "pair token"]:
    """Positions of the logits that answer; a token that pads a shorter sequence repeats the last one."""
    if not pairs.is_sequence:
        return pairs.position[:, None]
    steps = torch.arange(pairs.answers.shape[2])
    lengths = (pairs.answers[:, 0] >= 0).sum(dim=1, keepdim=True).clamp(min=1)
    return pairs.position[:, None] + torch.minimum(steps, lengths - 1)


def _logit_difference(outputs: Any, pairs: Pairs, full: Any) -> Tensor:
    logits = logits_at_answer(outputs, pairs)[:, 0]
    return _mean_at(logits, pairs.answers) - _mean_at(logits, pairs.wrong)


def _log_probability(outputs: Any, pairs: Pairs, full: Any) -> Tensor:
    logs = logits_at_answer(outputs, pairs).log_softmax(dim=-1)
    if pairs.is_sequence:
        tokens, is_token = _at(pairs.answers[:, 0].to(logs.device), logs.shape[-1])
        return (logs.gather(2, tokens[..., None])[..., 0] * is_token).sum(dim=1)
    answers, is_answer = _at(pairs.answers.to(logs.device), logs.shape[-1])
    return logs[:, 0].gather(1, answers).masked_fill(~is_answer, float("-inf")).logsumexp(dim=1)


def _accuracy(outputs: Any, pairs: Pairs, full: Any) -> Tensor:
    logits = logits_at_answer(outputs, pairs)
    if pairs.is_sequence:
        tokens = pairs.answers[:, 0].to(logits.device)
        return ((logits.argmax(dim=-1) == tokens) | (tokens < 0)).all(dim=1).to(logits.dtype)
    right = (logits[:, 0].argmax(dim=-1, keepdim=True) == pairs.answers.to(logits.device)).any(dim=1)
    if pairs.wrong.shape[1]:
        chosen = _best_at(logits[:, 0], pairs.answers) > _best_at(logits[:, 0], pairs.wrong)
        right = torch.where((pairs.wrong >= 0).any(dim=1).to(logits.device), chosen, right)
    return right.to(logits.dtype)


def _kl(outputs: Any, pairs: Pairs, full: Any) -> Tensor:
    here = logits_at_answer(outputs, pairs).log_softmax(dim=-1)
    there = logits_at_answer(full, pairs).log_softmax(dim=-1).to(here.device)
    divergence = (there.exp() * (there - here)).sum(dim=-1)
    if pairs.is_sequence:
        divergence = divergence * (pairs.answers[:, 0] >= 0).to(here.device)
    return -divergence.sum(dim=1)


def _at(tokens: Tensor, vocabulary: int) -> tuple[Tensor, Tensor]:
    """Token ids fit to index with, and which of them are no padding."""
    if tokens.numel() and int(tokens.max()) >= vocabulary:
        raise MetricError(f"answer {int(tokens.max())} is not among the {vocabulary} logits of the model")
    return tokens.clamp(min=0), tokens >= 0


def _mean_at(logits: Float[Tensor, "pair vocabulary"], tokens: Int64[Tensor, "pair answer"]) -> Tensor:
    index, is_token = _at(tokens.to(logits.device), logits.shape[1])
    return (logits.gather(1, index) * is_token).sum(dim=1) / is_token.sum(dim=1)


def _best_at(logits: Float[Tensor, "pair vocabulary"], tokens: Int64[Tensor, "pair answer"]) -> Tensor:
    index, is_token = _at(tokens.to(logits.device), logits.shape[1])
    return logits.gather(1, index).masked_fill(~is_token, float("-inf")).amax(dim=1)


LOGIT_DIFFERENCE = Metric("logit-difference", _logit_difference, frozenset({"answers", "wrong"}), at_answer=True)
LOG_PROBABILITY = Metric("log-probability", _log_probability, frozenset({"answers"}), at_answer=True)
ACCURACY = Metric("accuracy", _accuracy, frozenset({"answers"}), at_answer=True)
KL = Metric("kl", _kl, frozenset({"full"}), at_answer=True)
METRICS = {each.name: each for each in (LOGIT_DIFFERENCE, LOG_PROBABILITY, ACCURACY, KL)}


def require_not_constant(name: str, full: Float[Tensor, " pair"], nothing_kept: Float[Tensor, " pair"]) -> None:
    """Raises MetricError if a metric says the same of the full model and of nothing kept, on every pair.

    Such a metric cannot tell a circuit from its absence, and faithfulness would divide by zero. "The same" is
    within 1e-6 of the largest value: float32 sums in another order differ by about that.
    """
    scale = max(1.0, float(full.abs().max()), float(nothing_kept.abs().max()))
    if bool((full - nothing_kept).abs().max() <= 1e-6 * scale):
        raise MetricError(
            f"{name} is the same for the full model and for nothing kept on "
            f"{'the one pair' if len(full) == 1 else f'all {len(full)} pairs'}",
            [f"both give {float(full.double().mean()):.4g} on average"],
            "give another metric, or corrupted inputs that change the answer",
        )


def _checked(values: Any, name: str, pairs: Pairs) -> Float[Tensor, " pair"]:
    if not isinstance(values, Tensor) or tuple(values.shape) != (len(pairs),) or not values.is_floating_point():
        shape = f"{values.dtype} {list(values.shape)}" if isinstance(values, Tensor) else type(values).__name__
        raise MetricError(f"{name} returned {shape}, one real number for each pair ({len(pairs)}) was expected")
    bad = ~values.detach().isfinite()
    if bool(bad.any()):
        raise MetricError(
            f"{name} is not finite on {int(bad.sum())} of {counted(len(pairs), 'pair', 'pairs')}",
            [f"row {pairs.rows[i]}: {float(values[i].detach())}" for i in _indices(bad)],
            "look at these rows: the model's logits there, or the metric itself, overflow or are NaN",
        )
    return values


def _require_some(answers: Tensor, field: str, name: str, pairs: Pairs) -> None:
    lacking = _indices(~(answers >= 0).flatten(start_dim=1).any(dim=1))
    if lacking:
        what = "answer" if field == "answers" else "wrong answer"
        raise MetricError(
            f"{name} needs {what}s, and {len(lacking)} of {counted(len(pairs), 'pair', 'pairs')} "
            f"{'has' if len(lacking) == 1 else 'have'} none",
            [f"row {pairs.rows[i]}" for i in lacking],
            f"give each pair at least one {what}, or another metric, such as kl",
        )


def _indices(rows: Tensor) -> Sequence[int]:
    return [int(i) for i in rows.nonzero().flatten()]
