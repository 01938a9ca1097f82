"""What is refused before anything is measured, in one line; and what --small lowers."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from engine.bench import device, report
from engine.bench.__main__ import load_subject, subjects
from engine.bench.report import parse_options
from engine.cli import main

OF_THE_MODEL = ("tick", "stages", "connect", "memory")


def refused(capsys, *words: str) -> tuple[int, str]:
    """The exit code of a bench that must not measure, and the last line that it said."""
    try:
        code = main(["bench", *words])
    except SystemExit as ended:
        code = ended.code
    return code, capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("subject", OF_THE_MODEL)
@pytest.mark.parametrize("option", ["--weights", "--kv"])
def test_a_precision_there_is_not_is_wrong_usage(subject, option, capsys):
    code, said = refused(capsys, subject, "--small", option, "foo")
    assert code == 2
    if option == "--weights":
        assert "invalid choice: 'foo' (choose from" in said


@pytest.mark.parametrize(
    "words",
    [
        ("tick", "--slots", "0"),
        ("tick", "--slots", "-1"),
        ("tick", "--context", "0"),
        ("tick", "--ticks", "0"),
        ("stages", "--slots", "0"),
        ("memory", "--slots", "-1"),
        ("capacity", "--seconds", "0"),
        ("capacity", "--step-seconds", "nan"),
        ("soak", "--minutes", "0"),
        ("soak", "--minutes", "inf"),
    ],
    ids=" ".join,
)
def test_a_number_out_of_range_is_wrong_usage(words, capsys):
    subject, option, value = words
    code, said = refused(capsys, subject, "--small", option, value)
    assert code == 2
    assert f"argument {option}: it is {value}; use " in said


@pytest.mark.parametrize("subject", [*OF_THE_MODEL, "load", "capacity", "soak"])
def test_a_device_there_is_not_is_wrong_usage(subject, capsys):
    code, said = refused(capsys, subject, "--small", "--device", "foo")
    assert code == 2
    assert "argument --device: invalid choice: 'foo'" in said


def test_cuda_where_there_is_none_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(report, "has_cuda", lambda: False)
    said = (1, "error: --device cuda, but there is no CUDA device here; use cpu or auto")
    for subject in ("tick", "capacity", "load"):
        assert refused(capsys, subject, "--small", "--device", "cuda") == said


@pytest.mark.parametrize("subject", [*OF_THE_MODEL, "load", "capacity", "soak", "gpu"])
def test_the_full_size_is_not_begun_on_a_cpu(subject, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(device.torch.cuda, "is_available", lambda: False)
    works = ("bench.device.generated", "bench.load.write_checkpoint", "bench.gpu.run_guarded")
    for begun in (*works, "weights.generated.write_checkpoint"):
        monkeypatch.setattr(f"engine.{begun}", lambda *_given: pytest.fail("it was begun"))
    path = tmp_path / "result.json"
    said = "error: the full size needs a GPU; add --small for a reduced one on this CPU"
    assert refused(capsys, subject, "--random", "--json", str(path)) == (1, said)
    assert not path.exists()


def test_a_result_that_cannot_be_written_is_found_before_the_measurement(
    capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr("engine.bench.load.run", lambda args: pytest.fail("it was begun"))
    (tmp_path / "file").touch()
    place = tmp_path / "file" / "x"
    code, said = refused(capsys, "load", "--small", "--json", str(place))
    assert code == 1
    assert said.startswith(f"error: --json {place} cannot be written (")
    assert said.endswith("); give another")


def test_a_place_is_made_and_what_was_there_is_kept(tmp_path):
    new, old = tmp_path / "of" / "mine.json", tmp_path / "old.json"
    old.write_text("former")
    for path in (new, old):
        report.check_options("load", SimpleNamespace(json=str(path)))
    assert new.parent.is_dir()
    assert not new.exists()
    assert old.read_text() == "former"


def test_small_lowers_what_is_not_given_and_nothing_else():
    tick = load_subject("tick")
    whole, small = parse_options(tick, []), parse_options(tick, ["--small", "--ticks", "7"])
    assert (small.ticks, small.context, small.slots) == (7, [100], [1, 2])
    assert (whole.ticks, whole.context) == (500, [100, 750, 1500, 3000])


@pytest.mark.parametrize("name", subjects())
def test_what_small_lowers_is_an_option_of_the_subject(name):
    subject = load_subject(name)
    if subject.small:
        assert subject.small.keys() <= vars(parse_options(subject, ["--small"])).keys()


@pytest.mark.parametrize("subject", subjects())
def test_a_subject_names_no_file_by_a_path_that_only_our_own_folder_has(subject):
    load_subject(subject)
    ours = [module for name, module in list(sys.modules.items()) if name.startswith("engine.")]
    paths = [value for module in ours for value in vars(module).values() if isinstance(value, Path)]
    assert len(paths) > 3
    relative = [path for path in paths if not path.expanduser().is_absolute()]
    defaults = map(str, vars(parse_options(load_subject(subject), [])).values())
    relative += [text for text in defaults if text == "." or "/" in text]
    assert not [path for path in relative if not Path(path).is_absolute()]
