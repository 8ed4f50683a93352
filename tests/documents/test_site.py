"""The documentation site builds strictly, and what it links to is there.

Where a browser is installed, every page is also opened in it, as wide as a desktop and as narrow as a phone.
"""

import functools
import http.server
import importlib.util
import json
import queue
import re
import shutil
import subprocess
import sys
import threading
from html.parser import HTMLParser
from urllib.parse import unquote, urldefrag

import pytest
from processes import PATIENCE, ROOT

NEEDED = {"material": "mkdocs-material", "mkdocstrings": "mkdocstrings"}
WIDTHS = (1400, 390)  # pixels: a desktop's window and a phone
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site."""
    for module, package in NEEDED.items():
        if importlib.util.find_spec(module) is None:
            pytest.skip(f'the site needs {package}: pip install -e ".[docs]"')
    folder = tmp_path_factory.mktemp("site")
    done = build(ROOT / "mkdocs.yml", folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def build(config, folder):
    """With --quiet, warnings would not stop a strict build."""
    command = [
        sys.executable,
        "-m",
        "mkdocs",
        "build",
        "--strict",
        "--config-file",
        str(config),
        "--site-dir",
        str(folder),
    ]
    return subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", timeout=PATIENCE, check=False)


class Page(HTMLParser):
    """The ids, links and images of a page, and what is wrong with its elements."""

    def __init__(self, text):
        super().__init__()
        self.ids, self.links, self.images, self.open, self.wrong = [], [], [], [], []
        self.feed(text)
        self.close()
        self.wrong += [f"<{name}> is never closed" for name in self.open]

    def handle_starttag(self, tag, attrs):
        about = dict(attrs)
        self.ids += [about["id"]] if about.get("id") else []
        if tag == "a" and about.get("href"):
            self.links.append(about["href"])
        if tag in ("img", "script") and about.get("src"):
            self.images.append(about["src"])
        if tag == "link" and about.get("href"):
            self.images.append(about["href"])
        if tag == "img" and not about.get("alt"):
            self.wrong.append(f"an image without a description: {about.get('src')}")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in self.open:
            self.wrong.append(f"</{tag}> closes nothing")
            return
        while (last := self.open.pop()) != tag:
            self.wrong.append(f"<{last}> is never closed")


def pages_of(folder):
    """By the path from the folder; the page that a server gives for a lost link is seen from anywhere."""
    found = sorted(folder.rglob("*.html"))
    return {path.relative_to(folder).as_posix(): Page(path.read_text()) for path in found if path.name != "404.html"}


def problems(folder):
    """What is wrong in a site, a line for each fault."""
    pages, lines = pages_of(folder), []
    for name, page in pages.items():
        lines += [f"{name}: {fault}" for fault in page.wrong]
        lines += [f"{name}: the id {one!r} stands twice" for one in sorted(page.ids) if page.ids.count(one) > 1]
        for link in dict.fromkeys([*page.links, *page.images]):
            lines += [f"{name}: {link}: {fault}" for fault in fault_of(folder, pages, name, link)]
    return lines


def fault_of(folder, pages, name, link):
    if re.match(r"(https?|mailto|data):", link):
        return []
    address, anchor = urldefrag(link)
    target = (folder / name).parent / unquote(address.partition("?")[0]) if address else folder / name
    target = target / "index.html" if target.is_dir() else target
    if not target.is_file():
        return ["leads nowhere"]
    found = pages.get(target.resolve().relative_to(folder.resolve()).as_posix())
    return [f"no such place as {anchor!r}"] if anchor and found and unquote(anchor) not in found.ids else []


def test_it_builds_and_every_link_leads_somewhere(site):
    assert problems(site) == []
    assert len(pages_of(site)) > 20


def test_the_home_page_is_the_top_of_the_readme(site):
    home = (site / "index.html").read_text()
    for text in ("drop-in replacement", "When it is not faster", "figures/loop-"):
        assert text in home
    assert "How it works</h2>" not in home


@pytest.mark.usefixtures("site")
def test_a_page_outside_of_the_navigation_stops_the_build(tmp_path):
    (tmp_path / "docs").mkdir()
    for name in ("index", "other"):
        (tmp_path / "docs" / f"{name}.md").write_text("# A page\n")
    about = "site_name: a\nvalidation: {omitted_files: warn}\nnav: [index.md"
    for nav, code in ((", other.md]", 0), ("]", 1)):
        (tmp_path / "mkdocs.yml").write_text(about + nav)
        done = build(tmp_path / "mkdocs.yml", tmp_path / "site")
        assert done.returncode == code, done.stderr


FAULTY = {
    '<p id="a"><a href="#a">a</a></p>': [],
    '<a href="absent/">a</a>': ["page.html: absent/: leads nowhere"],
    '<a href="#b">a</a>': ["page.html: #b: no such place as 'b'"],
    '<a href="other/#there">a</a>': [],
    '<a href="other/#b">a</a>': ["page.html: other/#b: no such place as 'b'"],
    '<img src="absent.svg" alt="a line">': ["page.html: absent.svg: leads nowhere"],
    '<img src="other/index.html">': ["page.html: an image without a description: other/index.html"],
    "<p><b>a</p></b>": ["page.html: <b> is never closed", "page.html: </b> closes nothing"],
    "<div>": ["page.html: <div> is never closed"],
    '<p id="a"></p><p id="a"></p>': ["page.html: the id 'a' stands twice"] * 2,
}


@pytest.mark.parametrize("body", FAULTY)
def test_faults_of_a_page_are_found(tmp_path, body):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "index.html").write_text('<html><p id="there">a</p></html>')
    (tmp_path / "page.html").write_text(f"<html>{body}</html>")
    assert problems(tmp_path) == FAULTY[body]


# In a browser

# Each page is loaded into a frame of the width, whose styles see that width as a window's. What lies outside the
# frame's width and cannot be scrolled to within the page is reported, as are images that did not load.
HARNESS = """<!doctype html><meta charset="utf-8"><title>harness</title><body><script>
const pages = PAGES, widths = WIDTHS, found = [];
function faults(view, width) {
  const page = view.document.documentElement, said = [];
  if (page.scrollWidth > width + 1) said.push(`is ${page.scrollWidth} pixels wide`);
  for (const image of view.document.images)
    if (!image.complete || image.naturalWidth === 0) said.push(`${image.getAttribute("src")} did not load`);
  return said;
}
async function open(page, width) {
  const frame = document.createElement("iframe");
  frame.style = `width: ${width}px; height: 900px; border: 0`;
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page;
  document.body.append(frame);
  await loaded;
  for (const fault of faults(frame.contentWindow, width)) found.push(`${page} at ${width}: ${fault}`);
  frame.remove();
}
const soon = () => new Promise(done => setTimeout(done, 300)); // what the console said reaches the log
(async () => {
  for (const width of widths) for (const page of pages) await open(page, width);
})().catch(error => found.push(`${error}`)).then(soon).then(() =>
  fetch("/found", {method: "POST", body: JSON.stringify({opened: pages.length * widths.length, found})})
);
</script>"""


def browser():
    return next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Files(http.server.SimpleHTTPRequestHandler):
    """The files of a folder, the page that opens them, and the place where the browser leaves what it found."""

    def do_GET(self):
        if self.path != "/harness.html":
            super().do_GET()
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/html")
        self.end_headers()
        self.wfile.write(self.server.harness.encode())

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(204)
        self.end_headers()
        self.server.found.put(json.loads(body))

    def log_message(self, *arguments):
        pass


def answer(process, answers):
    """Waits as long as the browser runs."""
    for _ in range(int(PATIENCE)):
        try:
            return answers.get(timeout=1)
        except queue.Empty:
            assert process.poll() is None, "the browser ended before it had opened all pages"
    raise TimeoutError("the browser opened the pages too slowly")


@pytest.fixture
def opened(tmp_path):
    """Opens the pages of a folder in a browser; returns what it found wrong, what its console said, and how many."""
    if browser() is None:
        pytest.skip("no Chromium is installed")

    def look(folder, names):
        server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Files, directory=str(folder)))
        server.harness = HARNESS.replace("PAGES", json.dumps(names)).replace("WIDTHS", json.dumps(WIDTHS))
        server.found = queue.Queue()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            return ran(f"http://127.0.0.1:{server.server_port}/harness.html", server.found)
        finally:
            server.shutdown()
            server.server_close()

    def ran(address, answers):
        command = [browser(), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1600,1000"]
        command += [f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", address]
        log = tmp_path / "browser.log"
        with log.open("w") as errors, subprocess.Popen(command, stdout=errors, stderr=errors) as process:
            try:
                found = answer(process, answers)
            finally:
                process.kill()
        console = re.findall(r"CONSOLE[:(]\d+\)?\] (.*)", log.read_text())
        return found["found"], console, found["opened"]

    return look


@pytest.mark.slow
def test_every_page_opens_on_a_desktop_and_on_a_phone(site, opened):
    names = [f"/{name}" for name in pages_of(site)]
    found, console, number = opened(site, names)
    assert found == []
    assert console == []
    assert number == len(names) * len(WIDTHS)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "fault", "said"),
    [
        ("<p>well", None, None),
        ('<div style="width: 3000px">wide</div>', "/page.html at 1400: is 30", None),
        ('<div style="width: 700px">wide</div>', "/page.html at 390: is 7", None),
        ('<img src="absent.svg">', "/page.html at 1400: absent.svg did not load", None),
        ("<script>console.error('a fault')</script>", None, "a fault"),
        ("<script>absent()</script>", None, "absent is not defined"),
    ],
)
def test_the_browser_finds_faults(tmp_path, opened, body, fault, said):
    (tmp_path / "page.html").write_text(f"<!doctype html><title>a</title>{body}")
    (tmp_path / "favicon.ico").write_bytes(b"")
    found, console, _ = opened(tmp_path, ["/page.html"])
    assert (fault is None) == (found == [])
    assert fault is None or found[0].startswith(fault)
    assert (said is None) == (console == [])
    assert said is None or said in console[0]
