"""The fingerprint of a training, and the command that makes it again."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest

from mnist.core.errors import InputError
from mnist.lineage import fingerprint
from tests.checkout import Repository, repository

ROOT = Path(__file__).parents[3]


def git(*arguments: str) -> str:
    return Repository(Path.cwd()).git(*arguments)


FILES = {
    "dvc.yaml": "stages: {train: {cmd: t, deps: [data/mnist.safetensors, code.py], params: [lr, seed]}}",
    "params.yaml": "lr: 0.01\nseed: 0\nsection:\n  names: [a, b]\n",
    "data/mnist.safetensors": "images",
    "code.py": "one = 1\n",
    "metrics/test.json": "{}",
}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small repository whose training depends on two files; it is the current folder."""
    for variable in ("DVC_ROOT", "DVC_EXP_NAME", "DVC_EXP_BASELINE_REV"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(repository(tmp_path, FILES).folder)
    git("branch", "-m", "topic")
    return tmp_path


def digest() -> str:
    return fingerprint.of_training().fingerprint


def apply(patch: str) -> None:
    """Apply a patch to the clean checkout."""
    git("checkout", "-q", "--", ".")
    Path("dirty.patch").write_bytes(patch.encode(errors="surrogateescape"))
    git("apply", "--whitespace=nowarn", "dirty.patch")


def test_equal_inputs_have_one_fingerprint_wherever_they_are(
    checkout: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(checkout, elsewhere)
    assert fingerprint.of_training(elsewhere).fingerprint == digest()


@pytest.mark.parametrize("name", ["data/mnist.safetensors", "code.py"])
def test_another_byte_in_a_dep_is_another_training(checkout: Path, name: str) -> None:
    before = digest()
    (checkout / name).write_text("something else")
    assert digest() != before


@pytest.mark.parametrize(("key", "is_another"), [("lr", True), ("unlisted", False)])
def test_another_value_of_a_listed_param_is_another_training(
    checkout: Path, key: str, is_another: bool
) -> None:
    before = digest()
    params = "lr: 0.01\nseed: 0\nunlisted: 0\nsection:\n  names: [a, b]\n"
    (checkout / "params.yaml").write_text(params.replace(f"{key}: 0", f"{key}: 9"))
    assert (digest() != before) == is_another


def test_equal_numbers_are_equal_however_they_are_written(checkout: Path) -> None:
    found = set()
    for lr in ("1", "1.0", "1e0"):
        (checkout / "params.yaml").write_text(f"lr: {lr}\nseed: 0\n")
        found.add(digest())
    assert len(found) == 1
    (checkout / "params.yaml").write_text("lr: true\nseed: 0\n")
    assert digest() not in found


def test_what_is_missing_is_named(checkout: Path) -> None:
    (checkout / "code.py").unlink()
    with pytest.raises(InputError, match=r"^code\.py: found no such file"):
        fingerprint.of_training()
    (checkout / "params.yaml").write_text("lr: 0.01\n")
    with pytest.raises(InputError, match=r"^params\.yaml: found no seed"):
        fingerprint.of_training()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "stages: [",
        "stages: hello",
        "stages: {train: {}}",
        "stages: {train: {cmd: t, deps: [code.py], params: }}",
        "stages: {train: {cmd: t, deps: [[a]], params: []}}",
    ],
)
def test_a_pipeline_without_training_is_an_error_of_one_line(checkout: Path, text: str) -> None:
    (checkout / "dvc.yaml").write_text(text)
    with pytest.raises(InputError, match=r"^dvc\.yaml.*: found .*, expected ") as caught:
        fingerprint.of_training()
    assert "\n" not in str(caught.value)


def test_a_clean_checkout_is_rerun_by_its_commit(checkout: Path) -> None:
    commit = git("rev-parse", "HEAD")
    (checkout / "metrics/test.json").write_text("made by the pipeline")
    source = fingerprint.source()
    assert (source.commit, source.branch, source.patch) == (commit, "topic", "")
    assert source.rerun == f"git checkout {commit[:12]} && dvc repro"
    assert source.name == f"topic-{commit[:7]}"


def test_changed_params_are_rerun_as_an_experiment(checkout: Path) -> None:
    text = (checkout / "params.yaml").read_text()
    (checkout / "params.yaml").write_text(text.replace("0.01", "1e-05").replace("[a, b]", "[c]"))
    source = fingerprint.source()
    assert (
        source.rerun
        == f"""git checkout {source.commit[:12]} && dvc exp run -S lr=1e-05 -S 'section.names=["c"]'"""
    )
    assert "+lr: 1e-05" in source.patch


@pytest.mark.parametrize("setting", ["color.ui=always", "diff.noprefix=true", "diff.external=false"])
def test_changed_code_is_rerun_from_the_patch(checkout: Path, setting: str) -> None:
    git("config", *setting.split("="))
    (checkout / "code.py").write_text("one = 2\n")
    source = fingerprint.source()
    assert source.rerun == f"git checkout {source.commit[:12]} && git apply dirty.patch && dvc repro"
    apply(source.patch)
    assert (checkout / "code.py").read_text() == "one = 2\n"


