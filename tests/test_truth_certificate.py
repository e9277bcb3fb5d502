"""The certificate as a file, and its check from scratch."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from known_models import export, planted, random_model, two_paths, veto

from voltmeter.errors import FormatError, LoadError, TruthError
from voltmeter.files import json_bytes, parse_object, seal
from voltmeter.rasp import verify as verify_module
from voltmeter.rasp.certificate import Certificate
from voltmeter.rasp.compiled import Compiled
from voltmeter.rasp.truth import truth
from voltmeter.rasp.verify import verify
from voltmeter.rasp.wired import Wired, random_twin, wiring_of


def saved(certificate: Certificate, directory: Path) -> Path:
    certificate.save(directory / "certificate.json")
    return directory / "certificate.json"


def tampered(path: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The file with something changed and sealed again, as by someone who means it."""
    document = parse_object(path.read_bytes(), str(path))
    edit(document)
    body = {key: value for key, value in document.items() if key not in ("kind", "schema", "digest")}
    path.write_bytes(json_bytes(seal(body, document["kind"], document["schema"])))
    return path


# The file ------------------------------------------------------------------------------------------------------


def test_a_certificate_comes_back_as_it_was(tmp_path: Path) -> None:
    for number, (compiled, fill) in enumerate([(export("reverse"), "zero"), (two_paths(), "mean"), (veto(), "zero")]):
        certificate = truth(compiled, fill, seed=4)
        path = saved(certificate, tmp_path / str(number))
        back = Certificate.load(path)
        assert back == certificate
        assert back.document() == certificate.document()
    assert [file.name for file in tmp_path.iterdir() if "partial" in file.name] == []


def test_the_file_says_what_it_rests_on(tmp_path: Path) -> None:
    document = json.loads(saved(truth(export("frac_prevs_x"), "resample", "random", seed=2), tmp_path).read_text())
    assert document["kind"] == "certificate"
    assert document["question"] == {
        "fill": "resample",
        "positions": "random",
        "output": "raw",
        "tolerance": 1e-6,
        "seed": 2,
    }
    assert (document["dtype"], document["n_inputs"], document["outputs"]) == ("float64", 512, ["frac_prevs_7"])
    assert set(document["versions"]) == {"voltmeter", "torch"}
    assert len(document["effects"]) == 32
    assert len(document["model"]) == len(document["inputs"]) == 64
    assert len(document["necessary"]) == 5


def test_damaged_files_are_errors(tmp_path: Path) -> None:
    path = saved(truth(veto(), "zero"), tmp_path)
    with pytest.raises(LoadError, match="there is no file"):
        Certificate.load(tmp_path / "none.json")
    text = path.read_text()
    path.write_text(text.replace('"sufficient": true', '"sufficient": false'))
    with pytest.raises(FormatError, match="its digest is not that of its content"):
        Certificate.load(path)
    path.write_text(text[:-30])
    with pytest.raises(FormatError, match="is damaged"):
        Certificate.load(path)
    path.write_text(text)
    with pytest.raises(FormatError, match="is no whole certificate"):
        Certificate.load(tampered(path, lambda d: d.pop("restoring")))
    path.write_text(text)
    with pytest.raises(TruthError, match="contradicts itself") as caught:
        Certificate.load(tampered(path, lambda d: d["necessary"].pop()))
    assert "m0 -> logits" in str(caught.value)
    for edit in (
        lambda d: d.update(necessary=5),
        lambda d: d.update(necessary=[["m0 -> m1"]]),
        lambda d: d.pop("necessary"),
        lambda d: d.update(effects=[1.0]),
        lambda d: d["effects"].update({"m0 -> m1": "six"}),
    ):
        path.write_text(text)
        with pytest.raises(FormatError, match="is no whole certificate"):
            Certificate.load(tampered(path, edit))


