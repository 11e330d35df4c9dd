//! The detector that needs no model file.

use std::sync::Once;

use super::Identified;

/// Bytes the detector looks at: more does not change its answer, and it is slow.
const SAMPLE_BYTES: usize = 1 << 14;

/// Says once in a process that there is no model.
pub(super) fn warn_once() {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        tracing::warn!(
            "no language model is given: using the built-in detector (70 languages, weaker on \
             short text). Set `model` to lid.176.bin or lid.176.ftz of fasttext.cc, or to a model \
             of `altiplano data train-lid`"
        );
    });
}

/// The likeliest language; none without letters.
pub(super) fn identify(text: &str) -> Option<Identified<'static>> {
    let mut end = text.len().min(SAMPLE_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let found = whatlang::detect(&text[..end])?;
    let score = found.confidence();
    let score = if score.is_finite() { score.clamp(0.0, 1.0) } else { 0.0 };
    Some(Identified { language: shorten(found.lang().code()), score })
}

/// What it can name.
pub(super) fn labels() -> Vec<&'static str> {
    whatlang::Lang::all().iter().map(|language| shorten(language.code())).collect()
}

/// ISO 639-3, which `whatlang` speaks, to ISO 639-1, which fastText's models speak. Norwegian
/// Bokmål is `no` there.
fn shorten(code: &'static str) -> &'static str {
    const CODES: [(&str, &str); 70] = [
        ("afr", "af"),
        ("aka", "ak"),
        ("amh", "am"),
        ("ara", "ar"),
        ("aze", "az"),
        ("bel", "be"),
        ("ben", "bn"),
        ("bul", "bg"),
        ("cat", "ca"),
        ("ces", "cs"),
        ("cmn", "zh"),
        ("cym", "cy"),
        ("dan", "da"),
        ("deu", "de"),
        ("ell", "el"),
        ("eng", "en"),
        ("epo", "eo"),
        ("est", "et"),
        ("fin", "fi"),
        ("fra", "fr"),
        ("guj", "gu"),
        ("heb", "he"),
        ("hin", "hi"),
        ("hrv", "hr"),
        ("hun", "hu"),
        ("hye", "hy"),
        ("ind", "id"),
        ("ita", "it"),
        ("jav", "jv"),
        ("jpn", "ja"),
        ("kan", "kn"),
        ("kat", "ka"),
        ("khm", "km"),
        ("kor", "ko"),
        ("lat", "la"),
        ("lav", "lv"),
        ("lit", "lt"),
        ("mal", "ml"),
        ("mar", "mr"),
        ("mkd", "mk"),
        ("mya", "my"),
        ("nep", "ne"),
        ("nld", "nl"),
        ("nob", "no"),
        ("ori", "or"),
        ("pan", "pa"),
        ("pes", "fa"),
        ("pol", "pl"),
        ("por", "pt"),
        ("ron", "ro"),
        ("rus", "ru"),
        ("sin", "si"),
        ("slk", "sk"),
        ("slv", "sl"),
        ("sna", "sn"),
        ("spa", "es"),
        ("srp", "sr"),
        ("swe", "sv"),
        ("tam", "ta"),
        ("tel", "te"),
        ("tgl", "tl"),
        ("tha", "th"),
        ("tuk", "tk"),
        ("tur", "tr"),
        ("ukr", "uk"),
        ("urd", "ur"),
        ("uzb", "uz"),
        ("vie", "vi"),
        ("yid", "yi"),
        ("zul", "zu"),
    ];
    CODES.binary_search_by_key(&code, |pair| pair.0).map_or(code, |at| CODES[at].1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_language_of_the_detector_has_a_short_code() {
        for language in whatlang::Lang::all() {
            assert_eq!(shorten(language.code()).len(), 2, "{language}");
        }
        assert_eq!(shorten("xyz"), "xyz");
    }
}
