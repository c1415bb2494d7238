"""The documents' examples are executed."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import gem.kernels
from gem.kernels import source

pytestmark = pytest.mark.serial  # one device at a time: ranks change nothing here
ROOT = Path(__file__).parent.parent


@pytest.fixture
def walk_through(tmp_path, monkeypatch):
    """The files of docs/kernels.md in a folder that stands for kernels/, and the code that uses them."""
    text = (ROOT / "docs" / "kernels.md").read_text()
    blocks = dict(re.findall(r"```(?:python|c)\n(?:# |/\* )(kernels/[\w.]+|use)[^\n]*\n(.*?)```", text, re.DOTALL))
    (tmp_path / "gem.h").write_text((source.FOLDER / "gem.h").read_text())
    for name, body in blocks.items():
        if name != "use":
            head = "/*\n" if name.endswith(".c") else ""
            (tmp_path / Path(name).name).write_text(head + body)
    monkeypatch.setattr(source, "FOLDER", tmp_path)
    monkeypatch.setattr(gem.kernels, "__path__", [*gem.kernels.__path__, str(tmp_path)])
    return blocks["use"]


def test_the_walk_through_of_a_new_kernel(walk_through, backend, capsys):
    exec(compile(walk_through, "docs/kernels.md", "exec"), {"NAME": backend})
    printed = np.array([float(x) for x in re.findall(r"-?\d+\.?\d*", capsys.readouterr().out)])
    np.testing.assert_array_equal(printed.reshape(2, 3), [[-1, 0, 2.5], [0, 0, 0]])


def test_the_ten_lines_of_the_readme(tmp_path, monkeypatch):
    text = (ROOT / "README.md").read_text()
    code = re.search(r"```python\n(import gem\n.*?)```", text, re.DOTALL)
    assert code is not None
    monkeypatch.chdir(tmp_path)
    np.save("patches.npy", np.random.default_rng(0).standard_normal((300, 256)))
    exec(compile(code[1].replace("steps=100", "steps=2"), "README.md", "exec"), {})
    assert (tmp_path / "fields.h5").exists()


def test_every_line_of_docs_data_names_tests_that_exist():
    text, _, after = (ROOT / "docs" / "data.md").read_text().split("<!-- reading -->")
    there = "".join((ROOT / "tests" / f"test_{name}.py").read_text() for name in ("formats", "data", "hdf5"))
    defined = set(re.findall(r"^def (test_\w+)\(", there, re.MULTILINE))
    rows = [row for row in (text + after).splitlines() if row.startswith("| ") and "the test that shows it" not in row]
    named = {row: re.findall(r"`(test_\w+)`", row) for row in rows}
    assert len(named) > 50
    assert [row for row, tests in named.items() if not tests] == []
    assert {test for tests in named.values() for test in tests} - defined == set()
