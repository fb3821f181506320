"""The documentation: its examples run, what its commands name exists, and so do the files it speaks of."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import yaml

from contract.test_text_env import TextEnvContract
from envrl.envs.webshop import generate
from envrl.experiments.config import RunConfig, config_from
from envrl.experiments.games import game_sets

pytestmark = pytest.mark.usefixtures("own_places")

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (*sorted((ROOT / "docs").glob("*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md")
} | {"experiments/PAPER_INDEX.md": (ROOT / "experiments" / "PAPER_INDEX.md").read_text(encoding="utf-8")}


def blocks(page: str, *languages: str) -> list[str]:
    """Fenced blocks of a page in one of the languages."""
    found = re.findall(r"^```(\w*)\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def shop_on_the_spot(_: Path) -> None:
    """The products that docs/webshop.md has its reader generate."""
    with contextlib.redirect_stdout(io.StringIO()):
        assert generate.main(["--out", "shop", "--count", "60", "--seed", "0"]) in (0, None)


def nothing(_: Path) -> None:
    """For pages whose examples stand for themselves."""


EXAMPLES: dict[str, Callable[[Path], None]] = {
    "docs/new_objective.md": nothing,
    "docs/webshop.md": shop_on_the_spot,
}
"""Pages with Python, and what their reader has done before; a page with Python that stands in neither
this table nor a test of its own fails."""


def test_every_page_with_python_is_executed() -> None:
    # What tracking.md does with a registered adapter, test_study.py does with that of a real study.
    elsewhere = {"docs/own_environment.md", "docs/tracking.md"}
    assert {page for page in PAGES if blocks(page, "python")} == {*EXAMPLES, *elsewhere}


@pytest.mark.parametrize("page", EXAMPLES)
def test_examples_run(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    EXAMPLES[page](tmp_path)
    module = ModuleType("example_of_a_page")
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), module.__dict__)


LOCK_PAGE = "docs/own_environment.md"
LOCK, CONTRACT = blocks(LOCK_PAGE, "python")


@pytest.fixture(autouse=True, scope="module")
def lock_on_the_path(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder = tmp_path_factory.mktemp("lock")
    (folder / "my_lock.py").write_text(LOCK, encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield


def _page_contract() -> type[TextEnvContract]:
    """The class of the page's contract test; its environment is imported when a fixture asks for it."""
    lock = ModuleType("my_lock")
    exec(compile(LOCK, "my_lock.py", "exec"), lock.__dict__)
    known = sys.modules.get("my_lock")
    sys.modules["my_lock"] = lock
    try:
        module: dict[str, object] = {"__name__": "page_contract"}
        exec(compile(CONTRACT, LOCK_PAGE, "exec"), module)
    finally:
        if known is None:
            del sys.modules["my_lock"]
    found = module["TestLock"]
    assert isinstance(found, type)
    return found


TestLockOfThePage = _page_contract()


def test_the_line_of_the_lock_finds_its_games() -> None:
    (line,) = blocks(LOCK_PAGE, "yaml")
    config = config_from(yaml.safe_load(line))
    games = game_sets(config.env, config.evaluation, config.rollout.games)
    assert (len(games.training), len(games.panel.games)) == (18, 9)
    assert config.env.steps == 6


CONFIGURED = set(RunConfig.__dataclass_fields__)


@pytest.mark.parametrize("page", PAGES)
def test_yaml_is_read(page: str) -> None:
    for block in blocks(page, "yaml"):
        content = yaml.safe_load(block)
        assert isinstance(content, dict), page
        if "base" in content:
            content = content["base"]
        if {key.partition(".")[0] for key in content} <= CONFIGURED:
            config_from(content)


def commands(page: str) -> list[list[str]]:
    """The words of every command in a page's shell blocks."""
    lines = "".join(blocks(page, "bash", "sh")).replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@cache
