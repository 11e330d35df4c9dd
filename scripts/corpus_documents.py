#!/usr/bin/env python3
"""Turns one unpacked distribution package into documents (JSON lines with id and text).

    corpus_documents.py SOURCE INPUT OUTPUT

SOURCE is a name of SOURCES below, INPUT the folder the package was unpacked to, OUTPUT a
folder for documents-00000.jsonl.gz, …; the last line on stdout is "documents<TAB>bytes".
The same input gives the same bytes. Needs nothing but Python's standard library.
"""

import gzip
import json
import re
import sys
from pathlib import Path

import wikitext

# Bytes of text per output file: several files let readers work side by side.
PART_BYTES = 16_000_000
# Shorter documents are stubs and redirects, longer ones tables and generated data.
MIN_BYTES, MAX_BYTES = 200, 1_000_000


def read_bytes(path):
    """The file's bytes, decompressed (dictzip is gzip with an index in its header)."""
    data = path.read_bytes()
    return gzip.decompress(data) if path.suffix in {".gz", ".dz"} else data


def files(folder, pattern, clean=lambda text: text):
    """(id, text) of each UTF-8 file that matches, in the order of the paths."""
    root = folder.resolve()
    for path in sorted(folder.glob(pattern)):
        # Packages link folders to each other: a file counts once, under its real name.
        if not path.is_file() or path.resolve() != root / path.relative_to(folder):
            continue
        try:
            text = read_bytes(path).decode("utf-8")
        except UnicodeDecodeError:
            continue
        yield str(path.relative_to(folder)), clean(text)


def dictionary(folder):
    """Entries of a dictd dictionary, some 8 kB of neighbours to a document.

    One entry alone is a few hundred bytes, too short to be worth a start-of-document token.
    """
    for path in sorted(folder.glob("usr/share/dictd/*.dict.dz")):
        # The source tag under each paragraph, [1913 Webster], would be the commonest line of all.
        # A stray byte in 40 MB is no reason to lose the dictionary.
        text = read_bytes(path).decode("utf-8", errors="replace")
        text = re.sub(r"\n +\[(1913 Webster|Webster 1913 Suppl\.|PJC|WordNet 1\.5|Century Dict\. 1906)\]", "", text)
        page, size, number = [], 0, 0
        for entry in re.split(r"\n\n(?=\S)", text):
            page.append(entry)
            size += len(entry)
            if size >= 8000:
                yield f"{path.name}/{number:06d}", "\n\n".join(page) + "\n"
                page, size, number = [], 0, number + 1
        if page:
            yield f"{path.name}/{number:06d}", "\n\n".join(page) + "\n"


def manual_page(troff):
    """The readable text of a man page: comments and font changes gone, headings on their own line.

    What stands before the first heading defines macros; a page without headings is only a link.
    """
    first = re.search(r"^\.SH\b", troff, re.MULTILINE)
    lines = []
    for line in troff[first.start() :].split("\n") if first else []:
        if re.match(r"['.]\s*\\\"|\.(TH|so|if|ie|el|de|ds|nr|ad|hy|\.)\b", line):
            continue
        heading = re.match(r"\.S[HS]\s+(.*)", line)
        if heading:
            line = "\n" + heading.group(1).strip('"')
        elif re.match(r"\.(PP|P|LP|TP|IP|sp|HP|RS|RE|br|nf|fi|EX|EE|UE|ME|PD|TQ|in|ne)\b", line):
            label = re.match(r"\.IP\s+(\"[^\"]*\"|\S+)", line)
            line = "" if label is None else "\n" + label.group(1).strip('"')
        else:
            line = re.sub(r"^\.(B|I|BR|RB|IR|RI|BI|IB|SM|SB|UR|MT)\s+", "", line)
        line = re.sub(r"\\f(\[\w*\]|\(..|.)|\\[&,/|^%:]|\\s[-+]?\d", "", line)
        line = re.sub(r"\\\(en|\\\[en\]", "–", line)
        line = re.sub(r"\\\(em|\\\[em\]", "—", line)
        line = re.sub(r"\\\((?:aq|cq)|\\\[(?:aq|cq)\]", "'", line)
        line = re.sub(r"\\\((?:bu)|\\\[bu\]", "•", line)
        line = line.replace("\\-", "-").replace("\\ ", " ").replace("\\~", " ").replace("\\e", "\\")
        lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip() + "\n"


def articles(folder):
    for path in sorted(folder.glob("gensim/test/test_data/enwiki-latest-*.xml*.bz2")):
        for page, _, title, text in wikitext.articles(path):
            yield f"enwiki/{page}", f"{title}\n\n{text}"


SOURCES = {
    "dictionary": dictionary,
    "kernel": lambda folder: files(folder, "usr/share/doc/*/html/_sources/**/*.txt"),
    "python": lambda folder: files(folder, "usr/share/doc/*/html/_sources/**/*.txt"),
    "perl": lambda folder: files(folder, "usr/share/perl/**/*.pod"),
    "go": lambda folder: files(folder, "usr/share/go*/src/**/*.go"),
    "latex": lambda folder: (
        document for pattern in ("**/*.tex", "**/*.tex.gz") for document in files(folder, pattern)
    ),
    "manual": lambda folder: files(folder, "usr/share/man/*/man*/*.gz", manual_page),
    "speeches": lambda folder: files(folder, "package/data/*_*.txt"),
    "books": lambda folder: files(folder, "package/data/chapter_*.txt"),
    "wikipedia": articles,
}


class Parts:
    """Writes documents to numbered gzip files of about PART_BYTES of text each."""

    def __init__(self, folder):
        self.folder, self.file, self.size = folder, None, 0
        self.parts = self.documents = self.bytes = 0

    def write(self, identifier, text):
        size = len(text.encode())
        if self.file is None or self.size >= PART_BYTES:
            self.close()
            path = self.folder / f"documents-{self.parts:05d}.jsonl.gz"
            # mtime 0: the same documents give the same file.
            self.file = gzip.GzipFile(path, "wb", compresslevel=6, mtime=0)
            self.parts, self.size = self.parts + 1, 0
        line = json.dumps({"id": identifier, "text": text}, ensure_ascii=False)
        self.file.write(line.encode() + b"\n")
        self.size += size
        self.documents, self.bytes = self.documents + 1, self.bytes + size

    def close(self):
        if self.file is not None:
            self.file.close()


def main():
    if len(sys.argv) != 4 or sys.argv[1] not in SOURCES:
        sys.exit(f"usage: {sys.argv[0]} SOURCE INPUT OUTPUT, SOURCE one of: {', '.join(SOURCES)}")
    source, folder, output = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
    output.mkdir(parents=True, exist_ok=True)
    parts = Parts(output)
    for identifier, text in SOURCES[source](folder):
        if MIN_BYTES <= len(text.encode()) <= MAX_BYTES:
            parts.write(identifier, text)
    parts.close()
    if parts.documents == 0:
        sys.exit(f"no documents for {source} under {folder}: is the package laid out differently?")
    print(f"{parts.documents}\t{parts.bytes}")


if __name__ == "__main__":
    main()
