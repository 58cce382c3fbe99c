from types import ModuleType, SimpleNamespace

from agprof.instruments.patching import Patches


class Base:
    def inherited(self) -> str:
        return "base"


class Owner(Base):
    def own(self) -> str:
        return "own"

    @staticmethod
    def static(value: int) -> int:
        return value


def doubled(original):
    return lambda *args, **kwargs: (original(*args, **kwargs),) * 2


def test_undo_restores_the_dictionaries_of_class_and_module():
    module = ModuleType("somebody")
    module.call = len
    before, module_before = dict(vars(Owner)), dict(vars(module))
    patches = Patches()
    for owner, name in ((Owner, "own"), (Owner, "inherited"), (Owner, "static"), (module, "call")):
        assert patches.replace(owner, name, doubled)
        assert patches.replace(owner, name, doubled)
    assert Owner().own() == (("own", "own"),) * 2
    assert Owner().inherited() == (("base", "base"),) * 2
    assert Base().inherited() == "base"
    assert patches.undo() == []
    assert dict(vars(Owner)) == before
    assert dict(vars(module)) == module_before


def test_a_static_method_stays_one():
    patches = Patches()
    patches.replace(Owner, "static", doubled)
    assert Owner().static(3) == Owner.static(3) == (3, 3)
    patches.undo()
    assert Owner().static(3) == 3


def test_what_is_not_there_is_not_patched():
    patches = Patches()
    assert not patches.replace(Owner, "nothing", doubled)
    assert patches.undo() == []


def test_a_later_patch_of_somebody_else_survives_undo():
    owner = SimpleNamespace(call=len)
    patches = Patches()
    patches.replace(owner, "call", doubled)
    theirs = owner.call = doubled(owner.call)
    patches.undo()
    assert owner.call is theirs


def test_errors_at_undo_are_returned_and_stop_nothing():
    seen = []
    patches = Patches()
    patches.on_undo(lambda: seen.append("first"))
    patches.on_undo(lambda: 1 // 0)
    patches.on_undo(lambda: seen.append("last"))
    errors = patches.undo()
    assert [type(error) for error in errors] == [ZeroDivisionError]
    assert seen == ["last", "first"]
    assert patches.undo() == []
