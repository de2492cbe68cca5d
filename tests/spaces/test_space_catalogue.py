"""Spaces by name, and a user's own from a file."""

from __future__ import annotations

import pickle
import sys
import textwrap
from random import Random

import pytest
import torch

from archipel.core.errors import ArchipelError, SpaceError, UsageError
from archipel.core.space import Space
from archipel.data.dataset import Dataset, Split
from archipel.spaces.catalogue import NAMED, kind_of, make_space


def dataset(*shape, task="classification", classes=5, dtype=torch.float32):
    part = Split(torch.zeros(4, *shape, dtype=dtype), torch.zeros(4, dtype=torch.int64))
    return Dataset("toy", part, part, None, task, classes)


IMAGES, TABLE, SIGNAL = dataset(1, 8, 8), dataset(13), dataset(2, 40)
TEXT = dataset(16, task="language", classes=30, dtype=torch.int64)


@pytest.mark.parametrize(
    ("data", "kind", "name"),
    [(IMAGES, "image", "mobile"), (TABLE, "table", "mlp"), (SIGNAL, "signal", "signal"), (TEXT, "text", "language")],
)
def test_the_default_space_follows_from_the_kind_of_data(data, kind, name):
    assert kind_of(data) == kind
    assert make_space("auto", data).name == name


@pytest.mark.parametrize("name", [n for n, e in NAMED.items() if "image" in e.kinds])
def test_every_space_for_images_gives_networks_of_the_right_outputs(name):
    space = make_space(name, IMAGES)
    arch = space.sample(Random(0))
    with torch.no_grad():
        out = space.cost.build_meta(arch).eval()(torch.empty_like(IMAGES.example(), device="meta"))
    assert out.shape == (2, 5)


def test_regression_has_one_output():
    data = dataset(4, task="regression", classes=1)
    space = make_space("mlp", data)
    assert space.build(space.sample(Random(0)))(torch.zeros(3, 4)).shape == (3, 1)


def test_options_reach_the_space():
    assert {d.options for d in make_space("mlp", TABLE, widths=[2, 4], depth=1).decisions} >= {(2, 4)}
    assert make_space("nb201", IMAGES, C=4, N=1).size == 15_625
    assert make_space("shufflenet", IMAGES, depths=(1, 1)).size == 16


@pytest.mark.parametrize(
    ("name", "data", "options", "message"),
    [
        ("mobil", IMAGES, {}, r"No space 'mobil'\. Did you mean: mobile"),
        ("mobile", TABLE, {}, r"'mobile' is for image \(C, H, W\) inputs, but data 'toy' has table .*fit: mlp"),
        ("mlp", TEXT, {}, "Spaces that fit: language"),
        ("signal", IMAGES, {}, "is for signal"),
        ("mlp", TABLE, {"width": [3]}, r"has no option 'width'\. Did you mean: widths"),
        ("mlp", TABLE, {"input_shape": (3,)}, "has no option 'input_shape'"),
        ("mlp", TABLE, {"depth": "deep"}, "does not accept these options"),
        ("mlp", TABLE, {"depth": (3, 1)}, "1 <= smallest"),
        ("shufflenet", dataset(1, 16, 8), {}, "takes square images, not 16x8"),
        ("auto", dataset(2, 3, 4, 5), {}, "for which there is no space of ours"),
        ("auto", dataset(9, dtype=torch.int64), {}, "for which there is no space of ours"),
    ],
)
def test_what_does_not_fit_says_what_would(name, data, options, message):
    with pytest.raises(ArchipelError, match=message):
        make_space(name, data, **options)


# --- a user's own --------------------------------------------------------------------------------------------------

NET = """
    import torch
    from torch import nn
    from archipel import Choice, ElasticLinear, ModuleSpace, Width

    class Net(nn.Module):
        def __init__(self, input_shape, classes, hidden=(4, 8)):
            super().__init__()
            w = Width("w", hidden)
            first, last = ElasticLinear(input_shape[0], w), ElasticLinear(w, classes)
            self.body = nn.Sequential(nn.Flatten(), first, nn.ReLU(), last)

        def forward(self, x):
            return self.body(x)

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.op = Choice("op", {"a": nn.Linear(13, 5), "b": nn.Linear(13, 5, bias=False)})

        def forward(self, x):
            return self.op(x)

    def function(classes):
        options = {"a": nn.Linear(13, classes), "b": nn.Linear(13, classes, bias=False)}
        return nn.Sequential(nn.Flatten(), Choice("op", options))

    def space_function(input_shape, classes):
        return ModuleSpace(lambda: Net(input_shape, classes), torch.zeros(2, *input_shape), name="made")

    READY = ModuleSpace(Fixed, torch.zeros(2, 13), name="ready")
    INSTANCE = Fixed()
    NUMBER = 3

    class NoChoices(nn.Module):
        def __init__(self): super().__init__()
        def forward(self, x): return x

    class Raises(nn.Module):
        def __init__(self, classes):
            raise RuntimeError("out of ideas")

    class Needs(nn.Module):
        def __init__(self, classes, magic):
            super().__init__()

    class WrongOutput(Net):
        def __init__(self, input_shape, classes):
            super().__init__(input_shape, classes + 1)

    class WrongInput(Net):
        def __init__(self, input_shape, classes):
            super().__init__((99,), classes)

    def nothing():
        return None

    def own_error():
        return Width("w", [0])

    def many(**options):
        return Net(options["input_shape"], options["classes"], hidden=options.get("sizes", (4, 8)))
"""


