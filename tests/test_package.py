"""Model packages: what is unpacked, what is refused, and that the cache holds whole packages only."""

from __future__ import annotations

import os
import stat
import struct
import sys
import threading
import time
import unicodedata
import zipfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geodl_dask import package as package_module
from geodl_dask.cache import cache_folder
from geodl_dask.errors import MissingDependencyError, ModelPackageError
from geodl_dask.package import PackageLimits, find_definition, is_package, open_package

SEVEN_ZIP_MAGIC = b"7z\xbc\xaf\x27\x1c"
EMD = b"{}"


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    for variable in ("MAX_BYTES", "MAX_MEMBERS", "MAX_RATIO"):
        monkeypatch.delenv(f"GEODL_DASK_PACKAGE_{variable}", raising=False)
    monkeypatch.setenv("GEODL_DASK_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_zip(path: Path, members: dict[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def special(name: str, mode: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    return info


def rename_member(path: Path, old: str, new: str) -> Path:
    """Write a name that zipfile would not: ``new`` is as long as ``old``."""
    assert len(old.encode()) == len(new.encode())
    path.write_bytes(path.read_bytes().replace(old.encode(), new.encode()))
    return path


def files_below(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


def assert_refused(path: Path, reason: str, cache: Path, limits: PackageLimits | None = None) -> None:
    before = files_below(path.parent)
    with pytest.raises(ModelPackageError, match=reason) as caught:
        open_package(path, limits)
    assert str(caught.value).startswith(f"{path} is not unpacked: ")
    assert files_below(path.parent) == before
    assert not cache.exists() or not any((cache / "packages").iterdir())


def test_a_package_is_unpacked_with_its_folders(tmp_path, cache):
    members = {"m.emd": EMD, "m.pth": b"weights", "esriinfo/item.pkinfo": b"x", "src/net/a.py": b"1", "empty.txt": b""}
    content = open_package(write_zip(tmp_path / "m.dlpk", members))
    assert cache in content.parents
    assert {name: (content / name).read_bytes() for name in files_below(content)} == members


def test_a_package_is_known_by_its_first_bytes_not_by_its_suffix(tmp_path):
    assert is_package(write_zip(tmp_path / "m.backup", {"m.emd": EMD}))
    assert (open_package(tmp_path / "m.backup") / "m.emd").is_file()
    (tmp_path / "m.dlpk").write_bytes(b"Rar!\x1a\x07\x00")
    assert not is_package(tmp_path / "m.dlpk")
    with pytest.raises(ModelPackageError, match=r"begins neither as a zip nor as a 7-Zip archive does"):
        open_package(tmp_path / "m.dlpk")


def test_a_package_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ModelPackageError, match=r"nothing\.dlpk is not a file"):
        open_package(tmp_path / "nothing.dlpk")


def test_a_package_is_unpacked_once(tmp_path):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD})
    content = open_package(path)
    (content / "log.txt").write_text("what a raster function left")
    path.rename(tmp_path / "renamed.dlpk")
    assert open_package(tmp_path / "renamed.dlpk") == content
    assert (content / "log.txt").exists()


def test_packages_that_differ_by_a_byte_do_not_share_a_folder(tmp_path):
    first = open_package(write_zip(tmp_path / "a.dlpk", {"m.emd": EMD, "w.pth": b"1"}))
    second = open_package(write_zip(tmp_path / "b.dlpk", {"m.emd": EMD, "w.pth": b"2"}))
    assert (first / "w.pth").read_bytes() == b"1"
    assert (second / "w.pth").read_bytes() == b"2"


def test_what_a_killed_process_left_does_not_count(tmp_path):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": b"weights"})
    content = open_package(path)
    (content.parent / "complete.json").unlink()
    (content / "w.pth").write_bytes(b"wei")
    assert open_package(path) == content
    assert (content / "w.pth").read_bytes() == b"weights"


def test_a_file_that_a_cleaner_took_from_the_cache_comes_back(tmp_path):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "sub/w.pth": b"weights"})
    content = open_package(path)
    (content / "sub/w.pth").unlink()
    (content / "sub").rmdir()
    assert (open_package(path) / "sub/w.pth").read_bytes() == b"weights"


@pytest.mark.parametrize("marker", ["", "{", "3", "[3]", "null"])
def test_a_marker_that_cannot_be_read_does_not_count(tmp_path, marker):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD})
    content = open_package(path)
    (content.parent / "complete.json").write_text(marker)
    (content / "m.emd").unlink()
    assert (open_package(path) / "m.emd").is_file()


