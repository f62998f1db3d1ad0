"""The pages keep their word: their commands run, their links lead somewhere, their tree is the real one.

Each page is typed into a shell as it stands, block by block, in a clone on small data. What cannot
be run so is listed below, with the test that runs it or the reason why none does; whoever adds a
command that is neither run nor listed, or leaves one in a list that no page has, is told.
The entries of docs/troubleshooting.md are tried in tests/e2e/test_troubleshooting.py.
"""

import ast
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from urllib.error import URLError
from urllib.request import urlopen

import matplotlib as mpl
import psutil  # type: ignore[import-untyped]
import pytest

from tests import checkout, pages, servers
from tests.checkout import ROOT, Clone
from tests.conftest import SmallData
from tests.pages import PAGES, SHELLS

TROUBLES = "docs/troubleshooting.md"
PATIENCE_SECONDS = 240  # for one command, on a busy machine

# Run by another test, with other numbers perhaps.
ON_SERVERS = "test_servers.py::test_the_pipeline_on_postgresql_and_s3_has_its_run_and_its_version"
ELSEWHERE = {
    "test_experiments.py::test_the_queue_trains_each_case_and_what_is_there_stays": ["make experiments"],
    "test_presets.py::test_a_preset_runs_as_an_experiment_of_its_name": [
        "make preset NAME=quick",
        "make preset NAME=quick ARGS='-S seed=3'",
        "python -m mnist.cli.preset quick -S seed=3",
    ],
    "test_presets.py::test_again_it_takes_the_next_name_in_a_workspace_that_has_changed": [
        "python -m mnist.cli.preset wide --temp"
    ],
    "test_presets.py::test_a_queue_over_seeds_meets_no_other_name": [
        "python -m mnist.cli.preset wide --queue -S 'seed=range(0,5)'"
    ],
    "test_verify.py::test_what_the_code_makes_holds_byte_for_byte": ["make verify"],
    "test_reproduce.py::test_edits_that_were_not_committed_are_made_again_byte_for_byte": ["make reproduce"],
    "test_reproduce.py::test_a_run_has_many_names": ["make reproduce MODEL=models:/mnist-simplecnn/1"],
    "test_reproduce.py::test_on_other_instructions_an_experiment_is_held_to_its_accuracy": [
        "make reproduce MODEL=NAME"
    ],
    "test_pipeline.py::test_a_forced_repro_gives_the_same_bytes_and_no_second_run_or_version": [
        "dvc repro --force",
        'rm -rf metrics && PATH="$PWD/.venv/bin:$PATH" dvc repro --force',
    ],
    "test_merge.py::test_the_project_is_merged_so": [
        "dvc repro && git add dvc.lock metrics && git commit --no-edit"
    ],
    "test_merge.py::test_a_rebase_is_resolved_by_a_run_each_time_it_stops": [
        "dvc repro && git add dvc.lock metrics && GIT_EDITOR=true git rebase --continue"
    ],
    "test_best.py::test_a_queue_on_a_new_store_gives_each_experiment_one_readable_run": [
        "dvc queue start -j 2",
        "dvc queue start -j 2 > /dev/null 2>&1",
        "dvc queue logs -f NAME",
        "dvc queue logs NAME",
    ],
    # Several processes, machines, Slurm.
    "test_distributed.py::test_dvc_makes_the_same_bytes_again": [
        "dvc exp run -S processes=4",
        "dvc exp run -S processes=2 -S num_threads=1 -S device=cpu",
    ],
    "test_distributed.py::test_two_machines_train_together": [
        "export PET_NNODES=2 PET_MASTER_ADDR=machine-0.example.org PET_MASTER_PORT=29500",
        "PET_NODE_RANK=0 dvc repro",
        "PET_NODE_RANK=1 python -m stages.train",
        "dvc repro --single-item --force train",
    ],
    "test_distributed.py::test_the_slurm_script_trains_on_two_machines_that_share_a_folder": [
        "#!/bin/bash ..."
    ],
    # Another data set, of which there is no copy here.
    "test_measure.py::test_three_classes_run_through_the_whole_pipeline": [
        "dvc exp run -S dataset=fashion_mnist",
        "MNIST_MIRROR=/that/folder dvc exp run -S dataset=fashion_mnist",
    ],
    # A server on PostgreSQL and S3.
    ON_SERVERS: [
        "moto_server --port 9000",
        "python -c 'import boto3, os ...",
        "mlflow server --backend-store-uri postgresql://mlflow@127.0.0.1/mlflow \\ ...",
        "curl http://127.0.0.1:5000/health",
    ],
    # Minutes, of which the tests take a part.
    "test_presets.py::test_the_bench_trains_each_seed_and_scores_test_images": [
        'make bench ARGS="--only presets"'
    ],
    "test_bench.py::test_a_part_replaces_its_result_alone": ['make bench ARGS="--only loop --rounds 5"'],
    "test_bench.py::test_a_gpu_is_held_against_fifty_times_the_tutorial": ['make bench ARGS="--only gpu"'],
}

