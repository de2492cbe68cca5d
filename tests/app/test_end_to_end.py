"""The command line with real processes: a whole run, kills, and the network in an environment without this library."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import psutil
import pytest
import safetensors.torch
from click.testing import CliRunner

from archipel.app.cli import main
from archipel.data.load import load

FAST = ["--data", "digits-flat", "--data-option", "limit=400", "--space", "mlp", "--epochs", "2"]


def archipel(*args, **kwargs):
    return subprocess.run(
        [sys.executable, "-m", "archipel.app.cli", *map(str, args)],
        capture_output=True,
        text=True,
        timeout=200,
        **kwargs,
    )


def here(*args):
    """A command in this process."""
    return CliRunner().invoke(main, [str(a) for a in args])


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A finished run and what the command printed."""
    out = tmp_path_factory.mktemp("run") / "run"
    done = archipel("search", *FAST, "--budget", 4, "--limit", "params=6k", "--workers", 2, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    return out, json.loads(done.stdout.splitlines()[-1])


def test_json_mode_ends_with_one_object_that_says_it_all(finished):
    out, summary = finished
    assert summary["run"] == str(out)
    assert summary["costs"]["params"] <= 6000
    assert 0.1 < summary["test"]["accuracy"] <= 1.0
    assert 0.1 < summary["validation"]["accuracy"] <= 1.0
    assert summary["random"]["n"] >= 2
    assert all(Path(f).exists() for f in [*summary["files"].values(), summary["report"]])
    assert json.loads((out / "model" / "architecture.json").read_text()) == summary["arch"]


def test_report_export_resume_and_draw_work_on_a_finished_run(finished, tmp_path):
    out, summary = finished
    assert json.loads(here("report", out, "--json").output) == summary
    exported = here("export", out, "--to", tmp_path / "copy")
    assert exported.exit_code == 0, exported.output
    assert (tmp_path / "copy" / "program.pt2").exists()
    assert "compared with the network from architecture.json and model.safetensors" in exported.output
    printed = here("report", out).output
    assert re.search(r"^validation .* \(after 4 epochs\)$", printed, re.MULTILINE)
    assert re.search(r"^random .* \(after 2 epochs of a trial\), P", printed, re.MULTILINE)
    assert json.loads(here("resume", out, "--json").output) == summary
    drawn = here("draw", out, "--out", tmp_path / "a.svg")
    assert drawn.exit_code == 0, drawn.output
    assert (tmp_path / "a.svg").read_text().startswith("<svg")


def test_export_finds_weights_that_are_not_those_of_the_program(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    file = tmp_path / "run" / "model" / "model.safetensors"
    weights = safetensors.torch.load_file(file)
    safetensors.torch.save_file({k: v + 0.5 for k, v in weights.items()}, file)
    wrong = here("export", tmp_path / "run")
    assert wrong.exit_code == 6
    assert "program.pt2 computes something else" in wrong.output
    file.write_bytes(b"x")
    assert "does not hold the weights" in here("export", tmp_path / "run").output


def test_export_of_a_space_that_cannot_be_made_by_name_says_what_was_compared(finished, tmp_path):
    shutil.copytree(finished[0], tmp_path / "run")
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    (tmp_path / "run" / "config.json").write_text(json.dumps(config | {"space": "object:mine"}))
    done = here("export", tmp_path / "run")
    assert done.exit_code == 0, done.output
    assert "compared with each other only, not with the weights" in done.output
    assert "objects in Python" in done.output
    (tmp_path / "run" / "model" / "program.pt2").write_bytes(b"x")
    assert here("export", tmp_path / "run").exit_code == 6


def test_a_memory_limit_below_what_a_worker_needs_is_named(tmp_path):
    done = archipel("search", *FAST, "--budget", 1, "--trial-memory", 1, "--quiet", "--out", tmp_path / "run")
    assert done.returncode == 6
    assert "out of memory" in done.stderr
    assert "below what a worker needs" in done.stderr


def test_the_page_is_self_contained(finished):
    page = (finished[0] / "report.html").read_text()
    assert "Plotly" in page
    assert "Against random architectures" in page
    assert "<svg" in page
    assert not re.search(r"<(script|link|img)[^>]+(src|href)=\"http", page)


SCRIPTS = {
    "torch": """
import numpy, torch
net = torch.export.load("program.pt2").module()
test = numpy.load("test.npz")
with torch.no_grad():
    out = net(torch.from_numpy(test["x"])).numpy()
""",
    "onnxruntime": """
import numpy, onnxruntime
test = numpy.load("test.npz")
out = onnxruntime.InferenceSession("model.onnx").run(None, {"input": test["x"]})[0]
""",
}


@pytest.mark.parametrize("only", ["torch", "onnxruntime"])
def test_the_network_runs_without_the_library_and_gives_the_stated_test_accuracy(finished, tmp_path, only):
    if only == "onnxruntime":
        pytest.importorskip("onnxruntime")
    out, summary = finished
    site = tmp_path / "site"
    link_packages([only, "numpy"], site)
    test = load("digits-flat", seed=0, limit=400).open_test("checking the exported network in a clean environment")
    work = tmp_path / "work"
    work.mkdir()
    for name in ("program.pt2", "model.onnx"):
        (work / name).write_bytes((out / "model" / name).read_bytes())
    np.savez(work / "test.npz", x=test.x.numpy(), y=test.y.numpy())
    script = SCRIPTS[only] + "import json, importlib.util\n" + (
        "print(json.dumps([float((out.argmax(1) == test['y']).mean()), "
        "importlib.util.find_spec('archipel') is None, importlib.util.find_spec('sklearn') is None]))"
    )  # fmt: skip
    # -I and -S: no site-packages, no user folder, no environment; only what was linked.
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(site)!r})\n{script}"]
    done = subprocess.run(command, cwd=work, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    accuracy, no_archipel, no_sklearn = json.loads(done.stdout.splitlines()[-1])
    assert no_archipel
    assert no_sklearn
    assert accuracy == pytest.approx(summary["test"]["accuracy"], abs=1e-9)


def link_packages(names, site):
    """A folder with links to distributions and all they require, and nothing else."""
    site.mkdir()
    todo, seen = list(names), set()
    while todo:
        name = re.sub(r"[-_.]+", "-", todo.pop()).lower()
        if name in seen:
            continue
        seen.add(name)
        try:
            dist = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # a requirement for other platforms
        for file in dist.files or []:
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(dist.locate_file(top)).resolve())
        todo += [re.split(r"[ ;<>=!~\[(]", r)[0] for r in dist.requires or [] if "extra ==" not in r]


