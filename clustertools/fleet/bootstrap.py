"""What runs on a node before anything of ours is there: finds, stores or starts the archive.

    python3 -I -c BOOTSTRAP ask  HASH VERSION COMMAND               is it here? one line of JSON
    python3 -I -c BOOTSTRAP store HASH VERSION COMMAND < archive    keep it; one line of JSON
    python3 -I -c BOOTSTRAP run  HASH VERSION COMMAND words...      become `clustertools words...`
    PYTHON -I -c BOOTSTRAP with HASH VERSION COMMAND words...      the same with this very Python

Sent as text by `shipping`, never imported on a node. Python 3.6 must be able to read it, so that an old one
can say that it is too old. COMMAND is an installed `clustertools`, used when it has VERSION; empty: none.
"""

import os
import sys

OLDEST = (3, 10)
ARCHIVE = "clustertools-%s.pyz"
#: Our own archives that nothing has used for so long are removed; a half-written one sooner.
UNUSED_SECONDS = 30 * 86400
HALF_WRITTEN_SECONDS = 86400
#: A date of last use is written this often at most: a shared home must not hear from every look.
TOUCH_SECONDS = 86400


class Refused(Exception):
    """A place that cannot be used, and why."""


def places():
    """Where an archive may lie, best first."""
    found = []
    cache, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    if os.path.isabs(cache):
        found.append(os.path.join(cache, "clustertools"))
    if os.path.isabs(home) and home != "/":
        found.append(os.path.join(home, ".cache", "clustertools"))
    found.append("/var/tmp/clustertools-%d" % os.geteuid())
    return list(dict.fromkeys(found))


def opened(place, make=False):
    """A descriptor of the folder `place`, which is ours alone. Raises Refused and OSError."""
    if os.path.islink(place):
        raise Refused("it is a symbolic link")
    if make:
        os.makedirs(place, 0o700, exist_ok=True)
    above = os.stat(os.path.dirname(place))
    if above.st_mode & 0o002 and not above.st_mode & 0o1000:
        raise Refused("anybody may rename it: mode %o of the folder above" % (above.st_mode & 0o7777))
    folder = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    told = os.fstat(folder)
    if told.st_uid != os.geteuid() or told.st_mode & 0o022:
        os.close(folder)
        raise Refused("uid %d owns it with mode %o" % (told.st_uid, told.st_mode & 0o7777))
    return folder


def verified(place, digest):
    """The path of the whole, unchanged archive in `place`. Raises Refused and OSError."""
    import hashlib
    import time

    folder = opened(place)
    try:
        name = ARCHIVE % digest
        with os.fdopen(os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=folder), "rb") as file:
            told = os.fstat(file.fileno())
            if told.st_uid != os.geteuid():
                raise Refused("uid %d owns the archive" % told.st_uid)
            if hashlib.sha256(file.read()).hexdigest() != digest:
                raise Refused("the archive is cut or changed")
            if time.time() - told.st_mtime > TOUCH_SECONDS:
                try:
                    os.utime(file.fileno())
                except OSError:
                    pass  # read-only by now: it serves as long as it is there
    finally:
        os.close(folder)
    return os.path.join(place, name)


def found(digest, problems):
    """The path of the archive, or nothing; `problems` gets what is wrong with each place."""
    for place in places():
        try:
            return verified(place, digest)
        except FileNotFoundError:
            problems.append("%s: not there" % place)
        except (OSError, Refused) as exc:
            problems.append("%s: %s" % (place, getattr(exc, "strerror", None) or exc))
    return ""


def stored(digest, data, problems):
    """Write the archive to the first place that takes it, and give its path; nothing when none does."""
    for place in places():
        try:
            folder = opened(place, make=True)
            try:
                write(folder, ARCHIVE % digest, data)
                tidy(folder, digest)
            finally:
                os.close(folder)
            return verified(place, digest)
        except (OSError, Refused) as exc:
            problems.append("%s: %s" % (place, getattr(exc, "strerror", None) or exc))
    return ""


