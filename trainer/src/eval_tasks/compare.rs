//! Several runs of the same tasks side by side, with intervals by the bootstrap: examples are drawn
//! again, and where two runs have the same examples, the same are drawn for both.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde::Serialize;
use serde_json::{Map, Value};

use super::results::figure;
use super::sample::{Measured, Sample, read_json, read_samples, settings_path};
use crate::error::{Result, TrainerError};

/// How often examples are drawn again.
const DRAWS: usize = 1000;

/// The examples of a run by task.
#[derive(Debug)]
pub struct Run {
    /// The folder.
    pub folder: PathBuf,
    /// By task.
    pub tasks: BTreeMap<String, Vec<Sample>>,
    /// What the samples were made with, by task, as far as it is known.
    pub settings: BTreeMap<String, Map<String, Value>>,
}

/// A measure of a task in one run.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Compared {
    /// The run's folder.
    pub run: PathBuf,
    /// Its value.
    pub value: f64,
    /// Where it lies with a probability of 95 %.
    pub interval: [f64; 2],
    /// Examples.
    pub examples: usize,
    /// What it has more than the first run; none for the first itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub difference: Option<Difference>,
}

/// What a run has more than the first.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    /// The difference of the values.
    pub value: f64,
    /// Where it lies with a probability of 95 %.
    pub interval: [f64; 2],
    /// Whether both have the same examples, which are drawn together then.
    pub paired: bool,
}

/// A measure of a task in all runs that have it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The task.
    pub task: String,
    /// `measure,filter`.
    pub measure: String,
    /// In the order of the runs.
    pub runs: Vec<Compared>,
}

