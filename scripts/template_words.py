#!/usr/bin/env python3
"""Words that templates of Wikipedia lose in sentences: altiplano beside mwparserfromhell and WikiExtractor.

    scripts/template_words.py [DUMP…]          default: the articles of tests/fixtures/wikipedia

Needs a built target/release/altiplano (or ALTIPLANO=path) and, in the Python that runs it,
`pip install mwparserfromhell wikiextractor`; a tool that is not there is left out.

A call of a template stands in a sentence when words of its paragraph are before and behind it. In the
text that a tool makes, the two words before the call and the two behind it are looked for. If nothing
stands between them, the call's words are lost. Calls that stand for no words (references, notes to
editors, flags, pronunciation, coordinates) are not counted, and neither are those whose neighbours are not
found, since links or other templates changed them. Prints a table in Markdown, and the names that are
lost most.
"""

import bz2
import collections
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree

ROOT = pathlib.Path(__file__).resolve().parent.parent
BINARY = os.environ.get("ALTIPLANO", ROOT / "target/release/altiplano")
# Names of templates that stand for no words, as they begin, in lower case.
NO_WORDS = (
    "cit", "sfn", "harv", "efn", "refn", "ref", "rp", "r|", "note", "cn", "fact", "clarif", "who", "when",
    "which", "where", "why", "by whom", "dubious", "according", "update", "failed", "better", "page needed",
    "dead link", "webarchive", "subscription", "vague", "verify", "specify", "full", "unreliable", "primary",
    "original", "relevance", "disputed", "pov", "weasel", "anchor", "flagicon", "coord", "ipa", "respell",
    "audio", "listen", "clear", "isbn", "doi", "oclc", "pmid", "toc", "infobox", "taxobox", "main", "see also",
    "further", "lrm", "rlm", "shy", "wbr", "audio", "pron", "fix", "cquote", "quote", "weather", "need", "nbsp", "spaces", "'", "\"", "-\"",
)
WORD = re.compile(r"\w+")


def articles(paths):
    """(id, title, wikitext) of every article of the dumps."""
    for path in paths:
        opened = bz2.open(path) if str(path).endswith("bz2") else open(path, "rb")
        with opened as file:
            for _, page in ElementTree.iterparse(file):
                if page.tag.rpartition("}")[2] != "page":
                    continue
                field = {}
                for element in page.iter():
                    field.setdefault(element.tag.rpartition("}")[2], element.text or "")
                page.clear()
                text = field.get("text", "")
                if field.get("ns", "0") == "0" and not text.lstrip().lower().startswith("#redirect"):
                    yield field["id"], field["title"], text


def plain(wikitext):
    """Wikitext without references, comments, links and quotes: enough to find neighbouring words."""
    text = re.sub(r"<!--.*?-->|<ref[^<>]*/>|<ref\b.*?</ref\s*>", "", wikitext, flags=re.DOTALL | re.IGNORECASE)
    text = re.sub(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]", r"\1", text)
    text = re.sub(r"\[(?:https?:)?//\S+\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"</?[a-z][^<>]*>", "", text, flags=re.IGNORECASE)
    return text.replace("'''", "").replace("''", "").replace("&nbsp;", " ").replace("\u00a0", " ")


def calls(wikitext):
    """(name, words before, words behind) of the calls of templates that stand in a sentence."""
    for line in plain(wikitext).split("\n"):
        # Tables, boxes and lists of links are no sentences.
        if line.startswith(("|", "!", "{|", "=", "{{Infobox", "*")) or "{{" not in line:
            continue
        for match in re.finditer(r"\{\{([^{}|]+)(?:\|[^{}]*)?\}\}", line):
            name = match.group(1).strip().lower().replace("_", " ")
            if name.startswith(NO_WORDS) or ":" in name:
                continue
            before = re.split(r"\}\}", line[: match.start()])[-1]
            after = re.split(r"\{\{", line[match.end() :])[0]
            before, after = WORD.findall(before)[-2:], WORD.findall(after)[:2]
            if len(before) == 2 and len(after) == 2:
                yield name, before, after


def judge(found, text):
    """Whether there are words between the neighbours of a call in `text`; None without the neighbours."""
    _, before, after = found
    pattern = r"\W+".join(map(re.escape, before)) + r"\b(.{0,200}?)\b" + r"\W+".join(map(re.escape, after)) + r"\b"
    match = re.search(pattern, text, flags=re.DOTALL)
    return bool(re.search(r"[\w–—×°€£$¥]", match.group(1))) if match else None


def with_altiplano(paths, expand):
    with tempfile.TemporaryDirectory() as folder:
        config = {
            "output": f"{folder}/out",
            "sources": [{
                "name": "w",
                "wikipedia": {"paths": [str(pathlib.Path(path).resolve()) for path in paths]},
                "steps": [{"wikitext": {"min_words": 0, "expand_templates": expand}}],
            }],
        }
        path = pathlib.Path(folder) / "w.yaml"
        path.write_text(json.dumps(config))
        subprocess.run([BINARY, "data", "run", path], check=True, capture_output=True)
        command = [BINARY, "data", "cat", f"{folder}/out/documents/w", "--format", "jsonl"]
        out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        documents = map(json.loads, out.splitlines())
        return {document["id"].split(":")[1]: document["text"] for document in documents}


def with_mwparserfromhell(pages):
    import mwparserfromhell

    return {number: mwparserfromhell.parse(text).strip_code() for number, _, text in pages}


def with_wikiextractor(pages):
    from wikiextractor.extract import Extractor

    texts = {}
    for number, title, text in pages:
        extractor = Extractor(number, "1", "https://en.wikipedia.org/wiki", title, [text])
        texts[number] = "\n".join(extractor.clean_text(text, expand_templates=True))
    return texts


def main():
    paths = sys.argv[1:] or sorted((ROOT / "tests/fixtures/wikipedia").glob("*.bz2"))
    pages = list(articles(paths))
    all_calls = {number: list(calls(text)) for number, _, text in pages}
    print(f"{len(pages)} articles, {sum(map(len, all_calls.values()))} calls in sentences\n")
    tools = [
        ("mwparserfromhell, `strip_code`", lambda: with_mwparserfromhell(pages)),
        ("WikiExtractor", lambda: with_wikiextractor(pages)),
        ("altiplano, `expand_templates: false`", lambda: with_altiplano(paths, False)),
        ("altiplano", lambda: with_altiplano(paths, True)),
    ]
    print("| | calls judged | words lost | share | lost an article |\n|---|---:|---:|---:|---:|")
    names = collections.Counter()
    for tool, run in tools:
        try:
            texts = run()
        except ImportError as error:
            print(f"({tool}: {error})", file=sys.stderr)
            continue
        verdicts = [
            (call[0], judge(call, texts[number]))
            for number, found in all_calls.items() if number in texts for call in found
        ]
        judged = [(name, kept) for name, kept in verdicts if kept is not None]
        lost = [name for name, kept in judged if not kept]
        names = collections.Counter(lost)
        share = len(lost) / max(len(judged), 1)
        print(f"| {tool} | {len(judged)} | {len(lost)} | {share:.1%} | {len(lost) / max(len(texts), 1):.2f} |")
    if names:
        print("\nlost by the last one: " + ", ".join(f"{name} {count}" for name, count in names.most_common(20)))


if __name__ == "__main__":
    main()
