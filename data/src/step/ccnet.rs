//! CCNet's normal forms and paragraph hashes, as steps of their own to look at.

use serde::{Deserialize, Serialize};

use super::{Step, StepCounts, StepOptions, Verdict};
use crate::document::{Document, metadata_text};
use crate::error::Result;
use crate::text::ccnet::{ParagraphHasher, normalize, normalize_for_dedup};

/// What a text is normalised for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormalForm {
    /// To compare paragraphs: line by line.
    #[default]
    Dedup,
    /// For the n-gram language model: the document becomes one line.
    LanguageModel,
}

/// Replaces the text by its normal form.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CcnetNormalizeOptions {
    /// `dedup` or `language_model` (string, default `dedup`): what the text is normalised for.
    #[serde(rename = "for")]
    pub form: NormalForm,
}

impl StepOptions for CcnetNormalizeOptions {
    fn version(&self) -> u32 {
        1
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(self.clone()))
    }
}

impl Step for CcnetNormalizeOptions {
    fn apply(&self, document: &mut Document, _counts: &mut StepCounts) -> Verdict {
        document.text = match self.form {
            NormalForm::LanguageModel => normalize(&document.text),
            NormalForm::Dedup => {
                let lines: Vec<_> = document.text.split('\n').map(normalize_for_dedup).collect();
                lines.join("\n")
            }
        };
        Verdict::Keep
    }
}

/// Adds the hash of every line to the metadata: `hashes`, a list of numbers, and `hashes_hex`, the
/// same as the first 8 bytes of the SHA-1.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CcnetHashOptions {}

impl StepOptions for CcnetHashOptions {
    fn version(&self) -> u32 {
        1
    }

    fn validate(&self, _key: &str) -> Result<()> {
        Ok(())
    }

    fn build(&self, _key: &str) -> Result<Box<dyn Step>> {
        Ok(Box::new(self.clone()))
    }
}

impl Step for CcnetHashOptions {
    fn apply(&self, document: &mut Document, _counts: &mut StepCounts) -> Verdict {
        let mut hasher = ParagraphHasher::default();
        let hashes: Vec<u64> = document.text.split('\n').map(|line| hasher.hash(line)).collect();
        // The bytes of the digest, of which the number is the little-endian reading.
        let hex: Vec<_> = hashes.iter().map(|hash| format!("{:016x}", hash.swap_bytes())).collect();
        let mut metadata = document.metadata();
        metadata.insert("hashes".into(), hashes.into());
        metadata.insert("hashes_hex".into(), hex.into());
        document.metadata = Some(metadata_text(metadata));
        Verdict::Keep
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn applied(options: &dyn StepOptions, text: &str) -> Document {
        options.validate("steps.0").unwrap();
        let mut document = Document { id: "1".into(), text: text.into(), ..Document::default() };
        let step = options.build("steps.0").unwrap();
        assert_eq!(step.apply(&mut document, &mut StepCounts::default()), Verdict::Keep);
        document
    }

    #[test]
    fn both_forms_are_there() {
        let text = " “Quoted” – text\n\nÉté 2019…";
        let dedup: CcnetNormalizeOptions = serde_json::from_str("{}").unwrap();
        assert_eq!(applied(&dedup, text).text, "quoted  text\n\nété 0000");
        let model: CcnetNormalizeOptions =
            serde_json::from_str(r#"{"for":"language_model"}"#).unwrap();
        assert_eq!(applied(&model, text).text, "\"quoted\" - textete 0000...");
    }

    #[test]
    fn hashes_are_exact_as_numbers_and_in_hexadecimal() {
        let metadata = applied(&CcnetHashOptions::default(), "１２３\n").metadata();
        let hashes = &metadata["hashes"];
        assert_eq!(hashes[0].as_u64(), Some(11531306602475876234));
        assert_eq!(hashes[1].as_u64(), Some(957977401221134810));
        let hex = &metadata["hashes_hex"];
        assert_eq!((&hex[0], &hex[1]), (&"8aefb06c426e07a0".into(), &"da39a3ee5e6b4b0d".into()));
    }
}
