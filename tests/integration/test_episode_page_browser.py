"""The page of episodes in a real browser: what is listed, what is shown, and that nothing in it is run."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from browser import CHROMIUM, Page, browser
from envrl.analysis.episode_page import PageRun, episode_page
from envrl.analysis.episodes import Episode
from envrl.analysis.predictions import Answer, Predictions, answer_key
from page_episodes import FAMILIES, HOSTILE, episode, turn

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome")

ROW = 52
SETTLED = "new Promise(done => setTimeout(done, 250))"
LISTED = "listed.length"
BARE = re.compile(r"[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e]")


def arm(name: str, count: int, *, steps: int = 2) -> list[Episode]:
    """Every third episode is won; types take turns; the first half has one turn more."""
    return [
        episode(
            game=f"{name}-{n}",
            arm=name,
            family=FAMILIES[n % 3],
            won=n % 3 == 1,
            turns=[turn(step) for step in range(steps + (n < count // 2))],
        )
        for n in range(count)
    ]


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A page of two arms, their episodes, and one made of texts that would break out."""
    place = tmp_path_factory.mktemp("page")
    asked = arm("grpo", 30)
    turns = (turn(0, observation="You stand somewhere else."), *asked[0].turns[1:])
    asked[0] = asked[0].model_copy(update={"turns": turns})
    next_but_one = turns[0].next_observation.replace("drawer", "cabinet")
    answers = {
        answer_key(turns[:1], "sp"): Answer(text=next_but_one, cut=True),
        answer_key(turns[:1], "id"): Answer(text="go to fridge 1", cut=False),
    }
    known = Predictions(iteration=30, sp_form="conversation", trained=("sp",), answers=answers)
    hostile = [turn(n, text, observation=text, admissible=False) for n, text in enumerate(HOSTILE)]
    made = [*arm("grpo+sp", 20), episode(arm="grpo+sp", game="hostile", family=HOSTILE[0], turns=hostile)]
    runs = [
        PageRun("grpo/seed_0", "runs/grpo", asked, {"loss.sp.weight": "0.0"}, known),
        PageRun("grpo+sp/seed_0", HOSTILE[0], made, {"loss.sp.weight": HOSTILE[2]}),
    ]
    file = place / "page.html"
    file.write_text(episode_page(runs, left_out=7))
    with browser(place / "profile") as opened:
        opened.view(1280, 900)
        opened.open(file.as_uri())
        yield opened


def show(page: Page, address: str) -> None:
    """Goes to filters, as a link would."""
    page.run(f"location.hash = {json.dumps(address)}")
    page.run(SETTLED)


