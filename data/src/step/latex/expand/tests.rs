use super::*;

const LIMITS: Limits = Limits { depth: 20, growth: 4 };

fn expanded(text: &str) -> String {
    expand(text, LIMITS, &mut ExpansionCounts::default()).0
}

#[test]
fn macros_of_all_forms_are_replaced_and_their_definitions_deleted() {
    for (text, expected) in [
        ("\\newcommand{\\a}{x}\n\\a\\ \\a{}\\a.\\ab", "x\\ xx.\\ab"),
        ("\\newcommand\\a{x}\\a", "x"),
        ("\\renewcommand{\\a}[1]{<#1>}\\a{y}\\a z\\a\\b", "<y><z><\\b>"),
        ("\\newcommand{\\a}[2][d]{<#1,#2>}\\a{x}\\a[y]{z}", "<d,x><y,z>"),
        ("\\def\\a#1#2{#2#1}\\a{x}{y} \\a xy", "yx yx"),
        ("\\def\\a{\\b}\\def\\b{\\c}\\def\\c{x}\\a", "x"),
        ("\\providecommand{\\a}{x}\\providecommand{\\a}{y}\\a", "x"),
        ("\\DeclareMathOperator{\\tr}{Tr}$\\tr A$", "$\\operatorname{Tr} A$"),
        ("\\long\\def\\a#1{#1\n\n}\\a{x}", "x\n\n"),
        ("\\newcommand{\\be}{%\n\\begin{equation}}", ""),
        ("a\n\\newcommand{\\x}{y}  \nb", "a\nb"),
        // A body is text, no template.
        ("\\newcommand{\\a}{\\g<0>\\1\\\\$1}\\a", "\\g<0>\\1\\\\$1"),
        ("\\let\\old\\a\\def\\a{x}\\old\\a", "\\a x"),
        ("\\def\\a{x}\\let\\b=\\a\\def\\a{y}\\b\\a", "xy"),
    ] {
        assert_eq!(expanded(text), expected, "{text}");
    }
}

#[test]
fn arguments_of_all_kinds_are_read() {
    for (text, expected) in [
        ("\\def\\pair(#1,#2){<#1;#2>}\\pair(a,{b,c})", "<a;b,c>"),
        ("\\def\\norm|#1|{[#1]}\\norm|x|", "[x]"),
        ("\\def\\a#1.{<#1>}\\a{y}. \\a yz.", "<y> <yz>"),
        ("\\def\\a#1\\end#2{<#1;#2>}\\a x\\end y", "<x;y>"),
        ("\\NewDocumentCommand\\a{s m}{\\IfBooleanTF{#1}{S}{N}#2}\\a*{x}\\a{y}", "SxNy"),
        ("\\NewDocumentCommand\\a{m o}{#1\\IfNoValueTF{#2}{-}{(#2)}}\\a{x}[y]\\a{z}", "x(y)z-"),
        ("\\NewDocumentCommand\\a{D<>{d} m}{#1#2}\\a<e>{x}\\a{y}", "exdy"),
        (
            "\\DeclarePairedDelimiter{\\abs}{\\lvert}{\\rvert}$\\abs{x}$ $\\abs*{y}$ $\\abs[\\big]{z}$",
            "$\\lvert x\\rvert$ $\\left\\lvert y\\right\\rvert$ $\\big\\lvert z\\big\\rvert$",
        ),
    ] {
        assert_eq!(expanded(text), expected, "{text}");
    }
}

#[test]
fn the_branch_that_holds_stays() {
    for (text, expected) in [
        ("\\newif\\ifd\\dfalse a \\ifd X \\else Y \\fi b", "a Y b"),
        ("\\newif\\ifd\n\\dtrue\na \\ifd X\\else Y\\fi b", "\na Xb"),
        ("\\newif\\ifd a\\ifd X\\fi b", "ab"),
        (
            "\\newif\\ifd\\dtrue\\ifd\\ifnum1=1 x\\else y\\fi\\else z\\fi",
            "\\ifnum1=1 x\\else y\\fi",
        ),
        ("\\newif\\ifd\\ifd\\ifnum1=1 x\\else y\\fi\\else z\\fi", "z"),
        ("\\newif\\ifd\\ifd never ends", "\\ifd never ends"),
        ("\\ifother x\\else y\\fi", "\\ifother x\\else y\\fi"),
    ] {
        assert_eq!(expanded(text).trim(), expected.trim(), "{text}");
    }
}

#[test]
fn definitions_end_with_their_group_and_what_is_left_is_counted() {
    assert_eq!(expanded("\\def\\a{x}{\\def\\a{y}\\a}\\a"), "x{y}x".trim_start_matches('x'));
    assert_eq!(expanded("\\begin{q}\\def\\a{y}\\a\\end{q}\\a"), "\\begin{q}y\\end{q}\\a");
    assert_eq!(expanded("{\\gdef\\a{y}}\\a {\\global\\def\\b{z}}\\b"), "{}y {}z");
    // What an inner group defined ends with it, whatever was made global in it.
    assert_eq!(expanded("{\\def\\a{1}{\\def\\b{2}\\gdef\\a{3}}\\b\\a}\\a"), "{{}\\b3}3");
    assert_eq!(expanded("\\def\\part{\\partial}$\\part_\\mu$"), "$\\partial_\\mu$");
    let mut counts = ExpansionCounts::default();
    expand("\\def\\a#2{x}\\def\\b{y}\\a{1} \\b \\alpha", LIMITS, &mut counts);
    assert_eq!(counts.left, 1);
}

