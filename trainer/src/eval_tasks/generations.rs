//! Examples of generated texts to samples: answers, majorities, programs.

use std::collections::BTreeMap;

use altiplano_data::eval_tasks::{Answer, Example, ExampleKind, Rules, Task};
use altiplano_model::infer::{EngineModel, EngineOptions, SamplingParams};
use serde_json::json;

use super::execution::{Limits, run_program};
use super::sample::{Measured, Sample};
use super::scoring::EvalModel;
use crate::error::Result;
use crate::text_generation::{
    Generated, GeneratedText, GenerationOptions, SAMPLES_AT_A_TIME, continue_prompts,
};

/// How texts are sampled and what is done with programs.
#[derive(Debug, Clone)]
pub struct Sampling {
    /// Texts for each example.
    pub samples: usize,
    /// 0 takes the likeliest token.
    pub temperature: f32,
    /// The tokens of this share of the probability.
    pub top_p: f32,
    /// Seed of the draws.
    pub seed: u64,
    /// Whether generated programs are run, and within which limits.
    pub execution: Option<Limits>,
}

/// Why generated programs have no score.
pub const NOT_RUN: &str =
    "generated and saved, not run: --allow-code-execution runs what the model wrote";

/// Generates the texts of examples and judges them. `examples` have their number in the task and the
/// text before their question.
///
/// # Errors
/// When a text cannot be encoded, the engine fails, or programs cannot be kept apart.
pub fn generate_examples(
    model: EvalModel<'_>,
    task: &Task,
    rules: Rules,
    sampling: &Sampling,
    examples: &[(usize, &Example, String)],
) -> Result<Vec<Sample>> {
    let context = model.model.context();
    // Half of a small context at most is for the answer.
    let max_tokens = task.max_tokens(rules).min(context / 2).max(1);
    let mut options = GenerationOptions {
        sampling: SamplingParams {
            temperature: sampling.temperature,
            top_p: sampling.top_p,
            seed: sampling.seed,
            max_tokens,
            ..SamplingParams::default()
        },
        samples: sampling.samples,
        end_tokens: model.end_tokens.to_vec(),
        stop: task.stop(rules).iter().map(|stop| (*stop).to_owned()).collect(),
        most_blocks: None,
    };
    let mut prompts = Vec::with_capacity(examples.len());
    let mut cut = Vec::with_capacity(examples.len());
    for (_, example, prefix) in examples {
        let text = format!("{prefix}{}", example.question);
        let mut ids = model.tokenizer.encode_document(&text, true, false)?;
        let excess = ids.len().saturating_sub(context.saturating_sub(max_tokens).max(1));
        ids.drain(..excess);
        cut.push(excess > 0);
        prompts.push(ids);
    }
    let mut texts: Vec<Vec<String>> = vec![vec![String::new(); sampling.samples]; examples.len()];
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0) + max_tokens;
    let block_size = EngineOptions::new(context, 1).block_size;
    options.most_blocks = Some(model.cache_blocks(SAMPLES_AT_A_TIME, longest, block_size)?);
    continue_prompts(model.model, model.tokenizer, prompts, &options, |generated| {
        if let Generated::End(GeneratedText { prompt_index, index, text, .. }) = generated {
            texts[prompt_index][index] = text;
        }
        true
    })?;
    let mut samples = Vec::with_capacity(examples.len());
    for (((doc_id, example, prefix), texts), cut) in examples.iter().zip(texts).zip(cut) {
        let mut sample = Sample {
            arguments: vec![vec![format!("{prefix}{}", example.question)]],
            resps: texts.iter().map(|text| json!(text)).collect(),
            cut_contexts: usize::from(cut),
            ..Sample::of(*doc_id, example)
        };
        if let ExampleKind::Generation(answer) = &example.kind {
            judge(&mut sample, answer, &texts, rules, sampling)?;
        }
        samples.push(sample);
    }
    Ok(samples)
}

