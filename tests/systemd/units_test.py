#!/usr/bin/env python3
"""Installs the packaging into a folder and lets systemd's own tools judge it.

Usage: units_test.py BUILD_FOLDER. Needs systemd-analyze, systemd-sysusers and systemd-tmpfiles, but
no running systemd. Exits 77 where they are missing.
"""
import os
import pathlib
import re
import shutil
import stat
import subprocess
import sys
import tempfile
import unittest

MOST_EXPOSURE = 20  # In tenths.
build = None


def run(*command, **environment):
    return subprocess.run(
        [str(part) for part in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env={**os.environ, **environment})


class Units(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.TemporaryDirectory(prefix="terrace-units-")
        cls.root = pathlib.Path(cls.folder.name)
        cls.outside = tempfile.TemporaryDirectory(prefix="terrace-units-")
        cache = (build / "CMakeCache.txt").read_text()
        # As a part of a path: configured for /usr, the configuration is beside it, in /etc.
        prefix = re.search(r"(?m)^CMAKE_INSTALL_PREFIX:[A-Z]*=(.*)$", cache).group(1).strip("/")
        cls.prefix = "." if prefix == "usr" else prefix
        for room in ("packaging", "daemon/service"):
            installed = run("cmake", "--install", build / room, DESTDIR=cls.root)
            assert installed.returncode == 0, installed.stdout

    @classmethod
    def tearDownClass(cls):
        cls.folder.cleanup()
        cls.outside.cleanup()

    def only(self, pattern):
        found = [path for path in (self.root / self.prefix).rglob(pattern) if path.is_file()]
        self.assertEqual(len(found), 1, f"{pattern}: {found}")
        return found[0]

    def unit_folder(self):
        """The units as if the folder were the file system: verify looks for their programs."""
        units = pathlib.Path(tempfile.mkdtemp(prefix="units-", dir=self.outside.name))
        for unit in self.only("terraced.service").parent.iterdir():
            text = unit.read_text()
            text = re.sub(r"^ExecStart=/", f"ExecStart={self.root}/", text, flags=re.M)
            (units / unit.name).write_text(text)
        return units

    def test_units_are_verified_without_a_word(self):
        units = sorted(self.unit_folder().iterdir())
        self.assertEqual([unit.name for unit in units],
                         ["terraced-admin.socket", "terraced.service", "terraced.socket"])
        verified = run("systemd-analyze", "verify", *units)
        self.assertEqual((verified.returncode, verified.stdout), (0, ""))

    def test_verify_would_tell(self):
        units = self.unit_folder()
        (units / "terraced.service").write_text(
            (units / "terraced.service").read_text().replace("WatchdogSec", "WatchCatSec"))
        self.assertIn("WatchCatSec", run("systemd-analyze", "verify", units / "terraced.service").stdout)

    def test_the_drop_in_for_gpus_is_verified_too(self):
        units = self.unit_folder()
        drop_ins = units / "terraced.service.d"
        drop_ins.mkdir()
        drop_in = drop_ins / "gpu.conf"
        drop_in.write_text(self.only("terrace/systemd/gpu.conf").read_text())
        verify = ("systemd-analyze", "verify", units / "terraced.service")
        self.assertEqual((run(*verify).returncode, run(*verify).stdout), (0, ""))
        drop_in.write_text(drop_in.read_text().replace("PrivateDevices", "PrivateGadgets"))
        self.assertIn("PrivateGadgets", run(*verify).stdout)

    def test_the_exposure_is_low(self):
        security = ("systemd-analyze", "security", "--offline=yes")
        unit = self.unit_folder() / "terraced.service"
        judged = run(*security, f"--threshold={MOST_EXPOSURE}", unit)
        self.assertEqual(judged.returncode, 0, judged.stdout)
        self.assertIn("Overall exposure level", judged.stdout)
        self.assertNotEqual(run(*security, "--threshold=5", unit).returncode, 0)

    def test_the_command_line_needs_no_environment(self):
        text = self.only("terraced.service").read_text()
        self.assertNotRegex(text, r"(?m)^(Environment|EnvironmentFile|PassEnvironment)=")
        start = re.search(r"(?m)^ExecStart=(.*)$", text).group(1)
        self.assertNotIn("$", start)

    def test_the_configuration_is_right(self):
        config = self.only("terraced.toml")
        checked = run(self.only("terraced"), "--config", config, "--check-config")
        self.assertEqual(checked.returncode, 0, checked.stdout)
        # Each socket unit gives a socket that the configuration knows, by name and path.
        for unit in self.only("terraced.service").parent.glob("*.socket"):
            text = unit.read_text()
            name = re.search(r"(?m)^FileDescriptorName=(.*)$", text).group(1)
            path = re.search(r"(?m)^ListenStream=(.*)$", text).group(1)
            self.assertIn(f'path = "{path}"\nname = "{name}"\n', checked.stdout)
            self.assertRegex(text, r"(?m)^PassCredentials=yes$")
        self.assertIn(str(config)[len(str(self.root)):], self.only("terraced.service").read_text())

    def test_an_operators_configuration_stays(self):
        config = self.only("terraced.toml")
        packaged = config.read_text()
        config.write_text(packaged + "# mine\n")
        again = run("cmake", "--install", build / "packaging", DESTDIR=self.root)
        self.assertEqual(again.returncode, 0, again.stdout)
        self.assertTrue(config.read_text().endswith("# mine\n"))
        config.write_text(packaged)

    def test_users_groups_and_folders_are_made(self):
        (self.root / "etc").mkdir(exist_ok=True)
        made = run("systemd-sysusers", f"--root={self.root}", self.only("sysusers.d/terrace.conf"))
        self.assertEqual(made.returncode, 0, made.stdout)
        lines = (self.root / "etc/passwd").read_text().splitlines()
        users = {line.split(":")[0]: line.split(":")[2] for line in lines}
        lines = (self.root / "etc/group").read_text().splitlines()
        groups = [line.split(":")[0] for line in lines]
        self.assertEqual(list(users), ["terrace"])
        for group in ("terrace", "terrace-engines", "terrace-admin"):
            self.assertIn(group, groups)
        for unit in self.only("terraced.service").parent.glob("*.socket"):
            group = re.search(r"(?m)^SocketGroup=(.*)$", unit.read_text()).group(1)
            self.assertIn(group, groups)
        if os.geteuid() != 0:
            self.skipTest("only root can make folders of other users")
        made = run("systemd-tmpfiles", "--create", f"--root={self.root}",
                   self.only("tmpfiles.d/terrace.conf"))
        self.assertEqual(made.returncode, 0, made.stdout)
        run_folder = (self.root / "run/terrace").stat()
        self.assertEqual((run_folder.st_uid, stat.S_IMODE(run_folder.st_mode)),
                         (int(users["terrace"]), 0o755))


if __name__ == "__main__":
    if len(sys.argv) < 2:
        print(__doc__)
        sys.exit(2)
    if not all(shutil.which(f"systemd-{tool}") for tool in ("analyze", "sysusers", "tmpfiles")):
        print("systemd's tools are not installed")
        sys.exit(77)
    build = pathlib.Path(sys.argv.pop(1)).resolve()
    unittest.main()
