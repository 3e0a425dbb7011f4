"""Runs that are killed, stopped, doubled or cut short end with the bytes of an undisturbed run.

Most are forked from a process that has imported the kit once; some are the command itself. They are killed
from outside, or kill themselves at the n-th of their delicate moments: in the middle of and after each line
and file, before and after each move and removal.
"""

import fcntl
import io
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
from contextlib import suppress
from functools import cache, partial
from itertools import count
from multiprocessing import forkserver, get_context
from pathlib import Path

import pytest
import safetensors.torch
from conftest import KIT, contents, free_port, torchrun
from conftest import reproduce as command

import demo
import reproduce
import results
import tasks
import train

FORK = get_context("forkserver")
TASKS = "pos", "ner", "parsing", "xnli"
KILLED = -signal.SIGKILL
BUSY = r"reproduce.py: Another process is writing \S+: wait for it, or take another --out.\n"
PRETRAINING = ("layers=1,heads=2,hidden=16,vocabulary=300,length=12,batch=4,steps=20,warmup=4,dropout=.1,"
               "blocks=sentences")
slow = partial(pytest.param, marks=pytest.mark.slow)

# ---- a run in a process of its own ------------------------------------------------------------------------

def child(argv, options, out, err):
    for number, pipe in (1, out), (2, err):
        os.dup2(pipe.fileno(), number)
    change(**options)
    signal.signal(signal.SIGINT, signal.default_int_handler)   # as the command; a background job has none
    sys.argv = ["reproduce.py", *argv]
    sys.exit(reproduce.answer(reproduce.parse_arguments(argv)))

def change(moment=0, place="", disk=0, pause=0, figures=0):
    """Make this process a small one. moment and place: where it kills itself; disk: bytes a file may have;
    pause: seconds before each scoring; figures: how many are drawn."""
    figures_of, score = reproduce.plot.figures_of, tasks.Scorer.score
    demo.SIZES, demo.PAIRS, demo.TEXTS = {"train": 60, "dev": 20}, {"train": 9, "dev": 9}, 300
    reproduce.plot.figures_of = lambda grids: figures_of(grids)[:figures]

    def slow_score(*args):
        time.sleep(pause)
        return score(*args)

    tasks.Scorer.score = slow_score
    if disk:   # longer files fail, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (disk, disk))
    if moment:
        kill_at(moment, place)

def kill_at(moment, place):
    """Let this process kill itself at the n-th delicate moment of the files with `place` in their paths."""
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

    def save_file(tensors, path, metadata=None):   # as the library itself calls it too
        save_whole(tensors, path, metadata)
        content = Path(path).read_bytes()
        with Torn(io.FileIO(path, "w+")) as f:
            f.write(content)

    train.Training.cost = property(lambda _: 0.0, lambda *_: None)   # a save after each evaluation
    results.open = lambda path, mode: Torn(io.FileIO(path, "a+"))
    safetensors.torch.save_file, os.replace, Path.unlink = save_file, around(os.replace), around(Path.unlink)

class Run:
    def __init__(self, argv, options):
        self.pipes, ends = zip(*(FORK.Pipe(duplex=False) for _ in ("stdout", "stderr")))
        self.process, self.code = FORK.Process(target=child, args=(argv, options, *ends)), None
        self.process.start()
        for end in ends:
            end.close()

    def wait(self):
        """Exit code, negative for a signal; said and error hold the output."""
        if self.code is None:
            self.said, self.error = (open(pipe.fileno(), closefd=False).read() for pipe in self.pipes)
            self.process.join()
            self.code = self.process.exitcode
        assert "Traceback" not in self.error, self.error
        return self.code

    def until(self, condition):
        """Wait until the condition holds or the run has ended."""
        while not condition() and self.process.is_alive():
            time.sleep(0.001)

    def kill(self, number=signal.SIGKILL):
        with suppress(ProcessLookupError):   # it has ended
            if self.process.is_alive():
                os.kill(self.process.pid, number)
        return self.wait()

