"""The HTML file: one file, the same bytes, bounded size, nothing that reaches out, and names that stay text."""

import base64
import gzip
import hashlib
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from agprof_reports import embed, run
from agprof_reports.run import render, write
from sample_answers import hostile_answers, sample_answers
from sample_compute_answers import many_modules
from sample_memory_answers import out_of_memory, too_much_explained

LIMIT_BYTES = 3_000_000


class Reader(HTMLParser):
    """Tags with their attributes, scripts with their text, and the text that is shown."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.tags, self.scripts, self.text = [], [], []
        self._script = None
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self._script = (dict(attrs), [])

    def handle_endtag(self, tag):
        if tag == "script" and self._script:
            self.scripts.append((self._script[0], "".join(self._script[1])))
            self._script = None

    def handle_data(self, data):
        (self._script[1] if self._script else self.text).append(data)


@pytest.fixture(scope="module")
def page():
    return render(sample_answers()).decode()


@pytest.fixture(scope="module")
def read(page):
    return Reader(page)


def test_the_same_answers_give_the_same_bytes():
    assert render(sample_answers()) == render(sample_answers())


def test_write_leaves_one_whole_file(tmp_path):
    path = tmp_path / "report.html"
    write(sample_answers(), path)
    assert path.read_bytes() == render(sample_answers())
    assert [item.name for item in tmp_path.iterdir()] == ["report.html"]


@pytest.mark.parametrize(("ranks", "steps"), [(1, 0), (2, 50), (64, 1000)])
def test_the_file_keeps_its_bound(ranks, steps):
    assert len(render(sample_answers(ranks, steps))) <= LIMIT_BYTES


def test_many_ranks_with_many_modules_keep_the_bound():
    largest = replace(sample_answers(64, 1000), compute=many_modules(1_000))
    html = render(largest)
    assert len(html) <= LIMIT_BYTES
    deep = tuple(replace(row, path=row.path and f"{'block.' * 20}{row.path}") for row in largest.compute.modules)
    assert len(render(replace(largest, compute=replace(largest.compute, modules=deep)))) <= LIMIT_BYTES


def test_a_page_that_would_be_too_large_carries_fewer_rows_and_says_so(monkeypatch):
    answers = replace(sample_answers(2, 500), compute=many_modules(400))
    whole = render(answers)
    monkeypatch.setattr(run, "LIMIT_BYTES", len(whole) - 1)
    less = render(answers)
    assert len(less) < len(whole)
    assert "The 150 largest of 504 modules" in less.decode()
    assert "300 of 500 rows, at even distances" in less.decode()


@pytest.mark.parametrize("make", [out_of_memory, lambda: out_of_memory("host"), too_much_explained])
def test_memory_that_ran_out_or_does_not_close_makes_a_whole_page(make):
    html = render(replace(sample_answers(), memory=make()))
    read = Reader(html.decode())
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))
    links = [attributes["href"][1:] for tag, attributes in read.tags if tag == "a"]
    assert set(links) <= set(ids)
    order = [a["id"] for tag, a in read.tags if tag == "section"]
    assert order[:2] == (["verdict", "oom"] if make() and make().oom else ["verdict", "findings"])
    assert html == render(replace(sample_answers(), memory=make()))


def test_without_javascript_accounts_and_ways_are_bars_with_their_totals(read):
    titles = "".join(read.text)
    assert "activations: 125 MiB (58.1%)" in titles
    assert "total, measured: 215 MiB" in titles
    assert "backward: 1.36 × counted (66.7%)" in titles


def test_nothing_reaches_out(read):
    for tag, attributes in read.tags:
        for name in ("src", "href", "action", "data", "poster", "srcset"):
            value = attributes.get(name)
            assert value is None or value.startswith("#") or value == "data:,", (tag, name, value)
    style = re.search(r"<style>(.*?)</style>", render(sample_answers()).decode(), re.S)[1]
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_allows_exactly_the_scripts_that_run(read):
    policy = next(a["content"] for t, a in read.tags if t == "meta" and a.get("http-equiv"))
    assert policy.startswith("default-src 'none'; ")
    assert "unsafe-eval" not in policy
    assert "script-src 'unsafe-inline'" not in policy
    running = [text for attributes, text in read.scripts if "type" not in attributes]
    assert len(running) == 1
    digest = base64.b64encode(hashlib.sha256(running[0].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in policy
    packed = next(text for attributes, text in read.scripts if attributes.get("id") == "plotly")
    source = gzip.decompress(base64.b64decode(packed))
    assert f"'sha256-{base64.b64encode(hashlib.sha256(source).digest()).decode()}'" in policy


def test_every_chart_finds_its_data(read):
    specs = {attributes["id"]: (attributes, text) for attributes, text in read.scripts if "id" in attributes}
    plots = [attributes for tag, attributes in read.tags if "data-spec" in attributes]
    assert len(plots) > 8
    for plot in plots:
        attributes, text = specs[plot["data-spec"]]
        if attributes["type"] == "text/plain":
            text = gzip.decompress(base64.b64decode(text)).decode()
        assert json.loads(text)["data"]


def test_ids_are_used_once(read):
    ids = [attributes["id"] for _, attributes in read.tags if attributes.get("id")]
    assert len(ids) == len(set(ids))


def test_links_inside_the_page_arrive(read):
    ids = {attributes.get("id") for _, attributes in read.tags}
    links = [attributes["href"][1:] for tag, attributes in read.tags if tag == "a"]
    assert set(links) <= ids


def test_without_javascript_verdict_figures_phases_and_tables_are_there(read):
    text = "".join(read.text)
    assert "Bound by exposed communication: 84.0 of 374 ms" in text
    assert "Gradient buckets are too small for the link" in text
    assert "21.4" in text
    assert [tag for tag, _ in read.tags].count("svg") > 2
    assert [tag for tag, _ in read.tags].count("table") > 10
    assert "reduce_scatter" in text


def test_hostile_names_stay_text():
    html = render(hostile_answers()).decode()
    read = Reader(html)
    assert not any(tag == "img" or any(name.startswith("on") for name in a) for tag, a in read.tags)
    assert [tag for tag, _ in read.tags].count("script") == len(read.scripts)
    assert not any((a.get("href") or "").startswith("javascript") for _, a in read.tags)
    assert "</script><img src=x" in "".join(read.text)
    assert not set("\x00\u2028\u202e") & set(html)


def test_hostile_names_stay_text_in_the_labels_of_charts():
    read = Reader(render(hostile_answers()).decode())
    for attributes, carried in read.scripts:
        if not attributes.get("id", "").startswith("spec-"):
            continue
        packed = attributes["type"] == "text/plain"
        text = gzip.decompress(base64.b64decode(carried)).decode() if packed else carried
        assert "<" not in text
        flat = json.dumps(json.loads(text), ensure_ascii=False)
        assert "<img" not in flat
        assert "<a href" not in flat


def test_a_name_of_a_megabyte_does_not_grow_the_page():
    assert len(render(hostile_answers("x" * 1_000_000))) < LIMIT_BYTES


def test_a_backtick_in_a_sentence_is_code(page):
    assert "<code>zero_optimization.reduce_bucket_size</code>" in page


def test_small_data_stays_readable_and_large_is_packed():
    assert not embed.payload([1, 2]).packed
    assert embed.payload(list(range(10_000))).packed
