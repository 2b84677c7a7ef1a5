"""The report's pages in a real browser: nothing is fetched, nothing fails, all can be read and printed."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from synthetic import facts, synthetic_run

from multismolvla_eval.protocol.levels import ALL_SUBSETS
from multismolvla_eval.report.command import main

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs a Chromium (Debian: apt-get install chromium)")

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--hide-scrollbars", "--enable-logging=stderr",
    "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip

#: What the browser asks of its maker whatever page it shows; in vain, because no name resolves.
OWN_SERVICES = re.compile(r"https?://[a-z0-9-]+\.(google|googleapis|gstatic)\.com/")
#: Runs in the page and leaves what it finds in the title, where --dump-dom shows it.
PROBE = """
<script>
addEventListener("load", function () {
  function luminance(rgb) {
    var c = rgb.map(function (v) {
      v /= 255;
      return v <= 0.03928 ? v / 12.92 : Math.pow((v + 0.055) / 1.055, 2.4);
    });
    return 0.2126 * c[0] + 0.7152 * c[1] + 0.0722 * c[2];
  }
  function numbers(colour) { return colour.match(/[\\d.]+/g).map(Number); }
  function background(node) {
    for (; node; node = node.parentElement) {
      var c = numbers(getComputedStyle(node).backgroundColor);
      if (c.length < 4 || c[3] > 0) return c.slice(0, 3);
    }
    return [255, 255, 255];
  }
  var contrast = 99, worst = "";
  document.querySelectorAll("body *").forEach(function (node) {
    var text = Array.prototype.filter.call(node.childNodes, function (n) { return n.nodeType === 3; });
    if (!text.some(function (n) { return n.data.trim(); }) || node.tagName === "SCRIPT") return;
    var a = luminance(numbers(getComputedStyle(node).color).slice(0, 3)), b = luminance(background(node));
    var ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    if (ratio < contrast) { contrast = ratio; worst = node.tagName + "." + node.className; }
  });
  function all(selector) { return Array.prototype.slice.call(document.querySelectorAll(selector)); }
  function own(list, test) {
    return list.filter(test).map(function (n) { return n.outerHTML.slice(0, 120); });
  }
  document.querySelectorAll("details").forEach(function (d) { d.open = true; });
  document.title = JSON.stringify({
    contrast: contrast, worst: worst,
    width: [document.documentElement.scrollWidth, innerWidth],
    images: all("img").length,
    broken: own(all("img"), function (i) { return !i.complete || !i.naturalWidth; }),
    nameless: own(all("img"), function (i) { return !i.alt.trim(); }),
    tables: all("table").length,
    uncaptioned: own(all("table"), function (t) { return !t.caption || !t.caption.textContent.trim(); }),
    spilled: own(all("td, th"), function (t) { return t.scrollWidth > t.clientWidth + 1; }),
    unscoped: own(all("th"), function (t) { return !t.scope; }),
    dark: matchMedia("(prefers-color-scheme: dark)").matches,
    headings: all("h1, h2, h3, h4").map(function (h) { return Number(h.tagName[1]); }),
    unreachable: own(all(".scroll"), function (d) {
      return d.tabIndex !== 0 || !d.getAttribute("aria-label");
    }),
    dead: own(all("a[href^='#']"), function (a) { return !document.getElementById(a.hash.slice(1)); }),
    mouse: own(all("[onclick], [onmouseover]"), function (n) { return true; }),
    first: (function () {
      var f = document.querySelector("a, button, [tabindex]");
      f.focus();
      return [f.textContent, f.getBoundingClientRect().left >= 0];
    })(),
    text: document.body.innerText.slice(0, 3000)
  });
});
</script>
"""


def browse(page, folder, *flags):
    """Run the browser on a page.

    Returns:
        Its standard output, the messages on its console, and the addresses that it asked the network for.
    """
    log = folder / "network.json"
    command = [
        BROWSER,
        *FLAGS,
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        *flags,
        page.as_uri(),
    ]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    console = [line for line in result.stderr.splitlines() if "CONSOLE" in line]
    asked = set(re.findall(r'"url":"((?:https?|wss?|ftp)://[^"]*)"', log.read_text()))
    asked = {url for url in asked if not OWN_SERVICES.match(url)}
    return result.stdout, console, asked


def probe(page, folder, *flags):
    """What the page is like in the browser, from the probe above."""
    copy = folder / f"{page.stem}-probe.html"
    copy.write_text(page.read_text().replace("</body>", PROBE + "</body>"))
    dom, console, asked = browse(copy, folder, "--dump-dom", *flags)
    assert not console
    assert not asked
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", dom, re.DOTALL)[1]))


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of two suites with every section, repeated starts and a policy that is told of no loss."""
    folder = tmp_path_factory.mktemp("browser") / "run"
    policies = {"vanilla": facts("vanilla", mask_reaches_policy=False)}
    synthetic_run(folder, suites=("toy", "game"), clean_repeats=2, policies=policies)
    assert main([str(folder)]) == 0
    return folder / "report.html"


