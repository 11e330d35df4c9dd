#![allow(clippy::unwrap_used)]

use super::*;

fn encoded(text: &str, label: &str) -> Vec<u8> {
    let encoding = Encoding::for_label(label.as_bytes()).unwrap();
    encoding.encode(text).0.into_owned()
}

fn utf16(text: &str, little: bool) -> Vec<u8> {
    text.encode_utf16()
        .flat_map(|unit| if little { unit.to_le_bytes() } else { unit.to_be_bytes() })
        .collect()
}

const FRENCH: &str = "Il a été décidé que la fête aurait lieu à Noël, près du château.";
const RUSSIAN: &str = "Сегодня утром в городе открылась выставка старых книг и картин.\n";
const CHINESE: &str = "今天早上,城里开了一个旧书和图画的展览会。很多人都来看了。\n";
const JAPANESE: &str = "今朝、町で古い本と絵の展覧会が始まりました。たくさんの人が見に来ました。\n";

#[test]
fn marks_win_then_utf8_then_the_declaration() {
    let utf16 = b"\xff\xfeh\x00\xf6\x00";
    assert_eq!(decode(utf16, &[]).text, "hö");
    assert_eq!(decode("\u{feff}höhe".as_bytes(), &["latin1"]).text, "höhe");
    assert_eq!(decode("höhe".as_bytes(), &["latin1"]).text, "höhe");
    let latin = decode(b"h\xf6he", &["nonsense", "iso-8859-1"]);
    assert_eq!((latin.text.as_str(), latin.encoding), ("höhe", "windows-1252"));
    let cyrillic = decode(b"\xcf\xf0\xe8\xe2\xe5\xf2, \xec\xe8\xf0", &["windows-1251"]);
    assert_eq!(cyrillic.text, "Привет, мир");
    let japanese = encoded(JAPANESE, "iso-2022-jp");
    assert_eq!(decode(&japanese, &["iso-2022-jp"]).text, JAPANESE);
    let wide: Vec<u8> = "\u{feff}hö".chars().flat_map(|c| (c as u32).to_le_bytes()).collect();
    assert_eq!((decode(&wide, &[]).text.as_str(), decode(&wide, &[]).encoding), ("hö", "UTF-32LE"));
}

