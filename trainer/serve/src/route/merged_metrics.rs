//! The metrics of all workers in one text: each sample with the worker it is from.

use std::collections::BTreeMap;

/// Samples of one metric.
#[derive(Debug, Default)]
struct Family {
    comments: Vec<String>,
    samples: Vec<String>,
}

/// Joins texts for Prometheus, each of which a worker gave.
pub fn merge(texts: &[(String, String)]) -> String {
    let mut families: BTreeMap<String, Family> = BTreeMap::new();
    for (worker, text) in texts {
        // Samples of a histogram stand under the name of its comments.
        let mut name = String::new();
        for line in text.lines().filter(|line| !line.trim().is_empty()) {
            if let Some(comment) = line.strip_prefix("# ") {
                name = comment.split(' ').nth(1).unwrap_or_default().to_owned();
                let family = families.entry(name.clone()).or_default();
                if !family.comments.iter().any(|known| known == line) {
                    family.comments.push(line.to_owned());
                }
            } else if let Some(sample) = labelled(line, worker) {
                families.entry(name.clone()).or_default().samples.push(sample);
            }
        }
    }
    let lines =
        families.into_values().flat_map(|family| family.comments.into_iter().chain(family.samples));
    lines.map(|line| line + "\n").collect()
}

/// A sample with the label `worker`.
fn labelled(line: &str, worker: &str) -> Option<String> {
    let worker = worker.replace('\\', "\\\\").replace('"', "\\\"");
    let label = format!("worker=\"{worker}\"");
    match line.find('{') {
        Some(open) => {
            let (name, rest) = line.split_at(open + 1);
            let comma = if rest.starts_with('}') { "" } else { "," };
            Some(format!("{name}{label}{comma}{rest}"))
        }
        None => {
            let (name, value) = line.split_once(' ')?;
            Some(format!("{name}{{{label}}} {value}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn samples_of_one_metric_stand_together_and_say_whose_they_are() {
        let text =
            "# HELP a A.\n# TYPE a counter\na{x=\"1\"} 2\n# HELP b B.\n# TYPE b gauge\nb 3\n";
        let merged = merge(&[("w1".into(), text.into()), ("w2".into(), text.into())]);
        assert_eq!(
            merged,
            "# HELP a A.\n# TYPE a counter\na{worker=\"w1\",x=\"1\"} 2\na{worker=\"w2\",x=\"1\"} 2\n\
             # HELP b B.\n# TYPE b gauge\nb{worker=\"w1\"} 3\nb{worker=\"w2\"} 3\n"
        );
    }
}