def told(out):
    """How many search trials are on disk."""
    try:
        db = sqlite3.connect(f"file:{out}/trials.sqlite?mode=ro", uri=True)
        return db.execute("SELECT count(*) FROM trials").fetchone()[0]
    except sqlite3.Error:
        return 0


def test_sigkill_of_the_main_process_and_of_workers_loses_nothing_and_changes_nothing(tmp_path):
    rng = random.Random(0)
    arguments = [
        "search",
        *FAST,
        "--budget",
        8,
        "--baseline",
        0,
        "--final-random",
        0,
        "--final-candidates",
        1,
        "--quiet",
    ]
    calm = archipel(*arguments, "--out", tmp_path / "calm")
    assert calm.returncode == 0, calm.stderr
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "archipel.app.cli"]
    kept, kills = 0, 0
    args = [*arguments, "--out", out]
    while kills < 3:
        process = subprocess.Popen([*command, *map(str, args)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        target = kept + rng.randint(1, 2)
        deadline = time.monotonic() + 90
        while process.poll() is None and told(out) < target and time.monotonic() < deadline:
            time.sleep(0.02)
        if process.poll() is not None:
            break
        if kills == 1:  # a worker first: the run must go on by itself
            for worker in workers_of(process.pid):
                os.kill(worker, signal.SIGKILL)
            while process.poll() is None and told(out) < target + 1 and time.monotonic() < deadline:
                time.sleep(0.02)
        time.sleep(rng.random() * 0.3)
        family = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
        process.send_signal(signal.SIGKILL)
        process.wait()
        _, alive = psutil.wait_procs(family, timeout=20)
        assert not alive, "worker processes outlive the run"
        kills += 1
        kept, before = told(out), kept
        assert kept >= before
        args = ["resume", out, "--quiet"]
    done = archipel("resume", out, "--json")
    assert done.returncode == 0, done.stderr
    reports = [json.loads((p / "report.json").read_text()) for p in (tmp_path / "calm", out)]
    for part in ("arch", "metrics", "costs"):
        assert reports[0]["chosen"][part] == reports[1]["chosen"][part]
    trials = [[(t["id"], t["arch"], t["metrics"]) for t in r["trials"]] for r in reports]
    assert trials[0] == trials[1]
    assert kills >= 1


def workers_of(pid):
    for child in psutil.Process(pid).children(recursive=True):
        if "forkserver" not in " ".join(child.cmdline()) or child.parent().pid != pid:
            yield child.pid


def test_ctrl_c_exits_with_130_and_leaves_a_network(tmp_path):
    out = tmp_path / "run"
    process = subprocess.Popen(
        [sys.executable, "-m", "archipel.app.cli", "search", *FAST, "--budget", "10min", "--out", str(out), "--quiet"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        # Whoever runs the tests in the background may have made their children deaf to Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 90
    while told(out) < 3 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    try:
        _, err = process.communicate(timeout=90)
    finally:
        process.kill()
    assert process.returncode == 130, err.decode()
    assert json.loads((out / "report.json").read_text())["status"] == "interrupted"
    assert (out / "model" / "program.pt2").exists()


def test_the_library_and_the_help_are_there_within_a_second_of_computing_and_without_torch():
    for code in ("import archipel", "from archipel.app.cli import main; main(['--help'], standalone_mode=False)"):
        seconds = []
        for _ in range(3):
            before = os.times()
            checked = f"import sys; {code}; sys.exit('torch' in sys.modules)"
            assert subprocess.run([sys.executable, "-c", checked], stdout=subprocess.DEVNULL).returncode == 0
            after = os.times()
            seconds.append(sum(after[2:4]) - sum(before[2:4]))
        assert min(seconds) < 1.0