# Run by no test, and why.
INSTALLS, OURSELVES = "installs from a package registry", "runs this very test; .ci/run begins with it"
NOWHERE = {
    "make test": OURSELVES,
    "make test lint": OURSELVES,
    "pytest -n 0": OURSELVES,
    ".ci/run": "CI runs it",
    "make lint": "CI runs it",
    "make lock": "asks a package registry for the newest",
    "make PYTHON=python3.12 setup": INSTALLS,
    "uv pip install dvc-s3": INSTALLS,
    "uv pip install flask-wtf": INSTALLS,
    "uv pip install --require-hashes -r requirements-servers.lock": f"{INSTALLS}; .ci/run does so",
    "sudo apt-get install postgresql": "installs for the whole machine; .ci/run does so",
    "sudo -u postgres createuser --pwprompt mlflow": "asks a server of the whole machine, and its user",
    "sudo -u postgres createdb --owner mlflow mlflow": "asks a server of the whole machine",
    "torchrun --nproc-per-node 4 ... -m stages.train": "a form; `python -m stages.train` calls torchrun",
    "mlflow models serve": "a warning: `make serve` is better",
    "dvc queue kill NAME": "works while NAME runs, which is a matter of luck",
}
NOT_HERE = {command for listed in ELSEWHERE.values() for command in listed} | NOWHERE.keys()

# Servers run until the end of their page. Where they are asked, and what the answer holds; the port
# is that of the command, or else what the variable PORT says.
ASKED = {
    "make ui": ("5000", "/health", "OK"),
    "make ui PORT=5050": ("5050", "/health", "OK"),
    "make serve": ("5001", "/ping", ""),
    "make serve PORT=5002": ("5002", "/ping", ""),
}

# What only shows something, or is done with when it has run: on one page is enough.
ONCE = ("make best", "make diff", "make preset", "make spread", "make ui", "make bench", "dvc exp run")

PROGRAMS = (
    "make|dvc|python3?|git|mlflow|uv|pip|curl|torchrun|sbatch|srun|pytest|pre-commit|source|df|ps|moto_server"
)
IS_COMMAND = re.compile(rf"(?:[A-Z_]+=\S* )*(?:(?:{PROGRAMS})(?: |$)|\.ci/)")


def key(command: str) -> str:
    """As the lists above call it."""
    first, *more = command.splitlines()
    return f"{first} ..." if more else first


def commands(page: str) -> list[str]:
    """Those of the blocks of a page; a script is one."""
    found: list[str] = []
    for block in pages.blocks(page):
        if block.language in SHELLS:
            found += [block.text] if block.text.startswith("#!") else pages.commands(block.text)
    return found


def mentioned(page: str) -> list[str]:
    """Commands in the text of a page that are more than the beginning of one in a block.

    `dvc exp run` alone names a command, as `git push` does, and `[BASE]` is a form.
    """
    whole = {re.sub(r"^(?:[A-Z_]+=\S* )+", "", one) for each in PAGES for one in commands(each)}
    return [
        code
        for code in dict.fromkeys(pages.inline(page))
        if IS_COMMAND.match(code)
        and " " in code
        and "[" not in code
        and not re.fullmatch(r"git \w+", code)
        and not any(f"{one} ".startswith(f"{code} ") for one in whole)
    ]


