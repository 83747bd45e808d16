"""The driver of studies: steps in order, done once, done again where something changed."""

import json
from pathlib import Path

import pandas as pd
import pytest
import typer
import yaml
from study import jobs_of, load_study, main, run_study

from polysem.cli import app
from polysem.data.shipped import shipped_file
from polysem.errors import SpecError

ANALYSES = Path(__file__).parents[2] / "analyses"

COMMANDS = typer.main.get_command(app)


def model(name: str) -> str:
    return str(shipped_file("models", f"shapes_micro_{name}.safetensors"))


def small() -> dict[str, object]:
    """Two shipped networks on a few drawn images, and three steps."""
    return {
        "title": "Which is <b>?",
        "hypothesis": "One has fewer.",
        "arms": ["bcos", "vit"],
        "images": {
            "shapes": {
                "data": "shapes:test?n=12&size=64&label=colour",
                "limit": 8,
                "networks": {"bcos": [model("bcos")], "vit": [model("vit")]},
            }
        },
        "steps": [
            {
                "name": "probe", "for": "network",
                "run": "probe --model {model} --data {data} --limit {limit} --out {run} "
                "--sites blocks.[01].mlp.hook_post --overwrite",
            },
            {"name": "compare", "for": "images",
             "run": "compare {groups} --out {folder}/compared --overwrite"},
        ],
        "evidence": [
            {"table": "units", "measure": "kurtosis", "site": "blocks.*.mlp.hook_post",
             "supports": "higher", "says": "excess kurtosis"},
            {"table": "units", "measure": "sparsity", "site": "blocks.*.mlp.hook_post",
             "supports": "lower", "says": "sparsity"},
        ],
    }  # fmt: skip


def written(folder: Path, given: dict[str, object]) -> Path:
    file = folder / "study.yaml"
    file.write_text(yaml.safe_dump(given), encoding="utf-8")
    return file


def test_a_study_is_run_once_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = written(tmp_path, small()), tmp_path / "out"
    assert main([str(file), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "[1/3] probe shapes/bcos-0\n" in printed
    page = (out / "report" / "README.md").read_text(encoding="utf-8")
    assert page.startswith("# Which is &lt;b&gt;?\n")
    assert "an arm has a single seed" in page
    assert "from 4 in each on" in page
    assert (out / "report" / "shapes_forest.png").stat().st_size > 5000
    table = pd.read_csv(out / "report" / "shapes_comparison.csv")
    assert {"bcos"} == set(table["arm"])
    assert (out / "logs" / "compare-shapes.log").read_text(encoding="utf-8")

    assert main([str(file), "--out", str(out)]) == 0
    assert capsys.readouterr().out.count("done before") == 3

    # the last step is lost, as after an interruption: it alone is done again
    steps = json.loads((out / "steps.json").read_text(encoding="utf-8"))
    del steps["compare shapes"]
    (out / "steps.json").write_text(json.dumps(steps), encoding="utf-8")
    main([str(file), "--out", str(out)])
    assert capsys.readouterr().out.count("done before") == 2

    # other images: all steps are done again
    main([str(file), "--out", str(out), "--set", "shapes.limit=6"])
    assert "done before" not in capsys.readouterr().out
    assert json.loads((out / "shapes" / "vit-0" / "manifest.json").read_text())["n_images"] == 6


@pytest.mark.parametrize("name", ["bcos_vs_vit", "drophead"])
def test_the_studies_are_commands_that_polysem_has(name: str, tmp_path: Path) -> None:
    study = load_study(ANALYSES / name / "study.yaml")
    jobs = jobs_of(study, tmp_path)
    assert len(jobs) > 10
    assert len({job.name for job in jobs}) == len(jobs)
    if missing := {job.words[0] for job in jobs} - set(COMMANDS.commands):  # type: ignore[attr-defined]
        pytest.skip(f"polysem has no {' and no '.join(sorted(missing))} yet")
    for job in jobs:
        command = COMMANDS.commands[job.words[0]]  # type: ignore[attr-defined]
        command.make_context(job.words[0], list(job.words[1:]))  # options are parsed, nothing run
    for images in study.images:
        for files in [*images.networks.values(), images.snapshots.values()]:
            assert all(list(ANALYSES.parent.glob(file)) for file in files)


def test_a_network_step_goes_on_from_its_own_steps_alone(tmp_path: Path) -> None:
    given = small()
    given["steps"].insert(1, {"name": "scores", "for": "network", "run": "x {run}"})  # type: ignore[attr-defined]
    jobs = {job.name: job for job in jobs_of(load_study(written(tmp_path, given)), tmp_path)}
    assert jobs["scores shapes/vit-0"].after == ("probe shapes/vit-0",)
    assert len(jobs["compare shapes"].after) == 4


def test_a_step_that_fails_is_one_sentence_and_keeps_what_is_done(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = small()
    given["steps"][1]["run"] = "compare {groups} --sites blocks.77.* --out {folder}/compared"  # type: ignore[index]
    out = tmp_path / "out"
    assert main([str(written(tmp_path, given)), "--out", str(out)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("study: ") and "blocks.77" in err and err.count("\n") == 1
    assert set(json.loads((out / "steps.json").read_text())) == {
        "probe shapes/bcos-0", "probe shapes/vit-0"
    }  # fmt: skip
    given["steps"][1]["run"] = "compare {groups} --nonsense"  # type: ignore[index]
    assert main([str(written(tmp_path, given)), "--out", str(out)]) == 2
    assert "step compare shapes ended with 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"arms": ["bcos"]}, "has 1 arms"),
        ({"arms": ["bcos", "cnn"]}, "need networks of bcos and of cnn"),
        ({"more": 1}, "has to have the keys"),
        ({"evidence": []}, "names no evidence"),
        ({"evidence": [{"table": "units"}]}, "supports"),
        ({"steps": [{"name": "a", "for": "all", "run": "b"}]}, "is for 'all'"),
        ({"steps": [{"name": "a"}]}, "has to have name, for and run"),
        ({"steps": [{"name": "a", "for": "images", "run": "b {runn}"}]}, "nothing fills"),
    ],
)
def test_what_is_wrong_in_a_study_is_said(
    change: dict[str, object], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(SpecError, match=sentence):
        jobs_of(load_study(written(tmp_path, small() | change)), tmp_path)


def test_settings_and_steps_that_are_not_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = written(tmp_path, small())
    with pytest.raises(SpecError, match=r"did you mean 'shapes\.limit'"):
        load_study(file, ["shapes.limits=3"])
    with pytest.raises(SpecError, match=r"IMAGES\.KEY=VALUE"):
        load_study(file, ["limit=3"])
    with pytest.raises(SpecError, match="did you mean 'probe'"):
        run_study(load_study(file), tmp_path / "out", skip=["prob"])
    assert main([str(tmp_path / "none.yaml"), "--out", "x"]) == 2
    file.write_text("a: [", encoding="utf-8")
    assert main([str(file), "--out", "x"]) == 2
    err = capsys.readouterr().err
    assert "there is no study at" in err and "is not YAML" in err
    run_study(load_study(written(tmp_path, small())), tmp_path / "dry", dry=True)
    assert "polysem probe --model" in capsys.readouterr().out
    assert not (tmp_path / "dry").exists()