#[test]
fn definitions_of_environments_go() {
    assert_eq!(
        expanded(
            "a\n\\newenvironment{m}{\\begin{t}}{\\end{t}}\n\\newtheorem{l}{L}\nb\\bibliographystyle{plain}"
        ),
        "a\nb"
    );
}

#[test]
fn a_redefinition_holds_from_its_place_on() {
    assert_eq!(expanded("\\def\\a{x}\\a\\def\\a{y}\\a"), "xy");
}

#[test]
fn arguments_may_come_from_the_text_around_and_nest() {
    assert_eq!(expanded("\\def\\a{\\b}\\def\\b#1{<#1>}\\a{x}"), "<x>");
    assert_eq!(expanded("\\def\\b#1{<#1>}\\b{\\b{\\b x}}"), "<<<x>>>");
    assert_eq!(
        expanded("\\def\\d#1{\\expandafter\\def\\csname b#1\\endcsname{<#1>}}\\d{X}\\bX"),
        "<X>"
    );
}

#[test]
fn control_words_do_not_join_letters() {
    assert_eq!(
        expanded("\\def\\e{\\epsilon}\\e{}x \\e1 a\\def\\.{\\cdot}\\.b"),
        "\\epsilon x \\epsilon1 a\\cdot b"
    );
    assert_eq!(expanded("\\def\\a#1{\\b#1}\\a x"), "\\b x");
}

#[test]
fn verbatim_text_stays() {
    let verbatim = "\\verb|\\a|\\begin{verbatim}\\a\\def\\a{y}\\end{verbatim}";
    assert_eq!(expanded(&format!("\\def\\a{{x}}{verbatim}\\a")), format!("{verbatim}x"));
}

#[test]
fn what_cannot_be_replaced_stays_as_it_is() {
    for (text, expected) in [
        ("\\def\\a{\\a x}\\a", "\\a"),
        ("\\def\\a{\\b}\\def\\b{\\a}\\a", "\\b"),
        ("\\def\\a#1.{x}\\a y\n\nz.", "\\a y\n\nz."),
        ("\\def\\a(#1){x}\\a y", "\\a y"),
        ("\\def\\a#1{x}{\\a}", "{\\a}"),
        ("\\def\\a#1{x}\\a\n\ny", "\\a\n\ny"),
        ("\\renewcommand{\\section}[1]{#1}\\section{x}", "\\section{x}"),
        ("\\newcommand{\\a}{open", "\\newcommand{\\a}{open"),
    ] {
        assert_eq!(expanded(text), expected, "{text}");
    }
}

#[test]
fn of_the_preamble_only_definitions_count() {
    let mut counts = ExpansionCounts::default();
    let text =
        "\\usepackage{x}\\newcommand{\\a}{x}\\title{\\a}\n\\begin{document}\\a\\end{document}";
    let (out, preamble) = expand(text, LIMITS, &mut counts);
    assert_eq!(out, "\\begin{document}x\\end{document}");
    assert_eq!((counts.found, counts.expanded, counts.definitions.parts), (1, 1, 1));
    let before = text.find("\\begin").map_or(0, |at| at as u64);
    assert_eq!(preamble.bytes + counts.definitions.bytes, before);
}

#[test]
fn growth_is_bounded() {
    let mut text = String::from("\\def\\a{\\b\\b}");
    for (name, next) in ('b'..'t').zip('c'..'u') {
        text += &format!("\\def\\{name}{{\\{next}\\{next}\\{next}\\{next}}}");
    }
    let mut empty = text.clone();
    text += "\\def\\t{xxxxxxxxxx}\\a\\a\\a";
    empty += "\\def\\t{}\\a\\a\\a";
    for text in [
        text,
        empty,
        "\\def\\a#1{#1#1#1#1#1#1#1#1}".to_owned() + &"\\a{".repeat(50) + "x" + &"}".repeat(50),
    ] {
        let mut counts = ExpansionCounts::default();
        let (out, _) = expand(&text, LIMITS, &mut counts);
        assert!(out.len() <= 4 * text.len() + GROWTH_ALLOWANCE, "{}", out.len());
        assert!(counts.overflow + counts.too_deep > 0);
    }
}

#[test]
fn hostile_text_takes_bounded_time() {
    for unit in [
        "\\def\\a{",
        "\\newcommand{",
        "\\a{",
        "\\def\\a#1{#1}\\a{",
        "\\long",
        "\\begin{verbatim}",
        "\\def\\x{\\x}\\x",
    ] {
        let text = "\\def\\a#1{#1#1}".to_owned() + &unit.repeat(1_000_000 / unit.len());
        let (out, _) = expand(&text, LIMITS, &mut ExpansionCounts::default());
        assert!(out.len() <= 4 * text.len() + GROWTH_ALLOWANCE);
    }
}
