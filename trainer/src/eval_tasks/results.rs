//! Samples to figures: means with their standard errors, perplexities, and the layout in which
//! lm-evaluation-harness gives results.

use std::collections::BTreeMap;

use altiplano_data::eval_tasks::{Rules, Task, higher_is_better};
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::sample::{Measured, Sample};

/// A figure.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Figure {
    /// Its value.
    pub value: f64,
    /// Its standard error; none for perplexities and single examples.
    pub stderr: Option<f64>,
}

/// The figures of a task or of a part of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Summary {
    /// The task, or the part.
    pub name: String,
    /// Whether it is a part of a task.
    pub is_part: bool,
    /// Examples that were scored.
    pub scored: usize,
    /// By `measure,filter`.
    pub figures: BTreeMap<String, Figure>,
}

/// All of one task.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskResult {
    /// Its name.
    pub task: &'static str,
    /// Shots before each question.
    pub shots: usize,
    /// Examples of the files.
    pub original: usize,
    /// The task and its parts.
    pub summaries: Vec<Summary>,
    /// Examples that count for nothing, by reason.
    pub not_scored: BTreeMap<String, u64>,
    /// Examples of which a context was cut from the left.
    pub cut_contexts: usize,
}

impl TaskResult {
    /// The figures of the whole task by `task/measure`; the filter of a measure is named where there are
    /// several.
    pub fn scores(&self) -> BTreeMap<String, f64> {
        let figures = self.summaries.iter().filter(|summary| !summary.is_part);
        let figures = figures.flat_map(|summary| &summary.figures);
        let name = |measure: &str| format!("{}/{}", self.task, short_name(measure));
        figures.map(|(measure, figure)| (name(measure), figure.value)).collect()
    }
}

/// `measure,filter` without the filter `none`.
pub fn short_name(measure: &str) -> &str {
    measure.strip_suffix(",none").unwrap_or(measure)
}

/// The figures of a task from its samples.
pub fn summarize(
    task: &'static Task,
    shots: usize,
    original: usize,
    left_out: &BTreeMap<&'static str, u64>,
    samples: &[Sample],
) -> TaskResult {
    let mut not_scored: BTreeMap<String, u64> =
        left_out.iter().map(|(reason, count)| ((*reason).to_owned(), *count)).collect();
    let mut parts: BTreeMap<&str, Vec<&Sample>> = BTreeMap::new();
    let mut scored = Vec::new();
    for sample in samples {
        if let Some(reason) = &sample.not_scored {
            *not_scored.entry(reason.clone()).or_default() += 1;
            continue;
        }
        scored.push(sample);
        for group in &sample.groups {
            parts.entry(group).or_default().push(sample);
        }
    }
    let mut summaries = vec![summary(task.name, false, &scored)];
    summaries.extend(parts.into_iter().map(|(name, samples)| summary(name, true, &samples)));
    let cut_contexts = samples.iter().filter(|sample| sample.cut_contexts > 0).count();
    TaskResult { task: task.name, shots, original, summaries, not_scored, cut_contexts }
}

fn summary(name: &str, is_part: bool, samples: &[&Sample]) -> Summary {
    let mut measured: BTreeMap<&str, Vec<Measured>> = BTreeMap::new();
    for sample in samples {
        for (name, value) in &sample.metrics {
            measured.entry(name).or_default().push(*value);
        }
    }
    let figures =
        measured.into_iter().map(|(name, values)| (name.to_owned(), figure(name, &values)));
    Summary { name: name.to_owned(), is_part, scored: samples.len(), figures: figures.collect() }
}

/// The figure of a measure.
pub fn figure(name: &str, values: &[Measured]) -> Figure {
    let mut plain = Vec::new();
    let (mut sum, mut weight) = (0.0, 0.0);
    for value in values {
        match value {
            Measured::Value(value) => plain.push(*value),
            Measured::Weighted([value, of]) => {
                sum += value;
                weight += of;
            }
        }
    }
    if plain.is_empty() {
        let loss = -sum / weight;
        let is_bits = name.starts_with("bits_per_byte");
        let value = if is_bits { loss / std::f64::consts::LN_2 } else { loss.exp() };
        return Figure { value, stderr: None };
    }
    let count = plain.len() as f64;
    let mean = plain.iter().sum::<f64>() / count;
    let squares: f64 = plain.iter().map(|value| (value - mean).powi(2)).sum();
    let stderr = (plain.len() > 1).then(|| (squares / (count - 1.0)).sqrt() / count.sqrt());
    Figure { value: mean, stderr }
}

