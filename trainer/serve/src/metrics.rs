//! Counters, gauges and histograms, and their text for Prometheus.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// What a metric can do: write its lines.
pub trait Metric {
    /// `counter`, `gauge` or `histogram`.
    const KIND: &'static str;

    /// Appends the lines of one combination of labels, `{a="b"}` or empty.
    fn write(&self, out: &mut String, name: &str, labels: &Labels<'_>);
}

/// Names and values of labels.
#[derive(Debug, Clone, Default)]
pub struct Labels<'a>(pub Vec<(&'a str, &'a str)>);

impl Labels<'_> {
    /// `{a="b",le="0.1"}`, with `more` at the end; empty without labels.
    fn text(&self, more: Option<(&str, &str)>) -> String {
        let escaped =
            |value: &str| value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
        let all = self.0.iter().copied().chain(more);
        let pairs: Vec<String> =
            all.map(|(name, value)| format!("{name}=\"{}\"", escaped(value))).collect();
        if pairs.is_empty() { String::new() } else { format!("{{{}}}", pairs.join(",")) }
    }
}

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`.
    pub fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    /// Takes over a total that is counted elsewhere.
    pub fn set(&self, total: u64) {
        self.0.store(total, Ordering::Relaxed);
    }

    /// The sum so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Metric for Counter {
    const KIND: &'static str = "counter";

    fn write(&self, out: &mut String, name: &str, labels: &Labels<'_>) {
        let _ = writeln!(out, "{name}{} {}", labels.text(None), self.get());
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// What it is now.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl Metric for Gauge {
    const KIND: &'static str = "gauge";

    fn write(&self, out: &mut String, name: &str, labels: &Labels<'_>) {
        let _ = writeln!(out, "{name}{} {}", labels.text(None), self.get());
    }
}

/// How often values were at most so large.
#[derive(Debug)]
pub struct Histogram {
    bounds: Vec<f64>,
    seen: Mutex<Seen>,
}

#[derive(Debug)]
struct Seen {
    /// One for every bound, and one for what is larger.
    counts: Vec<u64>,
    sum: f64,
}

impl Histogram {
    /// Buckets that end at `bounds`, in rising order.
    pub fn new(bounds: &[f64]) -> Self {
        let seen = Seen { counts: vec![0; bounds.len() + 1], sum: 0.0 };
        Self { bounds: bounds.to_vec(), seen: Mutex::new(seen) }
    }

    /// Counts a value.
    pub fn observe(&self, value: f64) {
        let mut seen = lock(&self.seen);
        let bucket = self.bounds.partition_point(|bound| *bound < value);
        seen.counts[bucket] += 1;
        seen.sum += value;
    }
}

impl Metric for Histogram {
    const KIND: &'static str = "histogram";

    fn write(&self, out: &mut String, name: &str, labels: &Labels<'_>) {
        let seen = lock(&self.seen);
        let mut total = 0;
        let ends = self.bounds.iter().map(|bound| format!("{bound:?}"));
        for (end, count) in ends.chain(["+Inf".to_owned()]).zip(&seen.counts) {
            total += count;
            let _ = writeln!(out, "{name}_bucket{} {total}", labels.text(Some(("le", &end))));
        }
        let _ = writeln!(out, "{name}_sum{} {}", labels.text(None), seen.sum);
        let _ = writeln!(out, "{name}_count{} {total}", labels.text(None));
    }
}

/// A metric for every combination of some labels.
#[derive(Debug)]
pub struct Family<M> {
    names: Vec<&'static str>,
    metrics: Mutex<BTreeMap<Vec<String>, Arc<M>>>,
    make: fn() -> M,
}

impl<M> Family<M> {
    /// A family with labels of these names, whose metrics `make` makes.
    pub fn new(names: &[&'static str], make: fn() -> M) -> Self {
        Self { names: names.to_vec(), metrics: Mutex::default(), make }
    }

    /// The metric of these labels.
    pub fn with(&self, values: &[&str]) -> Arc<M> {
        let key: Vec<String> = values.iter().map(ToString::to_string).collect();
        Arc::clone(lock(&self.metrics).entry(key).or_insert_with(|| Arc::new((self.make)())))
    }
}

/// Collects the text of metrics in the order they are written.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
}

impl Exposition {
    /// Appends a metric with its help and kind.
    pub fn metric<M: Metric>(&mut self, name: &str, help: &str, metric: &M, labels: &Labels<'_>) {
        self.head::<M>(name, help);
        metric.write(&mut self.text, name, labels);
    }

    /// Appends all metrics of a family; `labels` stand before its own.
    pub fn family<M: Metric>(
        &mut self,
        name: &str,
        help: &str,
        family: &Family<M>,
        labels: &Labels<'_>,
    ) {
        self.head::<M>(name, help);
        for (values, metric) in &*lock(&family.metrics) {
            let own = family.names.iter().copied().zip(values.iter().map(String::as_str));
            let all = Labels(labels.0.iter().copied().chain(own).collect());
            metric.write(&mut self.text, name, &all);
        }
    }

    fn head<M: Metric>(&mut self, name: &str, help: &str) {
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {}", M::KIND);
    }

    /// The text.
    pub fn finish(self) -> String {
        self.text
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let mut out = Exposition::default();
        let labels = Labels(vec![("model_name", "a\"b")]);
        let counter = Counter::default();
        counter.add(3);
        out.metric("vllm:prompt_tokens_total", "Tokens.", &counter, &labels);
        let histogram = Histogram::new(&[0.5, 1.0]);
        [0.5, 0.7, 9.0].into_iter().for_each(|value| histogram.observe(value));
        out.metric("t", "Time.", &histogram, &Labels::default());
        let family = Family::new(&["reason"], Counter::default);
        family.with(&["stop"]).add(1);
        out.family("done", "Ends.", &family, &labels);
        assert_eq!(
            out.finish(),
            "# HELP vllm:prompt_tokens_total Tokens.\n# TYPE vllm:prompt_tokens_total counter\n\
             vllm:prompt_tokens_total{model_name=\"a\\\"b\"} 3\n\
             # HELP t Time.\n# TYPE t histogram\nt_bucket{le=\"0.5\"} 1\nt_bucket{le=\"1.0\"} 2\n\
             t_bucket{le=\"+Inf\"} 3\nt_sum 10.2\nt_count 3\n\
             # HELP done Ends.\n# TYPE done counter\ndone{model_name=\"a\\\"b\",reason=\"stop\"} 1\n"
        );
    }
}