impl Run {
    /// Reads the samples of a folder that `altiplano eval tasks --output` filled.
    ///
    /// # Errors
    /// When there are none, or they are damaged.
    pub fn open(folder: &Path) -> Result<Self> {
        let (mut tasks, mut settings) = (BTreeMap::new(), BTreeMap::new());
        for entry in fs::read_dir(folder).map_err(TrainerError::io(folder))? {
            let path = entry.map_err(TrainerError::io(folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let task = name.strip_prefix("samples_").and_then(|rest| rest.strip_suffix(".jsonl"));
            if let Some(task) = task {
                let samples = read_samples(&path)?;
                if samples.is_empty() {
                    continue;
                }
                tasks.insert(task.to_owned(), samples);
                let file = settings_path(folder, task);
                if file.exists()
                    && let Value::Object(found) = read_json(&file)?
                {
                    settings.insert(task.to_owned(), found);
                }
            }
        }
        match tasks.is_empty() {
            false => Ok(Self { folder: folder.to_owned(), tasks, settings }),
            true => Err(TrainerError::RunFile {
                path: folder.to_owned(),
                reason: "no samples here; `altiplano eval tasks --output` writes them".into(),
            }),
        }
    }

    /// A measure of a task, by example.
    fn measured(&self, task: &str, measure: &str) -> BTreeMap<(usize, &str), Measured> {
        let samples = self.tasks.get(task).into_iter().flatten();
        let value = |sample: &Sample| sample.metrics.get(measure).copied();
        samples.filter_map(|x| Some(((x.doc_id, &*x.id), value(x)?))).collect()
    }
}

/// What a reader of a comparison must know: runs without a task that others have, and settings other than
/// the model in which runs of a task differ, so that their scores do not say which model is better.
pub fn warnings(runs: &[Run]) -> Vec<String> {
    let mut warnings = Vec::new();
    let tasks: BTreeSet<&String> = runs.iter().flat_map(|run| run.tasks.keys()).collect();
    for task in tasks {
        for run in runs.iter().filter(|run| !run.tasks.contains_key(task)) {
            warnings.push(format!("{} has no samples of {task}", run.folder.display()));
        }
        let mut known = runs.iter().filter_map(|run| Some((run, run.settings.get(task)?)));
        let Some((first, of_first)) = known.next() else { continue };
        for (run, settings) in known {
            let keys =
                of_first.keys().filter(|key| !["model", "tokenizer"].contains(&key.as_str()));
            for key in keys.filter(|key| settings.get(*key) != of_first.get(*key)) {
                let value = |settings: &Map<String, Value>| {
                    settings.get(key).map_or_else(|| "nothing".to_owned(), Value::to_string)
                };
                warnings.push(format!(
                    "{task}: {key} is {} in {} and {} in {}; scores made with different settings do not \
                     compare models",
                    value(of_first),
                    first.folder.display(),
                    value(settings),
                    run.folder.display(),
                ));
            }
        }
    }
    warnings
}

/// Compares runs in every measure of every task. The draws depend on `seed` alone.
pub fn compare(runs: &[Run], seed: u64) -> Vec<Comparison> {
    let mut measures: BTreeSet<(&str, &str)> = BTreeSet::new();
    for run in runs {
        for (task, samples) in &run.tasks {
            let names = samples.iter().flat_map(|sample| sample.metrics.keys());
            measures.extend(names.map(|name| (&**task, &**name)));
        }
    }
    let compared = measures.into_iter().map(|(task, measure)| {
        let of_runs: Vec<_> = runs.iter().map(|run| run.measured(task, measure)).collect();
        let first = of_runs.iter().position(|values| !values.is_empty()).unwrap_or(0);
        let mut compared = Vec::new();
        for (n, values) in of_runs.iter().enumerate().filter(|(_, values)| !values.is_empty()) {
            let own: Vec<Measured> = values.values().copied().collect();
            let drawn = draws(measure, &[&own], seed, |figures| figures[0]);
            let difference =
                (n != first).then(|| difference(measure, &of_runs[first], values, seed));
            compared.push(Compared {
                run: runs[n].folder.clone(),
                value: figure(measure, &own).value,
                interval: interval(drawn),
                examples: own.len(),
                difference,
            });
        }
        Comparison { task: task.to_owned(), measure: measure.to_owned(), runs: compared }
    });
    compared.collect()
}

fn difference(
    measure: &str,
    first: &BTreeMap<(usize, &str), Measured>,
    other: &BTreeMap<(usize, &str), Measured>,
    seed: u64,
) -> Difference {
    let paired = first.keys().eq(other.keys());
    let [first, other] = [first, other].map(|x| x.values().copied().collect::<Vec<_>>());
    let value = figure(measure, &other).value - figure(measure, &first).value;
    let drawn = match paired {
        true => draws(measure, &[&first, &other], seed, |figures| figures[1] - figures[0]),
        false => {
            let a = draws(measure, &[&first], seed, |figures| figures[0]);
            let b = draws(measure, &[&other], seed.wrapping_add(1), |figures| figures[0]);
            b.into_iter().zip(a).map(|(b, a)| b - a).collect()
        }
    };
    Difference { value, interval: interval(drawn), paired }
}

/// A figure of examples that are drawn again, many times; all lists have equal lengths, and the same
/// places are drawn of each.
fn draws(measure: &str, lists: &[&[Measured]], seed: u64, of: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let count = lists[0].len();
    let mut places = vec![0; count];
    let draw = |_| {
        places.iter_mut().for_each(|place| *place = rng.random_range(0..count));
        let figures: Vec<f64> = lists
            .iter()
            .map(|list| {
                let drawn: Vec<Measured> = places.iter().map(|place| list[*place]).collect();
                figure(measure, &drawn).value
            })
            .collect();
        of(&figures)
    };
    (0..DRAWS).map(draw).collect()
}

/// The middle 95 % of drawn values.
fn interval(mut drawn: Vec<f64>) -> [f64; 2] {
    drawn.sort_by(f64::total_cmp);
    let at = |share: f64| drawn[((drawn.len() - 1) as f64 * share).round() as usize];
    [at(0.025), at(0.975)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str, right: &[u8]) -> Run {
        let sample = |(doc_id, right): (usize, &u8)| Sample {
            doc_id,
            id: doc_id.to_string(),
            groups: Vec::new(),
            arguments: Vec::new(),
            target: Value::Null,
            resps: Vec::new(),
            filtered_resps: BTreeMap::new(),
            cut_contexts: 0,
            not_scored: None,
            metrics: [("acc,none".to_owned(), Measured::Value(f64::from(*right)))].into(),
        };
        let samples = right.iter().enumerate().map(sample).collect();
        Run {
            folder: name.into(),
            tasks: [("piqa".to_owned(), samples)].into(),
            settings: BTreeMap::new(),
        }
    }

    #[test]
    fn runs_that_cannot_be_compared_are_named() {
        let with = |name: &str, rules: &str| {
            let mut run = run(name, &[1, 0]);
            let settings = serde_json::json!({"rules": rules, "model": name});
            run.settings.extend(settings.as_object().map(|map| ("piqa".to_owned(), map.clone())));
            run
        };
        assert!(warnings(&[with("a", "paper"), with("b", "paper"), run("c", &[1])]).is_empty());
        let found = warnings(&[with("a", "paper"), with("b", "harness")]);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("piqa: rules is \"paper\" in a and \"harness\" in b"));
        let mut without = run("d", &[]);
        without.tasks.clear();
        assert_eq!(warnings(&[with("a", "paper"), without]), ["d has no samples of piqa"]);
    }

    /// Runs that differ in a few examples of many are told apart where these are drawn together.
    #[test]
    fn pairs_are_drawn_together() {
        let first: Vec<u8> = (0..200).map(|n| u8::from(n % 2 == 0)).collect();
        let second: Vec<u8> = (0..200).map(|n| u8::from(n % 2 == 0 || n < 20)).collect();
        let compared = compare(&[run("a", &first), run("b", &second)], 7);
        let [a, b] = &compared[0].runs[..] else { panic!("{compared:?}") };
        assert_eq!((a.value, b.value, a.examples), (0.5, 0.55, 200));
        assert!(a.interval[0] < 0.5 && a.interval[1] > 0.5 && a.difference.is_none());
        let difference = b.difference.as_ref();
        assert!(difference.is_some_and(|x| x.paired && x.interval[0] > 0.0), "{difference:?}");
        let unpaired = compare(&[run("a", &first), run("b", &second[..180])], 7);
        let difference = unpaired[0].runs[1].difference.as_ref();
        assert!(difference.is_some_and(|x| !x.paired && x.interval[0] < 0.0), "{difference:?}");
        assert_eq!(compare(&[run("a", &first)], 7), compare(&[run("a", &first)], 7));
    }
}
