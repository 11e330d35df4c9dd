use proptest::prelude::*;

use super::*;

fn apply(compat: HeaderCompat, path: Option<&str>, text: &str) -> String {
    let mut document = Document { text: text.to_owned(), ..Document::default() };
    if let Some(path) = path {
        document.set_metadata("path", path);
    }
    let mut counts = StepCounts::default();
    let step = GithubHeaderOptions { compat }.build("").unwrap();
    let verdict = step.apply(&mut document, &mut counts);
    if let Verdict::Drop { reason, .. } = verdict {
        assert_eq!((reason, counts), (Reason::EMPTY, StepCounts::default()));
        return String::new();
    }
    let removed: u64 = counts.removed().values().map(|removed| removed.bytes).sum();
    assert_eq!(removed as usize + document.text.len(), text.len());
    document.text
}

fn ours(path: &str, text: &str) -> String {
    apply(HeaderCompat::None, Some(path), text)
}

#[test]
fn headers_go_and_code_stays() {
    for (path, text, expected) in [
        ("a.c", "/*\n * Copyright 2020\n */\n#include <a.h>\n", "#include <a.h>\n"),
        ("a.c", "// Copyright 2020\n// MIT\n\nint x;\n", "\nint x;\n"),
        (
            "a.py",
            "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\n# Copyright A\n# B\nx = 1\n",
            "#!/usr/bin/env python\n# -*- coding: utf-8 -*-\nx = 1\n",
        ),
        (
            "a.h",
            "#ifndef A\n#define A\n/* Copyright (c) A */\nint x;\n",
            "#ifndef A\n#define A\nint x;\n",
        ),
        ("a.sql", "-- SPDX-License-Identifier: MIT\nselect 1;\n", "select 1;\n"),
        ("a.html", "<!DOCTYPE html>\n<!--\nLicensed under X\n-->\n<p>\n", "<!DOCTYPE html>\n<p>\n"),
        ("a.hs", "{- Redistribution and use -}\nmain = x\n", "main = x\n"),
        ("a.php", "<?php\n/** @license MIT */\necho 1;\n", "<?php\necho 1;\n"),
        ("a.js", "/* a */ /* b */\n/*! Licence: MIT */ var x;\n", "/* a */ /* b */\n var x;\n"),
        ("a.rs", "// A note.\n\n// Copyright B\nfn f() {}\n", "// A note.\n\nfn f() {}\n"),
        ("a.bat", "@echo off\nREM Copyright A\nREMOVE x\n", "@echo off\nREMOVE x\n"),
        ("a.py", "# Copyright A\n# coding: latin-1\nx = 1\n", "# coding: latin-1\nx = 1\n"),
        ("a.go", "// Copyright A\n//go:build linux\npackage a\n", "//go:build linux\npackage a\n"),
        ("a.rs", "///////\n// Copyright A\n///////\nfn f() {}\n", "fn f() {}\n"),
        ("Makefile", "# All rights reserved.\nall:\n", "all:\n"),
        ("a.jl", "#=\nCopyright 2020 A\n=#\nx = 1\n", "x = 1\n"),
        ("a.c", "/* Direitos autorais 2020 A. */\nint x;\n", "int x;\n"),
        ("a.c", "/* Droits d’auteur 2020 A. */\nint x;\n", "int x;\n"),
    ] {
        assert_eq!(ours(path, text), expected, "{path}");
    }
    assert_eq!(apply(HeaderCompat::None, None, "# Copyright A\n#include <a>\n"), "#include <a>\n");
}

#[test]
fn what_is_no_header_is_never_eaten() {
    for (path, text) in [
        ("a.c", "#include <license.h>\n#define COPYRIGHT 1\nint x;\n"),
        ("a.md", "# License\n\nThis is MIT. Copyright A.\n"),
        ("a.css", "#license { color: red }\n"),
        ("a.rs", "#![feature(license)]\n#[spdx]\nfn f() {}\n"),
        ("a.c", "/* A comment. */\nint x;\n"),
        ("a.go", "package a\n\n// License is what a file is under.\ntype License string\n"),
        ("a.sh", "#!/bin/sh -e license\necho 1\n"),
        ("a.rs", "//! Fast, and permissively licensed.\n\nfn f() {}\n"),
        ("a.js", "var x = 1; /* Copyright A */\n"),
        ("a.c", "/* Copyright without end\nint x;\n"),
        ("a.txt", "# Copyright A\n"),
        ("b.md", "Copyright A\n"),
    ] {
        assert_eq!(ours(path, text), text, "{path}");
    }
    let deep = format!("{}// Copyright A\n", "x();\n".repeat(100));
    assert_eq!(ours("a.c", &deep), deep);
    assert_eq!(ours("a.c", &deep[5..]), deep[5..deep.len() - 15]);
    for no_path in ["#include <a>\n#license\n", "# License\n\nText.\n"] {
        assert_eq!(apply(HeaderCompat::None, None, no_path), no_path);
    }
}

