#!/usr/bin/env python3
"""Writes data/fixtures/web_archive and data/fixtures/stack_exchange with tools that are not ours.

    pip install warcio==1.8.1 FastWARC==2.0.1 py7zr==1.1.4
    python scripts/golden/make_web_fixtures.py

The tests in data/src/source/{web_archive,stack_exchange}/tests compare what altiplano reads with
what is written here. Record ids and times inside the archives differ from run to run.
"""

import gzip
import io
import subprocess
import tempfile
from pathlib import Path

import py7zr
from warcio.statusandheaders import StatusAndHeaders
from warcio.warcwriter import WARCWriter

FIXTURES = Path(__file__).parents[2] / "data" / "fixtures"
DATE = {"WARC-Date": "2023-01-26T22:06:23Z"}


def html(title, body):
    return f"<!doctype html><html><head><title>{title}</title></head><body>{body}</body></html>"


def pages(path):
    with path.open("wb") as out:
        writer = WARCWriter(out, gzip=True)
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "warcio"}))

        def add(name, headers, body):
            url = f"http://example.org/{name}"
            request = StatusAndHeaders(
                "GET / HTTP/1.1", [("Host", "example.org")], is_http_request=True
            )
            response = StatusAndHeaders("200 OK", headers, protocol="HTTP/1.1")
            for kind, http, payload in [("request", request, b""), ("response", response, body)]:
                writer.write_record(
                    writer.create_warc_record(
                        url,
                        kind,
                        http_headers=http,
                        payload=io.BytesIO(payload),
                        warc_headers_dict=dict(DATE),
                    )
                )

        utf8 = ("Content-Type", "text/html; charset=UTF-8")
        bare = ("Content-Type", "text/html")
        add("plain", [utf8], html("First", "<h1>Café</h1><p>one<p>two").encode())
        zipped = gzip.compress(html("Second", "<ul><li>a<li>b</ul>").encode(), mtime=0)
        add("gzip", [bare, ("Content-Encoding", "gzip")], zipped)
        whole = html("Third", "<pre>x\n  y</pre>").encode()
        parts = [whole[at : at + 30] for at in range(0, len(whole), 30)]
        chunks = b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        add("chunked", [bare, ("Transfer-Encoding", "chunked")], chunks + b"0\r\n\r\n")
        latin = ("Content-Type", "text/html; charset=iso-8859-1")
        add("latin", [latin], html("Fourth", "<p>Straße").encode("latin-1"))
        plain = "http://example.org/plain"
        digest = "sha1:3I42H3S6NNFQ2MSVX7XZKYAYSCX5QBYJ"
        writer.write_record(
            writer.create_revisit_record(plain, digest, plain, DATE["WARC-Date"])
        )


def texts(path):
    with path.open("wb") as out:
        writer = WARCWriter(out, gzip=True)
        writer.write_record(writer.create_warcinfo_record(path.name, {"software": "warcio"}))
        # The first page holds the line that begins records.
        for number, text in enumerate(["Title\nWARC/1.0\r\n\r\n  text \n", "Zweiter\nGrüße\n"]):
            writer.write_record(
                writer.create_warc_record(
                    f"http://example.org/{number}",
                    "conversion",
                    payload=io.BytesIO(text.encode()),
                    warc_content_type="text/plain",
                    warc_headers_dict={**DATE, "WARC-Identified-Content-Language": "eng"},
                )
            )


def escape(text):
    for character, entity in [("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ('"', "&quot;")]:
        text = text.replace(character, entity)
    return text.replace("\n", "&#xA;")


def row(**attributes):
    body = " ".join(f'{name}="{escape(str(value))}"' for name, value in attributes.items())
    return f"  <row {body} />\r\n"


def dump(name, rows):
    head = '\ufeff<?xml version="1.0" encoding="utf-8"?>\r\n'
    return f"{head}<{name}>\r\n{''.join(rows)}</{name}>"


def posts():
    day = "2010-07-19T19:%d:12.510"
    code = "<pre><code>for x in y:\n    print(x &lt; 1)\n</code></pre>\n"
    linked = '<p>Ten, <a href="http://x">linked</a>.</p>\n<ul>\n<li>one</li>\n<li>two</li>\n</ul>\n'
    return dump(
        "posts",
        [
            row(Id=1, PostTypeId=1, AcceptedAnswerId=4, CreationDate=day % 12, Score=27,
                ViewCount=5, Body=f"<p>How do I <b>sort</b>?</p>\n\n{code}",
                Title="Sorting & more <3", Tags="<python><sorting>",
                ContentLicense="CC BY-SA 2.5"),
            row(Id=2, PostTypeId=2, ParentId=1, CreationDate=day % 13, Score=9,
                Body="<p>Nine.</p>\n"),
            row(Id=3, PostTypeId=2, ParentId=1, CreationDate=day % 14, Score=10, Body=linked),
            row(Id=4, PostTypeId=2, ParentId=1, CreationDate=day % 15, Score=9,
                Body="<p>Accepted nine.</p>\n"),
            row(Id=5, PostTypeId=5, CreationDate=day % 15, Score=0, Body="a wiki"),
            row(Id=6, PostTypeId=2, ParentId=99, CreationDate=day % 15, Score=3,
                Body="<p>Orphan.</p>"),
            row(Id=8, PostTypeId=2, ParentId=7, CreationDate=day % 15, Score=-1,
                Body="<p>Too early.</p>"),
            row(Id=7, PostTypeId=1, CreationDate="2010-07-20T19:12:12.510", Score=-2,
                Body="<p>Ünïcode?</p>", Title="Second", Tags="|c#|.net|",
                ClosedDate="2011-01-01T00:00:00.000"),
            row(Id=10, PostTypeId=1, CreationDate="2010-07-21T19:12:12.510", Score=0,
                Body="<p>Nobody knows.</p>", Title="Third"),
        ],
    )


def archives(folder):
    filters = {
        "lzma2": {"id": py7zr.FILTER_LZMA2, "preset": 7},
        "bzip2": {"id": py7zr.FILTER_BZIP2},
        "ppmd": {"id": py7zr.FILTER_PPMD, "order": 6, "mem": 16},
    }
    (folder / "Posts.xml").write_bytes(posts().encode())
    for name, chosen in filters.items():
        with py7zr.SevenZipFile(folder / f"{name}.7z", "w", filters=[chosen]) as archive:
            # One solid block with another table before the posts, as in a dump.
            archive.writestr(dump("badges", [row(Id=1)]), "Badges.xml")
            archive.writestr(posts(), "Posts.xml")


def main():
    web = FIXTURES / "web_archive"
    web.mkdir(parents=True, exist_ok=True)
    pages(web / "warcio.warc.gz")
    texts(web / "warcio.warc.wet.gz")
    with tempfile.TemporaryDirectory() as folder:
        frames = Path(folder) / "fastwarc.warc.zst"
        command = ["fastwarc", "recompress", "-q", "-c", "zstd", web / "warcio.warc.gz", frames]
        subprocess.run(command, check=True)
        (web / "fastwarc.warc.zst").write_bytes(frames.read_bytes())
    stack_exchange = FIXTURES / "stack_exchange"
    stack_exchange.mkdir(parents=True, exist_ok=True)
    archives(stack_exchange)


if __name__ == "__main__":
    main()
