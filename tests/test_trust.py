"""Runs that are killed, stopped, doubled, cut short by a full disk or spread over processes end with the results of an
undisturbed run, byte for byte.

Most runs here are real processes that a small server forks (this file run as a script), so that the imports are paid
once; some are the command itself. A process can be killed from outside, or kill itself at its n-th step in a list of
delicate moments: before, in the middle of and after each line, file, move and removal.
"""

import fcntl
import io
import json
import os
import random
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import KIT
from conftest import reproduce as command

TASKS = "pos", "ner", "parsing", "xnli"


# ------------------------------------------------------------------------------------- the server (a process of its own)

def serve():
    """Fork a run for each line of stdin, a JSON list [argv, log, options], and answer its pid; for a pid, its exit code."""
    sys.path.insert(0, str(KIT))
    import reproduce
    for line in sys.stdin:
        order = json.loads(line)
        if isinstance(order, int):
            answer = os.waitstatus_to_exitcode(os.waitpid(order, 0)[1])
        elif (answer := os.fork()) == 0:
            child(reproduce, *order)
        print(answer, flush=True)


def child(reproduce, argv, log, options):
    """One run in a forked process, its stdout in LOG and its stderr in LOG.err; options: see Server.start."""
    for number, path, mode in (0, os.devnull, os.O_RDONLY), (1, log, os.O_WRONLY), (2, log + ".err", os.O_WRONLY):
        os.dup2(os.open(path, mode | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.argv = ["reproduce.py", *argv]
    reproduce.plot.draw_figure = lambda *_: None   # figures are slow, and others test them
    said, code = (sys.stdout, sys.stderr), 99
    if "disk" in options:   # longer files fail as on a full disk; the logs are written when there is room again
        limit, sys.stdout, sys.stderr = resource.getrlimit(resource.RLIMIT_FSIZE), io.StringIO(), io.StringIO()
        resource.setrlimit(resource.RLIMIT_FSIZE, (options["disk"], limit[1]))
    if "slow" in options:
        reproduce.Run.score = slowly(reproduce.Run.score, options["slow"])
    if "moment" in options:
        killed_at(reproduce, options["moment"])
    try:
        code = reproduce.answer(reproduce.parse_arguments(argv))
    except BaseException:
        traceback.print_exc()
    if "disk" in options:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        for file, text in zip(said, (sys.stdout, sys.stderr)):
            file.write(text.getvalue())
    for file in said:
        file.flush()
    os._exit(code)


def slowly(function, seconds):
    def slow(*args):
        time.sleep(seconds)
        return function(*args)
    return slow


def killed_at(reproduce, moment):
    """This process kills itself at the n-th delicate moment."""
    left = moment

    def tick():
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function):
        def wrapped(*args, **options):
            tick()
            function(*args, **options)
            tick()
        return wrapped

    def append(f, record):
        text = json.dumps(record).encode() + b"\n"
        for part in (b"", text[:len(text) // 2], text[len(text) // 2:-1], b"\n"):
            f.write(part)
            f.flush()
            tick()

    def save_file(tensors, path, about):
        whole(tensors, path, about)
        content = Path(path).read_bytes()
        for size in (0, len(content) // 2, len(content)):
            Path(path).write_bytes(content[:size])
            tick()

    import safetensors.torch

    import train
    whole = safetensors.torch.save_file
    train.Run.cost = property(lambda _: 0.0, lambda *_: None)   # a save after each evaluation, whatever it costs
    reproduce.results.append_line, safetensors.torch.save_file = append, save_file
    os.replace, Path.unlink = around(os.replace), around(Path.unlink)


if __name__ == "__main__":
    serve()
    sys.exit()


# --------------------------------------------------------------------------------------------------------------- tools

class Server:
    def __init__(self, encoder, corpus, folder):
        self.flags, self.folder, self.runs = ["--encoder", str(encoder), "--data", str(corpus), "--src", "en", "--tgt", "de",
                                              "--device", "cpu", "--lr", "1e-3"], folder, 0
        self.process = subprocess.Popen([sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def argv(self, out, tasks=("pos",), seeds=(1,), epochs=2, batch_size=8):
        numbers = {"--seeds": seeds, "--epochs": [epochs], "--batch-size": [batch_size]}
        return [*self.flags, "--lines-only", "--out", str(out), "--task", *tasks,
                *(str(x) for flag, values in numbers.items() for x in (flag, *values))]

    def start(self, out, moment=None, disk=None, slow=None, **settings):
        """Begin a run; moment: it kills itself there; disk: bytes a file may have; slow: seconds more for each scoring."""
        self.runs += 1
        log = str(self.folder / f"log{self.runs}")
        options = {k: v for k, v in dict(moment=moment, disk=disk, slow=slow).items() if v is not None}
        Path(log).touch()
        Path(f"{log}.err").touch()
        return Run(self, self.ask([self.argv(out, **settings), log, options]), log)


class Run:
    def __init__(self, server, pid, log):
        self.server, self.pid, self.log, self.code = server, pid, Path(log), None

    def wait(self):
        """Exit code, negative for a signal; said and error hold the output."""
        self.code = self.server.ask(self.pid)
        self.said, self.error = self.log.read_text(), Path(f"{self.log}.err").read_text()
        assert "Traceback" not in self.error, self.error
        return self.code

    def until(self, condition):
        """Wait until the condition holds or the run has ended."""
        while not condition() and Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z":
            time.sleep(0.001)

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)   # it is not reaped before wait(), so the number is still its own


@pytest.fixture(scope="module")
def server(encoder, corpus, tmp_path_factory):
    server = Server(encoder, corpus, tmp_path_factory.mktemp("logs"))
    yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture(scope="module")
def undisturbed(server, tmp_path_factory):
    """undisturbed(**settings): the result files of a run that nothing disturbs, made once."""
    made = {}

    def result(**settings):
        key = json.dumps(settings)
        if key not in made:
            out = tmp_path_factory.mktemp("undisturbed") / "out"
            run = server.start(out, **settings)
            assert run.wait() == 0, run.error
            made[key] = files(out)
        return made[key]

    return result


def files(out):
    """{path in OUT: content} of everything under models and grids."""
    return {str(p.relative_to(out)): p.read_bytes() for part in ("models", "grids") for p in sorted((out / part).rglob("*"))
            if p.is_file()}


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def same(out, want):
    """The result files are those of the undisturbed run; a difference is shown by name, not by megabytes."""
    got = files(out)
    assert sorted(got) == sorted(want)
    assert [name for name in want if got[name] != want[name]] == []


def progress(out):
    """Bytes in the files that grow line by line."""
    return sum(p.stat().st_size for p in out.rglob("*.jsonl"))


def temporary(out):
    """Files that are being written, or were when a run was killed."""
    found = set()
    for path in [*out.rglob(".*.tmp"), *out.rglob(".tmp*")]:
        with suppress(FileNotFoundError):
            found.add((path, path.stat().st_mtime_ns))
    return found


def continued(out, run, **settings):
    """Run the same command again: what was finished is named as such, and not touched; returns the code."""
    models = {p: p.stat() for p in out.glob("models/**/model.safetensors")}
    grids = {p: p.read_bytes() for p in out.glob("grids/**/*.jsonl")}
    run = run(out, **settings)
    code = run.wait()
    for path, stat in models.items():
        assert (path.stat().st_ino, path.stat().st_mtime_ns) == (stat.st_ino, stat.st_mtime_ns), f"{path} was made again"
    for path, content in grids.items():
        whole = content[:content.rfind(b"\n") + 1]
        assert path.read_bytes().startswith(whole), f"{path} lost lines"
        points = max(0, whole.count(b"\n") - 1)
        if code == 0 and points:
            assert f"{points} of 65 points already in {path}" in run.said
    if code == 0:
        assert run.said.count("already trained") == len(models)
    return run


# ------------------------------------------------------------------------------------------------------ killed (kill -9)

def live(server, undisturbed, out, seed, kind, longest, **settings):
    """Kill a run and its continuations again and again, at random moments, until one gets to its end; compare.

    Returns how many were killed and what they had logged.
    """
    rng, kills, logs, run = random.Random(seed), 0, [], None
    want = undisturbed(**settings)
    for _ in range(200):
        def start(out, **settings):
            if kind == "moment":
                return server.start(out, moment=rng.randint(1, longest), **settings)
            before, old, more = progress(out), temporary(out), rng.randint(1, longest)
            files_too = kind == "writing" and rng.random() < .5
            run = server.start(out, **settings)
            run.until(lambda: progress(out) >= before + more or files_too and temporary(out) - old)
            time.sleep(rng.random() * .01 if kind == "clock" else 0)
            run.kill()
            return run
        run = continued(out, start, **settings)
        logs.append(run.said)
        assert run.code in (0, -signal.SIGKILL), run.error
        kills += run.code != 0
        if run.code == 0:
            break
    same(out, want)
    run = continued(out, server.start, **settings)   # and once more: nothing is left to do
    assert run.code == 0 and not re.search(r" steps, \d+ s$|: \d+ points, \d+ s$", run.said, re.MULTILINE)
    same(out, want)
    return kills, "\n".join(logs)


def test_a_run_killed_again_and_again_ends_like_one_that_nothing_disturbed(server, undisturbed, tmp_path):
    kills, logs = live(server, undisturbed, tmp_path / "out", 4, "moment", 250, tasks=["ner"])
    print(f"{kills} kills")
    assert kills >= 3 and "continued after step" in logs


@pytest.mark.parametrize("forked", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_command_continues_what_was_killed_and_writes_nothing_outside_its_folders(server, undisturbed, corpus, encoder,
                                                                                      tmp_path, forked):
    home, here = tmp_path / "home", tmp_path / "here"
    home.mkdir()
    here.mkdir()
    env = {name: str(home) for name in ("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR")} | {"PYTHONDONTWRITEBYTECODE": "1"}
    before, out = everything(corpus) | everything(encoder), here / "out"
    if forked:
        run = server.start(out)
        run.until(lambda: list(out.rglob("state.safetensors")))
        run.kill()
        assert run.wait() == -signal.SIGKILL
    else:
        process = subprocess.Popen([sys.executable, KIT / "reproduce.py", *server.argv("out")], stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL, cwd=here, env=os.environ | env)
        while not list(out.rglob("state.safetensors")) and process.poll() is None:
            time.sleep(0.001)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert files(out) != undisturbed()
    done = command(*server.argv("out"), cwd=here, env=env)
    assert done.returncode == 0, done.stderr
    assert "continued after step" in done.stdout and (out / "report.md").exists()
    same(out, undisturbed())
    assert list(here.iterdir()) == [out] and everything(corpus) | everything(encoder) == before
    caches = {path.relative_to(home).parts[0] for path in everything(home)}
    assert caches <= {"huggingface", "matplotlib", "torch", "fontconfig", ".cache", ".config"}, caches


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind, longest", [("moment", 60), ("moment", 200), ("clock", 800), ("writing", 1500)])
def test_runs_of_all_tasks_killed_at_random_moments(server, undisturbed, tmp_path, task, kind, longest):
    kills, logs = live(server, undisturbed, tmp_path / "out", task + kind, kind, longest, tasks=[task])
    print(f"{task}: {kills} kills of kind {kind}")
    assert kills


@pytest.mark.slow
def test_a_run_of_several_tasks_and_seeds_killed_at_random_moments(server, undisturbed, tmp_path):
    kills, logs = live(server, undisturbed, tmp_path / "out", "all", "clock", 6000, tasks=TASKS, seeds=[1, 2])
    print(f"all tasks: {kills} kills")
    assert kills >= 3


@pytest.mark.slow
def test_killed_at_each_moment_between_two_lines(server, undisturbed, tmp_path):
    """A run of one short model after another, killed at each of its first delicate moments, then run to its end."""
    settings = dict(epochs=1, batch_size=40)
    want = undisturbed(**settings)
    for moment in range(1, 60):
        out = tmp_path / str(moment)
        assert server.start(out, moment=moment, **settings).wait() == -signal.SIGKILL
        assert continued(out, server.start, **settings).code == 0
        same(out, want)


def test_torn_lines_and_files_left_behind_do_no_harm(server, undisturbed, tmp_path):
    out, want = tmp_path / "out", undisturbed()
    run = server.start(out)
    run.until(lambda: list(out.rglob("state.safetensors")))
    run.kill()
    assert run.wait() == -signal.SIGKILL
    state, = out.rglob("state.safetensors")
    with open(state.parent / "train.jsonl", "ab") as f:
        f.write(b'{"step": 9, "lr": 0.0')
    for name in (".state.safetensors.tmp", ".model.safetensors.tmp", ".tmpX1y2z3"):
        (state.parent / name).write_bytes(b"half a file")
    run = continued(out, server.start)
    assert run.code == 0 and "continued after step" in run.said
    same(out, want)
    grid, = out.glob("grids/**/*.jsonl")
    for cut in (1, 20, len(grid.read_bytes()) - 30):   # in the last line, and in the first
        grid.write_bytes(want[str(grid.relative_to(out))][:-cut])
        assert continued(out, server.start).code == 0
        same(out, want)
    for name in ("state.safetensors", ".state.safetensors.tmp", ".tmpX1y2z3"):   # killed when the model was whole
        (state.parent / name).write_bytes(b"not needed any more")
    assert continued(out, server.start).code == 0
    same(out, want)


# -------------------------------------------------------------------------------------------------------------- Ctrl-C

def test_ctrl_c_says_what_is_saved_and_that_the_same_command_continues(server, undisturbed, tmp_path):
    out = tmp_path / "out"
    for condition in (lambda: list(out.rglob("state.safetensors")), lambda: list(out.glob("grids/**/*.jsonl"))):
        run = server.start(out, slow=0.02)
        run.until(condition)
        run.kill(signal.SIGINT)
        assert run.wait() == 130
        assert run.error.strip().count("\n") == 0 and str(out) in run.error and "same command continues" in run.error
    assert continued(out, server.start).code == 0
    same(out, undisturbed())


def test_ctrl_c_while_the_libraries_are_loaded_gives_no_traceback(server, tmp_path):
    process = subprocess.Popen([sys.executable, KIT / "reproduce.py", *server.argv(tmp_path / "out")], text=True,
                               stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():   # in the middle of the imports
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    said, error = process.communicate()
    assert process.returncode in (130, -signal.SIGINT)   # a shell reports 130 for both
    assert "Traceback" not in error and error.count("\n") <= 1


# ------------------------------------------------------------------------------------------------------ two runs at once

def test_a_file_that_another_process_writes_is_left_alone(server, undisturbed, tmp_path):
    out = tmp_path / "out"
    name = next(name for name in undisturbed() if name.endswith("train.jsonl"))
    grid = next(name for name in undisturbed() if name.startswith("grids"))
    for path in (out / name, out / grid):
        path.parent.mkdir(parents=True)
        path.write_bytes(b'{"half": ')
        with open(path, "rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            run = server.start(out)
            assert run.wait() == 2
            assert run.error == f"reproduce.py: Another process is writing {path}: wait for it, or take another --out.\n"
            assert path.read_bytes() == b'{"half": '
    assert server.start(out).wait() == 0
    same(out, undisturbed())


def two_at_once(server, undisturbed, out, moments, **settings):
    """A second run begins when the first is so far, again and again; returns the exit codes of the second runs."""
    first, codes = server.start(out, slow=0.01, **settings), []
    for moment in moments:
        first.until(lambda: progress(out) >= moment)
        codes.append((second := server.start(out, **settings)).wait())
        assert second.code == 0 or second.code == 2 and re.fullmatch(
            r"reproduce.py: Another process is writing \S+: wait for it, or take another --out.\n", second.error), second.error
    assert first.wait() in (0, 2), first.error
    if first.code:   # the second run was a step ahead: the first has said so
        assert "Another process is writing" in first.error
        assert server.start(out, **settings).wait() == 0
    same(out, undisturbed(**settings))
    return codes


def test_two_runs_in_one_folder_never_write_one_file(server, undisturbed, tmp_path):
    codes = two_at_once(server, undisturbed, tmp_path / "out", (1, 2500))
    assert 2 in codes


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(6))
def test_two_runs_in_one_folder_at_random_moments(server, undisturbed, tmp_path, seed):
    moments = sorted(random.Random(seed).choices(range(12000), k=6))
    two_at_once(server, undisturbed, tmp_path / "out", moments, tasks=["pos", "ner"])


# ----------------------------------------------------------------------------------------------- full disk, lost files

def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing_half_written_as_if_whole(server, undisturbed, tmp_path):
    want, out = undisturbed(), tmp_path / "out"
    for disk in (50, 200, 20_000, 3000, 4500):
        for name, content in want.items():   # for the last two: all models, so that the grid is what does not fit
            if 2000 < disk < 5000:
                (out / name).parent.mkdir(parents=True, exist_ok=True)
                if name.startswith("models"):
                    (out / name).write_bytes(content)
        run = server.start(out, disk=disk)
        assert run.wait() == 2
        assert run.error.startswith("reproduce.py: ") and run.error.count("\n") == 1
        assert str(out) in run.error and "File too large" in run.error
        for path in out.rglob("*.safetensors"):
            if path.name == "model.safetensors":
                assert path.read_bytes() == want[str(path.relative_to(out))]
        assert not list(out.rglob(".*.tmp"))
    assert continued(out, server.start).code == 0
    same(out, want)
    (out / "report.md").unlink()
    run = server.start(out, disk=300)
    assert run.wait() == 2 and "report.md" in run.error and not (out / "report.md").exists()


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/no/out")):
        run = server.start(out)
        assert run.wait() == 2
        assert run.error.startswith(f"reproduce.py: {out.parent}") and run.error.count("\n") == 1


def test_a_model_that_vanishes_before_its_grid(server, undisturbed, tmp_path):
    out = tmp_path / "out"
    run = server.start(out, slow=0.02)
    run.until(lambda: len(list(out.rglob("model.safetensors"))) == 2)
    gone = next(out.rglob("model.safetensors"))
    gone.unlink()
    assert run.wait() == 2
    assert run.error.count("\n") == 1 and str(gone) in run.error
    assert continued(out, server.start).code == 0
    same(out, undisturbed())


# ------------------------------------------------------------------------------------------------------------ torchrun

def torchrun(*argv, flags=("--standalone", "--nproc-per-node", "2")):
    return subprocess.Popen([sys.executable, "-m", "torch.distributed.run", *flags, KIT / "reproduce.py", *argv],
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=KIT)


def test_two_processes_give_the_files_of_one(server, undisturbed, tmp_path):
    process = torchrun(*server.argv(tmp_path / "out"))
    said, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    same(tmp_path / "out", undisturbed())
    assert said.count("Look first at") == 1


def test_two_machines_with_one_shared_folder_give_the_files_of_one_process(server, undisturbed, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    agents = [torchrun(*server.argv(tmp_path / "out"), flags=(
        "--nnodes", "2", "--node-rank", str(rank), "--nproc-per-node", "1", "--master-addr", "127.0.0.1",
        "--master-port", port)) for rank in (0, 1)]
    for agent in agents:
        _, error = agent.communicate(timeout=300)
        assert agent.returncode == 0, error
    same(tmp_path / "out", undisturbed())


@pytest.mark.slow
def test_all_tasks_and_seeds_over_two_processes(server, undisturbed, tmp_path):
    settings = dict(tasks=TASKS, seeds=[1, 2])
    process = torchrun(*server.argv(tmp_path / "out", **settings))
    assert process.communicate(timeout=600) and process.returncode == 0
    same(tmp_path / "out", undisturbed(**settings))


@pytest.mark.slow
def test_a_rank_that_fails_ends_the_run_with_its_message(server, corpus, tmp_path):
    data, out = shutil.copytree(corpus, tmp_path / "data"), tmp_path / "out"
    for name in ("train", "dev"):   # the ranks share the reading: one of them meets the bad file
        path = data / "panx" / "de" / name
        good = path.read_bytes()
        path.write_bytes(b"de:a\tO\nbad line\n")
        began = time.time()
        process = torchrun(*server.argv(out, tasks=["ner"]), "--data", str(data))
        said, error = process.communicate(timeout=300)
        assert process.returncode != 0 and time.time() - began < 120
        assert error.count(f"reproduce.py: {path}, line 2: 'bad line'") == 1
        assert not out.exists()
        path.write_bytes(good)


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_the_same_command_continues(server, undisturbed, tmp_path):
    settings, out = dict(tasks=TASKS), tmp_path / "out"
    for bytes_ in (500, 3000, 9000):
        process = torchrun(*server.argv(out, **settings))
        while progress(out) < bytes_ and process.poll() is None:
            time.sleep(0.002)
        ranks = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
        os.kill(random.Random(bytes_).choice(ranks), signal.SIGKILL)
        process.communicate(timeout=300)
        assert process.returncode != 0
    process = torchrun(*server.argv(out, **settings))
    assert process.communicate(timeout=600) and process.returncode == 0
    same(out, undisturbed(**settings))
