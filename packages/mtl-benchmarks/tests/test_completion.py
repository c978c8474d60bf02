"""The scripts for shells, run in the shells that are there."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mtl_benchmarks.cli import main
from mtl_benchmarks.command_line.completion import script
from mtl_benchmarks.commands import COMMANDS, find_command
from mtl_benchmarks.commands.completion import SHELLS


@pytest.fixture(scope="module")
def scripts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Shell → its script in a file."""
    folder, commands = tmp_path_factory.mktemp("completion"), [find_command(name) for name in COMMANDS]
    found = {}
    for shell in SHELLS:
        found[shell] = folder / f"mtl-bench.{shell}"
        found[shell].write_text(script(shell, commands))
    return found


def completed(bash: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    quoted = " ".join(f"'{word}'" for word in ("mtl-bench", *words))
    lines = [
        "shopt -s extglob progcomp",
        f"source {bash}",
        f"COMP_WORDS=({quoted}); COMP_CWORD={len(words)}; COMP_LINE='mtl-bench {' '.join(words)}'",
        "COMP_POINT=${#COMP_LINE}",
        "name=$(complete -p mtl-bench | sed 's/.*-F \\([^ ]*\\).*/\\1/')",
        'compopt() { :; }; $name mtl-bench "${COMP_WORDS[COMP_CWORD]}"; printf "%s\\n" "${COMPREPLY[@]}"',
    ]
    ran = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stderr == ""
    return [line.strip() for line in ran.stdout.splitlines() if line.strip()]


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_in_bash(scripts: dict[str, Path]) -> None:
    bash = scripts["bash"]
    assert set(completed(bash, "")) >= set(COMMANDS)
    assert completed(bash, "des") == ["describe"]
    assert set(completed(bash, "run", "")) >= {"digits", "toy", "ctr"}
    assert completed(bash, "run", "dig") == ["digits"]
    assert completed(bash, "run", "digits", "--method", "fairg") == ["fairgrad"]
    assert "--method.alpha" in completed(bash, "run", "digits", "--method", "fairgrad", "--method.al")
    assert "--teleport.adapter.rank" in completed(bash, "run", "digits", "--teleport.adapter.r")
    assert completed(bash, "run", "digits", "--optimizer", "adamw") == ["adamw"]
    assert "--optimizer.momentum" in completed(bash, "run", "digits", "--optimizer.m")
    assert set(completed(bash, "run", "digits", "--schedule", "c")) == {"constant", "cosine"}
    assert set(completed(bash, "run", "digits", "--precision", "")) == {"float32", "tf32", "bf16", "fp16"}
    assert set(completed(bash, "ablate", "digits", "--parts", "s")) == {"sharpness"}
    assert set(completed(bash, "completion", "")) >= set(SHELLS)
    assert {"cost-3", "cost-a4"} <= set(completed(bash, "figure", "cost-"))
    assert set(completed(bash, "figure", "cost-3", "--format", "")) >= {"png", "pdf", "svg"}


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_reads_its_script(shell: str, scripts: dict[str, Path]) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    ran = subprocess.run([shell, "-n", str(scripts[shell])], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_in_fish(scripts: dict[str, Path]) -> None:
    ran = subprocess.run(
        ["fish", "-c", f"source {scripts['fish']}; complete -C 'mtl-bench run digits --method fairg'"],
        capture_output=True,
        text=True,
    )
    assert ran.stdout.split("\t")[0].strip() == "fairgrad"


def test_the_command(capsys: pytest.CaptureFixture[str], scripts: dict[str, Path]) -> None:
    assert main(["completion", "bash"]) == 0
    assert capsys.readouterr().out == scripts["bash"].read_text()
    assert main(["completion", "tcsh"]) == 2
    assert "unknown shell 'tcsh'. Valid: bash, zsh, fish." in capsys.readouterr().err
    assert main(["completion"]) == 2
