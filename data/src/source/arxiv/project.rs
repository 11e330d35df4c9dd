//! The files of a paper joined into one text, as TeX would read them.

use std::collections::BTreeMap;

use memchr::memmem;

use super::inclusion::{Inclusion, Scan, scan};
use super::styles::own_definitions;
use crate::text::charset::{Decoded, decode};
use crate::text::tex::is_tex;

/// How deep files may take in others.
const MOST_DEPTH: usize = 10;
/// Commands that take in files, in one project; further ones are taken for missing files.
const MOST_INCLUSIONS: usize = 100_000;
/// Folders around a file in which a name is looked for.
const MOST_FOLDERS: usize = 8;
/// Longest path of a file whose own folder counts.
const PATH_BYTES: usize = 1024;
/// Files looked at as the one that takes in all others.
const MOST_ROOTS: usize = 100;

/// A paper in one text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SplicedTex {
    /// The text.
    pub text: String,
    /// Path of the file that takes in all others.
    pub root: String,
    /// Files with TeX in the project.
    pub n_tex_files: usize,
    /// Files of the project that are in the text, the root included.
    pub n_used_files: usize,
    /// Files asked for that are not in the project, styles of the system for example.
    pub n_missing_files: usize,
}

/// Joins the files of one paper, path to text: finds the root (a file with `\documentclass` or
/// `\documentstyle` and `\begin{document}`; of several, the one that takes in the most bytes) and
/// puts every file that it asks for with `\input`, `\include`, `\subfile` or `\import` in that
/// place, each once and at most ten deep; of styles and classes of their own the definitions. The
/// root of several is the one with a `.bbl` beside it. None when no file can be the root.
///
/// Nothing is read but `files`. The result is not longer than all files and a line end each.
pub fn splice_tex(files: &BTreeMap<String, String>) -> Option<SplicedTex> {
    let paths: Vec<&str> = files.keys().map(String::as_str).collect();
    let texts: Vec<&str> = files.values().map(String::as_str).collect();
    let scans: Vec<Scan> = texts.iter().map(|text| scan(text)).collect();
    let project = Project { paths, texts, scans };
    let mut looked_up = 0;
    let wanted: Vec<Vec<Option<usize>>> = (0..project.paths.len())
        .map(|file| {
            let inclusions = project.scans[file].inclusions.iter();
            inclusions
                .map(|wanted| {
                    looked_up += 1;
                    let looked_for = looked_up <= MOST_INCLUSIONS;
                    looked_for.then(|| project.resolve(file, wanted)).flatten()
                })
                .collect()
        })
        .collect();
    let root = project.root(&wanted)?;
    let mut splicer = Splicer {
        project: &project,
        wanted: &wanted,
        used: vec![false; project.paths.len()],
        missing: 0,
        out: String::new(),
    };
    splicer.add(root, 0);
    Some(SplicedTex {
        n_tex_files: project.paths.iter().filter(|path| has_tex_name(path)).count(),
        n_used_files: splicer.used.iter().filter(|&&used| used).count(),
        n_missing_files: splicer.missing,
        text: splicer.out,
        root: project.paths[root].to_owned(),
    })
}

/// Files of a project by number, sorted by path.
struct Project<'a> {
    paths: Vec<&'a str>,
    texts: Vec<&'a str>,
    scans: Vec<Scan>,
}