@dataclass(kw_only=True)
class Shell:
    """A user's shell in a clone: what one command exports or sources is there for the next one."""

    clone: Clone
    ports: dict[str, int] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    servers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def type(self, command: str) -> str:
        """Run a command as it stands on the page but for `names` and `ports`, and return what it prints."""
        if key(command) in ASKED:
            return self._start(command)
        log = self.clone.folder.parent / "output.txt"
        with log.open("wb") as stream:  # no pipe: DVC's workers keep it open
            done = subprocess.run(
                self._in_bash(command),
                cwd=self.clone.folder,
                env=self.clone.environment,
                input=b"y\n",  # where DVC asks whether that is meant so
                stdout=stream,
                stderr=subprocess.STDOUT,
                timeout=PATIENCE_SECONDS,
                check=False,
            )
        output = log.read_text(errors="replace")
        assert done.returncode == 0, f"{command}: exit status {done.returncode}\n{output}"
        assert "Traceback" not in output, f"{command}:\n{output}"
        return output

    def _in_bash(self, command: str) -> list[str]:
        for old, new in (*self.names.items(), *((old, str(new)) for old, new in self.ports.items())):
            command = re.sub(rf"(?<![\w.]){re.escape(old)}(?!\w)", new, command)
        state = self.clone.folder.parent / "state.sh"
        script = '[ ! -f "$0" ] || . "$0"; eval "$1"; status=$?; export -p > "$0"; exit $status'
        return ["bash", "-c", script, str(state), command]

    def _start(self, command: str) -> str:
        """Start a server, wait for it, and return its answer."""
        port, path, expected = ASKED[key(command)]
        number = self.ports.setdefault(port, servers.free_port())
        log = self.clone.folder.parent / "server.txt"
        with log.open("wb") as stream:
            server = subprocess.Popen(
                self._in_bash(command),
                cwd=self.clone.folder,
                env={**self.clone.environment, "PORT": str(number)},
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
            )
        self.servers.append(server)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while server.poll() is None and time.monotonic() < deadline:
            with suppress(URLError, ConnectionError), urlopen(f"http://127.0.0.1:{number}{path}") as answer:
                text: str = answer.read().decode()
                assert expected in text
                return text
            time.sleep(0.3)
        pytest.fail(f"{command}:\n{log.read_text()}")

    def close(self) -> None:
        """Stop the servers."""
        for server in self.servers:
            family = psutil.Process(server.pid).children(recursive=True) if server.poll() is None else []
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.terminate()
            server.terminate()
            server.wait(30)
            psutil.wait_procs(family, timeout=30)


@pytest.fixture(scope="module")
def site(small_data: SmallData, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Clone]:
    """A clone with what the pages speak of: a result, a champion, an experiment NAME, branches, a remote."""
    folder = tmp_path_factory.mktemp("docs")
    clone = checkout.clone(folder / "clone", small_data)
    checkout.set_up(clone)
    home = folder / "home"
    home.mkdir()
    clone.environment |= {"HOME": str(home), "MPLCONFIGDIR": mpl.get_cachedir()}
    clone.run("git", "config", "--global", "user.name", "t")
    clone.run("git", "config", "--global", "user.email", "t@example.org")
    checkout.edit(clone, "params.yaml", "momentum: 0.9", "momentum: 0.5")  # with which lr=0.05 learns, too
    clone.dvc("repro")
    clone.commit("What the pipeline made")
    clone.run("python", "-m", "mnist.cli.promote")
    clone.run("dvc", "exp", "run", "--temp", "-n", "NAME", "-S", "lr=0.05")
    (reference,) = clone.run(
        "git", "for-each-ref", "--format=%(refname)", "refs/exps/*/*/NAME"
    ).stdout.split()
    for copy in ("NAME1", "NAME2"):
        clone.run("git", "update-ref", f"{reference.removesuffix('NAME')}{copy}", reference)
    clone.run("git", "tag", "v1.0")
    clone.run("git", "branch", "my-branch")
    clone.run("git", "branch", "start")
    clone.run("git", "clone", "-q", "--bare", ".", str(folder / "origin.git"))
    clone.run("git", "remote", "add", "origin", str(folder / "origin.git"))
    clone.run("git", "fetch", "-q", "origin")
    yield clone
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def shell(site: Clone, small_data: SmallData) -> Iterator[Shell]:
    """A new one, in the clone as it was at the start; its servers end with it."""
    site.run("git", "reset", "-q", "--hard", "start")
    site.run("dvc", "checkout", "-q", "--force")
    for left in (site.folder.parent / "state.sh", site.folder / ".git/hooks/pre-commit"):
        left.unlink(missing_ok=True)
    names = {"/that/folder": str(small_data.mirror), "s3://bucket/path": str(site.folder.parent / "remote")}
    shell = Shell(clone=site, names=names)
    yield shell
    shell.close()
    site.run("dvc", "queue", "remove", "--all")


