"""What stands on disk, and who makes it: units of work shared by ranks, JSON lines, tensors with metadata.

Every file is written by one process at a time and is whole or not there; a journal (JSON lines) may end in a
torn line, which is done again. What a killed run leaves behind the next run of the same command takes over.
"""

import ctypes
import errno
import hashlib
import json
import logging
import os
import re
import socket
import sys
import tempfile
import time
from contextlib import contextmanager, suppress
from datetime import timedelta

from tqdm import tqdm

try:
    import fcntl
except ModuleNotFoundError:
    sys.exit("This kit needs the file locks of Linux or macOS; on Windows run it in WSL (wsl --install).")

FORMAT = 3  # of models and grids; raised when an older folder can no longer be continued

class KitError(ValueError):
    """A mistake that a person can put right, in a sentence: where, which value, what to do."""

class UnitError(KitError):
    """A unit of work that cannot be finished: it is recorded, and all that does not need it goes on."""

# ---- units and ranks --------------------------------------------------------------------------------------

class Ranks:
    """The processes of a run, one alone or those of torchrun; each takes the next unit from a shared counter.
    They share nothing but files and torch.distributed's key-value store: no process group, no device."""

    def __init__(self):
        from torch import distributed
        self.rank, self.world, self.store, self.shares, self.said = 0, 1, distributed.HashStore(), 0, 0
        self.bar = None     # of the whole run
        if launched():
            forever = timedelta(days=30)
            self.store, self.rank, self.world = next(distributed.rendezvous("env://", timeout=forever))
        self.quiet = quiet()

    def take(self, units):
        """Yield the units that fall to this process; every process calls this with the same list."""
        self.shares += 1
        counter = f"share {self.shares}"
        while (taken := self.ask("add", counter, 1)) <= len(units):
            yield units[taken - 1]

    def expect(self, units):
        """Show from now on how many of so many units are finished, and the time that is left at this rate."""
        self.bar = tqdm(total=units, desc="models and pairs", unit="unit", disable=self.quiet, leave=False)

    def finish(self, unit, problem=""):
        """Tell all processes that a unit is done, or why it failed."""
        with suppress(AttributeError):   # glibc alone, which keeps what is free: on e5 a sixth of the peak
            ctypes.CDLL(None).malloc_trim(0)
        self.ask("set", f"unit {unit}", problem)
        self.ask("add", "finished", 1)
        self.say()

    def outcome(self, unit):
        """Wait until some process has finished a unit; "" or why it failed."""
        return self.wait(f"unit {unit}")

    def barrier(self):
        """Wait until every process has come here; rank 0, with which the store may end, goes on last."""
        self.shares += 1
        if self.ask("add", f"arrived {self.shares}", 1) == self.world:
            self.ask("set", f"open {self.shares}", "")
        self.wait(f"open {self.shares}")
        left = self.ask("add", f"left {self.shares}", 1)
        while not self.rank and left < self.world:
            time.sleep(0.01)
            left = self.ask("add", f"left {self.shares}", 0)

    def wait(self, key):
        """The value of a key once some process has set it; rank 0 prints what the others say meanwhile."""
        while not self.ask("check", [key]):   # asked again and again, so that Ctrl-C is heard
            self.say()
            time.sleep(0.05)
        return self.ask("get", key).decode()

    def say(self, text=""):
        """Print a line, through rank 0 alone, so that lines and progress bars never meet."""
        if self.rank:
            return self.ask("set", f"line {self.ask('add', 'lines', 1)}", text) if text else None
        if self.bar:
            self.bar.update(self.ask("add", "finished", 0) - self.bar.n)
        while self.said < self.ask("add", "lines", 0):
            self.said += 1
            tqdm.write(self.ask("get", f"line {self.said}").decode())
        if text:
            tqdm.write(text)
        sys.stdout.flush()

    def ask(self, verb, *words):
        """One question to the store. Raises KitError where the process that holds it has ended."""
        try:
            return getattr(self.store, verb)(*words)
        except RuntimeError as e:
            raise KitError(f"Another process of this run has ended, so this one (rank {self.rank}) stops too "
                           f"({str(e).splitlines()[0]}). The same command continues.") from None

def quiet():
    """What tqdm takes as `disable`: bars are shown on a terminal, and by rank 0 alone."""
    return os.environ.get("RANK", "") not in ("", "0") or None

def launched():
    """Whether torchrun's variables name several processes. Raises KitError where they make no sense."""
    names = "WORLD_SIZE", "RANK", "MASTER_ADDR", "MASTER_PORT"
    world, rank, address, port = values = [os.environ.get(name, "") for name in names]
    if world in ("", "1") and rank in ("", "0"):
        return False
    if not (all(map(str.isdecimal, (world, rank, port))) and address and int(rank) < int(world)):
        said = ", ".join(f"{name} is {value or 'not set'}" for name, value in zip(names, values))
        raise KitError(f"The environment is not that of torchrun: {said}. Start the processes with torchrun, "
                       "or unset WORLD_SIZE and RANK for one process alone.")
    return True

def on_every_core(work):
    """Let one process per core do work(), which gives its exit code; returns the first that is not 0."""
    from torch import multiprocessing
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    logging.getLogger("torch.multiprocessing.spawn").setLevel(logging.ERROR)   # what ended is told by itself
    os.environ.update(WORLD_SIZE=str(cores), MASTER_ADDR="127.0.0.1", MASTER_PORT=port)

    def one_rank(rank):
        os.environ["RANK"] = str(rank)
        sys.exit(work())

    try:
        multiprocessing.start_processes(one_rank, nprocs=cores, start_method="fork")
    except multiprocessing.ProcessExitedException as e:
        return e.exit_code
    except KeyboardInterrupt:   # which rank 0 answers
        return 130
    return 0