#[test]
fn a_file_that_is_only_a_header_is_dropped() {
    for (compat, text) in [
        (HeaderCompat::None, "\n/* Copyright A */\n\n"),
        (HeaderCompat::None, "// Copyright A\n// B"),
        (HeaderCompat::Redpajama, "// A\n\n"),
    ] {
        let mut document = Document { text: text.to_owned(), ..Document::default() };
        let step = GithubHeaderOptions { compat }.build("").unwrap();
        let verdict = step.apply(&mut document, &mut StepCounts::default());
        assert_eq!(verdict, Verdict::unwanted("empty", "nothing but a header"), "{text:?}");
    }
}

#[test]
fn redpajamas_rule_is_available_with_its_mistakes() {
    for (text, expected) in [
        ("int a; /* copyRight */ int b;\n", "int a;  int b;\n"),
        ("/* no */ x /* Copyright */", "/* no */ x /* Copyright */"),
        ("/* no */\n// Copyright\nx", "/* no */\n// Copyright\nx"),
        ("#include <a>\n\n// b\n-- c\nint x;\n", "int x;\n"),
        ("/* open Copyright\nx", "/* open Copyright\nx"),
        ("/*/ Copyright */x", "x"),
        ("# only\n", ""),
        (" # indented\n", " # indented\n"),
    ] {
        assert_eq!(apply(HeaderCompat::Redpajama, Some("a.c"), text), expected, "{text}");
    }
}

#[test]
fn every_notice_at_the_top_goes() {
    for (path, text, expected) in [
        (
            "a.rb",
            "# frozen_string_literal: true\n# Copyright (c) 2018 X\n# Licensed under MIT\nclass A; end\n",
            "# frozen_string_literal: true\nclass A; end\n",
        ),
        (
            "a.c",
            "/* Copyright 2010 A */\n/* Copyright 2011 B */\n/* Copyright 2012 C, Licensed under MIT */\nint a;\n",
            "int a;\n",
        ),
        ("a.cs", "\u{feff}// Copyright 2010 X\n// All rights reserved.\nint a;\n", "int a;\n"),
        (
            "b.py",
            "\"\"\"\nCopyright (c) 2019 The Authors\nLicensed under the Apache License, Version 2.0 (the \"License\");\nyou may not use this file except in compliance with the License.\nUnless required by applicable law or agreed to in writing, software\ndistributed under the License is distributed on an \"AS IS\" BASIS.\n\"\"\"\nimport os\n",
            "import os\n",
        ),
        (
            "a.h",
            "// This file is made available under Some License 2.0.\n// It is based on other code:\n//   https://e.org/config.h\n\n// Licensed under the Apache License, Version 2.0 (the \"License\");\n// you may not use this file except in compliance with the License.\n\n#pragma once\n",
            "\n#pragma once\n",
        ),
        (
            "f.m",
            "% Copyright (c) 2012, X\n% All rights reserved.\n% Redistribution and use in source and binary forms\nfunction y = f(x)\nend\n",
            "function y = f(x)\nend\n",
        ),
        ("f.m", "// Copyright (c) 2012 X\n#import <A.h>\n", "#import <A.h>\n"),
        (
            "a.rb",
            "=begin\nCopyright 2012 X\nReleased under the MIT license\n=end\nputs 1\n",
            "puts 1\n",
        ),
        (
            "a.rst",
            ".. Copyright 2012 X\n   Licensed under CC-BY.\n\nTitle\n=====\n",
            "\nTitle\n=====\n",
        ),
        ("a.js", "// © 2019 Example GmbH\nf();\n", "f();\n"),
        (
            "a.java",
            "/*\n * (c) 2019 Beispiel. Alle Rechte vorbehalten.\n */\nclass A {}\n",
            "class A {}\n",
        ),
        ("a.py", "# Все права защищены.\nx = 1\n", "x = 1\n"),
        ("a.ts", "// @ts-check\n// Copyright 2020 A\nlet x\n", "// @ts-check\nlet x\n"),
        (
            "Dockerfile",
            "# syntax=docker/dockerfile:1\n# Copyright 2020 A\nFROM x\n",
            "# syntax=docker/dockerfile:1\nFROM x\n",
        ),
        ("a.lisp", ";;; Copyright (C) 2001 A\n(defun f ())\n", "(defun f ())\n"),
        (
            "a.c",
            "/*\n * Author: A B <a@example.org>\n *\n * Copyright (C) 2001 A\n */\nint x;\n",
            "int x;\n",
        ),
        (
            "a.c",
            "/*\n * Copyright (C) 2001 A\n *\n * This program is free software; you can redistribute it and/or modify\n * it under the terms of the GNU General Public License.\n *\n * You should have received a copy of the GNU General Public License\n * along with this program; if not, write to the Free Software Foundation.\n */\nint x;\n",
            "int x;\n",
        ),
    ] {
        assert_eq!(ours(path, text), expected, "{path} {text}");
    }
}

