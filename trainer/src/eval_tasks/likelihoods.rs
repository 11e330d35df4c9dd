//! Examples of choices and of whole texts to samples.

use std::collections::BTreeMap;

use altiplano_data::eval_tasks::{
    Choice, Example, ExampleKind, Gold, Normalization, Rules, ScoredChoice, Task,
    UNCONDITIONAL_CONTEXT, argmax, encode_pair, rolling_windows,
};
use altiplano_model::infer::EngineModel;
use serde_json::json;

use super::sample::{Measured, Sample};
use super::scoring::{Continuation, EvalModel, Likelihood, Scored, score};
use crate::error::Result;

/// Why an example is not scored: its continuation has no place behind any context.
const TOO_LONG: &str = "a choice is empty or longer than the model's context";

/// What an example asks to be scored: the places of its continuations in the list of all.
struct Asked<'a> {
    example: &'a Example,
    prefix: &'a str,
    /// Of each choice: the continuation and, where it is asked for, the same behind `Answer:`.
    /// Of a text: its windows.
    places: Vec<usize>,
    unconditional: Vec<usize>,
    cut_contexts: usize,
    unfit: bool,
}

/// Scores examples of likelihoods. `examples` have their number in the task and the text before their
/// question.
///
/// # Errors
/// When a text cannot be encoded or the engine fails.
pub fn score_examples(
    model: EvalModel<'_>,
    task: &Task,
    rules: Rules,
    examples: &[(usize, &Example, String)],
) -> Result<Vec<Sample>> {
    let mut continuations = Vec::new();
    let mut asked = Vec::with_capacity(examples.len());
    for (_, example, prefix) in examples {
        asked.push(ask(model, task, rules, example, prefix, &mut continuations)?);
    }
    let scores = score(model, &continuations)?;
    let samples = examples.iter().zip(&asked);
    Ok(samples.map(|((doc_id, ..), asked)| sample(*doc_id, task, rules, asked, &scores)).collect())
}

fn ask<'a>(
    model: EvalModel<'_>,
    task: &Task,
    rules: Rules,
    example: &'a Example,
    prefix: &'a str,
    continuations: &mut Vec<Continuation>,
) -> Result<Asked<'a>> {
    let limit = model.model.context();
    let (places, unconditional) = (Vec::new(), Vec::new());
    let mut asked = Asked { example, prefix, places, unconditional, cut_contexts: 0, unfit: false };
    let mut add = |asked: &mut Asked<'_>, (context, ids): (Vec<u32>, Vec<u32>)| {
        let Some(continuation) = Continuation::new(context, ids, limit) else {
            asked.unfit = true;
            return 0;
        };
        asked.cut_contexts += usize::from(continuation.is_cut());
        continuations.push(continuation);
        continuations.len() - 1
    };
    let tokenizer = model.tokenizer;
    match &example.kind {
        ExampleKind::Choices { choices, .. } => {
            let normalization = normalization(task, rules);
            for choice in choices {
                let context = context(prefix, example, choice);
                let pair = encode_pair(tokenizer, &context, &choice.continuation)?;
                let place = add(&mut asked, pair);
                asked.places.push(place);
                if normalization == Normalization::Unconditional {
                    let pair = encode_pair(tokenizer, UNCONDITIONAL_CONTEXT, &choice.continuation)?;
                    let place = add(&mut asked, pair);
                    asked.unconditional.push(place);
                }
            }
        }
        ExampleKind::Text { text, .. } => {
            // The harness scores the begin mark behind itself too.
            let marked = rules == Rules::Harness;
            let ids = tokenizer.encode_document(text, marked, false)?;
            let prefix = tokenizer.bos_id().or(tokenizer.eos_id()).unwrap_or_default();
            for window in rolling_windows(prefix, &ids, limit) {
                let place = add(&mut asked, window);
                asked.places.push(place);
            }
        }
        ExampleKind::Generation(_) => asked.unfit = true,
    }
    Ok(asked)
}

fn context(prefix: &str, example: &Example, choice: &Choice) -> String {
    format!("{prefix}{}", choice.question.as_ref().unwrap_or(&example.question))
}

