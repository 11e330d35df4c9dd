"""Plain prose from MediaWiki markup: enough for a training sample, not a full parser.

Templates, tables, references, formulas and files are dropped, links keep their label,
and everything from "See also" on is cut.
"""

import bz2
import html
import re
import xml.etree.ElementTree as ElementTree

# Templates whose last or first argument is part of the sentence around them.
LAST_ARGUMENT = {"lang", "transl", "nowrap", "nobr", "mvar", "math", "sic", "iast", "script/hebrew"}
CONVERTERS = {"convert", "cvt"}
FORMULAS = {"chem", "chem2"}
CHARACTERS = {
    "'": "'", "nbsp": " ", "circa": "c.", "c.": "c.",
    "ndash": "–", "endash": "–", "en dash": "–", "spaced ndash": " – ", "snd": " – ", "spaced en dash": " – ",
    "mdash": "—", "emdash": "—", "em dash": "—",
}
# Sections that hold references and link lists rather than prose.
BACK_MATTER = re.compile(
    r"^==\s*(see also|references?|notes?|notes and references|footnotes?|citations?|sources?|external links|"
    r"further reading|bibliography|selected bibliography|works cited|publications?|filmography|discography|gallery)\s*==\s*$",
    re.IGNORECASE | re.MULTILINE,
)


def _template(match):
    """What an innermost {{template}} leaves in the text."""
    name, *arguments = (part.strip() for part in match.group(1).split("|"))
    arguments = [part for part in arguments if not re.match(r"\w+\s*=", part)]
    name = name.lower()
    if name in CONVERTERS and len(arguments) > 1:
        # {{convert|5|to|7|km}} is a range, {{convert|5|km}} a single value.
        return " ".join(arguments[: 4 if arguments[1] in {"to", "and", "-", "–", "x", "by"} else 2])
    if name in FORMULAS:
        return "".join(arguments)
    if (name in LAST_ARGUMENT or name.startswith("lang-")) and arguments:
        return arguments[-1]
    return CHARACTERS.get(name, "")


def _link(match):
    """What an innermost [[link]] leaves in the text: its label."""
    target, _, label = match.group(1).partition("|")
    if re.match(r"\s*:?(file|image|category|[a-z]{2,3}(-[a-z]+)?)\s*:", target, re.IGNORECASE):
        return ""
    return label.rpartition("|")[2] if label else target.lstrip(":")


def _until_stable(pattern, replace, text):
    """Replaces innermost matches until none is left, which resolves nesting."""
    while True:
        text, count = pattern.subn(replace, text)
        if count == 0:
            return text


def prose(wikitext):
    """The readable text of an article: headings and paragraphs, one per line."""
    text = re.sub(r"<!--.*?-->", "", wikitext, flags=re.DOTALL)
    text = html.unescape(text).replace("\u00a0", " ")
    back = BACK_MATTER.search(text)
    if back:
        text = text[: back.start()]
    text = re.sub(r"<ref[^<>]*/>", "", text, flags=re.IGNORECASE)
    text = re.sub(
        r"<(ref|gallery|math|chem|timeline|table|imagemap|score|syntaxhighlight|source|code|pre|div)\b[^>]*>.*?</\1\s*>",
        "", text, flags=re.DOTALL | re.IGNORECASE)
    text = _until_stable(re.compile(r"\{\{((?:[^{}]|\{(?!\{)|\}(?!\}))*)\}\}"), _template, text)
    text = _until_stable(re.compile(r"\{\|(?:(?!\{\|).)*?\|\}", re.DOTALL), "", text)
    text = _until_stable(re.compile(r"\[\[([^\[\]]*)\]\]"), _link, text)
    text = re.sub(r"\[(?:https?:)?//\S+\s*([^\]]*)\]", r"\1", text)
    text = re.sub(r"<br\s*/?>", " ", text, flags=re.IGNORECASE)
    text = re.sub(r"</?[a-zA-Z][^<>]*>", "", text)
    text = re.sub(r"'{2,}", "", text)
    text = re.sub(r"__[A-Z]+__", "", text)
    # What dropped templates leave behind inside brackets: "( ; , 1879", "()".
    text = re.sub(r"\(\s*[;,:\s]+", "(", text)
    text = re.sub(r"[;,:\s]+\)", ")", text)
    text = re.sub(r"\s?\(\s*\)", "", text)
    text = re.sub(r"[ \t]+", " ", text)
    text = re.sub(r" ([,.;:])(?=\s)", r"\1", text)
    lines = []
    for line in (line.strip() for line in text.split("\n")):
        heading = re.fullmatch(r"(={2,6})\s*(.*?)\s*\1", line)
        if heading:
            # A heading with nothing under it is dropped when the next one comes.
            while lines and lines[-1].startswith("\0"):
                lines.pop()
            lines.append("\0" + heading.group(2))
            continue
        line = re.sub(r"^[*#:;]+\s*", "", line)
        if len(line) >= 40 and re.match(r"[\w\"'“‘(]", line) and not re.search(r"\{\||\|\}|\{\{|\}\}|\[\[|\]\]", line):
            lines.append(line)
    while lines and lines[-1].startswith("\0"):
        lines.pop()
    return "\n\n".join(line.lstrip("\0") for line in lines) + "\n" if lines else ""


def articles(path):
    """(page id, revision, title, prose) of each article of a bzip2 MediaWiki dump."""
    with bz2.open(path) as file:
        for _, page in ElementTree.iterparse(file):
            if page.tag.rpartition("}")[2] != "page":
                continue
            field = {}
            for element in page.iter():
                # The first <id> is the page's, the one inside <revision> comes later.
                tag = element.tag.rpartition("}")[2]
                field.setdefault("revision" if tag == "id" and "id" in field else tag, element.text)
                if tag == "revision":
                    field.pop("revision", None)
            page.clear()
            if field.get("ns") == "0" and "redirect" not in field:
                yield field["id"], field["revision"], field["title"], prose(field.get("text") or "")
