//! Speed of one step of the data pipeline, on one core.

use std::path::{Path, PathBuf};

use altiplano_data::document::Document;
use altiplano_data::pipeline::{StepConfig, StepStats, measure_step};
use altiplano_data::source::{
    ReadContext, Record, SourceOptions, TextFormat, TextSource, list_inputs,
};
use serde::Serialize;

use crate::error::Result;

/// Least processor time measured, in seconds.
const LEAST_SECONDS: f64 = 1.0;
/// Most repetitions of the same text.
const MOST_REPETITIONS: usize = 20;

/// Speed of a step.
#[derive(Debug, Clone, Serialize)]
pub struct DataBench {
    /// Name of the step.
    pub step: String,
    /// Documents it got, once.
    pub documents: u64,
    /// Bytes of their text.
    pub bytes: u64,
    /// Documents it kept.
    pub documents_kept: u64,
    /// Bytes of text it left.
    pub bytes_kept: u64,
    /// How often the text was gone through.
    pub repetitions: usize,
    /// Processor time of all repetitions.
    pub cpu_seconds: f64,
    /// 10⁶ bytes of text in per second of processor time.
    pub megabytes_per_second: f64,
}

/// Sends the documents of JSON-lines files through one step until a second of processor time is
/// spent.
///
/// # Errors
/// What is wrong with the step's options or with the files.
pub fn bench_data(name: &str, config: &StepConfig, inputs: &[PathBuf]) -> Result<DataBench> {
    let step = config.build_document_step("step")?;
    let documents = read(inputs)?;
    let mut total = StepStats::default();
    let mut repetitions = 0;
    let mut once = StepStats::default();
    while repetitions < MOST_REPETITIONS && total.cpu_seconds < LEAST_SECONDS {
        once = measure_step(&*step, documents.clone());
        total.merge(&once);
        repetitions += 1;
    }
    Ok(DataBench {
        step: name.to_owned(),
        documents: once.docs_in,
        bytes: once.bytes_in,
        documents_kept: once.docs_out,
        bytes_kept: once.bytes_out,
        repetitions,
        cpu_seconds: total.cpu_seconds,
        megabytes_per_second: total.bytes_in as f64 / 1e6 / total.cpu_seconds.max(1e-9),
    })
}

fn read(inputs: &[PathBuf]) -> Result<Vec<Document>> {
    let source =
        TextSource { format: Some(TextFormat::Jsonl), ..TextSource::files(inputs.to_vec()) };
    let mut documents = Vec::new();
    for input in list_inputs("inputs", inputs)? {
        let context = ReadContext {
            source: "bench",
            input: &input,
            scratch: Path::new(""),
            memory_bytes: u64::MAX,
            bytes_read: &|_| {},
        };
        source.read(&context, &mut |record| {
            if let Record::Document(document) = record {
                documents.push(document);
            }
            Ok(())
        })?;
    }
    Ok(documents)
}
