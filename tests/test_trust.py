"""Runs that are killed, stopped, doubled or cut short end with the bytes of an undisturbed run.

Most are processes that a small server forks (this file as a script), so that imports are paid once; some are
the command itself. They are killed from outside, or kill themselves at the n-th of their delicate moments: in
the middle of and after each line and file, before and after each move and removal.
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
from functools import cache
from itertools import count
from pathlib import Path

import pytest
from conftest import KIT
from conftest import reproduce as command

TASKS = "pos", "ner", "parsing", "xnli"
KILLED = -signal.SIGKILL
BUSY = r"reproduce.py: Another process is writing \S+: wait for it, or take another --out.\n"
PRETRAINING = "layers=1,heads=2,hidden=16,vocabulary=300,length=12,batch=4,steps=20,warmup=4,blocks=sentences"


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


# ---- the server, a process of its own ---------------------------------------------------------------------

def serve():
    """Fork a run for a line [argv, options] of stdin and answer its pid; for a pid, its code and output."""
    sys.path.insert(0, str(KIT))
    import reproduce
    pipes = {}
    for line in sys.stdin:
        if isinstance(order := json.loads(line), int):
            code = os.waitstatus_to_exitcode(os.waitpid(order, 0)[1])
            answer = [code, *(os.fdopen(end).read() for end in pipes.pop(order))]
        else:
            (out, to_out), (err, to_err) = os.pipe(), os.pipe()
            if (answer := os.fork()) == 0:
                child(reproduce, *order, to_out, to_err)
            pipes[answer] = out, err
            os.close(to_out)
            os.close(to_err)
        print(json.dumps(answer), flush=True)


def child(reproduce, argv, options, out, err):
    """One run in a forked process; options: see Server.start."""
    os.dup2(out, 1)
    os.dup2(err, 2)
    code, sys.argv = 99, ["reproduce.py", *argv]
    try:
        change(reproduce, **options)
        code = reproduce.answer(reproduce.parse_arguments(argv))
    except BaseException:
        traceback.print_exc()
    sys.stdout.flush()
    os._exit(code)


def change(reproduce, moment, place, disk, pause, figures):
    """Make this process a small one, and slow or doomed where the options say so."""
    plan, score, demo = reproduce.plot.plan, reproduce.Run.score, reproduce.demo
    demo.SIZES, demo.PAIRS, demo.TEXTS, demo.STEPS = {"train": 60, "dev": 20}, {"train": 9, "dev": 9}, 300, 10
    reproduce.plot.plan = lambda grids: plan(grids)[:figures]   # to draw takes time

    def slow_score(*args):
        time.sleep(pause)
        return score(*args)

    reproduce.Run.score = slow_score
    if disk:   # longer files fail, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, resource.RLIM_INFINITY))
    if moment:
        kill_at(reproduce.results, moment, place)


def kill_at(results, moment, place):
    """Let this process kill itself at the n-th delicate moment of the files with `place` in their paths."""
    import safetensors.torch

    import train
    moments, save_whole = count(1), safetensors.torch.save_file

    def tick(path):
        if place in str(path) and next(moments) == moment:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(function):
        def wrapped(path, *args, **options):
            tick(path)
            function(path, *args, **options)
            tick(path)
        return wrapped

    class Torn(io.BufferedRandom):
        def write(self, content):
            for part in (b"", content[:len(content) // 2], content[len(content) // 2:-1], content[-1:]):
                super().write(part)
                self.flush()
                tick(self.name)

    def save_file(tensors, path, about):
        save_whole(tensors, path, about)
        content = Path(path).read_bytes()
        with Torn(io.FileIO(path, "w+")) as f:
            f.write(content)

    train.Run.cost = property(lambda _: 0.0, lambda *_: None)   # a save after each evaluation
    results.open = lambda path, mode: Torn(io.FileIO(path, "a+"))
    safetensors.torch.save_file, os.replace, Path.unlink = save_file, around(os.replace), around(Path.unlink)


if __name__ == "__main__":
    serve()
    sys.exit()


# ---- tools ------------------------------------------------------------------------------------------------

class Server:
    def __init__(self, encoder, corpus, folder):
        self.flags = "--encoder", encoder, "--data", corpus, "--src", "en", "--tgt", "de"
        self.folder, pipe = folder, subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, __file__], stdin=pipe, stdout=pipe, text=True)

    def ask(self, order):
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def argv(self, out, tasks=("pos",), seeds=(1,), epochs=2, batch_size=8, flags=()):
        """The arguments of a run; flags, if any, instead of those for the tiny encoder and corpus."""
        numbers = "--seeds", *seeds, "--epochs", epochs, "--batch-size", batch_size, "--lr", 1e-3
        return [str(text) for text in (*(flags or self.flags), "--device", "cpu", "--lines-only", "--out", out,
                                       "--task", *tasks, *numbers)]

    def start(self, out, moment=0, place="", disk=0, pause=0, figures=0, **settings):
        """Begin a run. moment and place: where it kills itself; disk: bytes a file may have; pause: seconds
        before each scoring; figures: how many are drawn."""
        options = dict(moment=moment, place=place, disk=disk, pause=pause, figures=figures)
        return Run(self, self.ask([self.argv(out, **settings), options]))

    @cache
    def undisturbed(self, **settings):
        """The files of a run that nothing disturbs."""
        run = self.start(out := self.folder / str(hash(str(settings))), **settings)
        assert run.wait() == 0, run.error
        return files(out)

    def again(self, out, start=None, **settings):
        """Run a command again: what was finished is named and not touched; at its end all files are there."""
        models = made(out)
        grids = {path: path.read_bytes() for path in out.glob("grids/**/*.jsonl")}
        run = (start or self.start)(out, **settings)
        assert run.wait() == (KILLED if start and run.code else 0), run.error
        assert models.items() <= made(out).items()
        for path, content in grids.items():
            whole = content[:content.rfind(b"\n") + 1]
            assert path.read_bytes().startswith(whole), f"{path} lost lines"
            if run.code == 0 and (points := whole.count(b"\n") - 1) > 0:
                assert f"{points} of 65 points already in {path}" in run.said
        if run.code == 0:
            assert run.said.count("already trained") == len(models)
            same(out, self.undisturbed(**settings))
        return run


class Run:
    def __init__(self, server, pid):
        self.server, self.pid, self.code = server, pid, None

    def wait(self):
        """Exit code, negative for a signal; said and error hold the output."""
        if self.code is None:
            self.code, self.said, self.error = self.server.ask(self.pid)
        assert "Traceback" not in self.error, self.error
        return self.code

    def until(self, condition):
        """Wait until the condition holds or the run has ended."""
        while not condition() and Path(f"/proc/{self.pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z":
            time.sleep(0.001)

    def kill(self, number=signal.SIGKILL):
        os.kill(self.pid, number)   # it is not reaped before wait(), so the number is still its own
        return self.wait()


@pytest.fixture(scope="module")
def server(encoder, corpus, tmp_path_factory):
    server = Server(encoder, corpus, tmp_path_factory.mktemp("undisturbed"))
    yield server
    server.process.stdin.close()
    server.process.wait()


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"


def files(folder):
    """{path: content} of all files in a folder but the report, which names the command."""
    return {str(path.relative_to(folder)): path.read_bytes()
            for path in folder.rglob("*") if path.is_file() and path.name != "report.md"}


def same(out, want, drawn=False):
    """The files are those of an undisturbed run; drawn: and figures. A difference is shown by name."""
    got = files(out)
    figures = {name for name in got if drawn and re.fullmatch(r"figures/[\w-]+\.(png|pdf)", name)}
    assert bool(figures) == drawn and sorted(got.keys() - figures) == sorted(want)
    assert [name for name in want if got[name] != want[name]] == []


def made(out):
    """{path: its inode and time} of the models."""
    stats = {path: path.stat() for path in out.glob("models/**/model.safetensors")}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in stats.items()}


def progress(out):
    """Bytes in the files that grow line by line."""
    return sum(path.stat().st_size for path in out.rglob("*.jsonl"))


def begun(out):
    """The states that trainings have saved."""
    return list(out.rglob("state.safetensors"))


# ---- killed (kill -9) -------------------------------------------------------------------------------------

@pytest.mark.parametrize("longest, clock, settings", [
    (250, False, dict(tasks=("ner",))), *(slow(longest, longest == 800, dict(tasks=(task,)))
                                          for longest in (60, 200, 800) for task in TASKS),
    slow(6000, True, dict(tasks=TASKS, seeds=(1, 2)))])
def test_a_run_killed_again_and_again_ends_like_one_that_nothing_disturbed(
        server, out, longest, clock, settings):
    """Killed at random moments, or once so many bytes of lines are there, until one run gets to its end."""
    rng, said = random.Random(f"{longest} {settings}"), []

    def start(out, **settings):
        if not clock:
            return server.start(out, moment=rng.randint(1, longest), **settings)
        enough, run = progress(out) + rng.randint(1, longest), server.start(out, **settings)
        run.until(lambda: progress(out) >= enough)
        time.sleep(rng.random() * .01)
        run.kill()
        return run

    while (run := server.again(out, start, **settings)).code:
        said.append(run.said)
        assert len(said) < 200
    print(f"{len(said)} kills")
    assert len(said) >= 3 and "continued after step" in "".join([*said, run.said])
    said = server.again(out, **settings).said   # once more: nothing is left to do
    assert not re.search(r" steps, \d+ s$|: \d+ points, \d+ s$", said, re.MULTILINE)


@pytest.mark.parametrize("flags, places", [
    (("--demo",), {"tiny-bert": (2, 9, 20), "data": (2, 40), "figures": (3, 8), ".report": (3,)}),
    (("--demo", "ingredients", "--tgt", "A.inversion", "--pretraining", PRETRAINING),
     {"text": (1, 6), "encoders": (1, 8, 20, 50), "models": (4, 30), "grids": (3, 50)})])
def test_killed_in_the_middle_of_any_file_a_run_leaves_nothing_behind(server, out, flags, places):
    settings = dict(flags=flags, epochs=1, figures=1)
    for place, moments in places.items():
        for moment in moments:
            run = server.start(out, moment=moment, place=f"out/{place}", **settings)
            assert run.wait() == KILLED, (place, moment)
    server.again(out, **settings)


@pytest.mark.slow
def test_killed_at_each_moment_between_two_lines(server, tmp_path):
    """A run of one short model after another, killed at each of its first moments, then run to its end."""
    settings = dict(epochs=1, batch_size=40)
    for moment in range(1, 60):
        assert server.start(out := tmp_path / str(moment), moment=moment, **settings).wait() == KILLED
        server.again(out, **settings)


def test_the_command_continues_what_was_killed_and_writes_nothing_outside_its_folders(
        server, corpus, encoder, tmp_path):
    here, home, out = tmp_path / "here", tmp_path / "home", tmp_path / "here" / "out"
    here.mkdir()
    home.mkdir()
    env = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR"), str(home))
    before, run = [files(corpus), files(encoder)], server.start(out)
    run.until(lambda: begun(out))
    assert run.kill() == KILLED and files(out) != server.undisturbed()
    done = command(*server.argv("out"), cwd=here, env=env | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    assert "continued after step" in done.stdout and (out / "report.md").exists()
    same(out, server.undisturbed(), drawn=True)
    assert list(here.iterdir()) == [out] and [files(corpus), files(encoder)] == before
    caches = {path.split("/")[0] for path in files(home)}
    assert caches <= {"huggingface", "matplotlib", "torch", "fontconfig", ".cache", ".config"}, caches


def test_torn_lines_and_files_left_behind_do_no_harm(server, out):
    run, left = server.start(out), ["state.safetensors", ".state.safetensors.tmp", ".tmpX1y2z3"]
    run.until(lambda: begun(out))
    assert run.kill() == KILLED
    folder = begun(out)[0].parent
    with open(folder / "train.jsonl", "ab") as f:
        f.write(b'{"step": 9, "lr": 0.0')
    for name in left[1:]:
        (folder / name).write_bytes(b"half a file")
    assert "continued after step" in server.again(out).said
    grid, = out.glob("grids/**/*.jsonl")
    whole = grid.read_bytes()
    for cut in (1, 20, len(whole) - 30):   # in the last line, and in the first
        grid.write_bytes(whole[:-cut])
        server.again(out)
    for name in left:   # killed when the model was whole already
        (folder / name).write_bytes(b"not needed any more")
    server.again(out)


def test_ctrl_c_says_what_is_saved_and_that_the_same_command_continues(server, out):
    for condition in (lambda: begun(out), lambda: list(out.glob("grids/**/*.jsonl"))):
        run = server.start(out, pause=0.02)
        run.until(condition)
        assert run.kill(signal.SIGINT) == 130 and run.error.strip().count("\n") == 0
        assert str(out) in run.error and "same command continues" in run.error
    server.again(out)


def test_ctrl_c_while_the_libraries_are_loaded_gives_no_traceback(server, out):
    process = subprocess.Popen([sys.executable, KIT / "reproduce.py", *server.argv(out)], text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():   # in the middle of the imports
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate()
    assert process.returncode in (130, -signal.SIGINT)   # a shell reports 130 for both
    assert "Traceback" not in error and error.count("\n") <= 1


def test_a_file_that_another_process_writes_is_left_alone(server, out):
    names = sorted(name for name in server.undisturbed() if name.endswith("jsonl"))
    for path in (out / names[1], out / names[0]):   # of a training, of the grid
        path.parent.mkdir(parents=True)
        path.write_bytes(b'{"half": ')
        with open(path, "rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            run = server.start(out)
            assert run.wait() == 2 and re.fullmatch(BUSY, run.error) and f" {path}:" in run.error
            assert path.read_bytes() == b'{"half": '
    server.again(out)


@pytest.mark.parametrize("moments, tasks", [((1, 2500), ("pos",)), *(
    slow(sorted(random.Random(seed).choices(range(12000), k=6)), ("pos", "ner")) for seed in range(6))])
def test_two_runs_in_one_folder_never_write_one_file(server, out, moments, tasks):
    first, codes = server.start(out, pause=0.01, tasks=tasks), []
    for moment in moments:   # a second run begins when the first is so far
        first.until(lambda: progress(out) >= moment)
        second = server.start(out, tasks=tasks)
        codes.append(second.wait())
        assert second.code == 0 or second.code == 2 and re.fullmatch(BUSY, second.error), second.error
    if first.wait():   # the second run was a step ahead: the first has said so
        assert first.code == 2 and re.fullmatch(BUSY, first.error), first.error
        assert server.start(out, tasks=tasks).wait() == 0
    same(out, server.undisturbed(tasks=tasks))
    assert 2 in codes or len(tasks) > 1


def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing_half_written_as_if_whole(server, out):
    want = server.undisturbed()
    for disk in (50, 200, 20_000, 3000, 4500):
        for path in (out / name for name in want if disk in (3000, 4500)):   # the grid does not fit
            path.parent.mkdir(parents=True, exist_ok=True)
            if "models" in path.parts:
                path.write_bytes(want[str(path.relative_to(out))])
        run = server.start(out, disk=disk)
        assert run.wait() == 2 and run.error.startswith("reproduce.py: ") and run.error.count("\n") == 1
        assert str(out) in run.error and "File too large" in run.error
        for path in out.rglob("model.safetensors"):
            assert path.read_bytes() == want[str(path.relative_to(out))]
        assert not list(out.rglob(".*"))
    server.again(out)
    (out / "report.md").unlink()
    run = server.start(out, disk=300)
    assert run.wait() == 2 and "report.md" in run.error and not (out / "report.md").exists()


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/no/out")):
        run = server.start(out)
        assert run.wait() == 2
        assert run.error.startswith(f"reproduce.py: {out.parent}") and run.error.count("\n") == 1


def test_a_model_that_vanishes_before_its_grid(server, out):
    run = server.start(out, pause=0.02)
    run.until(lambda: len(list(out.rglob("model.safetensors"))) == 2)
    gone = next(out.rglob("model.safetensors"))
    gone.unlink()
    assert run.wait() == 2 and run.error.count("\n") == 1 and str(gone) in run.error
    server.again(out)


def torchrun(*argv, flags=("--standalone", "--nproc-per-node", 2)):
    command = ["torch.distributed.run", *map(str, flags), KIT / "reproduce.py", *argv]
    return subprocess.Popen([sys.executable, "-m", *command], text=True, cwd=KIT,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("machines, settings", [(2, {}), slow(1, dict(tasks=TASKS, seeds=(1, 2)))])
def test_two_processes_give_the_files_of_one(server, out, machines, settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ("--nnodes", machines, "--nproc-per-node", 2 // machines, "--master-addr", "127.0.0.1",
             "--master-port", port, "--node-rank")
    agents = [torchrun(*server.argv(out, **settings), flags=(*flags, rank)) for rank in range(machines)]
    ended = [(*agent.communicate(timeout=600), agent.returncode) for agent in agents]
    assert not any(code for *_, code in ended), ended
    assert "".join(said for said, *_ in ended).count("Look first at") == 1
    same(out, server.undisturbed(**settings), drawn=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "dev"])
def test_a_rank_that_fails_ends_the_run_with_its_message(server, corpus, out, tmp_path, name):
    data, began = shutil.copytree(corpus, tmp_path / "data"), time.time()
    path = data / "panx" / "de" / name   # the ranks share the reading: one of them meets the bad file
    path.write_bytes(b"de:a\tO\nbad line\n")
    process = torchrun(*server.argv(out, tasks=["ner"]), "--data", data)
    _, error = process.communicate(timeout=300)
    assert process.returncode != 0 and time.time() - began < 120 and not out.exists()
    assert error.count(f"reproduce.py: {path}, line 2: 'bad line'") == 1


@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_the_same_command_continues(server, out):
    for size in (500, 3000, 9000):
        process = torchrun(*server.argv(out, tasks=TASKS))
        while progress(out) < size and process.poll() is None:
            time.sleep(0.002)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(random.Random(size).choice(ranks)), signal.SIGKILL)
        process.communicate(timeout=300)
        assert process.returncode != 0
    assert torchrun(*server.argv(out, tasks=TASKS)).wait(600) == 0
    same(out, server.undisturbed(tasks=TASKS), drawn=True)