# The check -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fill", "positions"),
    [
        ("zero", "paired"),
        ("mean", "paired"),
        ("mean-position", "paired"),
        ("resample", "paired"),
        ("resample", "random"),
    ],
)
def test_certificates_check(fill: str, positions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of one model whose truth is unique and two whose it is not; raw and decoded."""
    monkeypatch.setattr(verify_module, "wiring_of", wired_once)
    for compiled, output in zip(checked_models(), ("raw", "decoded", "raw"), strict=True):
        certificate = truth(compiled, fill, positions, output=output, seed=1)
        found = verify(certificate, compiled, pairs=10, samples=5)
        assert found.circuits > len(certificate.effects)
        assert found.pairs == min(10, found.all_pairs)


def test_a_check_may_try_every_pair() -> None:
    compiled = export("hist")
    found = verify(truth(compiled, "zero"), compiled, pairs=None, samples=7)
    assert found.pairs == found.all_pairs == 6 * 7 + 6 * 5 // 2  # with another edge, and of two necessary ones
    assert found.samples == 7


def test_nothing_of_the_fast_code_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = export("hist")
    certificate = truth(compiled, "resample", "random")
    asked: list[bool] = []
    run = verify_module.run

    def watched(*args: Any, **kwargs: Any) -> Any:
        asked.append(kwargs.get("reference", False))
        assert args[2].dim() == 1  # one circuit at a time
        return run(*args, **kwargs)

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("the fast code was asked")

    monkeypatch.setattr(verify_module, "run", watched)
    for name in ("effects.further_cuts", "effects.run_cut", "search.minimal_circuits", "machine.written"):
        monkeypatch.setattr(f"voltmeter.rasp.{name}", refused)
    found = verify(certificate, compiled, pairs=5, samples=5)
    assert len(asked) == found.circuits
    assert all(asked)


def _effect(document: dict[str, Any]) -> None:
    document["effects"]["m0 -> m1"] = 0.5


def _other_necessary(document: dict[str, Any]) -> None:
    document["effects"]["m0 -> m1"] = 0.0
    document["necessary"].remove("m0 -> m1")


def _renamed(document: dict[str, Any]) -> None:
    document["effects"] = {name.replace("m0 -> m1", "m0 -> m9"): figure for name, figure in document["effects"].items()}
    document["necessary"] = [name.replace("m0 -> m1", "m0 -> m9") for name in document["necessary"]]


def _yes_of_a_search_that_stopped(document: dict[str, Any]) -> None:
    document["grades"]["unique"] = "yes"
    document["search"] = "stopped"


def _presumed_of_another(document: dict[str, Any]) -> None:
    document["grades"].update(unique="presumed", one_minimal=True)
    document["search"] = "unsure"


@pytest.mark.parametrize(
    ("edit", "text"),
    [
        (_effect, "the effect of cutting m0 -> m1: 0.5 is certified, 6 was measured"),
        (_other_necessary, "the effect of cutting m0 -> m1: 0 is certified, 6 was measured"),
        (_renamed, "the certificate has other edges than the model: m0 -> m9"),
        (lambda d: d["grades"].update(sufficient=False), "sufficient: False is certified, True was found"),
        (lambda d: d["grades"].update(one_minimal=True), "one_minimal: True is certified, False was found"),
        (lambda d: d["grades"].update(unique="yes"), "unique: yes is certified, no was found"),
        (_yes_of_a_search_that_stopped, "unique is 'yes', but the search is certified as 'stopped'"),
        (lambda d: d["grades"].update(unique="presumed"), "which only a sufficient and 1-minimal set of edges can be"),
        (lambda d: d["grades"].update(unique="presumed"), "the search is certified as whole, which shows 'no'"),
        (_presumed_of_another, "unique is 'presumed', but another circuit is named than the necessary edges"),
        (lambda d: d.update(answers=18), "number of decoded answers: 18 is certified, None was given"),
        (lambda d: d["grades"].update(no_restoring_pair=True), "no_restoring_pair: True is certified, False was found"),
        (lambda d: d.update(droppable=[]), r"the necessary edges that can be dropped: \[\] is certified"),
        (lambda d: d["minimal"][0].append("m1 -> logits"), "minimal circuit 0 suffices without m1 -> logits"),
        (lambda d: d["minimal"][0].pop(), "minimal circuit 0 .1 edges. is not sufficient"),
        (
            lambda d: d.update(restoring=[["m0 -> m1", "input.pos -> m0"]]),
            "the pair m0 -> m1, input.pos -> m0 does not restore the output",
        ),
        (lambda d: d.update(restoring=[["m1 -> logits", "m0 -> m1"]]), "is not one of a necessary edge and another"),
        (lambda d: d.update(restoring=[]), "cutting m1 -> logits restores the output"),
        (lambda d: d.update(nothing_kept=0.0), "the change with every edge cut: 0 is certified, 3 was measured"),
        (lambda d: d.update(necessary_kept=1e-7), "only the necessary edges kept: 1e-07 is certified"),
        (lambda d: d.update(outputs_vary=False), "the outputs vary over the inputs, the certificate says otherwise"),
        (lambda d: d.update(size=1e3), "the largest number of an output: 1000 is certified, 3 was measured"),
        (lambda d: d["provenance"].pop(), "provenance: "),
        (lambda d: d["explained"].pop(), "the edges explained: "),
        (lambda d: d["question"].update(fill="mean"), "is certified, .* was measured"),
        (lambda d: d["question"].update(fill="resample", seed=1), "was measured"),
        (lambda d: d.update(model="0" * 64), "model's digest: 0000"),
        (lambda d: d.update(inputs="0" * 64), "inputs' digest: 0000"),
        (lambda d: d.update(n_inputs=8), "number of inputs: 8 is certified, 9 was given"),
        (lambda d: d.update(dtype="float32"), "dtype: float32 is certified, float64 was given"),
        (lambda d: d.update(outputs=["x"]), "output: "),
    ],
)
def test_a_tampered_certificate_fails_naming_what_differs(
    edit: Callable[[dict[str, Any]], object], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tampered(saved(honest()[1], tmp_path), edit)
    monkeypatch.setattr(verify_module, "wiring_of", wired_once)
    with pytest.raises(TruthError, match=text):
        verify(Certificate.load(path), honest()[0], pairs=None if "cutting m1" in text else 0, samples=1)


def test_what_is_no_certificate_does_not_check(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every figure is true, and yet τ lies between effects that are 58 times apart."""
    compiled = scaled(1 / 58)
    monkeypatch.setattr(verify_module, "wiring_of", wired_once)
    it = truth(compiled, "zero", tolerance=0.1)
    assert not it.certified
    with pytest.raises(TruthError, match=r"1 of its statements differ\n  its gap is 58: that is no certificate"):
        verify(it, compiled, pairs=0, samples=0)
    hidden = truth(compiled, "zero", tolerance=10.0)
    with pytest.raises(TruthError, match="its tolerance hides a change: that is no certificate"):
        verify(hidden, compiled, pairs=0, samples=0)


@cache
def scaled(share: float) -> Compiled:
    """out = x + share * x, by two MLPs."""
    return planted([[({"x": 1}, {"out": 1})], [({"x": 1}, {"out": share})]])


def test_an_effect_that_crosses_a_small_tolerance_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounding forgives 1e-9, but not which edges are necessary."""
    compiled, _ = honest()
    monkeypatch.setattr(verify_module, "wiring_of", wired_once)
    certificate = truth(compiled, "zero", tolerance=1e-10)
    verify(certificate, compiled, pairs=0, samples=0)
    lie = dataclasses.replace(certificate, effects={**certificate.effects, "input.pos -> m0": 2e-10})
    with pytest.raises(TruthError, match=r"input\.pos -> m0: 2e-10 is certified, 0 was measured, across"):
        verify(lie, compiled, pairs=0, samples=0)


@cache
def honest() -> tuple[Compiled, Certificate]:
    compiled = veto()
    return compiled, truth(compiled, "zero")


@cache
def checked_models() -> tuple[Compiled, ...]:
    one = random_model(1)
    return one, one, two_paths()


@cache
def wired_once(compiled: Compiled) -> Wired:
    """Wiring costs more than all else here, and has its own tests."""
    return wiring_of(compiled)


def test_uniqueness_that_is_not_is_found_by_trying() -> None:
    """A certificate that hides a veto behind "presumed": some random circuit without it suffices."""
    compiled = hidden_veto()
    certificate = truth(compiled, "zero")
    assert certificate.grades.unique == "no"
    lie = dataclasses.replace(
        certificate,
        grades=dataclasses.replace(certificate.grades, unique="presumed", no_restoring_pair=None),
        restoring=(),
        minimal=(certificate.necessary,),
        search="stopped",
    )
    with pytest.raises(TruthError, match="is sufficient too"):
        verify(lie, compiled, pairs=0, samples=12)


def hidden_veto() -> Compiled:
    """out = x + relu(x - 9 p), p = x: each of the two addends alone would do."""
    return planted([[({"x": 1}, {"out": 1})], [({"x": 1}, {"p": 1})], [({"x": 1, "p": -9}, {"out": 1})]], ["p"])


def test_a_certificate_of_another_model_or_other_inputs() -> None:
    certificate = truth(export("hist"), "zero")
    with pytest.raises(TruthError, match="is of something else") as caught:
        verify(certificate, export("length"))
    assert "program: hist is certified, length was given" in str(caught.value)
    assert "model's digest" in str(caught.value)
    fewer = dataclasses.replace(export("hist"), inputs=export("hist").inputs[1:], outputs=export("hist").outputs[1:])
    with pytest.raises(TruthError, match="inputs' digest") as caught:
        verify(certificate, fewer)
    assert "model's digest" not in str(caught.value)
    assert "number of inputs: 243 is certified, 242 was given" in str(caught.value)


# Wirings -------------------------------------------------------------------------------------------------------


def test_wirings_say_what_they_were_verified_on() -> None:
    assert wiring_of(export("reverse")).verified_on == "inputs"
    assert wiring_of(export("sort_unique")).verified_on == "vocabulary"
    mute = planted([[({"x": 1}, {"out": 0})]])  # nothing reaches the output
    wired = wiring_of(mute)
    assert wired.verified_on == "twin"
    assert wired.wiring.model is mute.model
    assert "input.tok -> m0" in wired.wiring.edges.names
    assert verify(truth(mute, "zero"), mute, pairs=0, samples=0).wired == "twin"


def test_a_twin_has_the_shape_and_none_of_the_weights() -> None:
    model = export("hist").model
    twin = random_twin(model)
    assert twin.shape == model.shape
    for name, parameter in twin.named_parameters():
        assert bool((parameter != model.get_parameter(name)).any())
    assert torch.equal(twin.unembedding.weight, random_twin(model).unembedding.weight)


@pytest.mark.parametrize(
    ("copies", "said"), [(0, "no minimal circuit is named"), (2, "a minimal circuit is named twice")]
)
def test_a_search_that_is_said_to_be_whole_names_each_circuit_once(copies: int, said: str) -> None:
    it = export("hist")
    true = truth(it, "resample")
    grades = dataclasses.replace(true.grades, unique="no")
    lie = dataclasses.replace(true, minimal=(true.necessary,) * copies, grades=grades)
    with pytest.raises(TruthError, match=said):
        verify(lie, it)
