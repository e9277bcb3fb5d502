"""The models of ``bench/agreement.py``: the same programs in several realisations, and models that were trained.

A ``Subject`` is one model with the question that methods are asked about it and a judge of circuits. Two questions:

    output   say what the full model says: the whole output of a program's model, the logits at the answer of a trained
             one (less their mean, which no softmax sees). Methods that compare with the full model follow minus the
             squared distance, those that take its gradient the component along (full - nothing kept), both scaled so
             that nothing kept loses 1 (``discover.known``). The settings are those of ``bench/recovery.py``.
    task     what is asked of trained models otherwise: the task's own metric, every method's defaults (KL for masks).

Of a program's model all pairs are looked at and judged by; of a trained one half are held out for the judge.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch
from one_roof import SUBJECTS
from recovery import BATCH, GRADIENT, UNDER_OTHER_NAMES, WHOLE_BATCH, method_of
from safetensors.torch import load_file, save
from torch import Tensor

import voltmeter as vm
from voltmeter.discover import Judge, method_named
from voltmeter.discover.discover import ask
from voltmeter.discover.known import known_question
from voltmeter.discover.method import Method
from voltmeter.discover.question import Question, cut_answers, plain_answers
from voltmeter.files import digest_json, write_file
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.compress import compressed, narrowest_exact
from voltmeter.rasp.imitate import Recipe, imitate
from voltmeter.rasp.model import CompiledTransformer
from voltmeter.rasp.programs import compiled, program
from voltmeter.rasp.setting import Question as Asked
from voltmeter.rasp.setting import setting_of
from voltmeter.rasp.truth import truth
from voltmeter.rasp.variants import Variant, compare, mixed, noised, rotated
from voltmeter.rasp.wired import wiring_of
from voltmeter.task.metric import Metric, logits_at_answer
from voltmeter.task.pairs import Pairs
from voltmeter.task.task import Task
from voltmeter.wiring.load import digest_of
from voltmeter.wiring.wiring import Wiring

Line = dict[str, Any]

PROGRAMS = (
    "reverse", "hist", "sort", "induction", "pair_balance", "running_parity",
    "frac_prevs_x", "most_frequent_token", "min_token", "first_last_equal", "double_hist", "pattern",
)  # fmt: skip
"""Of several families, 13 to 137 edges, one minimal circuit each under resample. The first N are taken."""

TRAINED = (
    "arena_palindrome", "arena_sum", "pizza_model_a", "clock_model_b", "dt_dynamic_obstacles",
    "trained addition", "trained sorting", "trained induction", "trained dyck",
)  # fmt: skip
STORIES = tuple(name for name in SUBJECTS if name.startswith("stories"))

INPUTS = 128  # of a program, at most: truth, scores and judgement are all over these
NOISES = (1e-2, 3e-3, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7)  # of the weights' size
WIDTHS = (0.9, 1.0)  # of the dimensions that lose nothing
ALIKE = 0.99  # of the answers: the most noise and the fewest dimensions are taken that leave so many as they were
RECIPE = Recipe()


@dataclass(frozen=True, eq=False)
class Subject:
    """One model. ``truth``: the edges of its program's only minimal circuit, None where none is known."""

    wiring: Wiring
    questions: Callable[[str], Question]
    judge: Judge
    truth: tuple[str, ...] | None
    about: Line


# Programs ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Workshop:
    """Makes the realisations of one program, each when it is asked for. ``kept``: where imitations are kept."""

    name: str
    fill: str
    seed: int
    kept: Path | None = None
    recipe: Recipe = field(default_factory=lambda: RECIPE)

    @cached_property
    def compiled(self) -> Compiled:
        return compiled(program(self.name), INPUTS)

    @cached_property
    def truth(self) -> tuple[str, ...]:
        """The only minimal circuit. Raises ValueError where there is not just one."""
        told = truth(self.compiled, self.fill, seed=self.seed)
        if not (told.certified and told.minimal_is_complete and len(told.minimal) == 1 and told.minimal[0]):
            raise ValueError(f"{self.name} has no unique circuit under {self.fill}: choose other programs")
        return tuple(told.minimal[0])

    def made(self, kind: str) -> tuple[Compiled, Line]:
        """A realisation, and what it took. Raises ValueError where no variant answers as the program does."""
        original = self.compiled
        match kind:
            case "compiled":
                return original, {}
            case "noised":
                return alike(noised(original, scale, self.seed, math.inf) for scale in NOISES)
            case "rotated":
                return alike([rotated(original, self.seed)])
            case "compressed":
                widths = [math.ceil(share * narrowest_exact(original)) for share in WIDTHS]
                return alike(compressed(original, width, self.seed, math.inf) for width in widths)
            case "aligned" | "imitated":
                recipe = replace(self.recipe, aligned=kind == "aligned")
                return replace(original, model=self.imitation(recipe)), asdict(recipe)
            case _:
                raise ValueError(f"a program has no realisation called {kind}")

    def imitation(self, recipe: Recipe) -> CompiledTransformer:
        """Trained on all of the program's inputs (up to 512), or read from where it was kept."""
        whole = compiled(program(self.name))
        key = digest_json({"model": digest_of(whole.model), "seed": self.seed, "recipe": asdict(recipe)})
        path = self.kept / f"{self.name}-{key[:16]}.safetensors" if self.kept else None
        if path is not None and path.exists():
            shape = replace(whole.model.shape, d_model=recipe.d_model, d_head=recipe.d_head, d_mlp=recipe.d_mlp)
            model = CompiledTransformer(shape, mixed(whole.model.interface, recipe.d_model))
            model.load_state_dict(load_file(path))
            return model
        model = imitate(whole, self.seed, recipe).variant.compiled.model
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_file(path, save({name: each.contiguous() for name, each in model.state_dict().items()}))
        return model

    def subject(self, kind: str) -> Subject:
        made, took = self.made(kind)
        wiring = wiring_of(made).wiring
        setting = setting_of(made, Asked(self.fill, seed=self.seed))

        @cache
        def of(objective: str, batch: int) -> Question:
            return known_question(made, wiring, setting, objective, self.seed, batch)

        whole = of("distance", WHOLE_BATCH)
        judge = Judge(wiring, whole.task, whole.task.train, whole.fill, WHOLE_BATCH)
        kept = torch.tensor([float(name in self.truth) for name in wiring.edges.names])
        deviation, agreement = compare(self.compiled, made.model)
        about = {"edges": len(wiring.edges), "pairs": len(made.inputs), "deviation": deviation, "agreement": agreement,
                 "truth_edges": len(self.truth), "truth_f": judge.measure(kept).normalised, "made": took}  # fmt: skip
        known = None if kind == "imitated" else self.truth
        return Subject(wiring, lambda name: of(*_output_question(name)), judge, known, about)