def test_many_processes_may_open_one_package_at_once(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, **{f"f{index}.bin": bytes(50_000) for index in range(40)}})
    barrier, answers = threading.Barrier(8), []

    def work() -> None:
        barrier.wait()
        content = open_package(path)
        answers.append((content, len(files_below(content))))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(answers) == 8
    assert {count for _, count in answers} == {41}
    assert [each.name for each in (cache / "packages").iterdir()] == [answers[0][0].parent.name]


def test_losing_the_race_to_a_twin_is_fine(tmp_path, cache, monkeypatch):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD})
    rename = Path.rename

    def twin_first(self: Path, target: Path) -> Path:
        monkeypatch.setattr(Path, "rename", rename)
        open_package(path)
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", twin_first)
    content = open_package(path)
    assert files_below(cache / "packages") == {
        f"{content.parent.name}/complete.json",
        f"{content.parent.name}/content/m.emd",
    }


def test_what_was_left_half_unpacked_a_day_ago_is_swept(tmp_path, cache):
    old, new = cache / "packages/aa.partial-x", cache / "packages/bb.partial-y"
    old.mkdir(parents=True)
    new.mkdir()
    os.utime(old, (time.time() - 90_000,) * 2)
    open_package(write_zip(tmp_path / "m.dlpk", {"m.emd": EMD}))
    assert not old.exists()
    assert new.exists()


@pytest.mark.attack(
    "names that lead out of an archive", "../, drives, absolute, devices of Windows, control characters, of any text"
)
@pytest.mark.parametrize(
    "name, reason",
    [
        ("../evil.py", r"member '\.\./evil\.py' leads out of the package \(\.\.\)"),
        ("a/../../evil.py", r"leads out of the package"),
        ("..", r"leads out of the package"),
        ("..\\evil.py", r"leads out of the package"),
        ("a\\..\\..\\evil.py", r"leads out of the package"),
        ("/etc/evil", r"has an absolute path, or a drive letter"),
        ("\\\\server\\share\\evil", r"has an absolute path, or a drive letter"),
        ("C:\\evil.py", r"has an absolute path, or a drive letter"),
        ("C:evil.py", r"has an absolute path, or a drive letter"),
        ("m.emd:stream", r"has an absolute path, or a drive letter"),
        ("evil\n.py", r"has control characters in its name"),
        ("evil.py.", r"has a name that Windows takes for another file or a device"),
        ("evil.py ", r"has a name that Windows takes for another file or a device"),
        ("nul", r"has a name that Windows takes for another file or a device"),
        ("sub/COM1.txt", r"has a name that Windows takes for another file or a device"),
        ("x" * 256, r"has a name longer than 255 bytes between slashes"),
        ("é" * 130, r"has a name longer than 255 bytes between slashes"),
        ("/".join(["y" * 200] * 6), r"has a name longer than 1024 bytes"),
        ("/".join("z" * 33), r"lies more than 32 folders deep"),
        (".", r"has no name"),
    ],
)
def test_a_member_that_could_land_elsewhere_is_refused(tmp_path, cache, name, reason):
    assert_refused(write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, name: b"x"}), reason, cache)


@pytest.mark.attack(
    "names that lead out of an archive", "../, drives, absolute, devices of Windows, control characters, of any text"
)
def test_a_folder_that_leads_out_is_refused_though_nothing_lies_in_it(tmp_path, cache):
    assert_refused(write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "../up/": b""}), r"leads out of the package", cache)


@pytest.mark.attack(
    "names that lead out of an archive", "../, drives, absolute, devices of Windows, control characters, of any text"
)
def test_a_name_with_nul_is_refused_and_not_cut(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "evil.pyXtxt": b"x"})
    assert_refused(rename_member(path, "evil.pyXtxt", "evil.py\0txt"), r"has control characters in its name", cache)


@pytest.mark.attack("links and devices in an archive", "symbolic links, device files, pipes, sockets, in zip and 7-Zip")
@pytest.mark.parametrize(
    "mode, kind",
    [
        (stat.S_IFLNK, "a link"),
        (stat.S_IFCHR, "a device file, a pipe or a socket"),
        (stat.S_IFBLK, "a device file, a pipe or a socket"),
        (stat.S_IFIFO, "a device file, a pipe or a socket"),
        (stat.S_IFSOCK, "a device file, a pipe or a socket"),
    ],
)
def test_links_and_device_files_are_refused(tmp_path, cache, mode, kind):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, special("w.pth", mode | 0o777): b"/etc/passwd"})
    assert_refused(path, f"member 'w.pth' is {kind}; only files and folders are unpacked", cache)