impl Project<'_> {
    /// The file that `wanted`, in `file`, asks for. Names count from the root's folder, which is
    /// not known yet, so the folders around the asking file are tried, the nearest first.
    fn resolve(&self, file: usize, wanted: &Inclusion) -> Option<usize> {
        let mut folder = self.paths[file];
        if folder.len() > PATH_BYTES {
            folder = "/";
        }
        for _ in 0..MOST_FOLDERS {
            if folder.is_empty() {
                break;
            }
            folder = folder.rsplit_once('/').map_or("", |(folder, _)| folder);
            let style = wanted.style.map(|ending| [ending]);
            let endings = style.as_ref().map_or(&[".tex", "", ".ltx"][..], |ending| &ending[..]);
            for ending in endings {
                let path = format!("{folder}/{}/{}{ending}", wanted.folder, wanted.name);
                let found = normalized(&path)
                    .and_then(|path| self.paths.binary_search(&path.as_str()).ok());
                if found.is_some() {
                    return found;
                }
            }
        }
        None
    }

    fn root(&self, wanted: &[Vec<Option<usize>>]) -> Option<usize> {
        let mut included = vec![false; self.paths.len()];
        for (file, targets) in wanted.iter().enumerate() {
            for &target in targets.iter().flatten().filter(|&&target| target != file) {
                included[target] = true;
            }
        }
        let tiers: [&dyn Fn(usize) -> bool; 4] = [
            &|file| self.scans[file].class && self.scans[file].document.is_some(),
            &|file| self.scans[file].class,
            &|file| self.scans[file].document.is_some(),
            // Plain TeX says nowhere that it is the root.
            &|file| !included[file] && is_tex(self.texts[file]),
        ];
        tiers.into_iter().find_map(|fits| {
            (0..self.paths.len())
                .filter(|&file| has_tex_name(self.paths[file]) && fits(file))
                .take(MOST_ROOTS)
                // The one whose bibliography was sent along is the one that was compiled.
                .map(|file| {
                    ((self.has_bibliography(file), self.reachable_bytes(file, wanted)), file)
                })
                // Of equals the first by path.
                .max_by_key(|&(weight, file)| (weight, std::cmp::Reverse(file)))
                .map(|(_, file)| file)
        })
    }

    fn has_bibliography(&self, file: usize) -> bool {
        let path = self.paths[file];
        let stem = path.rsplit_once('.').map_or(path, |(stem, _)| stem);
        self.paths.binary_search(&format!("{stem}.bbl").as_str()).is_ok()
    }

    fn reachable_bytes(&self, root: usize, wanted: &[Vec<Option<usize>>]) -> usize {
        let mut seen = vec![false; self.paths.len()];
        let mut waiting = vec![root];
        let mut bytes = 0;
        while let Some(file) = waiting.pop() {
            if !std::mem::replace(&mut seen[file], true) {
                bytes += self.texts[file].len();
                waiting.extend(wanted[file].iter().flatten());
            }
        }
        bytes
    }
}

struct Splicer<'a> {
    project: &'a Project<'a>,
    wanted: &'a [Vec<Option<usize>>],
    used: Vec<bool>,
    missing: usize,
    out: String,
}

impl Splicer<'_> {
    fn add(&mut self, file: usize, depth: usize) {
        self.used[file] = true;
        let (text, scan) = (self.project.texts[file], &self.project.scans[file]);
        // A file that is also a document of its own gives its body alone.
        let (mut at, end) = match scan.document {
            Some(document) if depth > 0 && scan.class => (document, scan.document_end),
            _ => (0, scan.end),
        };
        for (inclusion, target) in scan.inclusions.iter().zip(&self.wanted[file]) {
            if inclusion.place.start < at || inclusion.place.end > end {
                continue;
            }
            match *target {
                Some(target) if inclusion.style.is_some() => {
                    if !std::mem::replace(&mut self.used[target], true) && depth < MOST_DEPTH {
                        self.out.push_str(&text[at..inclusion.place.start]);
                        at = inclusion.place.end;
                        self.add_style(target, depth + 1);
                    }
                }
                Some(target) if !self.used[target] && depth < MOST_DEPTH => {
                    self.out.push_str(&text[at..inclusion.place.start]);
                    self.add(target, depth + 1);
                    at = inclusion.place.end;
                }
                Some(_) => {}
                // Most styles are those of everybody.
                None if inclusion.style.is_some() => {}
                None => self.missing += 1,
            }
        }
        self.out.push_str(&text[at..end]);
        // A comment on the last line must not reach into what follows.
        if depth > 0 && !self.out.ends_with('\n') {
            self.out.push('\n');
        }
    }
}

impl Splicer<'_> {
    /// Adds the macros of a style, and of those that it asks for.
    fn add_style(&mut self, file: usize, depth: usize) {
        for (inclusion, target) in
            self.project.scans[file].inclusions.iter().zip(&self.wanted[file])
        {
            if let Some(target) = *target
                && inclusion.style.is_some()
                && depth < MOST_DEPTH
                && !std::mem::replace(&mut self.used[target], true)
            {
                self.add_style(target, depth + 1);
            }
        }
        let definitions = own_definitions(self.project.paths[file], self.project.texts[file]);
        if !definitions.is_empty() && !self.out.ends_with('\n') {
            self.out.push('\n');
        }
        self.out.push_str(&definitions);
    }
}