/// How choices are compared for `acc`.
fn normalization(task: &Task, rules: Rules) -> Normalization {
    match rules {
        Rules::Paper => task.paper_normalization,
        Rules::Harness => Normalization::Sum,
    }
}

fn sample(
    doc_id: usize,
    task: &Task,
    rules: Rules,
    asked: &Asked<'_>,
    scores: &[Scored],
) -> Sample {
    let example = asked.example;
    let mut sample = Sample { cut_contexts: asked.cut_contexts, ..Sample::of(doc_id, example) };
    if asked.unfit {
        sample.not_scored = Some(TOO_LONG.into());
        return sample;
    }
    let of = |places: &[usize]| -> std::result::Result<Vec<Likelihood>, String> {
        places.iter().map(|place| scores[*place].clone()).collect()
    };
    let (found, unconditional) = match (of(&asked.places), of(&asked.unconditional)) {
        (Ok(found), Ok(unconditional)) => (found, unconditional),
        (Err(reason), _) | (_, Err(reason)) => {
            sample.not_scored = Some(reason);
            return sample;
        }
    };
    sample.resps = found.iter().map(|x| json!([x.loglikelihood, x.is_greedy])).collect();
    match &example.kind {
        ExampleKind::Choices { choices, gold } => {
            let argument = |choice: &Choice| {
                vec![context(asked.prefix, example, choice), choice.continuation.clone()]
            };
            sample.arguments = choices.iter().map(argument).collect();
            sample.target = match gold {
                Gold::Index(index) => json!(index),
                Gold::True(labels) => json!(labels),
                Gold::Stereotype => json!(0),
            };
            let scored: Vec<ScoredChoice> = found
                .iter()
                .enumerate()
                .map(|(n, found)| ScoredChoice {
                    loglikelihood: found.loglikelihood,
                    tokens: found.tokens,
                    unconditional: unconditional.get(n).map(|x| x.loglikelihood),
                })
                .collect();
            sample.metrics = measure(task, rules, choices, gold, &scored);
        }
        ExampleKind::Text { words, bytes, .. } => {
            let sum: f64 = found.iter().map(|window| window.loglikelihood).sum();
            for measure in task.measures(rules) {
                let of = if *measure == "word_perplexity" { *words } else { *bytes };
                let measured = Measured::Weighted([sum, of as f64]);
                sample.metrics.insert(format!("{measure},none"), measured);
            }
            sample.resps = vec![json!(sum)];
        }
        ExampleKind::Generation(_) => {}
    }
    sample
}

fn measure(
    task: &Task,
    rules: Rules,
    choices: &[Choice],
    gold: &Gold,
    scored: &[ScoredChoice],
) -> BTreeMap<String, Measured> {
    let by = |normalization| {
        let pairs = scored.iter().zip(choices);
        pairs.map(move |(scored, choice)| scored.normalized(normalization, &choice.label))
    };
    let right = |normalization| match gold {
        Gold::Index(index) => f64::from(u8::from(argmax(by(normalization)) == Some(*index))),
        Gold::True(labels) => {
            let largest = scored.iter().map(|x| x.loglikelihood).fold(f64::NEG_INFINITY, f64::max);
            let share = |x: &ScoredChoice| (x.loglikelihood - largest).exp();
            let all: f64 = scored.iter().map(share).sum();
            let right = scored.iter().zip(labels).filter(|(_, label)| **label);
            right.map(|(scored, _)| share(scored)).sum::<f64>() / all
        }
        Gold::Stereotype => {
            let values: Vec<f64> = by(normalization).collect();
            f64::from(u8::from(values[0] > values[1]))
        }
    };
    let usual = normalization(task, rules);
    let value = |name: &str| match name {
        "acc_norm" => right(Normalization::PerCharacter),
        "likelihood_diff" => {
            let values: Vec<f64> = by(usual).collect();
            (values[0] - values[1]).abs()
        }
        _ => right(usual),
    };
    let measures = task.measures(rules).iter();
    measures.map(|name| (format!("{name},none"), Measured::Value(value(name)))).collect()
}
