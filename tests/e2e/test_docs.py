"""The everyday commands of the README, typed as they stand; `tests/lint_docs.py` checks the other pages."""

import re

from tests import checkout
from tests.checkout import NAME, ROOT, Clone

SECTION = (ROOT / "README.md").read_text().partition("\n## Every day\n")[2].partition("\n## ")[0]
EVERY_DAY = re.findall(r"```sh\n(.*?)```", SECTION, re.DOTALL)[-1]

# By a word of theirs: what serves until it is stopped, takes minutes, or needs data that are not here. A test
# of its own runs each.
ELSEWHERE = re.compile(
    r"\b(ui|serve|predict|drift|queue start|dataset=|preset quick|experiments|verify|reproduce)\b"
)


def test_the_everyday_commands_run(trained: Clone) -> None:
    checkout.edit(trained, "params.yaml", "momentum: 0.9", "momentum: 0.5")  # with it lr=0.05 learns
    commands = [line.partition(" #")[0].strip() for line in EVERY_DAY.splitlines()]
    typed = [command for command in commands if command and not ELSEWHERE.search(command)]
    assert len(typed) >= 8
    for command in typed:
        if "NAME" in command:
            names = trained.run("dvc", "exp", "list", "--name-only").stdout.split()
            command = command.replace("NAME", names[0])  # noqa: PLW2901 -- what a reader does
        done = trained.run("bash", "-c", f'mnist() {{ python -m mnist "$@"; }}\n{command}')
        assert "Traceback" not in done.stdout, command
    assert (trained.folder / "dvc_plots/index.html").is_file()
    assert trained.client.get_model_version_by_alias(NAME, "champion")
