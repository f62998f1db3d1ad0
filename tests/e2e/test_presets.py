"""What presets are, run as, and claim; on made ones first, then in a clone on small data."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from ruamel.yaml import YAML

from benchmarks import presets as bench_presets
from mnist.cli import preset
from mnist.comparison import presets
from mnist.comparison.presets import Preset
from mnist.core import config, paths
from mnist.core.config import Architecture, Params, Recipe
from mnist.core.errors import InputError
from mnist.training import loop, model
from mnist.training.history import Epoch
from tests import checkout
from tests.checkout import Clone
from tests.conftest import DIGITS, SmallData

ROOT = Path(__file__).parents[2]
KNOWN = presets.load(ROOT / presets.PRESETS)
BROKEN = {
    "no-mapping": ("- 1", "presets.yaml: found list"),
    "no-yaml": ("a: [", "presets.yaml: found no YAML"),
    "no-day": ("a: 2024-13-45", "presets.yaml: found no YAML"),
    "no-word": ("a/b c: 3", "presets.yaml: a/b c: found this name, expected letters, digits, - and _"),
    "an-option": ("--queue: 3", "presets.yaml: --queue: found this name"),
    "no-text": ("1: 3", "presets.yaml: 1: found this name"),
    "threads": ("num_threads: 2|num_threads: 5000", "params.num_threads: found 5000, expected"),
    "no-preset": ("bad: 3", "presets.yaml: bad: found int"),
    "range": ("lr: 0.018|lr: -1.0", "presets.yaml: bad: params.lr: found -1.0, expected greater than 0"),
    "type": ("epochs: 1|epochs: one", "presets.yaml: bad: params.epochs: found 'one'"),
    "unknown": ("shift: 1|shft: 1", "params.shft: found a key that nothing reads, expected 'params.shift'"),
    "missing": ("shift: 1|", "params.shift: found nothing, expected a value"),
    "no-limit": ("max_ratio: 0.25|", "presets.yaml: bad: found neither, expected max_ratio or max_s"),
    "two-limits": (
        "max_ratio: 0.25|max_ratio: 0.25\n  max_seconds: 2",
        "presets.yaml: bad: found both, expected max_ratio or",
    ),
}


@pytest.fixture
def settings() -> Params:
    return config.load(ROOT / paths.PARAMS)


def test_a_preset_sets_every_param_that_its_accuracy_depends_on(settings: Params) -> None:
    """So that it keeps its claim whatever `params.yaml` says; the seed and the split are free."""
    wanted = {*Architecture.model_fields, *Recipe.model_fields, "num_threads"}

    for one in KNOWN.values():
        assert set(one.overrides) == wanted <= set(settings.model_dump())
        assert one.overrides["permute_pixels"] == "false"  # as in params.yaml, not as in Python


@pytest.mark.parametrize("name", KNOWN)
def test_the_words_of_a_claim_are_its_numbers(name: str) -> None:
    one = KNOWN[name]
    spelled = {0.25: "a quarter of", 0.75: "three quarters of", 1.0: "in the time of", 120: "two minutes"}

    assert one.claim.startswith(f"{100 * one.accuracy:g} % ")
    assert spelled[one.max_ratio or one.max_seconds or 0] in one.claim


def test_quick_has_as_many_parameters_as_the_tutorial(settings: Params) -> None:
    quick = settings.model_copy(update=KNOWN["quick"].params.model_dump())

    assert model.num_parameters(model.build(quick, classes=DIGITS.classes, seed=0, mean=0.1, std=0.3)) == 6422
    assert "6,422" in KNOWN["quick"].claim


@pytest.mark.parametrize("name", KNOWN)
def test_a_preset_trains(name: str, settings: Params, small_data: SmallData) -> None:
    values = {**settings.model_dump(), **KNOWN[name].params.model_dump(), "epochs": 1}
    whole = config.check(Params, values, "presets.yaml")
    torch.set_num_threads(1)
    classifier = model.build(whole, classes=DIGITS.classes, seed=0, mean=0.1, std=0.3)

    *_, last = loop.fit(
        classifier,
        train=small_data.train,
        val=small_data.test,
        recipe=whole,
        seed=0,
        device=torch.device("cpu"),
        precision="float32",
    )

    assert isinstance(last, Epoch)
    assert last.val_loss < 2.303  # of a network that knows nothing, log 10


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_one_line(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault, message = BROKEN[name]
    if "|" in fault:
        _, _, rest = (ROOT / presets.PRESETS).read_text().partition("\nquick:\n")
        old, new = fault.split("|")
        text = "bad:\n" + rest.partition("\n\n")[0]
        assert old in text
        fault = text.replace(old, new)
    (tmp_path / presets.PRESETS).write_text(fault)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(InputError) as caught:
        presets.load(presets.PRESETS)

    assert message in str(caught.value)
    assert str(caught.value).startswith("presets.yaml: ")
    assert "\n" not in str(caught.value)


def test_no_file_and_no_text_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found no such file"):
        presets.load(tmp_path / presets.PRESETS)
    (tmp_path / presets.PRESETS).write_bytes(b"\xff")
    with pytest.raises(InputError, match="found no YAML"):
        presets.load(tmp_path / presets.PRESETS)


@pytest.mark.parametrize(
    ("name", "expected"), [("qick", "'quick', perhaps"), ("???", f"one of {', '.join(KNOWN)}")]
)
def test_an_unknown_name_is_one_line_with_the_closest(
    name: str, expected: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as caught:
        preset.main([name, "--queue"])

    assert caught.value.code == f"ERROR: presets.yaml: found no preset {name!r}, expected {expected}"
    assert capsys.readouterr().out == ""


def test_options_before_a_name_are_told(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        preset.main(["--queue", "quick"])

    assert caught.value.code == 2
    assert capsys.readouterr().err.endswith(
        "error: --queue: expected the name of a preset, and options after it\n"
    )


def test_the_listing_has_claims_and_what_differs(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)

    preset.main([])

    *lines, last = capsys.readouterr().out.splitlines()
    assert "make preset NAME=" in last
    assert [line.split("  ")[0] for line in lines[::2]] == list(KNOWN)
    assert all(one.claim in line for one, line in zip(KNOWN.values(), lines[::2], strict=True))
    quick = lines[1].split()
    assert {"lr=0.018", "optimizer=adam"} <= set(quick)
    assert not {"n_features=6", "epochs=1", "permute_pixels=false"} & set(quick)  # as in params.yaml


@pytest.mark.parametrize(
    ("taken", "expected"),
    [
        ([], "wide"),
        (["quick", "wider", "wide-open", "un-wide"], "wide"),
        (["wide"], "wide-2"),
        (["wide", "wide-2", "wide-4"], "wide-3"),
        (["wide-1", "wide-2"], "wide-3"),
        (["wide-2", "wide-3-1"], "wide-4"),
    ],
    ids=str,
)
def test_a_name_is_free_with_all_that_dvc_makes_of_it(taken: list[str], expected: str) -> None:
    assert preset.free_name("wide", taken) == expected


@pytest.mark.parametrize(
    "options", [["-n", "mine"], ["-nmine"], ["--name", "mine"], ["--name=mine"]], ids=str
)
def test_a_name_of_the_users_own_stays(options: list[str]) -> None:
    assert preset.command("quick", KNOWN["quick"], options, ["quick"]).count("--name") == options.count(
        "--name"
    )


def made(accuracy: float, seconds: float) -> dict[str, list[float]]:
    return {
        "seconds": [seconds, 2 * seconds, seconds],
        "val_accuracy": [0.97, 0.98, 0.99],
        "test_accuracy": [accuracy - 0.001, accuracy, accuracy + 0.001],
        "num_parameters": [1000.0] * 3,
    }


@pytest.mark.parametrize(
    ("accuracy", "seconds", "limit", "holds"),
    [
        (0.9801, 2.0, {"max_ratio": 0.5}, "yes"),
        (0.9799, 2.0, {"max_ratio": 0.5}, "NO: accuracy"),
        (0.9801, 2.1, {"max_ratio": 0.5}, "NO: time"),
        (0.9801, 2.1, {"max_seconds": 3}, "yes"),
        (0.9799, 3.1, {"max_seconds": 3}, "NO: accuracy and time"),
    ],
)
def test_a_claim_holds_or_not(accuracy: float, seconds: float, limit: dict[str, float], holds: str) -> None:
    one = {**KNOWN["quick"].model_dump(), "accuracy": 0.98, "max_ratio": None, **limit, "claim": "Much"}
    known = {"one": config.check(Preset, one, "made")}
    measured = {"tutorial": {"epoch_seconds": [3.0, 4.0, 9.0]}, "one": made(accuracy, seconds)}

    result = bench_presets.summary(measured, known)

    assert json.loads(json.dumps(result, allow_nan=False)) == result
    spread = f"{seconds:.2f} s | {seconds:.2f} to {2 * seconds:.2f} s"
    first, _, tutorial, last = bench_presets.tables(result).splitlines()
    assert "| test accuracy, 3 seeds |" in first
    assert tutorial == "| the tutorial's script | 6,422 | 1 | 4.00 s | 3.00 to 9.00 s | 1.00 x | | | |"
    assert last == (
        f"| `one` | 1,000 | 1 | {spread} | {seconds / 4:.2f} x |"
        f" {100 * accuracy:.2f} ± 0.10 % | Much | {holds} |"
    )


# From here on: in one clone, in this order.

SMALL = ["-S", "epochs=2", "-S", "batch_size=16", "-S", "num_threads=1"]  # which learns the small data


@pytest.fixture(scope="module")
def clone(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A checkout of this file's own, committed, in which the data are ready."""
    folder = tmp_path_factory.mktemp("clone") / "pipeline"
    yield checkout.clone_with_data(folder, small_data)
    shutil.rmtree(folder)