@pytest.fixture(scope="module")
def seen() -> set[str]:
    """Commands that were run on an earlier page, and need not run again."""
    return set()


def of_page(page: str) -> Iterator[tuple[str, str]]:
    """What is to be run of a page, with its language: its blocks, then what its text mentions."""
    for block in pages.blocks(page):
        if block.language in SHELLS and page != TROUBLES and not block.text.startswith("#!"):
            yield from (("sh", command) for command in pages.commands(block.text))
        elif block.language == "python":
            yield "python", block.text
    yield from (("sh", command) for command in mentioned(page))


@pytest.mark.parametrize("page", PAGES)
def test_the_commands_of_a_page_run(page: str, shell: Shell, seen: set[str]) -> None:
    with ExitStack() as stack:
        address = "http://mlflow.example.org:5000"
        if address in (ROOT / page).read_text():
            shell.names[address] = stack.enter_context(servers.mlflow_server())
        for language, command in of_page(page):
            if language == "python":
                (shell.clone.folder.parent / "block.py").write_text(command)
                shell.type("PYTHONPATH=. python ../block.py")
            elif key(command) not in NOT_HERE and command not in seen:
                shell.type(command)
                if command.startswith(ONCE):
                    seen.add(command)


@pytest.mark.parametrize("page", PAGES)
def test_blocks_say_what_they_are(page: str) -> None:
    for block in pages.blocks(page):
        assert block.language in {*SHELLS, "python", "yaml", "mermaid", "text", ""}, block
        if block.language in {"text", ""}:  # what is printed, or a tree
            assert not [line for line in block.text.splitlines() if IS_COMMAND.match(line)], (
                f"{block}: write ```sh"
            )


def test_what_is_not_run_here_is_on_a_page_and_has_a_test_or_a_reason() -> None:
    typed = {key(command) for page in PAGES for command in [*commands(page), *mentioned(page)]}
    assert NOT_HERE - typed == set(), "no page has these any more"
    for place in ELSEWHERE:
        file, _, name = place.partition("::")
        functions = {
            node.name
            for node in ast.walk(ast.parse((ROOT / "tests" / file).read_text()))
            if isinstance(node, ast.FunctionDef)
        }
        assert name in functions, place


def test_targets_that_are_not_run_here_exist() -> None:
    for command in NOT_HERE:
        if command.startswith("make ") and command != "make PYTHON=python3.12 setup":
            kept = {
                name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))
            }
            dry = command.replace("make", "make --dry-run", 1)
            subprocess.run(["bash", "-c", dry], cwd=ROOT, env=kept, check=True, capture_output=True)


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    for link in pages.links(page):
        if re.match(r"(https?|mailto):", link):
            continue
        name, _, anchor = link.partition("#")
        target = (ROOT / page).parent / name if name else ROOT / page
        assert target.exists(), link
        if anchor:
            assert anchor in pages.anchors(target.resolve().relative_to(ROOT).as_posix()), link


def test_every_page_is_linked_from_the_first() -> None:
    linked = {link.partition("#")[0] for link in pages.links("README.md")}
    assert {page for page in PAGES if page != "README.md"} - linked == set()


def test_the_first_page_is_read_in_two_minutes() -> None:
    """500 words of prose, at 250 a minute; tables and commands are looked at."""
    words, in_table = 0, False
    for token in pages.tokens("README.md"):
        in_table = token.type == "table_open" or (in_table and token.type != "table_close")
        if token.type == "inline" and not in_table:
            words += len(" ".join(child.content for child in token.children or []).split())
    assert words < 500


def test_the_tree_is_the_real_one() -> None:
    text = (ROOT / "docs/architecture.md").read_text()
    listed = {}
    for section in text.split("\n## ")[1:]:
        title, _, rest = section.partition("\n")
        listed[title] = set(re.findall(r"\b\w+\.py\b", rest.partition("```")[2].partition("```")[0]))
    for folder in ("stages", "mnist", "tools"):
        real = {path.name for path in (ROOT / folder).glob("*.py")} - {"__init__.py"}
        assert listed[f"{folder}/"] == real
    (bench,) = re.findall(r"^bench/ +(.*)$", text, re.MULTILINE)
    hidden = {"__init__", "__main__", "harness", "timed"}  # what the parts are made of
    assert set(bench.split()) == {path.stem for path in (ROOT / "benchmarks").glob("*.py")} - hidden
