//! Cut-offs from the perplexity of a sample of documents.

use std::collections::BinaryHeap;
use std::path::Path;

use rayon::prelude::*;
use xxhash_rust::xxh3::xxh3_64_with_seed;

use super::{Documents, TrainOptions};
use crate::atomic_file::write_atomically;
use crate::error::Result;
use crate::ngram::cutoffs::{Cutoffs, percentiles};
use crate::ngram::perplexity::{Description, ModelFiles, PerplexityModel};
use crate::progress::{Progress, ProgressMode, Work};

/// Bytes of text that are scored in parallel.
const BATCH_BYTES: usize = 16 << 20;

/// Computes the cut-offs of a model in a folder from the perplexity of `sample`, as
/// [`super::train`] does. For a model that was imported.
///
/// # Errors
/// An error of the documents or of the model, [`crate::DataError::Io`].
pub fn compute_cutoffs(
    options: &TrainOptions,
    sample: Documents<'_>,
    progress: ProgressMode,
) -> Result<Option<Cutoffs>> {
    options.validate("language_model")?;
    let files = ModelFiles::new(&options.output, &options.language);
    let scoring = Progress::new(progress, "cut-offs", Work::bytes(0));
    let mut perplexities = perplexities(options, sample, &scoring)?;
    let description = Description {
        sample_documents: perplexities.len() as u64,
        percentiles: percentiles(&mut perplexities),
        ..Description::read(&files.description)?
    };
    description.write(&files.description)?;
    write_cutoffs(&options.output)?;
    scoring.finish(&format!("{} documents", description.sample_documents));
    Ok(Cutoffs::from_percentiles(&description.percentiles))
}

/// Writes `cutoffs.csv`: a row for each percentile, a column for each language, as CCNet has it.
pub(super) fn write_cutoffs(folder: &Path) -> Result<()> {
    let mut columns = Vec::new();
    for language in PerplexityModel::languages(folder)? {
        let files = ModelFiles::new(folder, &language);
        if files.description.exists() {
            let description = Description::read(&files.description)?;
            if description.percentiles.len() == 100 {
                columns.push((language, description.percentiles));
            }
        }
    }
    let mut csv = String::from("percentile");
    for (language, _) in &columns {
        csv += &format!(",{language}");
    }
    csv.push('\n');
    for percent in 0..100 {
        csv += &percent.to_string();
        for (_, percentiles) in &columns {
            csv += &format!(",{:.1}", percentiles[percent]);
        }
        csv.push('\n');
    }
    write_atomically(&folder.join("cutoffs.csv"), csv.as_bytes()).map(drop)
}

/// The perplexity of the documents, or of those with the smallest hashes of their number.
pub(super) fn perplexities(
    options: &TrainOptions,
    documents: Documents<'_>,
    progress: &Progress,
) -> Result<Vec<f64>> {
    let model = PerplexityModel::open(&options.output, &options.language)?;
    let most = usize::try_from(options.sample_documents).unwrap_or(usize::MAX);
    // The document with the largest hash is at the top.
    let mut drawn: BinaryHeap<(u64, u64)> = BinaryHeap::new();
    let (mut batch, mut bytes, mut read, mut number) = (Vec::new(), 0, 0u64, 0u64);
    let mut finish = |batch: &mut Vec<(u64, String)>| -> Result<()> {
        let scored: Vec<(u64, f64)> = batch
            .par_drain(..)
            .map(|(hash, text)| Ok((hash, model.perplexity(&text)?)))
            .collect::<Result<_>>()?;
        for (hash, perplexity) in scored.into_iter().filter(|(_, value)| value.is_finite()) {
            drawn.push((hash, perplexity.to_bits()));
            if drawn.len() > most {
                drawn.pop();
            }
        }
        Ok(())
    };
    documents(&mut |text| {
        let hash = xxh3_64_with_seed(&number.to_le_bytes(), options.seed);
        number += 1;
        bytes += text.len();
        read += text.len() as u64;
        batch.push((hash, text.to_owned()));
        if bytes >= BATCH_BYTES {
            finish(&mut batch)?;
            progress.set_done(read);
            bytes = 0;
        }
        Ok(true)
    })?;
    finish(&mut batch)?;
    Ok(drawn.into_iter().map(|(_, bits)| f64::from_bits(bits)).collect())
}
