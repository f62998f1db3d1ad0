"""`mnist doctor`: each thing that it checks, broken once, in real repositories and stores."""

import os
import shutil
import sqlite3
import ssl
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import mnist.cli
from mnist.cli import doctor
from mnist.core.errors import InputError
from mnist.tracking import client
from tests import servers
from tests.checkout import ROOT, Repository

Check = Callable[[], str]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Repository:
    """The current folder is a checkout with all that the doctor looks at, and nothing wrong."""
    folder = tmp_path / "checkout"
    (folder / ".dvc").mkdir(parents=True)
    for name in ("dvc.yaml", "params.yaml", ".gitattributes", ".dvc/config"):
        shutil.copy(ROOT / name, folder / name)
    (folder / "dvc.lock").write_text("schema: '2.0'\nstages: {}\n")
    shutil.copytree(ROOT / "stages", folder / "stages", ignore=shutil.ignore_patterns("__pycache__"))
    for name in [name for name in os.environ if name.startswith(("DVC", "GIT", "MLFLOW", "PYTHONSAFE"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", str(tmp_path / "gitconfig"))
    (tmp_path / "gitconfig").write_text("[user]\n\tname = José\n\temail = jose@example.org\n")
    monkeypatch.chdir(folder)
    made = Repository(folder)
    made.git("init", "-q", "-b", "main")
    made.commit()
    return made


def repaired(check: Check) -> str:
    """Run the command that a check names, and return the answer of the check after it."""
    with pytest.raises(doctor.RepairableError) as caught:
        check()
    subprocess.run(caught.value.command, check=True, capture_output=True)
    return check()


def refused(check: Check) -> InputError:
    with pytest.raises(InputError) as caught:
        check()
    assert not isinstance(caught.value, doctor.RepairableError)
    return caught.value


@pytest.mark.usefixtures("place")
def test_a_place_where_all_is_fine_has_a_line_for_each_check() -> None:
    done = CliRunner().invoke(mnist.cli.main, ["doctor"])

    assert done.exit_code == 0, done.stdout
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["fine"] * len(doctor.CHECKS)


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("text", ["", '{"params.yaml": {'])
def test_what_is_wrong_is_repaired_when_asked_and_the_other_checks_go_on(text: str) -> None:
    doctor.RWLOCK.parent.mkdir()
    doctor.RWLOCK.write_text(text)

    found = CliRunner().invoke(mnist.cli.main, ["doctor"])
    fixed = CliRunner().invoke(mnist.cli.main, ["doctor", "--fix"])

    assert found.exit_code == 1
    (wrong,) = [line for line in found.stdout.splitlines() if not line.startswith("fine ")]
    assert wrong.startswith("WRONG ")
    assert f"`rm {doctor.RWLOCK}`" in wrong
    assert len(found.stdout.splitlines()) == len(doctor.CHECKS)
    assert fixed.exit_code == 0, fixed.stdout
    assert not doctor.RWLOCK.exists()


@pytest.mark.parametrize(
    "script", ["#!{bin}/python\n", "#!/bin/sh\n'''exec' '{bin}/python3' \"$0\" \"$@\"\n"]
)
def test_an_environment_that_was_moved_is_found_and_made_again(
    script: str, place: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    binaries = place.folder / ".venv/bin"
    binaries.mkdir(parents=True)
    shutil.copy(ROOT / "Makefile", place.folder)
    for name in ("requirements.lock", ".venv/installed"):
        (place.folder / name).touch()
    for name in ("python", "dvc"):
        (binaries / name).write_text(script.format(bin=binaries))
        (binaries / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{binaries}{os.pathsep}{os.environ['PATH']}")
    command = ["make", "--dry-run", "setup"]
    doctor.check_environment()
    assert "Nothing to be done" in subprocess.run(command, capture_output=True, text=True, check=True).stdout

    (binaries / "dvc").write_text(script.format(bin="/of/old/.venv/bin"))

    assert "make setup" in refused(doctor.check_environment).expected
    assert "-m venv .venv" in subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.mark.usefixtures("place")
def test_a_dvc_from_elsewhere_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/dvc").write_text("#!/bin/sh\n")
    (tmp_path / "bin/dvc").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")

    error = refused(doctor.check_environment)

    assert error.found == str(tmp_path / "bin/dvc")
    assert "activate" in error.expected


@pytest.mark.usefixtures("place")
def test_a_python_that_does_not_look_into_the_current_folder_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PYTHONSAFEPATH", "1")
    assert refused(doctor.check_environment).where == "PYTHONSAFEPATH"


@pytest.mark.usefixtures("place")
def test_braces_in_the_path_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a{b}").mkdir()
    monkeypatch.chdir(tmp_path / "a{b}")
    assert refused(doctor.check_environment).where == "folder"


def test_a_folder_without_git_needs_a_setting_of_dvc(place: Repository) -> None:
    shutil.rmtree(place.folder / ".git")
    assert "core.no_scm" in refused(doctor.check_repository).expected

    subprocess.run(["dvc", "config", "--local", "core.no_scm", "true"], check=True)

    done = CliRunner().invoke(mnist.cli.main, ["doctor"])
    assert done.exit_code == 0, done.stdout


def test_a_shallow_clone_is_found(place: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    place.git("commit", "-q", "--allow-empty", "-m", "second")
    place.git("clone", "-q", "--depth=1", f"file://{place.folder}", "../shallow")
    monkeypatch.chdir(place.folder.parent / "shallow")
    assert "git fetch --unshallow" in refused(doctor.check_repository).expected


def test_a_subfolder_of_a_larger_repository_is_fine(
    place: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place.folder / "inner").mkdir()
    monkeypatch.chdir(place.folder / "inner")
    assert "inner/" in doctor.check_repository()


def killed(place: Repository) -> None:
    """Leave what a killed `dvc exp run` leaves."""
    ended(place)
    place.git("update-ref", "refs/exps/exec/EXEC_MERGE", "HEAD")
    place.git("checkout", "-q", "--detach", place.git("rev-parse", "HEAD"))


def ended(place: Repository) -> None:
    """Leave what a `dvc exp run` leaves that ended."""
    place.git("update-ref", "refs/exps/exec/EXEC_HEAD", "HEAD")


def test_a_head_that_a_killed_experiment_left_is_reported_and_no_branch_is_moved(place: Repository) -> None:
    place.git("switch", "-q", "-c", "topic")
    killed(place)
    assert refused(doctor.check_head).expected == "topic: run `git switch topic`"

    before = place.git("rev-parse", "topic")
    place.git("commit", "-q", "--allow-empty", "-m", "later")
    later = place.git("rev-parse", "--short", "HEAD")

    assert refused(doctor.check_head).expected.endswith(f"then `git merge {later}`")
    assert "git merge" in CliRunner().invoke(mnist.cli.main, ["doctor", "--fix"]).stdout
    assert place.git("rev-parse", "topic") == before


@pytest.mark.parametrize("leave", [killed, ended])
def test_a_head_that_the_user_detached_is_fine(
    leave: Callable[[Repository], None], place: Repository
) -> None:
    place.git("tag", "v2")
    leave(place)
    place.git("switch", "-q", "main")
    place.git("switch", "-q", "--detach", "v2")
    assert doctor.check_head() == "no branch; `git switch main` goes back to one"


def test_a_commit_of_an_ended_experiment_may_be_checked_out(place: Repository) -> None:
    ended(place)
    place.git("checkout", "-q", "--detach", place.git("rev-parse", "HEAD"))
    assert doctor.check_head() == "no branch; `git switch main` goes back to one"


def test_a_head_that_was_detached_before_a_killed_experiment_is_fine(place: Repository) -> None:
    place.git("switch", "-q", "--detach")
    killed(place)
    assert doctor.check_head() == "no branch; `git switch main` goes back to one"


def test_a_killed_experiment_is_still_reported_after_another_one(place: Repository) -> None:
    place.git("switch", "-q", "-c", "topic")
    killed(place)
    head = place.git("rev-parse", "HEAD")
    place.git("commit", "-q", "--allow-empty", "-m", "dvc: commit experiment")
    place.git("update-ref", "-m", f"dvc: Restore HEAD to '{head}'", "--no-deref", "HEAD", head)
    place.git("update-ref", "-d", "refs/exps/exec/EXEC_MERGE")
    assert doctor.check_head() == "no branch; `git switch topic` goes back to one"


def test_a_branch_that_was_left_for_another_is_not_named(place: Repository) -> None:
    place.git("switch", "-q", "-c", "topic")
    place.git("switch", "-q", "main")
    head = place.git("rev-parse", "HEAD")
    place.git("update-ref", "-m", "rebase (start): checkout HEAD~2", "--no-deref", "HEAD", head)
    (place.folder / ".git/HEAD").write_text(f"{head}\n")
    assert doctor.check_head() == "no branch"


def test_an_experiment_that_runs_is_left_alone(place: Repository) -> None:
    killed(place)
    doctor.RWLOCK.parent.mkdir()
    doctor.RWLOCK.touch()
    (place.folder.parent / "dvc").write_text("import time\nprint(flush=True)\ntime.sleep(60)\n")
    with subprocess.Popen([sys.executable, "../dvc"], stdout=subprocess.PIPE) as running:
        assert running.stdout
        running.stdout.readline()
        try:
            doctor.check_head()
            doctor.check_locks()
        finally:
            running.kill()


@pytest.mark.parametrize(("scope", "is_fine"), [("--global", True), ("--local", False)])
def test_a_name_that_is_not_ascii_is_wrong_in_the_settings_of_the_repository_alone(
    scope: str, is_fine: bool, place: Repository
) -> None:
    place.git("config", scope, "user.name", "José")
    if is_fine:
        assert doctor.check_author() == "José"
    else:
        assert "--global" in refused(doctor.check_author).expected


@pytest.mark.usefixtures("place")
def test_experiments_need_an_author(tmp_path: Path) -> None:
    (tmp_path / "gitconfig").write_text("")
    assert refused(doctor.check_author).found == "none"


def test_line_ends_of_another_system_are_found_and_made_ours(place: Repository) -> None:
    picture = b"\x89PNG\r\n\x1a\n\0\r\n"
    (place.folder / "picture.png").write_bytes(picture)
    place.commit()
    params = place.folder / "params.yaml"
    before = params.read_bytes()
    params.write_bytes(before.replace(b"\n", b"\r\n"))

    repaired(doctor.check_line_ends)

    assert params.read_bytes() == before
    assert (place.folder / "picture.png").read_bytes() == picture


def test_a_file_that_shall_have_crlf_is_fine(place: Repository) -> None:
    (place.folder / ".gitattributes").write_text("* text=auto eol=lf\n*.bat text eol=crlf\n")
    (place.folder / "run.bat").write_bytes(b"dvc repro\r\n")
    place.commit()
    assert doctor.check_line_ends() == "as committed"


def test_a_clone_with_autocrlf_has_the_committed_bytes(place: Repository) -> None:
    place.git("clone", "-q", "-c", "core.autocrlf=true", str(place.folder), "../clone")
    clone = place.folder.parent / "clone"
    assert (clone / "params.yaml").read_bytes() == (place.folder / "params.yaml").read_bytes()


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("params.yaml", "lr: ["),
        ("dvc.yaml", "stages: {train: {deps: [a]}}"),
        ("dvc.lock", "schema: '2.0'\nstages: {train: }"),
    ],
)
def test_a_malformed_file_of_the_pipeline_is_named(name: str, text: str, place: Repository) -> None:
    (place.folder / name).write_text(text)
    assert name in str(refused(doctor.check_pipeline))


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml", "dvc.lock"])
def test_a_file_that_was_cut_off_is_found(name: str, place: Repository) -> None:
    text = (place.folder / name).read_text()
    (place.folder / name).write_text(text[: text.rindex("\n", 0, -1) + 1])
    error = refused(doctor.check_pipeline)
    assert (error.where, error.expected) == (name, f"the rest, too: run `git checkout {name}`")


@pytest.mark.parametrize("end", ["\n  register:", "\n      - stages/register.py"])
def test_a_pipeline_without_one_of_its_stages_is_found(end: str, place: Repository) -> None:
    text = (place.folder / "dvc.yaml").read_text().replace("desc: ", "desc: My ", 1)
    (place.folder / "dvc.yaml").write_text(text[: text.index(end) + 1])
    assert refused(doctor.check_pipeline).found == "no whole stage register"


def test_a_damaged_object_of_the_cache_is_removed(place: Repository) -> None:
    cache = place.folder / ".dvc/cache/files/md5"
    good, bad = cache / "5d/41402abc4b2a76b9719d911017c592", cache / "7d/793037a0760186574b0282f2f435e7"
    for path in (good, bad):  # of "hello" and of "world"
        path.parent.mkdir(parents=True)
        path.write_text("hello")

    assert repaired(doctor.check_cache) == "1 objects"
    assert good.exists()


@pytest.mark.parametrize("name", [".cache/mnist/.part.a", "metrics/plots/.part.b", ".mlflow.db.c/part"])
def test_old_files_of_killed_writers_are_removed_and_new_ones_stay(name: str, place: Repository) -> None:
    path = place.folder / name
    path.parent.mkdir(parents=True)
    path.touch()
    doctor.check_leftovers()
    for old in (path, path.parent):
        os.utime(old, (0, 0))

    repaired(doctor.check_leftovers)

    assert not path.exists()


@pytest.mark.usefixtures("place")
def test_a_disk_that_is_nearly_full_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "MIN_FREE_BYTES", 1e18)
    assert "dvc gc" in refused(doctor.check_disks).expected


@pytest.fixture
def store(place: Repository, migrated_store: Path) -> Path:
    return Path(shutil.copy(migrated_store, place.folder / "mlflow.db"))


def change(store: Path, statement: str, *values: object) -> None:
    connection = sqlite3.connect(store)
    with connection:
        connection.execute(statement, values)
    connection.close()


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("foo://x", "foo://x"),
        ("sqlite:////nonexistent/x.db", "no folder /nonexistent"),
        ("mssql+nodriver://me:SECRET@host/db", "NoSuchModuleError"),
        ("postgresql+pg8000://me:SECRET@127.0.0.1/db", "No module named 'pg8000'"),
    ],
)
def test_a_uri_that_mlflow_cannot_open_is_found(
    uri: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    error = refused(doctor.check_store)
    assert error.found == found
    assert "unset MLFLOW_TRACKING_URI" in error.expected
    assert "SECRET" not in str(error)


@pytest.mark.parametrize(
    ("version", "found"),
    [("ffffffffffff", "tables of a newer MLflow"), ("0c779009ac13", "tables of an older MLflow")],
)
def test_a_store_of_another_mlflow_is_found(version: str, found: str, store: Path) -> None:
    change(store, "UPDATE alembic_version SET version_num = ?", version)
    assert refused(doctor.check_store).found == found
    with pytest.raises(InputError, match=found):
        client.connect()


def test_a_store_of_a_checkout_that_was_moved_follows_it(store: Path) -> None:
    (store.parent / "mlartifacts").mkdir()
    change(
        store,
        "INSERT INTO experiments (experiment_id, name, artifact_location, lifecycle_stage)"
        " VALUES (9, 'mnist', 'file:///old%20place/mlartifacts', 'active')",
    )
    assert repaired(doctor.check_store) == f"sqlite:///{store.name}"


def test_a_challenger_of_the_future_is_replaced_by_newer_models(store: Path) -> None:
    future_ms = int(time.time() * 1000) + 86_400_000
    change(store, "INSERT INTO registered_models (name, creation_time) VALUES ('net', 0)")
    change(
        store,
        "INSERT INTO registered_model_tags (key, value, name) VALUES ('challenger_time_ms', ?, 'net')",
        str(future_ms),
    )
    repaired(doctor.check_store)


@pytest.mark.usefixtures("place")
def test_a_server_has_to_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    with servers.faulty_proxy("", 200) as server:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url)
        assert doctor.check_store() == server.url
        server.fault = 502
        assert refused(doctor.check_store).found == "answer 502"
        # The server as the proxy of another one.
        monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking.invalid:5000")
        monkeypatch.setenv("http_proxy", server.url)
        assert "NO_PROXY=tracking.invalid" in refused(doctor.check_store).expected


@pytest.mark.usefixtures("place")
@pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl")
@pytest.mark.filterwarnings("ignore:Unverified HTTPS")
@pytest.mark.parametrize(
    ("name", "value"),
    [("MLFLOW_TRACKING_SERVER_CERT_PATH", "../cert.pem"), ("MLFLOW_TRACKING_INSECURE_TLS", "true")],
)
def test_a_server_may_have_a_certificate_of_its_own(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = "openssl req -x509 -nodes -subj /CN=x -addext subjectAltName=IP:127.0.0.1"
    subprocess.run(
        [*request.split(), "-keyout", "../key.pem", "-out", "../cert.pem"], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain("../cert.pem", "../key.pem")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with servers.faulty_proxy("", 200) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", server.url.replace("http", "https"))
        assert refused(doctor.check_store).found == "SSLError"
        monkeypatch.setenv(name, value)
        doctor.check_store()


@pytest.mark.usefixtures("place")
def test_an_address_that_is_no_url_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://[x")
    assert refused(doctor.check_store).found == "ValueError"