# ---- files ------------------------------------------------------------------------------------------------

def lock(f, path, wait=False):
    """Lock an open file. Raises KitError where another process has it or its file system has no locks."""
    try:
        fcntl.flock(f, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise KitError(f"Another process is writing {path}: wait for it, or take another --out.") from None
    except OSError as e:
        if e.errno not in (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP):
            raise
        raise KitError(f"The file system of {path} has no file locks ({e.strerror}), which keep two runs "
                       "from writing one file. Give another folder, or mount it with locks, as Lustre by "
                       "the option flock.") from None

def check_locks(path):
    """Raise KitError where a file or folder, there or to be made, is on a file system without locks, and
    OSError where it cannot be made."""
    folder = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    try:
        with tempfile.TemporaryFile(dir=folder) as f:
            lock(f, path)
    except OSError as e:
        e.filename = str(path)   # not that of the temporary file
        raise

@contextmanager
def locked(path, wait=False):
    """A file opened to read and append by this process alone. Waits or raises KitError if another has it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "a+b") as f:
            lock(f, path, wait)
            yield f
    except OSError as e:
        e.filename = e.filename or str(path)   # a full disk gives no name
        raise

def write(path, content):
    """Write bytes whole or not at all; the temporary file takes over what a killed run left."""
    temporary = path.with_name(f".{path.name}.tmp")
    while True:
        with locked(temporary, wait=True) as f:
            if not temporary.exists() or not os.path.samestat(os.fstat(f.fileno()), temporary.stat()):
                continue   # another run has moved it into place meanwhile
            try:
                f.truncate(0)
                f.write(content)
                f.flush()
                return os.replace(temporary, path)
            except OSError:
                temporary.unlink(missing_ok=True)
                raise

def read_lines(f, path):
    """The JSON lines of an open file; a torn last line, of a killed process, is cut off to be done again."""
    f.seek(0)
    content = f.read()
    whole = content[:content.rfind(b"\n") + 1]
    if len(whole) < len(content):
        f.truncate(len(whole))
    try:
        return [dict(json.loads(line)) for line in whole.splitlines()]
    except (ValueError, TypeError):
        raise KitError(f"{path} is damaged: a line in it is no JSON. Delete the file; "
                       "the same command makes it again.") from None

def clear(folder):
    """Remove what only an unfinished training needs, and what a killed one has left behind."""
    for left in [folder / "state.safetensors", *folder.glob(".*.tmp"), *folder.glob(".tmp*")]:
        left.unlink(missing_ok=True)

def line(record):
    """The bytes of one JSON line."""
    return json.dumps(record).encode() + b"\n"

def append_line(f, record):
    """Add one JSON line to an open file; it is there even if the process is killed right after."""
    f.write(line(record))
    f.flush()

def save_tensors(path, tensors, metadata):
    """Write {name: tensor} and a JSON-able dict as safetensors, whole or not at all, in the umask's mode."""
    import safetensors.torch
    temporary = path.with_name(f".{path.name}.tmp")
    for left in path.parent.glob(".tmp*"):   # the library's own temporary names, of killed runs
        left.unlink(missing_ok=True)
    temporary.unlink(missing_ok=True)
    temporary.touch()
    mode = temporary.stat().st_mode
    try:
        safetensors.torch.save_file(tensors, temporary, {"about": json.dumps(metadata)})
        temporary.chmod(mode)                # the library leaves 0600
        os.replace(temporary, path)
    except safetensors.SafetensorError as e:
        raise KitError(f"{path} could not be written ({e}): make room, or give another --out.") from None
    finally:
        temporary.unlink(missing_ok=True)

def load_tensors(path, ending=""):
    """(metadata, {name: tensor}) of a file that save_tensors wrote, on the CPU; ending: of the names of the
    tensors that are wanted, None for none."""
    import safetensors
    try:
        with safetensors.safe_open(path, "pt") as f:
            metadata = {"config": {}} | json.loads(f.metadata()["about"])
            return metadata, {name: f.get_tensor(name) for name in f.keys()
                              if ending is not None and name.endswith(ending)}
    except FileNotFoundError:
        raise KitError(f"There is no {path}; the command that made it makes it again.") from None
    except (safetensors.SafetensorError, TypeError, KeyError, ValueError) as e:
        reason = "it says nothing of a run" if isinstance(e, (TypeError, KeyError)) else e
        raise KitError(f"{path} is torn or no model of this kit ({reason}). If reproduce.py wrote it, delete "
                       "it; the same command makes it again.") from None

def whole(path):
    """{name: tensor} of a file that has their digest. Raises KitError if they are not what was saved."""
    about, tensors = load_tensors(path)
    if digest(tensors) != about.get("digest"):
        raise KitError(f"{path} does not hold the parameters it was saved with: "
                       "delete it and run the same command again.")
    return tensors

def digest(tensors):
    """SHA-256 of {name: tensor}: names and values in the order of the names."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update(tensors[name].detach().cpu().contiguous().numpy())
    return found.hexdigest()

def check_same(want, have, path):
    """Raise KitError, naming the first setting that differs, unless a file was made as is now asked for."""
    want, have = ({"select": "dev"} | settings for settings in (want, have))   # which is not written down
    for key in want:
        if want[key] != have.get(key):
            raise KitError(f"{path} was made with {key} {have.get(key)}, this run asks for {want[key]}. "
                           "Ask for the same, give another --out, or delete that file.")

def out_of_memory(error):
    """Whether an exception says that no memory is left; the CPU's allocator raises a plain RuntimeError."""
    says_so = re.search("out of memory|allocate memory|ALLOC_FAILED", str(error))
    return isinstance(error, MemoryError) or bool(says_so)