@pytest.fixture
def user_file(tmp_path):
    path = tmp_path / "my_file.py"
    path.write_text(textwrap.dedent(NET))
    yield path
    for name in [n for n in sys.modules if n.startswith("archipel_user_my_file")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("name", "space_name", "size"),
    [
        ("Net", "Net", 2),
        ("Fixed", "Fixed", 2),
        ("function", "function", 2),
        ("space_function", "made", 2),
        ("READY", "ready", 2),
        ("many", "many", 2),
    ],
)
def test_a_class_a_function_or_a_space_of_ones_own_works(user_file, name, space_name, size):
    space = make_space(f"{user_file}:{name}", TABLE)
    assert isinstance(space, Space)
    assert (space.name, space.size) == (space_name, size)
    net = space.build(space.sample(Random(0)))
    assert net(torch.zeros(3, 13)).shape == (3, 5)


def test_options_are_passed_on(user_file):
    space = make_space(f"{user_file}:Net", TABLE, hidden=(2, 3, 4))
    assert space.size == 3
    assert make_space(f"{user_file}:many", TABLE, sizes=(2, 3, 4)).size == 3


def test_a_network_of_ones_own_can_be_pickled(user_file):
    space = make_space(f"{user_file}:Net", TABLE)
    net = pickle.loads(pickle.dumps(space.build({"w": 4})))
    assert net(torch.zeros(1, 13)).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Nett", r"my_file\.py defines no 'Nett'\. Did you mean: Net"),
        ("NUMBER", "is a int; it should be a class, a function or a Space"),
        ("INSTANCE", "is a module that already exists; give the class"),
        ("NoChoices", "Nothing in NoChoices is undecided"),
        ("Raises", r"failed: RuntimeError: out of ideas \(line \d+: raise RuntimeError"),
        ("Needs", "needs magic, which nobody gives"),
        ("WrongOutput", r"gives outputs of shape \(2, 6\).*needs \(2, 5\)"),
        ("WrongInput", r"does not run on inputs of shape \(2, 13\)"),
        ("nothing", "gave a NoneType"),
        ("own_error", "'w' needs positive integers"),
        ("", "should be FILE.py:NAME"),
    ],
)
def test_mistakes_in_ones_own_file_are_explained(user_file, name, message):
    with pytest.raises(ArchipelError, match=message):
        make_space(f"{user_file}:{name}", TABLE)


def test_files_that_cannot_be_loaded_are_explained(tmp_path):
    with pytest.raises(UsageError, match=r"missing\.py is no file \(looked in "):
        make_space(f"{tmp_path}/missing.py:Net", TABLE)
    with pytest.raises(UsageError, match=r"should be FILE\.py:NAME"):
        make_space(f"{tmp_path}/missing.py", TABLE)
    (tmp_path / "syntax.py").write_text("def f(:\n")
    with pytest.raises(UsageError, match=r"syntax\.py could not be loaded: SyntaxError"):
        make_space(f"{tmp_path}/syntax.py:Net", TABLE)
    (tmp_path / "imports.py").write_text("x = 1\nimport no_such_library\n")
    with pytest.raises(UsageError, match=r"No module named 'no_such_library' \(line 2: import no_such_library\)"):
        make_space(f"{tmp_path}/imports.py:Net", TABLE)


def test_options_that_nobody_takes_are_refused(user_file):
    with pytest.raises(UsageError, match=r"has no option 'hiden'\. Did you mean: hidden"):
        make_space(f"{user_file}:Net", TABLE, hiden=(2,))
    with pytest.raises(UsageError, match="is a ready space, so it takes no options"):
        make_space(f"{user_file}:READY", TABLE, hidden=(2,))


def test_two_files_of_one_name_do_not_mix(tmp_path):
    for folder, width in (("a", 3), ("b", 7)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "net.py").write_text(
            "from archipel import ElasticLinear, Width\nfrom torch import nn\n"
            f"def make(classes):\n    w = Width('w', [{width}, {width + 1}])\n"
            "    return nn.Sequential(ElasticLinear(13, w), ElasticLinear(w, classes))\n"
        )
    first, second = (make_space(f"{tmp_path}/{f}/net.py:make", TABLE) for f in "ab")
    assert first.by_name["w"].options == (3, 4)
    assert second.by_name["w"].options == (7, 8)


def test_a_space_of_names_only_keeps_its_errors():
    space = Space(make_space("mlp", TABLE).decisions)
    with pytest.raises(SpaceError, match="has no modules to build"):
        space.build({})