/// `path` without `.`, `..` and empty components; none when it leaves the project.
fn normalized(path: &str) -> Option<String> {
    let mut components = Vec::new();
    for component in path.split('/') {
        match component {
            "" | "." => {}
            ".." => {
                components.pop()?;
            }
            _ => components.push(component),
        }
    }
    Some(components.join("/"))
}

/// Whether `path` is named like a file that TeX may be started on.
fn has_tex_name(path: &str) -> bool {
    let name = path.rsplit('/').next().unwrap_or_default();
    match name.rsplit_once('.') {
        None => true,
        Some((_, ending)) => {
            ["tex", "ltx", "latex", "txt"].contains(&ending.to_ascii_lowercase().as_str())
        }
    }
}

/// The files of a paper as text.
#[derive(Debug, Default)]
pub(super) struct DecodedFiles {
    /// By path, with Unix line ends.
    pub texts: BTreeMap<String, String>,
    /// Encodings other than UTF-8.
    pub encodings: Vec<&'static str>,
    /// How many files have bytes that mean nothing.
    pub lossy: u64,
    /// All files together, without their text.
    pub all: Decoded,
}

/// Decodes the files of a paper, in the encoding that one of them declares for LaTeX, or else as
/// detected.
pub(super) fn decode_files(files: BTreeMap<String, Vec<u8>>) -> DecodedFiles {
    let declared: Vec<&str> =
        files.values().filter_map(|bytes| declared_encoding(bytes)).take(1).collect();
    let mut result = DecodedFiles::default();
    for (path, bytes) in files {
        let mut decoded = decode(&bytes, &declared);
        if decoded.bad_bytes > 0 && decoded.encoding != "UTF-8" {
            // Every byte means something there, and old papers are mostly in it.
            let latin = decode(&bytes, &["windows-1252"]);
            decoded = if latin.bad_bytes > 0 { decoded } else { latin };
        }
        result.lossy += u64::from(decoded.bad_bytes > 0);
        if decoded.encoding != "UTF-8" && !result.encodings.contains(&decoded.encoding) {
            result.encodings.push(decoded.encoding);
        }
        result.all.bad_bytes += decoded.bad_bytes;
        result.all.bytes += decoded.bytes;
        let mut text = decoded.text;
        if text.contains('\r') {
            text = text.replace("\r\n", "\n").replace('\r', "\n");
        }
        result.texts.insert(path, text);
    }
    result
}

