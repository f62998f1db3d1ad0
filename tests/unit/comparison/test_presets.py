"""What presets set and claim, and how a broken file is reported."""

from pathlib import Path

import pytest
from click.testing import CliRunner

import mnist.cli
from mnist.comparison import presets
from mnist.core import config, paths
from mnist.core.config import Architecture, Params, Recipe
from mnist.core.errors import InputError
from mnist.training import model
from tests.checkout import ROOT
from tests.conftest import DIGITS

KNOWN = presets.load(ROOT / presets.PRESETS)


@pytest.fixture
def settings() -> Params:
    return config.load(ROOT / paths.PARAMS)


def test_a_preset_sets_every_param_that_its_accuracy_depends_on(settings: Params) -> None:
    """So that it keeps its claim whatever `params.yaml` holds; the seed and the split are free."""
    wanted = {*Architecture.model_fields, *Recipe.model_fields, "num_threads"}

    for one in KNOWN.values():
        assert set(one.overrides) == wanted <= set(settings.model_dump())
        assert one.overrides["permute_pixels"] == "false"  # as in params.yaml, not as in Python


def test_quick_has_as_many_parameters_as_the_tutorial(settings: Params) -> None:
    values = {**settings.model_dump(), **KNOWN["quick"].params.model_dump()}
    network = config.check(Params, values, "presets.yaml")
    classifier = model.build(network, classes=DIGITS.classes, seed=0, mean=0.1, std=0.3)

    assert model.num_parameters(classifier) == 6422


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "presets.yaml"
    text = (ROOT / presets.PRESETS).read_text()
    assert "lr: 0.018" in text
    file.write_text(text.replace("lr: 0.018", "lr: -1.0"))

    with pytest.raises(InputError) as caught:
        presets.load(file)

    assert str(caught.value).startswith(f"{file}: quick: params.lr: found -1.0")
    assert "\n" not in str(caught.value)


def test_an_unknown_name_is_an_error_with_those_there_are() -> None:
    with pytest.raises(InputError, match="one of quick, wide"):
        presets.named(KNOWN, "qick")


def test_options_of_the_user_come_last() -> None:
    arguments = presets.arguments("quick", KNOWN["quick"], ("--name", "mine", "-S", "lr=0.1"))

    assert arguments[:4] == ["exp", "run", "--name", "quick"]
    assert "lr=0.018" in arguments
    assert arguments[-4:] == ["--name", "mine", "-S", "lr=0.1"]


def test_the_listing_has_claims_and_what_differs(settings: Params) -> None:
    lines = presets.listing(KNOWN, settings).splitlines()

    assert [line.split()[0] for line in lines[::2]] == list(KNOWN)
    assert all(one.claim in line for one, line in zip(KNOWN.values(), lines[::2], strict=True))
    quick = lines[1].split()
    assert {"lr=0.018", "optimizer=adam"} <= set(quick)
    assert not {"n_features=6", "epochs=1", "permute_pixels=false"} & set(quick)  # as in params.yaml


@pytest.mark.parametrize(("status", "expected"), [(0, 0), (255, 2)])
def test_the_command_is_shown_and_run(status: int, expected: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ran = []

    def dvc(*arguments: str) -> int:
        ran.append(arguments)
        return status

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr("mnist.lineage.experiments.dvc", dvc)

    done = CliRunner().invoke(mnist.cli.main, ["preset", "quick", "--temp", "-S", "seed=3"])

    assert done.exit_code == expected
    (arguments,) = ran
    assert list(arguments) == presets.arguments("quick", KNOWN["quick"], ("--temp", "-S", "seed=3"))
    assert f"dvc {' '.join(arguments)}" in done.stdout