def help_of(module: str) -> str:
    """What a command prints for --help."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
        importlib.import_module(module).main(["--help"])
    return out.getvalue()


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "bash", "sh")])
def test_commands_name_what_exists(page: str) -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.M))
    for words in commands(page):
        if words[0] == "make":
            assert {w for w in words[1:] if "=" not in w} <= targets, words
        if "-m" not in words or not (module := words[words.index("-m") + 1]).startswith("envrl"):
            continue
        assert importlib.util.find_spec(module), words
        for word in words[words.index("-m") + 2 :]:
            if word.startswith("--"):
                assert re.search(rf"{re.escape(word.partition('=')[0])}\b(?![.-])", help_of(module)), (
                    module,
                    word,
                )
            elif word.endswith(".yaml"):
                in_the_page = f"`{word}`" in PAGES[page]
                assert (ROOT / word).is_file() or in_the_page, words


ROOMS = ("src", "docs", "tests", "experiments", "notebooks", "tools", "benchmarks")
INSIDE = ("envrl", "envs", "policy", "prompts", "rollout", "losses", "training", "tracking", "analysis")


def missing(text: str) -> list[str]:
    """Files and folders that a text names in backticks and that are nowhere in the repository."""
    absent = []
    code = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    for name in re.findall(rf"`((?:{'|'.join((*ROOMS, *INSIDE))})/[\w./*-]*)(?:::\w+)?`", code):
        if "." not in name and not name.endswith("/") and "*" not in name:
            continue  # a metric
        places = [ROOT, ROOT / "src", ROOT / "src" / "envrl"]
        if not any(next(place.glob(name.rstrip("/")), None) for place in places):
            absent.append(name)
    return absent


@pytest.mark.parametrize("page", PAGES)
def test_files_that_are_named_exist(page: str) -> None:
    # Written by a command, or by the reader.
    written = {"tests/contract/test_my_lock.py"}
    assert set(missing(PAGES[page])) - written == set()


def test_a_file_that_is_gone_is_noticed() -> None:
    assert missing("see `docs/gone.md` and `docs/sweeps.md`, `envrl/losses/gone.py::x`") == [
        "docs/gone.md",
        "envrl/losses/gone.py",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    folder = (ROOT / page).parent
    text = re.sub(r"^```.*?^```", "", PAGES[page], flags=re.DOTALL | re.MULTILINE)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (folder / path).resolve() if path else ROOT / page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.M)
            slugs = {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", h).strip().lower()) for h in heads}
            assert anchor in slugs, link


def test_every_setting_is_on_the_page_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    page = importlib.import_module("docs_configuration").configuration_page()
    assert "| `loss.clip_low` | number | `0.2` |" in page
    assert "| `policy.dtype` | `float32`, `bfloat16`, `auto` | `float32` | Precision of the weights" in page
    assert "| `env.train_games` | whole number or null | `256` |" in page
    shown = set(re.findall(r"^\| `([\w.]+)` \|", page, re.M))
    help_text = help_of("envrl.experiments.train")
    assert shown >= {"seed", "loss.sp.weight", "sampling.server.url", "env.webshop.order"}
    assert [name for name in sorted(shown) if f"--{name}" not in help_text] == []


def test_links_between_files_become_links_of_the_site(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    links = importlib.import_module("docs_hook").site_links
    assert links("[a](sweeps.md#x) [b](https://a.b/c) [c](#d)", "index.md") == (
        "[a](sweeps.md#x) [b](https://a.b/c) [c](#d)"
    )
    assert links("[log](../experiments/LOG.md)", "index.md") == "[log](project/log.md)"
    assert links("[a](docs/sweeps.md#x)", "project/contributing.md") == "[a](../sweeps.md#x)"
    assert links("[base](../src/envrl/envs/base.py)", "index.md") == "base"
    assert links("[gone](../gone.md)", "index.md") == "[gone](../gone.md)"
    assert (
        links("```\n[a](../experiments/LOG.md)\n```\n", "index.md")
        == "```\n[a](../experiments/LOG.md)\n```\n"
    )


def test_pages_fetch_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    hook = importlib.import_module("docs_hook")
    page = SimpleNamespace(url="reference/losses/gigpo.html")
    shown = hook.on_post_page('<script src="https://unpkg.com/iframe-worker/shim"></script>', page=page)
    assert shown == '<script src="../../assets/iframe-worker/shim.js"></script>'
    assert (ROOT / "docs" / "assets" / "iframe-worker" / "shim.js").is_file()


def test_the_reference_has_a_page_for_every_public_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "tools")
    pages, _ = importlib.import_module("docs_hook").reference()
    source = ROOT / "src" / "envrl"
    modules = [p.relative_to(source).with_suffix(".md") for p in source.rglob("*.py") if p.name[0] != "_"]
    assert {f"reference/{path}" for path in modules} <= set(pages)
    assert pages["reference/losses/gigpo.md"].endswith("::: envrl.losses.gigpo\n")