class Kit:
    def __init__(self, encoder, corpus, folder):
        self.folder, self.made = folder, count()   # of undisturbed runs
        self.flags = "--encoder", encoder, "--data", corpus, "--src", "en", "--tgt", "de"

    def argv(self, out, tasks=("pos",), seeds=(1,), epochs=2, batch_size=8, flags=()):
        """The arguments of a run; flags, if any, instead of those for encoder, corpus and languages."""
        sizes = "--seeds", *seeds, "--epochs", epochs, "--batch-size", batch_size, "--lr", 1e-3
        chosen = *(flags or self.flags), "--task", *tasks, *sizes, "--lines-only", "--device", "cpu"
        return [*map(str, chosen), "--out", str(out)]

    def start(self, out, tasks=("pos",), seeds=(1,), epochs=2, batch_size=8, flags=(), **options):
        return Run(self.argv(out, tasks, seeds, epochs, batch_size, flags), options)

    @cache
    def undisturbed(self, **settings):
        """The files of a run that nothing disturbs."""
        run = self.start(out := self.folder / f"{next(self.made)}", **settings)
        assert run.wait() == 0, run.error
        return contents(out)

    def again(self, out, start=None, **settings):
        """Run a command again: what was finished is named and not touched; at its end all files are there."""
        models = {path: path.stat() for path in out.glob("models/**/model.safetensors")}
        grids = {path: path.read_bytes() for path in out.glob("grids/**/*.jsonl")}
        run = (start or self.start)(out, **settings)
        assert run.wait() == (KILLED if start and run.code else 0), run.error
        for path, old in models.items():
            assert (new := path.stat()).st_ino == old.st_ino and new.st_mtime_ns == old.st_mtime_ns, path
        for path, content in grids.items():
            whole = content[:content.rfind(b"\n") + 1]
            assert path.read_bytes().startswith(whole), f"{path} lost lines"
            if run.code == 0 and (points := whole.count(b"\n") - 1) > 0:
                assert f"{points} of 65 points already in {path}" in run.said
        if run.code == 0:
            assert run.said.count("already trained") == len(models)
            same(out, self.undisturbed(**settings))
        return run

@pytest.fixture(scope="module")
def kit(encoder, corpus, tmp_path_factory):
    FORK.set_forkserver_preload([__name__])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", f"{KIT}{os.pathsep}{KIT}/tests")
        forkserver.ensure_running()
    return Kit(encoder, corpus, tmp_path_factory.mktemp("undisturbed"))

@pytest.fixture
def out(tmp_path):
    return tmp_path / "out"

def same(out, want, drawn=False):
    """The files are those of an undisturbed run; drawn: and figures. A difference is shown by name."""
    got = contents(out)
    figures = {name for name in got if drawn and re.fullmatch(r"figures/[\w-]+\.(png|pdf)", name)}
    assert bool(figures) == drawn and sorted(got.keys() - figures) == sorted(want)
    assert [name for name in want if got[name] != want[name]] == []

def progress(out):
    """Bytes in the files that grow line by line."""
    return sum(path.stat().st_size for path in out.rglob("*.jsonl"))

def states(out):
    return list(out.rglob("state.safetensors"))

@pytest.mark.parametrize("longest, clock, settings", [
    (250, False, dict(tasks=("ner",))), *(slow(longest, longest == 800, dict(tasks=(task,)))
                                          for longest in (60, 200, 800) for task in TASKS),
    slow(6000, True, dict(tasks=TASKS, seeds=(1, 2)))])
def test_a_run_killed_again_and_again_ends_like_one_that_nothing_disturbed(
        kit, out, longest, clock, settings):
    """Killed at random moments, or once so many bytes of lines are there, until a run gets to its end."""
    rng, said = random.Random(f"{longest} {settings}"), []

    def start(out, **settings):
        if not clock:
            return kit.start(out, moment=rng.randint(1, longest), **settings)
        enough, run = progress(out) + rng.randint(1, longest), kit.start(out, **settings)
        run.until(lambda: progress(out) >= enough)
        time.sleep(rng.random() * .01)
        run.kill()
        return run

    while (run := kit.again(out, start, **settings)).code:
        said.append(run.said)
        assert len(said) < 200
    assert len(said) >= 3 and "continued after step" in "".join([*said, run.said])
    assert not re.search(r"(?m) steps, \d+ s$|: \d+ points, \d+ s$", kit.again(out, **settings).said)

@pytest.mark.parametrize("flags, places", [
    (("--demo", "--pretraining", "steps=20,warmup=4,vocabulary=300"),
     {"data": (2, 40), "encoders": (2, 9, 20), "figures": (3, 8), ".report": (3,)}),
    (("--demo", "ingredients", "--tgt", "A.transliteration.inversion", "--align", "5", "--pretraining",
      PRETRAINING),
     {"text": (1, 6), "encoders": (1, 8, 20, 50), "models": (4, 30), "grids": (3, 50)})])
def test_killed_in_the_middle_of_any_file_a_run_leaves_nothing_behind(kit, out, flags, places):
    settings = dict(flags=flags, epochs=1, figures=1)
    for place, moments in places.items():
        for moment in moments:
            run = kit.start(out, moment=moment, place=f"out/{place}", **settings)
            assert run.wait() == KILLED, (place, moment)
    kit.again(out, **settings)