fn judge(
    sample: &mut Sample,
    answer: &Answer,
    texts: &[String],
    rules: Rules,
    sampling: &Sampling,
) -> Result<()> {
    sample.target = match answer {
        Answer::Aliases(aliases) => json!(aliases),
        Answer::Number(text) | Answer::Expression(text) => json!(text),
        Answer::Program(program) => json!(program.after),
    };
    if let Answer::Program(program) = answer {
        let Some(limits) = &sampling.execution else {
            sample.not_scored = Some(NOT_RUN.into());
            return Ok(());
        };
        let mut passed = 0;
        for text in texts {
            let whole = format!("{}{text}{}", program.before, program.after);
            let outcome = run_program(&whole, limits)?;
            passed += usize::from(outcome.passed());
            let outcomes = sample.filtered_resps.entry("none".into()).or_default();
            outcomes.push(outcome.to_string());
        }
        for k in [1, 10, 80, 100] {
            if k <= texts.len() {
                let share = pass_at_k(texts.len(), passed, k);
                sample.metrics.insert(format!("pass@{k},none"), Measured::Value(share));
            }
        }
        return Ok(());
    }
    let mut right: BTreeMap<&str, Vec<(String, bool)>> = BTreeMap::new();
    for text in texts {
        for judgement in answer.judge(text, rules) {
            right.entry(judgement.filter).or_default().push((judgement.found, judgement.right));
        }
    }
    for (filter, answers) in right {
        let mean = answers.iter().filter(|(_, right)| *right).count() as f64 / answers.len() as f64;
        sample.metrics.insert(format!("exact_match,{filter}"), Measured::Value(mean));
        if answers.len() > 1 {
            let is_right = f64::from(u8::from(majority_is_right(&answers)));
            let key = format!("maj@{},{filter}", answers.len());
            sample.metrics.insert(key, Measured::Value(is_right));
        }
        let found = answers.into_iter().map(|(found, _)| found).collect();
        sample.filtered_resps.insert(filter.to_owned(), found);
    }
    Ok(())
}

/// Whether the commonest answer is right; among equally common ones the one that was found first.
fn majority_is_right(answers: &[(String, bool)]) -> bool {
    let count = |found: &str| answers.iter().filter(|(other, _)| other == found).count();
    let mut best: Option<(usize, bool)> = None;
    for (found, right) in answers {
        let votes = count(found);
        if best.is_none_or(|(most, _)| votes > most) {
            best = Some((votes, *right));
        }
    }
    best.is_some_and(|(_, right)| right)
}

/// The chance that one of `k` programs passes, of `n` of which `passed` do: 1 − C(n − c, k) / C(n, k).
pub fn pass_at_k(n: usize, passed: usize, k: usize) -> f64 {
    if n - passed < k {
        return 1.0;
    }
    let none_passes: f64 = (n - passed + 1..=n).map(|of| 1.0 - k as f64 / of as f64).product();
    1.0 - none_passes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pass_at_k_counts_subsets() {
        assert_eq!(pass_at_k(10, 0, 1), 0.0);
        assert!((pass_at_k(10, 3, 1) - 0.3).abs() < 1e-12);
        // C(7, 2) / C(10, 2) = 21 / 45.
        assert!((pass_at_k(10, 3, 2) - (1.0 - 21.0 / 45.0)).abs() < 1e-12);
        assert_eq!(pass_at_k(10, 9, 2), 1.0);
        assert_eq!(pass_at_k(1, 1, 1), 1.0);
    }

    #[test]
    fn the_majority_decides() {
        let answers = |list: &[(&str, bool)]| -> Vec<(String, bool)> {
            list.iter().map(|(found, right)| ((*found).to_owned(), *right)).collect()
        };
        assert!(majority_is_right(&answers(&[("2", false), ("1", true), ("1", true)])));
        assert!(!majority_is_right(&answers(&[("1", true), ("2", false), ("2", false)])));
        assert!(majority_is_right(&answers(&[("1", true), ("2", false)])));
    }
}