@pytest.mark.attack("members that overwrite others", "the same name twice, by case, by Unicode, file and folder")
@pytest.mark.parametrize(
    "names",
    [
        ("a.py", "A.PY"),
        ("sub/a.py", "SUB/a.py"),
        ("a.py", "./a.py"),
        ("sub/a.py", "sub\\a.py"),
        ("sub", "sub/a.py"),
        ("sub/a.py", "SUB"),
        ("a", "a/"),
        ("a/", "A"),
        ("caf\u00e9", "cafe\u0301"),
    ],
)
def test_members_that_would_overwrite_one_another_are_refused(tmp_path, cache, names):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, names[0]: b"1" * (names[0][-1] != "/"), names[1]: b""})
    assert_refused(path, "would overwrite one another", cache)


@pytest.mark.attack("members that overwrite others", "the same name twice, by case, by Unicode, file and folder")
def test_a_member_that_stands_twice_is_refused(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "a.py": b"1", "b.py": b"2"})
    assert_refused(rename_member(path, "b.py", "a.py"), r"members 'a\.py' and 'a\.py' would overwrite", cache)


def test_folders_that_differ_in_case_only_may_hold_different_files(tmp_path):
    content = open_package(write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "sub/a.py": b"1", "Sub/b.py": b"2"}))
    assert len(files_below(content)) == 3


def test_separators_of_windows_make_folders(tmp_path):
    content = open_package(write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "sub\\": b"", "sub\\a.py": b"1"}))
    assert files_below(content) == {"m.emd", "sub/a.py"}