@pytest.mark.slow
def test_killed_at_each_moment_between_two_lines(kit, tmp_path):
    settings = dict(epochs=1, batch_size=40)   # one short model after another
    for moment in range(1, 60):
        assert kit.start(out := tmp_path / str(moment), moment=moment, **settings).wait() == KILLED
        kit.again(out, **settings)

def test_the_command_continues_what_was_killed_and_writes_nothing_outside_its_folders(
        kit, corpus, encoder, tmp_path):
    here, home, out = tmp_path / "here", tmp_path / "home", tmp_path / "here" / "out"
    home.mkdir()
    env = dict.fromkeys(("HOME", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "TMPDIR"), str(home))
    before, run = [contents(corpus), contents(encoder)], kit.start(out)
    run.until(lambda: states(out))
    assert run.kill() == KILLED and contents(out) != kit.undisturbed()
    done = command(*kit.argv("out"), cwd=here, env=env | {"PYTHONDONTWRITEBYTECODE": "1"})
    assert done.returncode == 0, done.stderr
    assert "continued after step" in done.stdout and (out / "report.md").exists()
    same(out, kit.undisturbed(), drawn=True)
    assert list(here.iterdir()) == [out] and [contents(corpus), contents(encoder)] == before
    caches = {path.split("/")[0] for path in contents(home)}
    assert caches <= {"huggingface", "matplotlib", "torch", "fontconfig", ".cache", ".config"}, caches

def test_torn_lines_and_files_left_behind_do_no_harm(kit, out):
    run, left = kit.start(out), ["state.safetensors", ".state.safetensors.tmp", ".tmpX1y2z3"]
    run.until(lambda: states(out))
    assert run.kill() == KILLED
    folder = states(out)[0].parent
    with open(folder / "train.jsonl", "ab") as f:
        f.write(b'{"step": 9, "lr": 0.0')
    for name in left[1:]:
        (folder / name).write_bytes(b"half a file")
    assert "continued after step" in kit.again(out).said
    grid, = out.glob("grids/**/*.jsonl")
    for cut in (1, 20, grid.stat().st_size - 30):   # in the last line, and in the first
        os.truncate(grid, grid.stat().st_size - cut)
        kit.again(out)
    for name in left:   # killed when the model was whole already
        (folder / name).write_bytes(b"not needed any more")
    kit.again(out)

def test_ctrl_c_says_what_is_saved_and_that_the_same_command_continues(kit, out):
    for condition in (lambda: states(out), lambda: list(out.glob("grids/**/*.jsonl"))):
        run = kit.start(out, pause=0.02)
        run.until(condition)
        assert run.kill(signal.SIGINT) == 130 and run.error.strip().count("\n") == 0, run.error
        assert str(out) in run.error and "same command continues" in run.error
    kit.again(out)