def experiments(clone: Clone) -> dict[str, str]:
    """The commits of the experiments that have ended, by name."""
    listed = clone.run("git", "for-each-ref", "--format=%(refname) %(objectname)", "refs/exps").stdout
    pairs = [line.split() for line in listed.splitlines()]
    return {ref.split("/")[-1]: commit for ref, commit in pairs if ref.count("/") == 4}


def params_of(clone: Clone, revision: str) -> Params:
    path = clone.folder.parent / "params.yaml"
    path.write_text(clone.run("git", "show", f"{revision}:params.yaml").stdout)
    return config.load(path)


def test_a_preset_runs_as_an_experiment_of_its_name(clone: Clone) -> None:
    output = clone.run("python", "-m", "mnist.cli.preset", "quick", *SMALL).stdout

    assert list(experiments(clone)) == ["quick"]
    found = params_of(clone, experiments(clone)["quick"])
    expected = {**KNOWN["quick"].params.model_dump(), "epochs": 2, "batch_size": 16, "num_threads": 1}
    assert {key: getattr(found, key) for key in expected} == expected
    (typed,) = [line for line in output.splitlines() if line.startswith("dvc exp run")]
    assert shlex.split(typed) == preset.command("quick", KNOWN["quick"], SMALL, [])
    lock = YAML(typ="safe").load(clone.read("dvc.lock"))
    assert lock["stages"]["train"]["params"]["params.yaml"]["optimizer"] == "adam"


