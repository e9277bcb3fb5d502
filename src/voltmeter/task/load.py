"""``load``: a model and a task by name, as on the command line."""

import os
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from voltmeter.errors import TaskError
from voltmeter.task.metric import metric_named
from voltmeter.task.sets import task_names, task_set
from voltmeter.task.task import Task, from_file
from voltmeter.task.tokens import Tokenizer, load_tokenizer
from voltmeter.wiring.load import LoadedModel, load_model


class Loaded(NamedTuple):
    """A model in eval mode, and the task asked for (None where none was)."""

    model: nn.Module
    task: Task | None


def load(model: str, task: str | None = None, *, seed: int = 0, dtype: torch.dtype | None = None) -> Loaded:
    """A model by name and a task by name or file: ``model, task = voltmeter.load("demo")``.

    ``model``: "demo", a Hugging Face id or directory, "hooked:DIR", "py:package.module:factory". ``task``: a built-in
    set ("stories-pronoun"), or a file of pairs; "demo" has one of its own. Raises LoadError, TaskError.
    """
    found = load_model(model, dtype=dtype)
    if task is None:
        task = "induction-demo" if found.kind == "demo" else None
    return Loaded(found.model, None if task is None else task_for(found, task, seed=seed))


def task_for(
    model: LoadedModel, task: str, *, seed: int = 0, metric: str | None = None, drop_misaligned: bool = False
) -> Task:
    """A task for a loaded model: a built-in set by name, or a file of pairs."""
    if task in task_names():
        made = task_set(task)(_tokenizer_of(model, task), seed)
        return made if metric is None else _with_metric(made, metric)
    if os.path.exists(task):  # False, too, for what cannot be a path
        tokenizer = None if model.tokenizer_dir is None else load_tokenizer(model.tokenizer_dir)
        as_dict = model.kind == "hugging-face"
        return from_file(task, tokenizer, metric=metric, seed=seed, drop_misaligned=drop_misaligned, as_dict=as_dict)
    raise TaskError(
        f"there is no task or file called '{task}'",
        [f"built-in tasks: {', '.join(task_names())}"],
        "give one of these, or a file of pairs (.jsonl, .json, .csv)",
    )


def _with_metric(task: Task, metric: str) -> Task:
    return replace(task, metric=metric_named(metric))


def _tokenizer_of(model: LoadedModel, task: str) -> Tokenizer | None:
    if model.tokenizer_dir is not None:
        tokenizer: Tokenizer = load_tokenizer(model.tokenizer_dir)
        return tokenizer
    if task == "induction-demo":
        return None
    raise TaskError(
        f"the task {task} is text, and {model.spec} has no tokenizer beside its weights",
        mend="put tokenizer.json into its directory, or give pairs of token ids",
    )