def test_a_dep_that_git_does_not_know_yet_is_in_the_patch(checkout: Path) -> None:
    text = (checkout / "dvc.yaml").read_text().replace("code.py", "code.py, new.py")
    (checkout / "dvc.yaml").write_text(text)
    (checkout / "new.py").write_text("two = 2\n")
    (checkout / "notes.txt").write_text("no input")
    source = fingerprint.source()
    assert git("status", "--porcelain").splitlines()[1:] == ["?? new.py", "?? notes.txt"]  # as it was
    assert "notes" not in source.patch
    (checkout / "new.py").unlink()
    apply(source.patch)
    assert (checkout / "new.py").read_text() == "two = 2\n"
    assert (checkout / "dvc.yaml").read_text() == text


def test_an_experiment_goes_by_its_name_and_baseline(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    baseline = git("rev-parse", "HEAD")
    (checkout / "params.yaml").write_text("lr: 0.05\nseed: 0\nsection:\n  names: [a, b]\n")
    git("commit", "-qam", "what DVC commits for an experiment")
    monkeypatch.setenv("DVC_EXP_NAME", "runny-jibe")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", baseline)
    source = fingerprint.source()
    assert (source.name, source.commit) == ("runny-jibe", baseline)
    assert source.rerun == f"git checkout {baseline[:12]} && dvc exp run -S lr=0.05"


def test_outside_git_there_is_no_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    source = fingerprint.source()
    assert (source.commit, source.branch, source.patch, source.rerun) == ("", "", "", "dvc repro")
    assert source.name == "no-commit"


@pytest.mark.parametrize("name", ["README.md", ".dvc/config", "metrics/test.json"])
def test_what_no_stage_depends_on_stays_here(checkout: Path, name: str) -> None:
    path = checkout / name
    path.parent.mkdir(exist_ok=True)
    path.write_text("old")
    git("add", ".")
    git("commit", "-qm", "second")
    baseline = git("rev-parse", "HEAD")
    path.write_text("password = SECRET")
    seen = fingerprint.source()
    assert (seen.patch, seen.rerun) == ("", f"git checkout {baseline[:12]} && dvc repro")
    git("commit", "-qam", "third")
    assert fingerprint.source_of(baseline, revision="HEAD", branch="topic") == seen


def test_what_was_a_dep_at_the_commit_is_in_the_patch(checkout: Path) -> None:
    text = (checkout / "dvc.yaml").read_text()
    (checkout / "dvc.yaml").write_text(text.replace("code.py", "renamed.py"))
    (checkout / "code.py").rename(checkout / "renamed.py")
    seen, baseline = fingerprint.source(), git("rev-parse", "HEAD")
    git("add", ".")
    git("commit", "-qm", "second")
    assert fingerprint.source_of(baseline, revision="HEAD", branch="topic") == seen
    git("checkout", "-q", baseline)
    apply(seen.patch)
    assert (checkout / "renamed.py").exists()
    assert not (checkout / "code.py").exists()


def test_deps_may_be_folders_templates_other_params_or_outside(checkout: Path) -> None:
    for name in ("src/new.py", "c*.py", "cc.py", "other.yaml", "sets/one.yaml", "sets/notes.txt"):
        (checkout / name).parent.mkdir(exist_ok=True)
        (checkout / name).write_text("{}\n")
    deps = "deps: [src, 'c*.py', ../o, /abs, s3://b/k, 'sets/${name}.yaml'], params: [{other.yaml: [a]}]"
    (checkout / "dvc.yaml").write_text(f"stages: {{more: {{foreach: [1], do: {{cmd: m, {deps}}}}}}}")
    added = [line for line in fingerprint.source().patch.splitlines() if line.startswith("+++ b/")]
    names = ["c*.py", "dvc.yaml", "other.yaml", "sets/one.yaml", "src/new.py"]
    assert added == [f"+++ b/{name}" for name in names]


def test_a_git_that_fails_does_not_mean_that_nothing_was_changed(checkout: Path) -> None:
    tree = git("rev-parse", "HEAD^{tree}")
    (checkout / ".git/objects" / tree[:2] / tree[2:]).unlink()
    (checkout / "code.py").write_text("one = 2\n")
    with pytest.raises(InputError, match=r"^git diff .*: found .*tree.*, expected success") as caught:
        fingerprint.source()
    assert "\n" not in str(caught.value)


def test_without_git_the_commit_is_that_of_dvc(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "0" * 40)
    monkeypatch.setenv("PATH", str(checkout / "nothing"))
    source = fingerprint.source()
    assert (source.commit, source.patch) == ("0" * 40, "")


def test_a_worktree_has_a_branch_of_its_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("worktree", "add", "-q", "-b", "side", "linked")
    monkeypatch.chdir(checkout / "linked")
    assert fingerprint.source().branch == "side"
    # Where `dvc exp run --temp` works, no branch is checked out.
    monkeypatch.chdir(checkout)
    monkeypatch.setenv("DVC_ROOT", str(checkout / "linked"))
    assert fingerprint.source().branch == "side"


def test_a_repository_may_have_no_commit(checkout: Path) -> None:
    shutil.rmtree(checkout / ".git")
    git("init", "-q", "-b", "topic")
    source = fingerprint.source()
    assert (source.commit, source.branch, source.patch) == ("", "topic", "")


def test_a_patch_keeps_bytes_that_are_not_utf8(checkout: Path) -> None:
    written = b"# caf\xe9\r\none = 2\n"
    (checkout / "code.py").write_bytes(written)
    apply(json.loads(json.dumps(fingerprint.source().patch)))
    assert (checkout / "code.py").read_bytes() == written


def test_a_listed_section_stands_for_its_params(checkout: Path) -> None:
    text = (checkout / "dvc.yaml").read_text()
    (checkout / "dvc.yaml").write_text(text.replace("seed]", "section]"))
    params = "lr: 0.01\nsectional: 1\nsection:\n  names: [a, b]\n  deep: {x: 1}\n"
    (checkout / "params.yaml").write_text(params)
    training = fingerprint.of_training()
    assert training.params == {"lr": 0.01, "section.names": ["a", "b"], "section.deep.x": 1}
    (checkout / "params.yaml").write_text(params.replace("x: 1", "x: 2"))
    assert digest() != training.fingerprint


def test_a_template_in_a_dep_is_filled_in(checkout: Path) -> None:
    text = (checkout / "dvc.yaml").read_text()
    (checkout / "dvc.yaml").write_text(text.replace("code.py", "'code-${seed}.py'"))
    (checkout / "code.py").rename(checkout / "code-0.py")
    before = digest()
    (checkout / "code-0.py").write_text("two = 2\n")
    assert digest() != before


def test_a_listed_folder_stands_for_its_files_but_bytecode(checkout: Path) -> None:
    text = (checkout / "dvc.yaml").read_text()
    (checkout / "dvc.yaml").write_text(text.replace("data/mnist.safetensors", "data"))
    before = fingerprint.of_training()
    assert before.dataset_sha256 == hashlib.sha256(b"images").hexdigest()
    (checkout / "data/deep/__pycache__").mkdir(parents=True)
    (checkout / "data/deep/__pycache__/a.pyc").write_text("bytecode")
    assert digest() == before.fingerprint
    (checkout / "data/deep/more").write_text("more")
    more = digest()
    (checkout / "data/deep/more").rename(checkout / "data/more")
    assert len({before.fingerprint, more, digest()}) == 3


def test_no_secret_of_a_changed_address_is_in_the_command(checkout: Path) -> None:
    with (checkout / "params.yaml").open("a") as stream:
        stream.write("mirrors: ['https://ada:SECRET@h/mnist/']\n")
    assert fingerprint.source().rerun.partition(" && ")[2] == "git apply dirty.patch && dvc repro"


def test_a_subfolder_of_a_repository_is_a_checkout(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (checkout / "sub").mkdir()
    for path in ("dvc.yaml", "params.yaml", "data", "code.py", "metrics"):
        (checkout / path).rename(checkout / "sub" / path)
    (checkout / "outside.py").write_text("")
    git("add", ".")
    git("commit", "-qm", "second")
    git("config", "diff.relative", "true")
    monkeypatch.chdir(checkout / "sub")
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("0.01", "0.5"))
    (checkout / "outside.py").write_text("changed")
    source = fingerprint.source()
    assert source.rerun.endswith("&& dvc exp run -S lr=0.5")
    apply(source.patch)
    assert Path("params.yaml").read_text() == text.replace("0.01", "0.5")


def test_the_command_and_the_names_of_deps_are_part_of_the_fingerprint(checkout: Path) -> None:
    before, text = digest(), (checkout / "dvc.yaml").read_text()
    (checkout / "dvc.yaml").write_text(text.replace("cmd: t", "cmd: u"))
    other = digest()
    (checkout / "renamed.py").write_text((checkout / "code.py").read_text())
    (checkout / "dvc.yaml").write_text(text.replace("code.py", "renamed.py"))
    assert len({before, other, digest()}) == 3


def test_an_output_that_is_a_dep_is_not_in_the_patch(checkout: Path) -> None:
    (checkout / "dvc.yaml").write_text(
        "stages: {more: {cmd: m, deps: [code.py, metrics/test.json, dvc.lock]}}"
    )
    git("add", ".")
    git("commit", "-qm", "second")
    (checkout / "metrics/test.json").write_text('{"accuracy": 1}')
    (checkout / "dvc.lock").write_text("stages: {}")
    assert fingerprint.source().patch == ""