/// The results in the layout of lm-evaluation-harness, with what it does not have beside it.
pub fn to_json(results: &[TaskResult], rules: Rules, config: &Value) -> Value {
    let mut object = Map::new();
    let mut by_task: BTreeMap<&str, Map<String, Value>> = BTreeMap::new();
    let mut set = |section: &'static str, name: &str, value: Value| {
        by_task.entry(section).or_default().insert(name.to_owned(), value);
    };
    for result in results {
        for summary in &result.summaries {
            let mut figures = Map::new();
            figures.insert("alias".into(), summary.name.clone().into());
            for (key, figure) in &summary.figures {
                let (measure, filter) = key.split_once(',').unwrap_or((key, "none"));
                figures.insert(key.clone(), json!(figure.value));
                let stderr = figure.stderr.map_or_else(|| json!("N/A"), |stderr| json!(stderr));
                figures.insert(format!("{measure}_stderr,{filter}"), stderr);
            }
            let better: Map<String, Value> = summary
                .figures
                .keys()
                .map(|key| key.split(',').next().unwrap_or_default())
                .map(|measure| (measure.to_owned(), higher_is_better(measure).into()))
                .collect();
            set("results", &summary.name, figures.into());
            set("higher_is_better", &summary.name, better.into());
            set("n-shot", &summary.name, result.shots.into());
            let original = if summary.is_part { summary.scored } else { result.original };
            let counts = json!({ "original": original, "effective": summary.scored });
            set("n-samples", &summary.name, counts);
        }
        let parts: Vec<&str> =
            result.summaries.iter().filter(|part| part.is_part).map(|part| &*part.name).collect();
        set("group_subtasks", result.task, json!(parts));
        set(
            "configs",
            result.task,
            json!({ "task": result.task, "num_fewshot": result.shots, "rules": rules }),
        );
        set("versions", result.task, json!(1));
        set("not_scored", result.task, json!(result.not_scored));
        set("cut_contexts", result.task, json!(result.cut_contexts));
    }
    for (section, of_tasks) in by_task {
        object.insert(section.into(), of_tasks.into());
    }
    object.insert("config".into(), config.clone());
    object.into()
}

/// The lines of a table of results.
pub fn table(results: &[TaskResult]) -> Vec<String> {
    let mut lines = vec![format!(
        "{:<40} {:>5} {:>8} {:<34} {:>10}   {:>8}",
        "task", "shots", "examples", "measure", "value", "stderr"
    )];
    for result in results {
        for summary in &result.summaries {
            let name = match summary.is_part {
                true => format!("  {}", summary.name),
                false => summary.name.clone(),
            };
            for (measure, figure) in &summary.figures {
                let measure = short_name(measure);
                let stderr = figure.stderr.map_or_else(String::new, |x| format!("± {x:.4}"));
                lines.push(format!(
                    "{name:<40} {:>5} {:>8} {measure:<34} {:>10.4}   {stderr:>8}",
                    result.shots, summary.scored, figure.value
                ));
            }
        }
        let mut notes: Vec<String> = result
            .not_scored
            .iter()
            .map(|(reason, count)| format!("{count} not scored: {reason}"))
            .collect();
        if result.cut_contexts > 0 {
            let count = result.cut_contexts;
            notes
                .push(format!("{count} with a context longer than the model's, cut from the left"));
        }
        lines.extend(notes.into_iter().map(|note| format!("  {}: {note}", result.task)));
    }
    lines
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_means_and_perplexities() {
        let values = [1.0, 0.0, 1.0, 1.0].map(Measured::Value);
        let mean = figure("acc,none", &values);
        assert_eq!(mean.value, 0.75);
        // The deviation of a sample of four, √(0.75 / 3), over √4.
        assert!((mean.stderr.unwrap() - 0.25).abs() < 1e-12);
        let values = [[-6.0, 2.0], [-2.0, 2.0]].map(Measured::Weighted);
        assert_eq!(figure("word_perplexity,none", &values).value, 2.0f64.exp());
        let bits = figure("bits_per_byte,none", &values);
        assert!((bits.value - 2.0 / std::f64::consts::LN_2).abs() < 1e-12);
        assert_eq!(figure("acc,none", &[Measured::Value(1.0)]).stderr, None);
    }
}
