//! The table of the mixture, as in the LLaMA paper (table 1): what there is, what is drawn, how
//! often it repeats.

use std::fmt;

use serde::Serialize;

use crate::document::Split;
use crate::error::Result;
use crate::mixture::MixtureConfig;
use crate::shard::ShardManifest;

/// One source of a mixture.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct SourceReport {
    /// Name of the source.
    pub name: String,
    /// Documents to train on.
    pub documents: u64,
    /// Tokens to train on.
    pub tokens: u64,
    /// Bytes of the documents' text.
    pub bytes: u64,
    /// Share of the tokens drawn, 0 to 1.
    pub share: f64,
}

impl SourceReport {
    /// How often the source is gone through when `token_budget` tokens are drawn in all.
    pub fn epochs(&self, token_budget: u64) -> f64 {
        self.share * token_budget as f64 / (self.tokens as f64).max(1.0)
    }

    /// Bytes of text per token.
    pub fn bytes_per_token(&self) -> f64 {
        self.bytes as f64 / (self.tokens as f64).max(1.0)
    }
}

/// Prints the sources for a token budget.
#[derive(Clone, Copy, Debug)]
pub struct MixtureTable<'a> {
    /// The sources, as from [`Loader::report`](super::Loader::report).
    pub sources: &'a [SourceReport],
    /// Tokens the run will draw.
    pub token_budget: u64,
    /// Sources that are gone through more often get a warning.
    pub max_epochs: f64,
}

/// The sources of `config` as their manifests describe them; no shard is opened.
///
/// # Errors
/// [`DataError::Config`](crate::DataError::Config),
/// [`DataError::NotMade`](crate::DataError::NotMade) when a source has no shards yet, and what is
/// wrong with a manifest.
pub fn mixture_report(config: &MixtureConfig) -> Result<Vec<SourceReport>> {
    config.validate()?;
    let weights: f64 = config.sources.iter().map(|source| source.weight).sum();
    let of_source = |source: &crate::mixture::MixtureSource| {
        let manifest = ShardManifest::read(&source.path)?;
        let train = || manifest.shards.iter().filter(|shard| shard.split == Split::Train);
        let sum = |count: fn(&crate::shard::ShardSummary) -> u64| {
            train().map(count).fold(0, u64::saturating_add)
        };
        Ok(SourceReport {
            documents: sum(|shard| shard.documents),
            tokens: sum(|shard| shard.tokens),
            bytes: sum(|shard| shard.text_bytes),
            share: source.weight / weights,
            name: manifest.source,
        })
    };
    config.sources.iter().map(of_source).collect()
}

/// The most tokens that can be drawn with no source repeated.
pub fn single_epoch_tokens(sources: &[SourceReport]) -> u64 {
    let of_source = |source: &SourceReport| source.tokens as f64 / source.share;
    sources.iter().map(of_source).fold(f64::INFINITY, f64::min) as u64
}

impl fmt::Display for MixtureTable<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{:<20} {:>10} {:>14} {:>14} {:>11} {:>8} {:>14} {:>8}",
            "source", "documents", "bytes", "tokens", "bytes/token", "share", "drawn", "epochs"
        )?;
        for source in self.sources {
            writeln!(
                f,
                "{:<20} {:>10} {:>14} {:>14} {:>11.2} {:>7.2}% {:>14.0} {:>8.2}",
                source.name,
                source.documents,
                source.bytes,
                source.tokens,
                source.bytes_per_token(),
                source.share * 100.0,
                source.share * self.token_budget as f64,
                source.epochs(self.token_budget)
            )?;
        }
        for source in self.sources {
            let epochs = source.epochs(self.token_budget);
            if epochs > self.max_epochs {
                writeln!(
                    f,
                    "warning: {} is gone through {epochs:.2} times, more than max_epochs {}: give \
                     it less weight, more text, or raise max_epochs",
                    source.name, self.max_epochs
                )?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn epochs_follow_from_share_and_budget() {
        let books = SourceReport {
            name: "books".into(),
            documents: 10,
            tokens: 28_000,
            bytes: 84_000,
            share: 0.045,
        };
        assert!((books.epochs(1_400_000) - 2.25).abs() < 1e-9);
        assert!((books.bytes_per_token() - 3.0).abs() < 1e-9);
        let sources = [books];
        let table = MixtureTable { sources: &sources, token_budget: 1_400_000, max_epochs: 2.0 };
        let table = table.to_string();
        assert!(table.contains("warning: books is gone through 2.25 times"), "{table}");
        assert!(table.contains("books") && table.contains("4.50%") && table.contains("2.25"));
    }
}