def test_again_it_takes_the_next_name_in_a_workspace_that_has_changed(clone: Clone) -> None:
    """And what the last experiment left in the workspace does not get into this one."""
    assert clone.run("git", "status", "--porcelain").stdout
    expected = KNOWN["wide"].params.model_dump()

    clone.run("python", "-m", "mnist.cli.preset", "quick", "--temp", *SMALL, "-S", "seed=7")
    clone.run("python", "-m", "mnist.cli.preset", "wide", *SMALL[2:], "-S", "epochs=1")

    assert sorted(experiments(clone)) == ["quick", "quick-2", "wide"]
    assert params_of(clone, experiments(clone)["quick-2"]).seed == 7
    found = params_of(clone, experiments(clone)["wide"])
    changed = {"epochs": 1, "batch_size": 16, "num_threads": 1}
    assert {key: getattr(found, key) for key in expected} == {**expected, **changed}
    assert found.seed == checkout.SMALL["seed"]


def test_a_queue_over_seeds_meets_no_other_name(clone: Clone) -> None:
    for _ in range(2):
        clone.run("python", "-m", "mnist.cli.preset", "wide", "--queue", *SMALL, "-S", "seed=range(0,2)")

    shown = clone.run("dvc", "queue", "status").stdout

    queued = [line.split()[1] for line in shown.splitlines() if "Queued" in line]
    assert sorted(queued) == ["wide-2-1", "wide-2-2", "wide-3-1", "wide-3-2"]
    clone.run("dvc", "queue", "remove", "--queued")