#[test]
fn what_else_is_in_the_comment_stays() {
    for (path, text, expected) in [
        (
            "deploy.sh",
            "#!/bin/sh\n#\n# Copyright (C) 2014 X\n# Licensed under MIT.\n#\n# Usage: deploy.sh HOST\n#   Copies the build.\nset -e\n",
            "#!/bin/sh\n# Usage: deploy.sh HOST\n#   Copies the build.\nset -e\n",
        ),
        (
            "a.c",
            "/*\n * list.c - linked lists of things\n *\n * Copyright (C) 2014 X\n *\n * The list is sorted.\n */\nint x;\n",
            "/*\n * list.c - linked lists of things\n *\n * The list is sorted.\n */\nint x;\n",
        ),
        (
            "a.c",
            "/* Copyright 2014 X\n * All rights reserved.\n *\n * Reads a file. */\nint x;\n",
            "/* \n * Reads a file. */\nint x;\n",
        ),
        (
            "a.py",
            "\"\"\"Tools for trees.\n\nCopyright 2014 X. MIT License.\n\"\"\"\nimport os\n",
            "\"\"\"Tools for trees.\n\"\"\"\nimport os\n",
        ),
        (
            "a.js",
            "/**\n * @fileoverview Draws maps.\n * @license MIT\n * @copyright 2014 X\n */\nf();\n",
            "/**\n * @fileoverview Draws maps.\n */\nf();\n",
        ),
        (
            "a.go",
            "// Package web serves pages.\n// Copyright 2020 X. All rights reserved.\npackage web\n",
            "// Package web serves pages.\npackage web\n",
        ),
    ] {
        assert_eq!(ours(path, text), expected, "{path} {text}");
    }
}

#[test]
fn a_mention_is_no_notice() {
    for (path, text) in [
        (
            "f.go",
            "package web\n\nimport \"time\"\n\n// footerText returns the copyright line that is shown at the bottom\n// of every page, with the current year.\nfunc footerText() string { return \"\" }\n",
        ),
        (
            "f.go",
            "// Licensing of parts is checked here: it reads license files.\npackage licensing\n",
        ),
        ("f.py", "\"\"\"Finds the copyright holder of a file.\"\"\"\nimport re\n"),
        ("f.rs", "/// Copyright notices are read from the top.\nfn f() {}\n"),
        ("f.js", "// The license key is validated on the server.\nf();\n"),
        ("f.py", "import re\n\nX = \"\"\"\nCopyright 2020 X\n\"\"\"\n"),
    ] {
        assert_eq!(ours(path, text), text, "{path}");
    }
}

proptest! {
    #[test]
    fn what_stays_stays_in_order(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "/*", "*/", "//", "#", "-- ", "<!--", "-->", "Copyright 2020 A", "\n", "\n", "é", " ",
                "#!", "coding", "<?xml", "x", "\"\"\"", "..", " Usage: x", "\u{feff}", "=begin",
            ]),
            0..40,
        ),
        path in prop::option::of(
            prop::sample::select(vec!["a.c", "a.py", "a.html", "a.lua", "a.rst", "a.rb"])
        ),
    ) {
        let text = parts.concat();
        for compat in [HeaderCompat::None, HeaderCompat::Redpajama] {
            let out = apply(compat, path, &text);
            let mut all = text.chars();
            prop_assert!(out.chars().all(|c| all.any(|other| other == c)), "{text:?} {out:?}");
        }
    }
}
