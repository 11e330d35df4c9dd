//! What has a name as an encoding: those of browsers, and code pages of DOS that they do not know.

use std::borrow::Cow;

use encoding_rs::Encoding;

/// An encoding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Charset {
    /// One of browsers.
    Web(&'static Encoding),
    /// A code page of DOS.
    Dos(&'static CodePage),
}

/// A code page of DOS: ASCII, and these 128 characters above it.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct CodePage {
    name: &'static str,
    high: &'static str,
}

/// Code page 437: North America.
pub(super) static CP437: CodePage = CodePage {
    name: "IBM437",
    high: "\
     ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒ\
     áíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐\
     └┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀\
     αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■\u{a0}",
};

/// Code page 850: Western Europe.
pub(super) static CP850: CodePage = CodePage {
    name: "IBM850",
    high: "\
     ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜø£Ø×ƒ\
     áíóúñÑªº¿®¬½¼¡«»░▒▓│┤ÁÂÀ©╣║╗╝¢¥┐\
     └┴┬├─┼ãÃ╚╔╩╦╠═╬¤ðÐÊËÈıÍÎÏ┘┌█▄¦Ì▀\
     ÓßÔÒõÕµþÞÚÛÙýÝ¯´\u{ad}±‗¾¶§÷¸°¨·¹³²■\u{a0}",
};

impl Charset {
    /// The encoding that a label means: those of browsers, and what Python, Emacs and vim say.
    pub fn of_label(label: &str) -> Option<Self> {
        let label = label.trim().to_ascii_lowercase();
        // Emacs says how lines end, too.
        let ends = ["-unix", "-dos", "-mac"].iter().find_map(|end| label.strip_suffix(end));
        let label = ends.unwrap_or(&label).replace('_', "-");
        let known = match label.as_str() {
            "cp437" | "ibm437" | "437" | "ibm-437" => return Some(Self::Dos(&CP437)),
            "cp850" | "ibm850" | "850" | "ibm-850" => return Some(Self::Dos(&CP850)),
            "iso-latin-1" | "latin-1" | "iso8859-1" => "latin1",
            "iso-latin-2" | "latin-2" => "latin2",
            "iso-latin-9" | "latin-9" | "latin9" => "iso-8859-15",
            "mac-roman" | "macroman" | "mac" => "macintosh",
            "sjis" | "cp932" | "japanese-shift-jis" => "shift_jis",
            "shift-jis" => "shift_jis",
            "euc-japan" | "japanese-iso-8bit" => "euc-jp",
            "cp936" | "chinese-iso-8bit" | "euc-cn" => "gbk",
            "cp949" | "uhc" => "euc-kr",
            "cp950" => "big5",
            "cp866" => "ibm866",
            "cyrillic-koi8" => "koi8-r",
            "utf8mb4" | "mule-utf-8" | "utf-8-sig" | "utf-8-emacs" => "utf-8",
            other => other,
        };
        Encoding::for_label_no_replacement(known.as_bytes()).map(Self::Web)
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Web(encoding) => encoding.name(),
            Self::Dos(page) => page.name,
        }
    }

    /// `bytes` as text, and whether some of them mean nothing.
    pub fn decode(self, bytes: &[u8]) -> (Cow<'_, str>, bool) {
        match self {
            Self::Web(encoding) => encoding.decode_without_bom_handling(bytes),
            Self::Dos(page) => {
                let high: Vec<char> = page.high.chars().collect();
                let character = |&byte: &u8| match byte.checked_sub(128) {
                    Some(above) => high.get(usize::from(above)).copied().unwrap_or_default(),
                    None => char::from(byte),
                };
                (bytes.iter().map(character).collect(), false)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_pages_have_128_characters_above_ascii() {
        for page in [&CP437, &CP850] {
            assert_eq!(page.high.chars().count(), 128, "{}", page.name);
        }
        let decoded = |page, bytes| Charset::Dos(page).decode(bytes).0.into_owned();
        assert_eq!(decoded(&CP437, b"caf\x82 \xe3\xff\xb3"), "café π\u{a0}│");
        assert_eq!(decoded(&CP850, b"\xb5 \xe0\xf0\xfe"), "Á Ó\u{ad}■");
    }

    #[test]
    fn labels_are_those_of_browsers_and_editors() {
        for (label, name) in [
            ("UTF8", "UTF-8"),
            ("latin-1", "windows-1252"),
            ("iso-8859-1-unix", "windows-1252"),
            ("iso-latin-1", "windows-1252"),
            ("ISO_8859-15", "ISO-8859-15"),
            ("euc_jp", "EUC-JP"),
            ("shift_jis", "Shift_JIS"),
            ("cp932", "Shift_JIS"),
            ("cp1251", "windows-1251"),
            ("koi8-r", "KOI8-R"),
            ("cp437", "IBM437"),
            ("IBM850", "IBM850"),
            ("cp866", "IBM866"),
            ("mac-roman", "macintosh"),
            ("gb2312", "GBK"),
            ("iso-2022-jp", "ISO-2022-JP"),
        ] {
            assert_eq!(Charset::of_label(label).map(Charset::name), Some(name), "{label}");
        }
        for label in ["", "nonsense", "hz-gb-2312", "binary", "undecided"] {
            assert_eq!(Charset::of_label(label), None, "{label}");
        }
    }
}