def write(folder, name, data):
    """Write under a name of its own, then rename: many nodes may write the same file of a shared home."""
    half = ".%s.%s.tmp" % (name, os.urandom(8).hex())
    file = os.open(half, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600, dir_fd=folder)
    try:
        with os.fdopen(file, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.rename(half, name, src_dir_fd=folder, dst_dir_fd=folder)
    except BaseException:  # whatever it was, it is raised again
        os.unlink(half, dir_fd=folder)
        raise


def tidy(folder, digest):
    """Remove archives of ours that nothing has used for long."""
    import re

    # by the clock of the file server: a node's own may be years off, which is what we come to find out
    now = os.stat(ARCHIVE % digest, dir_fd=folder).st_mtime
    for name in os.listdir(folder):
        match = re.match(r"(\.?)clustertools-([0-9a-f]{64})\.pyz(\.[0-9a-f]{16}\.tmp)?$", name)
        if match is None or (match.group(2) == digest and not match.group(1)):
            continue
        try:
            age = now - os.stat(name, dir_fd=folder, follow_symlinks=False).st_mtime
            if age > (HALF_WRITTEN_SECONDS if match.group(1) else UNUSED_SECONDS):
                os.unlink(name, dir_fd=folder)
        except OSError:
            continue  # another node was faster


def said(words):
    """What a program prints; nothing when it fails or takes its time."""
    import subprocess

    try:
        done = subprocess.run(
            words, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else ""


def interpreter(exact):
    """A Python that is new enough: this one, else the newest one here. Raises Refused."""
    if sys.version_info >= OLDEST:
        return sys.executable
    folders = [*os.environ.get("PATH", "").split(":"), "/usr/local/bin", "/usr/bin"]
    for minor in range(30, OLDEST[1] - 1, -1):
        for folder in dict.fromkeys(folders):
            path = os.path.join(folder, "python3.%d" % minor)
            if exact or not os.path.isabs(path) or not os.access(path, os.X_OK):
                continue
            # what is called so need not run: a version manager leaves such names without an interpreter
            if said([path, "-I", "-c", "import json, zlib; print(1)"]) == "1":
                return path
    raise Refused("python %d.%d found (%s), %d.%d needed" % (*sys.version_info[:2], sys.executable, *OLDEST))


def installed(command, version):
    """The path of the installed command, when it is of this very version."""
    import shutil

    path = shutil.which(command) if command else None
    # clustertools, version 0.1.0
    return path if path and said([path, "--version"]) == "clustertools, version " + version else ""


def tell(**values):
    import json

    values["python"] = "%d.%d.%d" % sys.version_info[:3]
    print(json.dumps(dict(values, clustertools_bootstrap=1), sort_keys=True))
    return 0


def prepare(mode, digest, version, command):
    """`ask` and `store`: one line of JSON, whatever happens."""
    problems = []
    try:
        python, own = interpreter(False), installed(command, version)
    except Refused as exc:
        return tell(state="unusable", problems=[str(exc)])
    if mode == "store":
        import hashlib

        data = sys.stdin.buffer.read()
        if hashlib.sha256(data).hexdigest() != digest:
            return tell(state="unusable", problems=["%d bytes came, which are not the archive" % len(data)])
        path = stored(digest, data, problems)
        return tell(state="ready" if path else "unusable", path=path, problems=problems, interpreter=python)
    path = found(digest, problems)
    if path or own:
        return tell(state="ready", path=path, installed=own, interpreter=python, problems=[])
    return tell(state="absent", problems=problems, interpreter=python)


def become(mode, digest, version, command, words):
    """`run` and `with`: replace this process; comes back with an exit code only when it cannot."""
    problems = []
    try:
        python = interpreter(mode == "with")
        own = installed(command, version)
        if own:
            os.execv(own, [own, *words])
        path = found(digest, problems)
        if path:
            # with the Python of a job its user's own packages count
            os.execv(python, [python, *([] if mode == "with" else ["-I"]), path, *words])
        problems.insert(0, "the tool is not on this node")
    except (OSError, Refused) as exc:
        problems.append(str(exc))
    sys.stderr.write("clustertools: could not run: %s\n" % "; ".join(problems))
    return 3


def main(mode, digest, version, command, *words):
    if mode in ("ask", "store"):
        return prepare(mode, digest, version, command)
    return become(mode, digest, version, command, list(words))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