def test_dvc_has_the_last_word(clone: Clone) -> None:
    unknown = clone.run("python", "-m", "mnist.cli.preset", "quick", "--colour", check=False)
    refused = clone.run("python", "-m", "mnist.cli.preset", "quick", "-n", "quick", *SMALL, check=False)

    assert unknown.returncode == 254
    assert "unrecognized arguments: --colour" in unknown.stdout
    assert refused.returncode != 0
    assert "Experiment conflicts with existing experiment 'quick'" in refused.stdout


def test_without_a_checkout_it_is_one_line(clone: Clone) -> None:
    folder = clone.folder.parent / "bare"
    folder.mkdir()
    for name in (str(presets.PRESETS), str(paths.PARAMS)):
        shutil.copy2(clone.folder / name, folder / name)
    environment = {**clone.environment, "PYTHONPATH": str(clone.folder)}
    environment["GIT_CEILING_DIRECTORIES"] = str(folder.parent)
    bare = Clone(folder=folder, environment=environment)

    done = bare.run("python", "-m", "mnist.cli.preset", "quick", check=False)

    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1)
    assert done.stdout.startswith(f"ERROR: {folder}: ")


def test_the_bench_trains_each_seed_and_scores_test_images(clone: Clone) -> None:
    clone.run("git", "checkout", "-q", ".")
    clone.run("git", "clean", "-qfd")
    text = clone.read("presets.yaml").replace(
        "epochs: 1\n    batch_size: 128", "epochs: 2\n    batch_size: 16", 1
    )
    (clone.folder / "presets.yaml").write_text(text)
    clone.commit("A preset for small data")
    (clone.folder / "presets.yaml").write_text("no preset: of what is not committed nothing is measured")

    code = (
        "import json; from benchmarks import harness, presets\n"
        "with harness.prepared() as bench:\n"
        "    result = presets.measure_all(bench, num_rounds=1, num_seeds=2, only=['quick'])\n"
        "print(json.dumps(result))"
    )
    result = json.loads(clone.run("python", "-c", code).stdout.splitlines()[-1])
    assert list(result["presets"]) == ["quick"]
    quick = result["presets"]["quick"]
    assert (quick["num_parameters"], quick["epochs"]) == (6422, 2)
    assert 0.5 < quick["test_accuracy"]["mean"] <= 1
    assert quick["test_accuracy"]["mean"] * 600 == pytest.approx(
        round(quick["test_accuracy"]["mean"] * 600), abs=1e-3
    )
    assert 0 < quick["min"] <= quick["median"] <= quick["max"]