def check(found, tables, images):
    assert found["width"][0] <= found["width"][1], "nothing is wider than the window"
    assert found["contrast"] >= 4.5, (found["worst"], "WCAG AA")
    for problem in (
        "broken",
        "nameless",
        "uncaptioned",
        "spilled",
        "unscoped",
        "unreachable",
        "dead",
        "mouse",
    ):
        assert not found[problem], problem
    assert (found["tables"], found["images"]) == (tables, images)
    assert found["headings"][0] == 1
    assert all(b - a <= 1 for a, b in zip(found["headings"], found["headings"][1:], strict=False)), (
        "no level is left out"
    )
    assert found["first"] == ["Skip to the figures", True], (
        "the first stop of the keyboard leads past the navigation"
    )


@pytest.mark.parametrize(
    "flags",
    [
        ("--window-size=1280,900",),
        ("--window-size=500,844", "--force-device-scale-factor=1"),
        ("--window-size=1280,900", "--blink-settings=preferredColorScheme=0"),
    ],
    ids=["desktop", "narrow", "dark"],
)
def test_page_in_the_browser(report, tmp_path, flags, request):
    found = probe(report, tmp_path, *flags)
    assert found["dark"] == (request.node.callspec.id == "dark")
    groups = 6  # C0 to C5
    one_by_one = ("figures over many conditions", "suites", "diagnostics", "policies", "made with")
    per_suite = ("conditions", "tasks")
    figures = ("C1 points", "C1 subsets", "C2", "C3", "C4", "C5", "tasks", "tasks")
    clips = 2 * 2 * 2  # policies, suites, clean and faulted
    check(found, groups + len(one_by_one) + 2 * len(per_suite), len(figures) + clips)
    assert "Robustness under failing sensors" in found["text"]
    assert "Synthetic rows: made up to test this report, not measured." in found["text"]
    assert re.search(r"ours: \d+ % \(\d+/80 of 40 starts, \d+–\d+\) clean success", found["text"])
    assert len(ALL_SUBSETS) == 15


def test_comparison_in_the_browser(report, tmp_path):
    other = synthetic_run(tmp_path / "other", suites=("toy", "game"), texts=["C2:rgb=zero"], seed=3)
    assert main([str(report.parent), str(other), f"--output={tmp_path / 'out'}"]) == 0
    found = probe(tmp_path / "out" / "comparison.html", tmp_path, "--window-size=1280,900")
    check(found, tables=2 * 2, images=0)
    assert "paired on the same episodes" in found["text"]


def test_page_prints(report, tmp_path):
    target = tmp_path / "report.pdf"
    browse(report, tmp_path, f"--print-to-pdf={target}", "--no-pdf-header-footer")
    data = target.read_bytes()
    assert data.startswith(b"%PDF")
    pages = len(re.findall(rb"/Type\s*/Page\b", data))
    assert 5 <= pages <= 60
    reader = shutil.which("pdftotext")
    if reader is not None:
        text = subprocess.run(
            [reader, "-layout", target, "-"], capture_output=True, text=True, check=True
        ).stdout
        assert "multismolvla-eval" in text, "what is folded on the screen is printed, too"
        assert "Skip to the figures" not in text


def test_the_browser_would_have_told(tmp_path):
    """The checks above can fail: a page that errs, fetches and hides text is caught."""
    page = Path(tmp_path / "bad.html")
    page.write_text(
        '<p style="color:#999">grey</p><img src="http://example.invalid/a.png"><script>nothing();</script>'
    )
    _, console, asked = browse(page, tmp_path, "--dump-dom")
    assert any("nothing is not defined" in line for line in console)
    assert "http://example.invalid/a.png" in asked