/// The encoding in `\usepackage[…]{inputenc}`, as a label.
fn declared_encoding(bytes: &[u8]) -> Option<&'static str> {
    let end = memmem::find(bytes, b"]{inputenc}")?;
    let start = memchr::memrchr(b'[', &bytes[end.saturating_sub(40)..end])?;
    let option = &bytes[end.saturating_sub(40)..end][start + 1..];
    Some(match option.trim_ascii() {
        b"latin1" | b"ansinew" | b"cp1252" => "windows-1252",
        b"latin2" => "iso-8859-2",
        b"latin3" => "iso-8859-3",
        b"latin4" => "iso-8859-4",
        b"latin5" => "iso-8859-9",
        b"latin9" => "iso-8859-15",
        b"latin10" => "iso-8859-16",
        b"cp1250" => "windows-1250",
        b"cp1251" => "windows-1251",
        b"cp1257" => "windows-1257",
        b"koi8-r" => "koi8-r",
        b"koi8-u" => "koi8-u",
        b"cp437" | b"cp437de" => "cp437",
        b"cp850" => "cp850",
        b"cp866" => "ibm866",
        b"applemac" => "macintosh",
        b"utf8" | b"utf8x" => "utf-8",
        _ => return None,
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn files(list: &[(&str, &str)]) -> BTreeMap<String, String> {
        list.iter().map(|&(path, text)| (path.to_owned(), text.to_owned())).collect()
    }

    #[test]
    fn files_come_in_the_order_in_which_they_are_asked_for() {
        let spliced = splice_tex(&files(&[
            ("a.tex", "A % end"),
            ("b.tex", "B\n\\input{sub/c}\n"),
            ("main.tex", "\\documentclass{x}\n\\begin{document}\n\\input{b}\\include{a} rest\n\\end{document}\n"),
            ("sub/c.tex", "C\n"),
            ("unused.tex", "U"),
        ]))
        .unwrap();
        assert_eq!(
            spliced.text,
            "\\documentclass{x}\n\\begin{document}\nB\nC\n\nA % end\n rest\n\\end{document}\n"
        );
        assert_eq!((spliced.root.as_str(), spliced.n_tex_files), ("main.tex", 5));
        assert_eq!((spliced.n_used_files, spliced.n_missing_files), (4, 0));
    }

    #[test]
    fn each_file_comes_once_and_missing_ones_are_counted() {
        let spliced = splice_tex(&files(&[
            (
                "m.tex",
                "\\documentclass{x}\\input{a}\\input{a}\\input{m}\\input epsf \\begin{document}",
            ),
            ("a.tex", "A\\input{m}\n"),
        ]))
        .unwrap();
        assert_eq!(
            spliced.text,
            "\\documentclass{x}A\\input{m}\n\\input{a}\\input{m}\\input epsf \\begin{document}"
        );
        assert_eq!((spliced.n_used_files, spliced.n_missing_files), (2, 1));
    }

    #[test]
    fn the_root_is_the_document_that_takes_in_the_most() {
        let class = "\\documentclass{x}\\begin{document}";
        let supplement = format!("{class}{}", "supplement ".repeat(5));
        let main = format!("{class}\\input{{body}}");
        let body = "body ".repeat(50);
        let root = |list: &[(&str, &str)]| splice_tex(&files(list)).map(|spliced| spliced.root);
        let all = [("a_supp.tex", &*supplement), ("body.tex", &body), ("z.tex", &main)];
        assert_eq!(root(&all).as_deref(), Some("z.tex"));
        let plain =
            [("b.tex", "\\input macros \\centerline{x}\\bye"), ("macros.tex", "\\def\\a{x}")];
        assert_eq!(root(&plain).as_deref(), Some("b.tex"));
        assert_eq!(root(&[("x.sty", class)]), None);
        assert_eq!(root(&[("x.tex", "no commands")]), None);
        let two = [("b.tex", class), ("a.tex", class)];
        assert_eq!(root(&two).as_deref(), Some("a.tex"));
    }

    #[test]
    fn documents_taken_in_give_their_bodies_and_paths_stay_inside() {
        let spliced = splice_tex(&files(&[
            ("main.tex", "\\documentclass{x}\\begin{document}\\subfile{s/one}\\input{../../out}\\end{document}"),
            ("s/one.tex", "\\documentclass[../main]{subfiles}\\begin{document}One \\input{../two}\\end{document} no"),
            ("two.tex", "Two\n\\endinput\nno"),
        ]))
        .unwrap();
        assert_eq!(
            spliced.text,
            "\\documentclass{x}\\begin{document}One Two\n\\input{../../out}\\end{document}"
        );
        assert_eq!(spliced.n_missing_files, 1);
    }

    #[test]
    fn macros_of_own_styles_are_in_the_text() {
        let spliced = splice_tex(&files(&[
            ("main.tex", "\\documentclass[a4paper]{paper}\n\\usepackage{amsmath,mine}\n\\begin{document}\\R\\end{document}"),
            ("mine.sty", "\\ProvidesPackage{mine}\\RequirePackage{more}\n\\newcommand{\\R}{\\mathbb{R}}"),
            ("more.sty", "\\def\\x{y}"),
            ("amsmath.sty", "\\def\\no{x}"),
            ("paper.cls", "\\newcommand{\\me}{X}\\def\\@y{z}"),
        ]))
        .unwrap();
        assert_eq!(
            spliced.text,
            "\\documentclass[a4paper]{paper}\n\\newcommand{\\me}{X}\n\n\\usepackage{amsmath,mine}\n\
             \\def\\x{y}\n\\newcommand{\\R}{\\mathbb{R}}\n\n\\begin{document}\\R\\end{document}"
        );
        assert_eq!((spliced.n_missing_files, spliced.root.as_str()), (0, "main.tex"));
        let old = splice_tex(&files(&[
            ("a.tex", "\\documentstyle[12pt,mine]{article}\\begin{document}\\R\\end{document}"),
            ("mine.sty", "\\def\\R{r}"),
        ]));
        assert!(old.unwrap().text.contains("\\def\\R{r}"));
    }

    #[test]
    fn the_root_is_the_one_with_a_bibliography() {
        let paper =
            |body: &str| format!("\\documentclass{{a}}\\begin{{document}}{body}\\end{{document}}");
        let long = paper(&"A long answer to the referee. ".repeat(20));
        let spliced = splice_tex(&files(&[
            ("paper.tex", &paper("Paper.")),
            ("paper.bbl", "\\begin{thebibliography}{9}\\end{thebibliography}"),
            ("reply.tex", &long),
        ]))
        .unwrap();
        assert_eq!(spliced.root, "paper.tex");
    }

    #[test]
    fn files_are_decoded_as_declared() {
        let text = b"\\usepackage[koi8-r]{inputenc} \xf0\xd2\xc9\xd7\xc5\xd4\r\n".to_vec();
        let other = b"\xcd\xc9\xd2".to_vec();
        let utf8 = "é".as_bytes().to_vec();
        let map =
            BTreeMap::from([("a".to_owned(), text), ("b".to_owned(), other), ("c".into(), utf8)]);
        let DecodedFiles { texts: decoded, encodings, lossy, .. } = decode_files(map);
        assert!(decoded["a"].ends_with("Привет\n"), "{decoded:?}");
        assert_eq!((decoded["b"].as_str(), decoded["c"].as_str()), ("мир", "é"));
        assert_eq!((encodings, lossy), (vec!["KOI8-R"], 0));
        let latin = b"\\documentclass{article} d\xe9j\xe0 vu \\'a la fran\xe7aise".to_vec();
        let found = decode_files(BTreeMap::from([("a".to_owned(), latin)]));
        let decoded = &found.texts["a"];
        assert!(decoded.contains("déjà vu") && decoded.ends_with("française"));
        assert_eq!(found.lossy, 0);
        let cut = [&b"\\documentclass{a} Ce que "[..], "l’été a été déjà".as_bytes(), b"\xff\xc3"];
        let found = decode_files(BTreeMap::from([("a".to_owned(), cut.concat())]));
        assert!(found.texts["a"].ends_with("l’été a été déjà\u{fffd}\u{fffd}"));
        assert_eq!((found.lossy, found.all.bad_bytes, found.encodings.len()), (1, 2, 0));
    }

    #[test]
    fn deep_and_circular_projects_end() {
        let mut list: BTreeMap<String, String> = (0..50)
            .map(|n| (format!("f{n}.tex"), format!("\\input{{f{}}} {n}\n", (n + 1) % 50)))
            .collect();
        list.insert("m.tex".into(), "\\documentclass{x}\\begin{document}\\input{f0}".into());
        assert_eq!(splice_tex(&list).unwrap().n_used_files, 11);
    }

    proptest! {
        #[test]
        fn any_files_are_joined_within_their_length(
            texts in prop::collection::vec(
                prop::collection::vec(
                    prop::sample::select(vec![
                        "\\documentclass{a}", "\\begin{document}", "\\end{document}", "\\input{f1}",
                        "\\input f2 ", "\\include{./f0}", "\\import{..}{f1}", "\\endinput", "%", "\n",
                        "\\verb|", "\\begin{verbatim}", "{", "}", "é", "\\input", "\\", "x",
                    ]),
                    0..20,
                ),
                1..4,
            ),
        ) {
            let list: BTreeMap<String, String> = texts
                .iter()
                .enumerate()
                .map(|(number, parts)| (format!("f{number}.tex"), parts.concat()))
                .collect();
            if let Some(spliced) = splice_tex(&list) {
                let bytes: usize = list.values().map(|text| text.len() + 1).sum();
                prop_assert!(spliced.text.len() <= bytes);
                prop_assert!(spliced.n_used_files >= 1);
            }
        }
    }
}