def alike(variants: Iterable[Variant]) -> tuple[Compiled, Line]:
    """The first variant that answers nearly as the original does, and its settings."""
    for each in variants:
        if each.agreement >= ALIKE:
            return each.compiled, {name: value for name, value in each.settings.items() if name != "tolerance"}
    raise ValueError("no variant of the program answers as it does: choose other programs")


def _output_question(name: str) -> tuple[str, int]:
    """What a method follows, and how many pairs it takes at once, where the question is the output."""
    return "projection" if name in GRADIENT else "distance", BATCH.get(name, WHOLE_BATCH)


# Trained models ---------------------------------------------------------------------------------------------------


def trained(name: str, question: str, fill: str, seed: int, assets: Path) -> Subject:
    """A trained model on one task, asked for its ``output`` or what the ``task`` asks."""
    model, task = SUBJECTS[name](assets)
    wiring = vm.wire(model, task.example)
    whole = ask(wiring, task, fill, seed=seed)
    tasks = dict.fromkeys(("distance", "projection"), task) if question == "task" else output_tasks(whole)

    @cache
    def of(objective: str, batch: int) -> Question:
        return Question(wiring, tasks[objective], whole.fill, seed, batch)

    judge = Judge(wiring, tasks["distance"], task.held_out, whole.fill)
    about = {"edges": len(wiring.edges), "pairs": len(task.held_out)}
    if question == "task":
        return Subject(wiring, lambda method: of("distance", whole.batch_size), judge, None, about)
    return Subject(wiring, lambda method: of(*_output_question(method)), judge, None, about)


def output_tasks(question: Question) -> dict[str, Task]:
    """The task with the output in place of its metric, once as a distance and once as a projection.

    The projection knows train pairs only, by their rows.
    """
    task = question.task
    found: dict[int, Tensor] = {}
    with torch.no_grad():
        for batch in question.batches():
            full = plain_answers(question.wiring, batch, task.metric)
            none = cut_answers(question.wiring, batch, torch.zeros(question.n_edges), task.metric)
            ways = centred(full, batch.pairs) - centred(none, batch.pairs)
            found |= dict(zip(batch.pairs.rows, ways, strict=True))
    if len(found) < len(task.train):
        raise ValueError(f"{task.name}: rows of its train pairs stand for several pairs")
    unit = torch.stack(list(found.values())).square().sum(-1).mean()

    def distance(outputs: Any, pairs: Pairs, full: Any) -> Tensor:
        return -(centred(outputs, pairs) - centred(full, pairs)).square().sum(-1) / unit

    def projection(outputs: Any, pairs: Pairs, full: Any) -> Tensor:
        ways = torch.stack([found[row] for row in pairs.rows])
        return (centred(outputs, pairs) * ways).sum(-1) / unit

    return {
        "distance": replace(task, metric=Metric("distance", distance, frozenset({"full"}), at_answer=True)),
        "projection": replace(task, metric=Metric("projection", projection, at_answer=True)),
    }


def centred(outputs: Any, pairs: Pairs) -> Tensor:
    """The logits at the answer less their mean, [pair, vocabulary]."""
    logits = logits_at_answer(outputs, pairs)[:, 0]
    return logits - logits.mean(-1, keepdim=True)


# Kinds ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class KindOf:
    """What a kind of model is made of: ``family`` of units, and the ``question`` put to them."""

    family: str
    question: str


REALISATIONS = ("compiled", "noised", "rotated", "compressed", "aligned", "imitated")
KINDS = {
    **dict.fromkeys(REALISATIONS, KindOf("programs", "output")),
    "trained-output": KindOf("tasks", "output"),
    "trained-task": KindOf("tasks", "task"),
    "stories-task": KindOf("stories", "task"),
    "stories-output": KindOf("stories", "output"),
}


def chosen_method(name: str, question: str) -> Method | None:
    """A method with the settings it has under a question. None: by its defaults it is another of the table."""
    if question == "output":
        return method_of(name, {"settings": {}})
    return None if name in UNDER_OTHER_NAMES else method_named(name)