#[test]
fn undeclared_text_is_detected() {
    for (text, label) in [
        (FRENCH, "windows-1252"),
        (RUSSIAN, "windows-1251"),
        (RUSSIAN, "koi8-r"),
        (CHINESE, "gbk"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc-jp"),
    ] {
        let decoded = decode(&encoded(&text.repeat(4), label), &[]);
        assert_eq!((decoded.text, decoded.bad_bytes), (text.repeat(4), 0), "{label}");
    }
}

#[test]
fn a_declaration_that_does_not_fit_is_not_believed() {
    // Not valid EUC-KR, nor UTF-8.
    let decoded = decode(b"caf\xe9 \xe0 la carte \xfd", &["utf-8", "euc-kr"]);
    assert!(decoded.text.starts_with("café à"), "{decoded:?}");
    let decoded = decode(&encoded(RUSSIAN, "windows-1251"), &["utf-8"]);
    assert_eq!(decoded.text, RUSSIAN);
}

#[test]
fn utf8_with_bad_bytes_stays_utf8() {
    for text in [FRENCH, RUSSIAN, CHINESE, JAPANESE] {
        let text = text.repeat(6);
        let whole = text.as_bytes();
        let inside = (whole.len() / 2..).find(|&at| !text.is_char_boundary(at)).unwrap();
        let cuts = [
            // A character cut at the end, at the beginning, in the middle, and a byte of nothing.
            whole[..inside].to_vec(),
            whole[inside..].to_vec(),
            [&whole[..inside], &b" more "[..], whole].concat(),
            [whole, b"\xff", whole].concat(),
        ];
        for bytes in cuts {
            for declared in [&[][..], &["utf-8"], &["iso-8859-1"], &["gbk"]] {
                let decoded = decode(&bytes, declared);
                assert_eq!(decoded.encoding, "UTF-8", "{declared:?} {text:.30}");
                assert_eq!(
                    decoded.text.matches('\u{fffd}').count().min(2),
                    decoded.bad_bytes.min(2)
                );
                assert!((1..=3).contains(&decoded.bad_bytes), "{}", decoded.bad_bytes);
                assert_eq!(decoded.text, String::from_utf8_lossy(&bytes));
            }
        }
    }
    // Of a page in English nothing but a declaration says it.
    let decoded = decode(b"All plain, then a cut \xe2\x80", &["utf-8"]);
    assert_eq!((decoded.text.as_str(), decoded.bad_bytes), ("All plain, then a cut \u{fffd}", 2));
}

#[test]
fn text_of_several_bytes_a_character_stands_a_bad_one() {
    for (text, label) in [(CHINESE, "gbk"), (JAPANESE, "shift_jis"), (JAPANESE, "euc-jp")] {
        let mut bytes = encoded(&text.repeat(20), label);
        bytes.pop();
        let at = bytes.len() / 2;
        bytes.insert(at, 0xff);
        for declared in [&[][..], &[label]] {
            let decoded = decode(&bytes, declared);
            assert!(decoded.text.starts_with(text), "{label} {declared:?} {decoded:.100?}");
            assert!(decoded.bad_bytes > 0);
        }
    }
}

#[test]
fn utf16_needs_no_mark() {
    for text in [FRENCH, RUSSIAN, CHINESE, JAPANESE, "a = 1\r\nb = 2\r\n"] {
        for little in [true, false] {
            let decoded = decode(&utf16(text, little), &[]);
            assert_eq!((decoded.text.as_str(), decoded.bad_bytes), (text, 0), "{little}");
        }
    }
    for other in [&b"plain\0text with zeros\0 in it, \0 three"[..], b"\0\0\0\0\0\0\0\0", b"\0a"] {
        assert_eq!(decode(other, &[]).encoding, "UTF-8");
    }
    let mut zeros = encoded(&RUSSIAN.repeat(10), "windows-1251");
    zeros[31] = 0;
    assert_eq!(decode(&zeros, &[]).encoding, "windows-1251");
}

#[test]
fn a_sign_or_two_are_western() {
    let english =
        "He walked along the harbour, and the men who mended the nets laughed at him. ".repeat(9);
    for signs in [
        "\u{a9} 1998 the author, \u{a3}5.",
        "/* \u{a9} 2012 J. M\u{fc}ller, 5 \u{b5}m \u{b1} 3\u{b0} */",
        "Acme\u{ae} bolts, 3 \u{d7} 4 m\u{b2}, \u{bd} price",
        "a \u{ab}quoted\u{bb} word, \u{a7} 3 \u{b6} 2",
    ] {
        for text in [signs.to_owned(), format!("{english}{signs}\n"), format!("{signs}\n{english}")]
        {
            let decoded = decode(&encoded(&text, "windows-1252"), &[]);
            assert_eq!((&decoded.text, decoded.encoding), (&text, "windows-1252"));
        }
    }
    for (text, label) in [
        ("Łódź leży w środku kraju, a Ł. Kowalski są tu często.", "iso-8859-2"),
        ("Příliš žluťoučký kůň úpěl ďábelské ódy, č. 5.", "windows-1250"),
        ("Az árvíztűrő tükörfúrógép erős, és ő is az.", "windows-1250"),
    ] {
        for text in [text.to_owned(), text.repeat(20)] {
            assert_eq!(decode(&encoded(&text, label), &[]).text, text);
        }
    }
    for text in [
        "As opiniões são várias, põe isso lá.",
        "Õhtul läks ta koju ja sõi süüa.",
        "Où est le goût dû à l’été ?",
    ] {
        assert_eq!(decode(&encoded(text, "windows-1252"), &[]).text, text);
    }
}

#[test]
fn the_macintosh_wrote_its_own() {
    for text in [
        FRENCH,
        "Die Bücher über die Straße waren schön; jeder wußte es: “Ja” — natürlich…",
        "El niño preguntó: ¿dónde está la canción? ¡Aquí!",
        "It’s a pity that the author’s “works” weren’t printed.",
    ] {
        let bytes = encoded(text, "macintosh");
        let decoded = decode(&bytes, &[]);
        assert_eq!((decoded.text.as_str(), decoded.encoding), (text, "macintosh"));
        assert_eq!(decode(&encoded(text, "windows-1252"), &[]).text, text);
    }
}

#[test]
fn too_many_bad_bytes_are_a_reason() {
    let options = EncodingOptions { max_bad_bytes: 0.01, ..EncodingOptions::default() };
    let good = RUSSIAN.repeat(4);
    let bytes = [good.as_bytes(), b"\xff"].concat();
    let decoded = options.decode(&bytes, &[]).unwrap();
    let mut metadata = serde_json::Map::new();
    decoded.note(&mut metadata);
    assert_eq!(metadata[REPAIRED_ENCODING], 1.0 / bytes.len() as f64);
    let (reason, detail) =
        options.decode(&[good.as_bytes(), &[0xff; 20]].concat(), &["utf-8"]).unwrap_err();
    assert_eq!(reason.name(), "bad_encoding");
    assert!(detail.contains("20 of") && detail.contains("max_bad_bytes is 0.01"), "{detail}");
    assert!(
        options.decode(b"\xd0\xbf\xff\xff\xff", &["utf-8"]).is_ok(),
        "three are never too many"
    );
    let wrong = EncodingOptions { max_bad_bytes: 1.5, ..options };
    assert!(wrong.validate("a.encoding").unwrap_err().to_string().contains("a.encoding.max_bad"));
}

#[test]
fn text_encoded_twice_is_mended_when_asked() {
    let twice = |text: &str| {
        let (text, ..) = encoding_rs::WINDOWS_1252.decode(text.as_bytes());
        text.into_owned()
    };
    for text in [FRENCH, RUSSIAN, CHINESE, "It’s “fine” — €5 … ½ ñ"] {
        assert_eq!(fix_mojibake(&twice(text)).as_deref(), Some(text));
        assert_eq!(fix_mojibake(&twice(&twice(text))).as_deref(), Some(text));
        assert_eq!(fix_mojibake(text), None, "{text}");
    }
    assert_eq!(fix_mojibake("Ãrger, cafÃ© and café").as_deref(), Some("Ãrger, café and café"));
    let options = EncodingOptions { fix_mojibake: true, ..EncodingOptions::default() };
    let bytes = twice(FRENCH).into_bytes();
    let decoded = options.decode(&bytes, &[]).unwrap();
    assert_eq!((decoded.text.as_str(), decoded.fixed_mojibake), (FRENCH, true));
    assert_eq!(EncodingOptions::default().decode(&bytes, &[]).unwrap().text, twice(FRENCH));
}

#[test]
fn code_pages_of_dos_are_found_where_they_read_best() {
    let in_page = |page: &str, text: &str| -> Vec<u8> {
        let high: Vec<u8> = (128..=255).collect();
        let charset = Charset::of_label(page).unwrap();
        let letters: Vec<char> = charset.decode(&high).0.chars().collect();
        text.chars()
            .map(|c| match letters.iter().position(|&letter| letter == c) {
                Some(at) => 128 + at as u8,
                None => c as u8,
            })
            .collect()
    };
    let german = "Für die Übung müssen die Schüler größere Bögen und schöne Gefäße mitbringen.\n";
    let french = "Il a été décidé que la fête aurait lieu à Noël, près du château.\n";
    let spanish = "El niño español comió mañana y después jugó en el jardín con su compañía.\n";
    for text in [german, french, spanish] {
        for page in ["cp437", "cp850"] {
            let bytes = in_page(page, &text.repeat(4));
            let decoded = decode(&bytes, &[]);
            assert_eq!(decoded.text, text.repeat(4), "{page}");
            assert!(decoded.encoding.starts_with("IBM"), "{}", decoded.encoding);
            assert_eq!(decode(&bytes, &[page]).text, text.repeat(4), "declared {page}");
        }
        // The same text in the encodings of today is not taken for one of these.
        assert_eq!(decode(&encoded(text, "windows-1252"), &[]).text, text);
    }
    let russian = decode(&encoded(&RUSSIAN.repeat(4), "ibm866"), &[]);
    assert_eq!((russian.text, russian.encoding), (RUSSIAN.repeat(4), "IBM866"));
    for (text, label) in [(JAPANESE, "shift_jis"), (CHINESE, "gbk"), (CHINESE, "big5")] {
        let mixed = format!("{text}ASCII words among them, and A級 too.\n");
        let Some(encoding) = Encoding::for_label(label.as_bytes()) else { continue };
        let (bytes, _, lossy) = encoding.encode(&mixed);
        if !lossy {
            assert_eq!(decode(&bytes.repeat(3), &[]).text, mixed.repeat(3), "{label}");
        }
    }
}

#[test]
fn text_of_seven_bits_is_decoded_or_dropped() {
    let japanese = encoded(JAPANESE, "iso-2022-jp");
    for declared in [&[][..], &["utf-8"], &["iso-2022-jp"]] {
        let decoded = decode(&japanese, declared);
        assert_eq!((decoded.text.as_str(), decoded.encoding), (JAPANESE, "ISO-2022-JP"));
    }
    let colours = b"plain \x1b[31mred\x1b[0m";
    assert_eq!(decode(colours, &[]).encoding, "UTF-8");
    let options = EncodingOptions::default();
    for declared in [&[][..], &["hz-gb-2312"], &["utf-8"]] {
        let (reason, detail) =
            options.decode(b"He said ~{VPND~} and ~{WVJ}~}.", declared).unwrap_err();
        assert_eq!(reason.name(), "undecodable_encoding");
        assert!(detail.contains("HZ"), "{detail}");
    }
    assert_eq!(options.decode(b"plain", &["hz-gb-2312"]).unwrap().text, "plain");
}
