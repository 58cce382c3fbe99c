import copy
import importlib
import importlib.util
import sys
import zipfile
from importlib.machinery import SourceFileLoader

import pytest

from agprof.instruments.import_hooks import ImportHooks


@pytest.fixture
def hooks():
    hooks = ImportHooks()
    hooks.install()
    yield hooks
    hooks.remove()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        del sys.modules[name]


def test_called_once_after_the_modules_own_code(hooks, folder):
    (folder / "hooked_one.py").write_text("value = 1\nloader = __spec__.loader\n")
    seen = []
    hooks.when_imported("hooked_one", lambda module: seen.append(module.value))
    import hooked_one

    assert seen == [1]
    assert type(hooked_one.__spec__.loader) is type(hooked_one.__loader__) is SourceFileLoader
    assert type(hooked_one.loader) is SourceFileLoader  # its own code saw no trace of us either
    importlib.reload(hooked_one)
    assert seen == [1]


def test_called_at_once_for_what_is_imported(hooks):
    seen = []
    hooks.when_imported("json", seen.append)
    assert seen == [sys.modules["json"]]


def test_submodule_zip_and_namespace(hooks, folder, monkeypatch):
    (folder / "hooked_space" / "inner").mkdir(parents=True)
    (folder / "hooked_space" / "inner" / "leaf.py").write_text("")
    with zipfile.ZipFile(folder / "hooked.zip", "w") as archive:
        archive.writestr("hooked_zipped.py", "value = 2\n")
    monkeypatch.syspath_prepend(str(folder / "hooked.zip"))
    seen = []
    for name in ("hooked_space", "hooked_space.inner.leaf", "hooked_zipped"):
        hooks.when_imported(name, lambda module: seen.append(module.__name__))
    importlib.import_module("hooked_space.inner.leaf")
    import hooked_zipped

    assert {"hooked_space.inner.leaf", "hooked_zipped"} <= set(seen)
    assert hooked_zipped.value == 2


def test_a_failed_import_fails_as_before_and_can_be_tried_again(hooks, folder):
    path = folder / "hooked_broken.py"
    path.write_text("raise ValueError('no')")
    seen = []
    hooks.when_imported("hooked_broken", seen.append)
    with pytest.raises(ValueError, match="no"):
        import hooked_broken
    assert not seen
    path.write_text("fine = True # longer than before\n")
    importlib.invalidate_caches()
    import hooked_broken

    assert seen == [hooked_broken]


def test_a_failing_callback_does_not_fail_the_import(hooks, folder):
    (folder / "hooked_two.py").write_text("")
    errors, seen = [], []
    hooks.on_error = lambda name, error: errors.append((name, type(error)))
    hooks.when_imported("hooked_two", lambda _module: 1 // 0)
    hooks.when_imported("hooked_two", seen.append)
    import hooked_two

    assert seen == [hooked_two]
    assert errors == [("hooked_two", ZeroDivisionError)]


def test_a_spec_that_is_only_looked_at_behaves_like_the_original(hooks, folder):
    (folder / "hooked_three.py").write_text("value = 3\n")
    seen = []
    hooks.when_imported("hooked_three", seen.append)
    spec = importlib.util.find_spec("hooked_three")
    assert spec.loader.get_code("hooked_three").co_filename == str(folder / "hooked_three.py")  # as runpy does
    assert copy.copy(spec.loader).path == spec.loader.path
    assert not seen
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert seen == [module]
    assert importlib.util.find_spec("hooked_absent") is None


def test_lazy_loader(hooks, folder):
    (folder / "hooked_lazy.py").write_text("value = 4\n")
    seen = []
    hooks.when_imported("hooked_lazy", seen.append)
    spec = importlib.util.find_spec("hooked_lazy")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = importlib.util.module_from_spec(spec)
    sys.modules["hooked_lazy"] = module
    spec.loader.exec_module(module)
    assert not seen
    assert module.value == 4
    assert seen == [module]


def test_remove_takes_it_out(hooks):
    hooks.remove()
    hooks.remove()
    assert hooks not in sys.meta_path
