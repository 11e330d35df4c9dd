//! Dumps that were saved in UTF-16.

use encoding_rs::{Decoder, UTF_16BE, UTF_16LE};

/// Turns UTF-16 with a byte order mark into UTF-8, chunk by chunk; leaves anything else alone.
#[derive(Default)]
pub(super) struct Unicode {
    started: bool,
    decoder: Option<Decoder>,
    converted: String,
}

impl Unicode {
    /// The next bytes as UTF-8, unless they are in another encoding than the first ones said.
    pub fn convert<'a>(&'a mut self, bytes: &'a [u8]) -> &'a [u8] {
        if !self.started && !bytes.is_empty() {
            self.started = true;
            self.decoder = match bytes {
                [0xff, 0xfe, ..] | [b'<', 0, ..] => Some(UTF_16LE.new_decoder()),
                [0xfe, 0xff, ..] | [0, b'<', ..] => Some(UTF_16BE.new_decoder()),
                _ => None,
            };
        }
        let Some(decoder) = &mut self.decoder else { return bytes };
        self.converted.clear();
        let room = decoder.max_utf8_buffer_length(bytes.len()).unwrap_or(3 * bytes.len() + 16);
        self.converted.reserve(room);
        // Half a surrogate pair becomes U+FFFD, as in any reader of UTF-16.
        let _ = decoder.decode_to_string(bytes, &mut self.converted, false);
        self.converted.as_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn utf16_is_recognized_and_utf8_left_alone() {
        let text = "<a>Уикипедия 𝄞</a>";
        let little: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let big: Vec<u8> = text.encode_utf16().flat_map(u16::to_be_bytes).collect();
        for bytes in [
            text.as_bytes().to_vec(),
            [&[0xff, 0xfe], &little[..]].concat(),
            [&[0xfe, 0xff], &big[..]].concat(),
            little.clone(),
            big.clone(),
        ] {
            for size in [2, 3, 7, 100] {
                let mut unicode = Unicode::default();
                let made: Vec<u8> =
                    bytes.chunks(size).flat_map(|chunk| unicode.convert(chunk).to_vec()).collect();
                assert_eq!(String::from_utf8_lossy(&made), text);
            }
        }
    }
}
