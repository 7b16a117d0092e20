"""The systemd units: checked by systemd itself, and for what it does not check."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNITS = Path(__file__).resolve().parents[2] / "systemd"
SERVICE = UNITS / "toondb@.service"
SOCKET = UNITS / "toondb@.socket"
SECONDS = 60.0

ANALYZE = shutil.which("systemd-analyze")
SYSUSERS = shutil.which("systemd-sysusers")
needs_analyze = pytest.mark.skipif(ANALYZE is None, reason="systemd-analyze is not installed")
needs_sysusers = pytest.mark.skipif(SYSUSERS is None, reason="systemd-sysusers is not installed")


def settings_of(unit: Path) -> dict[str, list[str]]:
    """``Section.Key`` -> values in order, of a unit file without continuation lines."""
    section, found = "", dict[str, list[str]]()
    for line in unit.read_text(encoding="utf-8").splitlines():
        if line.startswith("["):
            section = line.strip("[]")
        elif line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(f"{section}.{key}", []).append(value)
    return found


def run(*command: str | Path | None) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, timeout=SECONDS, check=False)


@pytest.fixture
def installed(tmp_path: Path) -> Path:
    """A folder with the units, whose command exists there."""
    command = tmp_path / "toondb-server"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    for unit in (SERVICE, SOCKET):
        text = unit.read_text(encoding="utf-8").replace("ExecStart=toondb-server ", f"ExecStart={command} ")
        (tmp_path / unit.name).write_text(text)
    return tmp_path


@needs_analyze
@pytest.mark.parametrize("instance", ["", "shop", "a-b.c_1"])
def test_systemd_accepts_the_units(installed: Path, instance: str) -> None:
    units = [installed / f"toondb@{instance}.{kind}" for kind in ("service", "socket")]
    done = run(ANALYZE, "verify", "--man=no", *units)
    # An unknown key or value is only a warning to systemd, so silence is part of the check.
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@needs_analyze
def test_verify_would_see_a_mistake(installed: Path) -> None:
    """Guards the test above against a systemd-analyze that is silent whatever it is given."""
    with (installed / SERVICE.name).open("a") as unit:
        unit.write("[Service]\nProtectSistem=strict\n")
    done = run(ANALYZE, "verify", "--man=no", installed / SERVICE.name)
    assert "ProtectSistem" in done.stderr


@needs_analyze
def test_exposure_is_low(installed: Path) -> None:
    if "--offline" not in run(ANALYZE, "--help").stdout:
        pytest.skip("this systemd-analyze has no security --offline")
    done = run(ANALYZE, "security", "--offline=true", "--threshold=15", "--no-pager", installed / SERVICE.name)
    assert done.returncode == 0, done.stdout
    level = re.search(r"Overall exposure level .*: ([0-9.]+)", done.stdout)
    assert level is not None
    assert float(level[1]) <= 1.5


@needs_sysusers
def test_sysusers_makes_the_user_of_the_units(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    conf = tmp_path / "etc/sysusers.d/toondb.conf"
    conf.parent.mkdir()
    shutil.copy(UNITS / "toondb.sysusers.conf", conf)
    done = run(SYSUSERS, f"--root={tmp_path}")
    assert done.returncode == 0, done.stderr
    name, _, _, _, _, home, shell = (tmp_path / "etc/passwd").read_text().splitlines()[0].split(":")
    assert [name] == settings_of(SERVICE)["Service.User"] == settings_of(SOCKET)["Socket.SocketUser"]
    assert [name] == settings_of(SERVICE)["Service.Group"] == settings_of(SOCKET)["Socket.SocketGroup"]
    assert (home, shell.rpartition("/")[2]) == ("/var/lib/toondb", "nologin")


def test_both_ways_to_start_serve_the_same_socket() -> None:
    service, listen = settings_of(SERVICE), settings_of(SOCKET)
    (command,) = service["Service.ExecStart"]
    path = command.partition("--socket ")[2].split()[0]
    assert listen["Socket.ListenStream"] == [path]
    (folder,) = service["Service.RuntimeDirectory"]
    assert path.startswith(f"%t/{folder}/")
    # Otherwise stopping the service would delete the socket on which the .socket unit listens.
    assert service["Service.RuntimeDirectoryPreserve"] == ["yes"]
    # Otherwise the service would take the folder over, with the socket and its group in it.
    (prepare,) = listen["Socket.ExecStartPre"]
    assert prepare.startswith("install -d -o toondb -g toondb ")
    assert prepare.endswith(f" %t/{folder}")
    assert f"TOONDB_SOCKET_MODE={listen['Socket.SocketMode'][0]}" in service["Service.Environment"]
    assert "Socket.Accept" not in listen


def test_data_folder_belongs_to_the_instance() -> None:
    service = settings_of(SERVICE)
    (folder,) = service["Service.StateDirectory"]
    assert "%i" in folder
    assert f"--db %S/{folder} " in service["Service.ExecStart"][0]


def test_readme_installs_every_file() -> None:
    text = (UNITS / "README.md").read_text(encoding="utf-8")
    sources = set(re.findall(r"^install -D -m 0644 systemd/(\S+) /etc/\S+$", text, re.MULTILINE))
    assert sources == {path.name for path in UNITS.iterdir() if path.suffix != ".md"}


MDWE = """
import ctypes, errno, mmap, os, sys
libc = ctypes.CDLL(None, use_errno=True)
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
if libc.prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0):
    print(errno.errorcode[ctypes.get_errno()])
    sys.exit(0)
try:
    mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    sys.exit("the protection is not effective")
except PermissionError:
    pass
import asyncio
from pathlib import Path
import lmdb, uvloop
from toondb_server.listener import ListenOptions, open_listener
folder = Path(sys.argv[1])

async def main():
    listener = open_listener(ListenOptions(folder / "t.sock"))
    with lmdb.open(str(folder / "db"), map_size=1 << 40) as env:
        def answer(reader, writer):
            with env.begin() as txn:
                writer.write(txn.get(b"key"))
            writer.close()
        def put():
            with env.begin(write=True) as txn:
                txn.put(b"key", b"value" * 10000)
            env.sync(True)
        await asyncio.to_thread(put)
        async with await asyncio.start_unix_server(answer, sock=listener.socket):
            reader, writer = await asyncio.open_unix_connection(str(listener.path))
            got = await reader.read()
            writer.close()
            await writer.wait_closed()
            listener.unlink()
        listener.close()
        print("served", len(got))

uvloop.run(main())
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux only: prctl")
def test_lmdb_and_uvloop_need_no_writable_executable_memory(tmp_path: Path) -> None:
    """MemoryDenyWriteExecute=yes, by the kernel's own switch for it (prctl PR_SET_MDWE, Linux 6.3)."""
    assert settings_of(SERVICE)["Service.MemoryDenyWriteExecute"] == ["yes"]
    done = subprocess.run(
        [sys.executable, "-c", MDWE, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.stdout.strip() in {"EINVAL", "ENOTSUP", "EOPNOTSUPP"}:
        pytest.skip("this kernel has no PR_SET_MDWE (Linux 6.3)")
    assert (done.returncode, done.stdout.strip()) == (0, "served 50000"), done.stderr
