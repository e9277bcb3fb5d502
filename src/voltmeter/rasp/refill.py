"""What cut edges carry, once more: by the means of ``voltmeter.run``, for the check of a certificate."""

import torch
from torch import Tensor

from voltmeter.rasp.model import CompiledTransformer
from voltmeter.rasp.setting import Question, derangement, shuffles
from voltmeter.run import fill as fills
from voltmeter.run.fill import Fill, FillValues
from voltmeter.run.watch import outs_of
from voltmeter.wiring.wiring import Wiring


def fill_values_of(question: Question, model: CompiledTransformer, wiring: Wiring, tokens: Tensor) -> FillValues:
    """The fill of a question about these tokens [batch, pos], for the engine."""
    made: Fill
    match question.fill:
        case "zero":
            made = fills.zero()
        case "mean":
            made = fills.mean(wiring, [tokens])
        case "mean-position":
            made = fills.mean_position(wiring, [tokens])
        case "resample":
            corrupted = tokens[derangement(len(tokens), question.seed)]
            if question.positions == "paired":
                return fills.resample().values_for(wiring, tokens, corrupted)
            made = _shuffled(question, model, wiring, corrupted)
        case _:  # a Question has no other
            raise AssertionError(question.fill)
    return made.values_for(wiring, tokens)


def _shuffled(question: Question, model: CompiledTransformer, wiring: Wiring, corrupted: Tensor) -> Fill:
    """Every corrupted input run by itself, with the rows of the positional embedding in its own order."""
    orders = shuffles(corrupted.shape[0], corrupted.shape[1], question.seed)
    table = model.position_embedding.weight
    rows: list[Tensor] = []
    for tokens, order in zip(corrupted, orders, strict=True):
        shuffled = table.clone()
        shuffled[: len(order)] = table[order]
        outs = outs_of(wiring, tokens[None], {"position_embedding.weight": shuffled}).streams
        (stream,) = (each for each in outs if each is not None)
        rows.append(stream)
    together = torch.cat(rows, 1)
    return fills.tensor({writer.name: out for writer, out in zip(wiring.writers, together, strict=True)}, "shuffled")