def text(page: Page, selector: str) -> str:
    return str(page.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def test_filters_leave_what_they_say(page: Page) -> None:
    show(page, "")
    assert page.run(LISTED) == 51
    assert "51 episodes, 2 runs, 2 arms" in text(page, "#counts")
    assert "7 more episodes kept" in text(page, "#counts")
    for address, left in {
        "arm=grpo": 30,
        "arm=grpo&success=won": 10,
        "arm=grpo&type=look_at_obj_in_light": 10,
        "arm=grpo&min=3": 15,
        "arm=grpo&max=2": 15,
        "arm=grpo&expected=asked": 1,
        "text=grpo%2Bsp-3": 1,
        "stop=won": 17,
        "arm=nobody": 0,
    }.items():
        show(page, address)
        assert page.run(LISTED) == left, address
        height = page.run("document.querySelector('#space').style.height")
        assert height == f"{ROW * left}px"
    assert "No episode passes" in text(page, "#summary")
    show(page, "arm=grpo")
    assert "listed3033.3 %2.50.0 %0/11/1" in text(page, "#summary")
    show(page, "text=hostile")
    assert "listed10.0 %9.0100.0 %" in text(page, "#summary")
    assert "exact" not in text(page, "#summary")
    show(page, "arm=grpo")
    assert page.run("document.querySelector('select[name=arm]').value") == "grpo"


def test_a_choice_in_the_form_is_kept_in_the_address(page: Page) -> None:
    show(page, "")
    page.run(
        "(() => { const s = document.querySelector('select[name=success]'); s.value = 'won';"
        " s.dispatchEvent(new Event('input', { bubbles: true })); })()"
    )
    page.run(SETTLED)
    assert "success=won" in page.run("location.hash")
    assert page.run(LISTED) == 17
    page.run("document.querySelector('#filters button').click()")
    page.run(SETTLED)
    assert page.run(LISTED) == 51


def test_keys_walk_through_the_list(page: Page) -> None:
    show(page, "arm=grpo")
    page.run("document.activeElement.blur()")
    for key, place in [("j", 1), ("j", 2), ("k", 1), ("ArrowDown", 1)]:
        page.press(key)
        assert page.run("chosen") == place, f"after {key}"
    page.run("document.querySelector('#rows').focus()")
    for key, place in [("ArrowDown", 2), ("End", 29), ("Home", 0), ("ArrowUp", 0)]:
        page.press(key)
        assert page.run("chosen") == place, f"after {key}"
    page.press("End")
    assert page.run("document.querySelector('#rows').ariaActiveDescendantElement.ariaPosInSet") == "30"
    assert "grpo-29" in text(page, "#episode .facts")
    page.press("/")
    page.press("j")
    page.run(SETTLED)
    assert page.run("document.activeElement.value") == "j"


def test_a_turn_shows_words_numbers_and_differences(page: Page) -> None:
    show(page, "arm=grpo&expected=asked")
    first = "#episode .turn:nth-of-type(1)"
    assert "✓ admissible" in text(page, first)
    expected = text(page, f"{first} .expected")
    assert "the run's last policy, after 30 iterations, not the one after 10" in expected
    assert "not trained in inverse dynamics" in expected
    assert page.run("[...document.querySelectorAll('.expected del')].map(e => e.textContent)") == ["cabinet"]
    assert page.run("[...document.querySelectorAll('.expected ins')].map(e => e.textContent)") == ["drawer"]
    assert expected.count("✗ differs") == 1
    assert expected.count("✓ the same") == 1
    page.run(f"document.querySelector('{first} .boxed[tabindex]').focus()")
    page.press("ArrowRight")
    page.press("ArrowRight")
    assert "token 2 of 5: “ to” log-probability -0.400 (67 %)" in text(page, f"{first} .readout")
    classes = page.run("[...document.querySelectorAll('.turn:nth-of-type(1) .token')].map(e => e.className)")
    assert [c.split()[1] for c in classes] == ["s0", "s1", "s2", "s2", "s4"]


def test_hostile_texts_are_texts(page: Page) -> None:
    show(page, "text=hostile")
    seen = page.run(
        "[...document.querySelectorAll('.turn > .part:nth-of-type(1) .text')].map(e => e.textContent)"
    )
    assert len(seen) == len(HOSTILE)
    for shown, meant in zip(seen, HOSTILE, strict=True):
        if not BARE.search(meant):
            assert shown == meant
    for name in ("U+0000", "U+001B[31m", "U+202E", "U+2028", "U+200B"):
        assert name in seen[3]
    assert "✗ not admissible" in text(page, "#episode")
    page.run("document.querySelectorAll('details').forEach(d => { d.open = true; })")
    page.run(SETTLED)
    assert HOSTILE[1] in text(page, "#episode")
    assert HOSTILE[2] in text(page, "#differences")
    assert page.run("[typeof window.broken, document.scripts.length, document.images.length]") == [
        *("undefined", 2, 0)
    ]
    for width in (1280, 390):
        page.view(width, 900)
        for selector in ("html", "#episode"):
            wide = page.run(f"(e => e.scrollWidth - e.clientWidth)(document.querySelector('{selector}'))")
            assert wide <= 0, f"{selector} at {width}"
    page.view(1280, 900)


def test_on_paper_stands_the_episode(page: Page) -> None:
    show(page, "arm=grpo")
    page.view(800, 1100, media="print")
    shown = "getComputedStyle(document.querySelector('{}')).display"
    assert page.run(shown.format("#list")) == "none"
    assert page.run(shown.format("#filters")) == "none"
    assert page.run(shown.format("#episode")) != "none"
    page.view(1280, 900)


@pytest.mark.parametrize("dark", [False, True])
def test_texts_stand_out_from_what_is_behind_them(page: Page, dark: bool) -> None:
    show(page, "arm=grpo&expected=asked")
    page.view(1280, 900, dark=dark)
    # Both colours as the browser mixes them, drawn onto a pixel over the page's own background.
    ratios = page.run(
        """(() => {
          const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
          const light = (colours) => {
            for (const colour of colours) { canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1); }
            const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3).map((c) => c / 255)
              .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
          };
          const seen = [...document.querySelectorAll("body *")];
          return seen.filter((e) => e.offsetParent && e.innerText?.trim()).map((e) => {
            const behind = [];
            for (let up = e; up; up = up.parentElement) behind.unshift(getComputedStyle(up).backgroundColor);
            const both = [light(behind), light([...behind, getComputedStyle(e).color])];
            const [a, b] = both.sort((x, y) => y - x);
            return [(a + 0.05) / (b + 0.05), e.tagName + "." + e.className];
          });
        })()"""
    )
    page.view(1280, 900)
    assert len(ratios) > 60
    assert min(ratios)[0] >= 4.5, min(ratios)


def test_two_thousand_episodes_stay_quick(page: Page, tmp_path: Path) -> None:
    runs = [PageRun(f"{name}/seed_0", name, arm(name, 1000, steps=20)) for name in ("grpo", "grpo+sp")]
    file = tmp_path / "large.html"
    file.write_text(episode_page(runs))
    assert file.stat().st_size < 10e6
    before = page.run("document.URL")
    seconds = page.open(file.as_uri())
    assert page.run(LISTED) == 2000
    assert seconds < 30
    page.run(
        "performance.clearMeasures(); window.t0 = performance.now(); location.hash = 'arm=grpo&success=won'"
    )
    page.run("new Promise(done => requestAnimationFrame(() => setTimeout(done)))")
    assert page.run(LISTED) == 333
    took = page.run("performance.now() - window.t0")
    print(f"loaded in {seconds:.2f} s, filtered in {took:.0f} ms, {file.stat().st_size / 1e6:.1f} MB")
    assert took < 5000
    assert page.run("document.querySelectorAll('.row').length") < 40
    page.run("document.querySelector('#rows').scrollTop = 300 * 52")
    page.run(SETTLED)
    places = page.run("[...document.querySelectorAll('.row')].map(e => Number(e.ariaPosInSet))")
    assert min(places) < 301 < max(places)
    page.open(before)


def test_the_browser_had_nothing_to_complain_of(page: Page) -> None:
    assert page.complaints == []
    assert [url for url in page.requests if not url.startswith(("file:", "data:"))] == []