def test_an_encrypted_member_is_refused(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD})
    data = bytearray(path.read_bytes())
    data[6] |= 1  # general purpose flag of the local header
    data[data.index(b"PK\x01\x02") + 8] |= 1
    path.write_bytes(data)
    assert_refused(path, r"member 'm\.emd' is encrypted\. Pack it again without a password", cache)


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_methods_that_inflate_without_bounds_are_refused(tmp_path, cache, method):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD * 99}, method)
    assert_refused(path, rf"compressed by method {method}\. Pack it again, deflated", cache)


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_a_package_larger_than_the_limit_is_refused(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": bytes(3000), "v.pth": bytes(3000)})
    assert_refused(
        path, r"unpacks to more than 0\.00 GiB; .*PACKAGE_MAX_BYTES", cache, PackageLimits(inflated_bytes=6001)
    )
    assert open_package(path, PackageLimits(inflated_bytes=6002)).is_dir()


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_a_package_whose_headers_claim_too_much_is_not_begun(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(package_module, "_copy", None)
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": bytes(3000)})
    assert_refused(path, "unpacks to more than", cache, PackageLimits(inflated_bytes=3000))


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_a_package_that_inflates_beyond_the_ratio_is_refused(tmp_path, cache, monkeypatch):
    monkeypatch.setattr(package_module, "RATIO_FREE_BYTES", 1000)
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": bytes(2**20)})
    assert_refused(path, "PACKAGE_MAX_RATIO set the limit", cache)
    assert open_package(path, PackageLimits(ratio=1000)).is_dir()


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_bytes_are_counted_as_they_are_inflated_whatever_the_header_says(tmp_path, cache, monkeypatch):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": bytes(10 * 2**20)})
    monkeypatch.setattr(package_module, "_zip_member", lambda info: package_module._Member(info.filename, 1, 0, False))
    assert_refused(path, "unpacks to more than 0.00 GiB", cache, PackageLimits(inflated_bytes=2**20))


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_a_header_that_lies_about_a_size_is_refused(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": bytes(10_000)})
    path.write_bytes(path.read_bytes().replace(struct.pack("<L", 10_000), struct.pack("<L", 10)))
    assert_refused(path, r"the zip archive is damaged \(Bad CRC-32 for file 'w\.pth'\)", cache)


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_too_many_members_are_refused(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "a": b"", "b": b""})
    assert_refused(path, "it has 3 members; GEODL_DASK_PACKAGE_MAX_MEMBERS is 2", cache, PackageLimits(members=2))


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_a_huge_table_of_contents_is_refused_before_it_is_read(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, **{f"{index:0200}": b"" for index in range(5000)}})
    assert_refused(
        path, r"table of contents claims \d+ bytes; at most 1048576 are read", cache, PackageLimits(members=2)
    )


@pytest.mark.parametrize("cut", [4, 30, 60, -1, -30])
def test_a_package_cut_short_is_refused(tmp_path, cache, cut):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": os.urandom(100)})
    path.write_bytes(path.read_bytes()[:cut])
    assert_refused(path, r"the zip archive is damaged \(.*\)\. Download or copy it again", cache)


def test_a_flipped_byte_in_a_file_is_noticed(tmp_path, cache):
    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": b"weights"}, zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"weights", b"heights"))
    assert_refused(path, "Bad CRC-32", cache)


def test_a_bare_model_file_is_told_from_a_package(tmp_path, cache):
    path = write_zip(tmp_path / "model.pt", {"model/data.pkl": b"x", "model/version": b"3"})
    assert_refused(
        path, r"holds no model definition \(\.emd\)\. Of a bare model file, give the \.emd that names it", cache
    )


def test_a_failure_while_unpacking_leaves_nothing(tmp_path, cache, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    path = write_zip(tmp_path / "m.dlpk", {"m.emd": EMD})
    monkeypatch.setattr(package_module, "_copy", full)
    with pytest.raises(
        ModelPackageError, match=r"cannot be unpacked into .*No space left.*GEODL_DASK_CACHE names another"
    ):
        open_package(path)
    assert not any((cache / "packages").iterdir())


def test_the_limits_come_from_the_environment(monkeypatch):
    assert PackageLimits.from_environment() == PackageLimits(32 * 2**30, 50_000, 100)
    for variable, value in (("MAX_BYTES", "7"), ("MAX_MEMBERS", "8"), ("MAX_RATIO", "9")):
        monkeypatch.setenv(f"GEODL_DASK_PACKAGE_{variable}", value)
    assert PackageLimits.from_environment() == PackageLimits(7, 8, 9)


@pytest.mark.parametrize("value", ["0", "-1", "1e9", "many", "1" * 5000])
def test_a_limit_that_is_no_number_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv("GEODL_DASK_PACKAGE_MAX_BYTES", value)
    with pytest.raises(
        ModelPackageError, match=r"environment variable GEODL_DASK_PACKAGE_MAX_BYTES is .* above 0 is needed"
    ):
        open_package(write_zip(tmp_path / "m.dlpk", {"m.emd": EMD}))


@pytest.mark.skipif(os.name == "nt", reason="POSIX's folders")
def test_the_cache_is_the_users_own_unless_told(tmp_path, monkeypatch):
    assert cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("GEODL_DASK_CACHE")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg/geodl_dask"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache/geodl_dask"


def test_a_user_without_a_home_is_told_what_to_set(tmp_path, monkeypatch):
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for variable in ("GEODL_DASK_CACHE", "XDG_CACHE_HOME", "LOCALAPPDATA"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ModelPackageError, match="no home folder to unpack into; set GEODL_DASK_CACHE"):
        open_package(write_zip(tmp_path / "m.dlpk", {"m.emd": EMD}))


def test_the_definition_at_the_root_wins_over_those_below(tmp_path):
    for name in ("m.emd", "a/b.emd", "._m.emd"):
        (tmp_path / "f" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "f" / name).write_bytes(EMD)
    assert find_definition(tmp_path / "f") == tmp_path / "f/m.emd"


def test_the_definition_may_lie_in_a_sub_folder(tmp_path):
    for name in ("p20/M.EMD", "esriinfo/x.emd", "__MACOSX/p20/._M.emd", "p20/w.pth"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(EMD)
    assert find_definition(tmp_path) == tmp_path / "p20/M.EMD"


@pytest.mark.parametrize("names", [("a.emd", "b.emd"), ("x/a.emd", "y/b.emd")])
def test_several_definitions_are_listed(tmp_path, names):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(EMD)
    with pytest.raises(
        ModelPackageError, match=f"several model definitions: {', '.join(names)}. Give the path of the one"
    ):
        find_definition(tmp_path)


def test_a_folder_without_a_definition_is_refused(tmp_path):
    with pytest.raises(ModelPackageError, match=r"holds no model definition \(\.emd\)"):
        find_definition(tmp_path)


@pytest.mark.attack(
    "names that lead out of an archive", "../, drives, absolute, devices of Windows, control characters, of any text"
)
@given(st.text(st.sampled_from("ab.:/\\ C~é\0\n\u0301Ⅷ") | st.characters(), max_size=20))
def test_any_name_is_refused_or_stays_below_the_folder(name):
    try:
        safe = package_module._safe_name(name)
    except ModelPackageError:
        return
    base = Path("base").absolute()
    assert base in (base / safe / "file").parents
    assert "\\" not in safe and ":" not in safe and "\0" not in safe and ".." not in safe.split("/")
    assert package_module._safe_name(safe or "./") == safe
    unicodedata.normalize("NFC", safe).encode()


def test_a_7_zip_package_without_py7zr_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "py7zr", None)
    (tmp_path / "m.dlpk").write_bytes(SEVEN_ZIP_MAGIC + bytes(26))
    with pytest.raises(MissingDependencyError, match=r'pip install "geodl_dask\[7z\]"'):
        open_package(tmp_path / "m.dlpk")


@pytest.fixture
def py7zr():
    return pytest.importorskip("py7zr")


def write_7z(py7zr, path: Path, members: dict[str, bytes], **options) -> Path:
    with py7zr.SevenZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(content, name)
    return path


def test_a_7_zip_package_is_unpacked(py7zr, tmp_path):
    members = {"m.emd": EMD, "m.pth": os.urandom(3_000_000), "src/a.py": b"1", "empty.txt": b""}
    content = open_package(write_7z(py7zr, tmp_path / "m.dlpk", members))
    assert {name: (content / name).read_bytes() for name in files_below(content)} == members


@pytest.mark.attack(
    "names that lead out of an archive", "../, drives, absolute, devices of Windows, control characters, of any text"
)
def test_a_7_zip_package_that_leads_out_is_refused(py7zr, tmp_path, cache):
    with py7zr.SevenZipFile(tmp_path / "m.dlpk", "w") as archive:
        archive.writestr(EMD, "m.emd")
        archive.writestr(b"x", "evil.py")
        archive.header.files_info.files[1]["filename"] = "../evil.py"
    assert_refused(tmp_path / "m.dlpk", r"member '\.\./evil\.py' leads out of the package", cache)


@pytest.mark.attack("links and devices in an archive", "symbolic links, device files, pipes, sockets, in zip and 7-Zip")
def test_a_7_zip_package_with_a_link_is_refused(py7zr, tmp_path, cache):
    (tmp_path / "source").mkdir()
    (tmp_path / "source/m.emd").write_bytes(EMD)
    (tmp_path / "source/w.pth").symlink_to("/etc/passwd")
    with py7zr.SevenZipFile(tmp_path / "m.dlpk", "w") as archive:
        archive.writeall(tmp_path / "source", "")
    assert_refused(tmp_path / "m.dlpk", r"member 'w\.pth' is a link", cache)


@pytest.mark.parametrize("header_too", [False, True])
def test_an_encrypted_7_zip_package_is_refused(py7zr, tmp_path, cache, header_too):
    path = write_7z(py7zr, tmp_path / "m.dlpk", {"m.emd": EMD}, password="x", header_encryption=header_too)
    assert_refused(path, "it is encrypted. Pack it again without a password", cache)


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_a_7_zip_package_that_inflates_too_far_is_refused(py7zr, tmp_path, cache, monkeypatch):
    path = write_7z(py7zr, tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": bytes(5_000_000)})
    assert_refused(path, "unpacks to more than", cache, PackageLimits(inflated_bytes=1_000_000))
    monkeypatch.setattr(package_module, "_7z_member", lambda entry: package_module._Member(entry.filename, 1, 0, False))
    assert_refused(path, "unpacks to more than", cache, PackageLimits(inflated_bytes=1_000_000))


def test_a_damaged_7_zip_package_is_refused(py7zr, tmp_path, cache):
    path = write_7z(py7zr, tmp_path / "m.dlpk", {"m.emd": EMD, "w.pth": os.urandom(1000)})
    path.write_bytes(path.read_bytes()[:-20])
    assert_refused(path, "the 7-Zip archive is damaged", cache)


@pytest.mark.attack(
    "bombs in an archive", "sizes that lie, ratios, members, tables of contents, methods without bounds; zip and 7-Zip"
)
def test_a_7_zip_table_of_contents_is_refused_before_its_members_are_made(py7zr, tmp_path, cache, monkeypatch):
    def never(*arguments):
        raise AssertionError("a member was made")

    empty = {f"{number}.txt": b"" for number in range(300)}
    many = write_7z(py7zr, tmp_path / "many.dlpk", {"m.emd": EMD, **empty})
    long = write_7z(py7zr, tmp_path / "long.dlpk", {"m.emd": EMD, **{f"{'d/' * 9_000}{n}": b"" for n in range(60)}})
    assert long.stat().st_size < 20_000
    limits = vars(py7zr.archiveinfo)["MAX_NUMFILES"], vars(py7zr.archiveinfo)["MAX_HEADER_SIZE"]
    monkeypatch.setattr(py7zr.archiveinfo.FilesInfo, "_read_name", never)
    for path in (many, long):
        assert_refused(
            path, "its table of contents is too long .*MAX_MEMBERS is 200", cache, PackageLimits(members=200)
        )
    assert limits == (vars(py7zr.archiveinfo)["MAX_NUMFILES"], vars(py7zr.archiveinfo)["MAX_HEADER_SIZE"])