def test_ctrl_c_while_the_libraries_are_loaded_gives_no_traceback(kit, out):
    process = subprocess.Popen([sys.executable, KIT / "reproduce.py", *kit.argv(out)], text=True,
                               stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while "libtorch" not in Path(f"/proc/{process.pid}/maps").read_text():   # in the middle of the imports
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    error = process.communicate()[1]
    assert process.returncode in (130, -signal.SIGINT)   # a shell reports 130 for both
    assert "Traceback" not in error and error.count("\n") <= 1

def test_a_file_that_another_process_writes_is_left_alone(kit, out):
    names = sorted(name for name in kit.undisturbed() if name.endswith("jsonl"))
    for path in (out / names[1], out / names[0]):   # of a training, of the grid
        path.parent.mkdir(parents=True)
        path.write_bytes(b'{"half": ')
        with open(path, "rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            run = kit.start(out)
            assert run.wait() == 2 and re.fullmatch(BUSY, run.error) and f" {path}:" in run.error
            assert path.read_bytes() == b'{"half": '
    kit.again(out)

@pytest.mark.parametrize("moments, tasks", [((1, 2500), ("pos",)), *(
    slow(sorted(random.Random(seed).choices(range(12000), k=6)), ("pos", "ner")) for seed in range(6))])
def test_two_runs_in_one_folder_never_write_one_file(kit, out, moments, tasks):
    first, codes = kit.start(out, pause=0.01, tasks=tasks), []
    for moment in moments:   # a second run begins when the first is so far
        first.until(lambda: progress(out) >= moment)
        halted = len(tasks) == 1 and first.process.is_alive()   # in a file, on which the second must come
        if halted:
            os.kill(first.process.pid, signal.SIGSTOP)
        second = kit.start(out, tasks=tasks)
        codes.append(second.wait())
        if halted:
            os.kill(first.process.pid, signal.SIGCONT)
        assert second.code == 0 or second.code == 2 and re.fullmatch(BUSY, second.error), second.error
    if first.wait():   # the second run was a step ahead: the first has said so
        assert first.code == 2 and re.fullmatch(BUSY, first.error), first.error
        assert kit.start(out, tasks=tasks).wait() == 0
    same(out, kit.undisturbed(tasks=tasks))
    assert 2 in codes or len(tasks) > 1

def meet(rank, port):
    os.environ.update(WORLD_SIZE="2", RANK=rank, MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    ranks, sleep = results.Ranks(), time.sleep
    if rank == "0":
        sleep(1)    # the other one is there first, and looks again a second after this one has come
    else:
        results.time.sleep = lambda _: sleep(2)
    ranks.barrier()

@pytest.mark.usefixtures("kit")
def test_the_process_that_holds_the_store_ends_after_the_others():
    port = free_port()
    both = [FORK.Process(target=meet, args=(rank, port)) for rank in "01"]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]

def test_a_full_disk_ends_in_a_sentence_and_leaves_nothing_half_written_as_if_whole(kit, out):
    want = kit.undisturbed()
    for disk in (50, 200, 20_000, 3000, 4500):
        for path in (out / name for name in want if disk in (3000, 4500)):   # the grid does not fit
            path.parent.mkdir(parents=True, exist_ok=True)
            if "models" in path.parts:
                path.write_bytes(want[str(path.relative_to(out))])
        run = kit.start(out, disk=disk)
        assert run.wait() == 2 and run.error.startswith("reproduce.py: ") and run.error.count("\n") == 1
        assert str(out) in run.error and "File too large" in run.error
        for path in out.rglob("model.safetensors"):
            assert path.read_bytes() == want[str(path.relative_to(out))]
        assert not list(out.rglob(".*"))
    kit.again(out)
    (out / "report.md").unlink()
    assert (run := kit.start(out, disk=300)).wait() == 2 and "report.md" in run.error
    assert not (out / "report.md").exists()

def test_a_folder_that_cannot_be_written(kit, tmp_path):
    (tmp_path / "file").write_text("a file")
    for out in (tmp_path / "file", tmp_path / "file" / "out", Path("/proc/no/out")):
        assert (run := kit.start(out)).wait() == 2
        assert run.error.startswith(f"reproduce.py: {out} could not") and run.error.count("\n") == 1
        assert "in the file" not in run.said   # told before a corpus is read

def test_a_model_that_vanishes_before_its_grid(kit, out):
    run = kit.start(out, pause=0.02)
    run.until(lambda: len(list(out.rglob("model.safetensors"))) == 2)
    gone = next(out.rglob("model.safetensors"))
    gone.unlink()
    assert run.wait() == 2 and run.error.count("\n") == 1 and str(gone) in run.error
    kit.again(out)

@pytest.mark.parametrize("machines, settings", [(2, {}), slow(1, dict(tasks=TASKS, seeds=(1, 2)))])
def test_two_processes_on_one_or_two_machines_give_the_files_of_one(kit, out, machines, settings):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = ("--nnodes", machines, "--nproc-per-node", 2 // machines, "--master-addr", "127.0.0.1",
             "--master-port", port, "--node-rank")
    agents = [torchrun(*kit.argv(out, **settings), flags=(*flags, rank)) for rank in range(machines)]
    ended = [(*agent.communicate(timeout=600), agent.returncode) for agent in agents]
    assert not any(code for *_, code in ended), ended
    assert "".join(said for said, *_ in ended).count("Look first at") == 1
    same(out, kit.undisturbed(**settings), drawn=True)

@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "dev"])
def test_a_rank_that_fails_ends_the_run_with_its_message(kit, corpus, out, tmp_path, name):
    data, began = shutil.copytree(corpus, tmp_path / "data"), time.time()
    path = data / "panx" / "de" / name   # the ranks share the reading: one of them meets the bad file
    path.write_bytes(b"de:a\tO\nbad line\n")
    process = torchrun(*kit.argv(out, tasks=["ner"]), "--data", data)
    error = process.communicate(timeout=300)[1]
    assert process.returncode != 0 and time.time() - began < 120 and not out.exists()
    assert error.count(f"reproduce.py: {path}, line 2: 'bad line'") == 1

@pytest.mark.slow
def test_a_rank_that_is_killed_ends_the_run_and_the_same_command_continues(kit, out):
    for size in (500, 3000, 9000):
        process = torchrun(*kit.argv(out, tasks=TASKS))
        while progress(out) < size and process.poll() is None:
            time.sleep(0.002)
        ranks = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        os.kill(int(random.Random(size).choice(ranks)), signal.SIGKILL)
        process.communicate(timeout=300)
        assert process.returncode != 0
    assert "Look first at" in torchrun(*kit.argv(out, tasks=TASKS)).communicate(timeout=600)[0]
    same(out, kit.undisturbed(tasks=TASKS), drawn=True)
