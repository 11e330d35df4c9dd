//! What a single key of a training configuration cannot tell: ranges and contradictions.

use altiplano_model::config::LlamaConfig;
use altiplano_model::error::ModelError;

use super::load::Problem;
use super::train::{LrSchedule, OptimizerConfig, TrainConfig};

pub(super) type Check = Result<(), Problem>;

/// Products of sizes stay far from overflow below this.
pub(super) const LARGEST_SIZE: usize = 1 << 24;

/// Most threads of one kind: no machine computes faster with more.
pub const MOST_THREADS: usize = 1024;

/// Most steps of a run: step numbers are written with eight digits and more, and stay exact in f64.
pub(super) const MOST_STEPS: u64 = 1 << 40;

pub(super) fn check(config: &TrainConfig) -> Check {
    check_name(&config.name)?;
    check_model(&config.model, "model.")?;
    check_batch(config)?;
    config.check_parallel()?;
    check_length(config)?;
    check_optimizer(config)?;
    check_data(config)?;
    check_intervals(config)
}

pub(super) fn check_model(model: &LlamaConfig, prefix: &str) -> Check {
    match model.validate() {
        Ok(()) => Ok(()),
        Err(ModelError::Config { field, found, expected }) => Err(Problem::new(
            &format!("{prefix}{field}"),
            format!("found {found}, expected {expected}"),
        )),
        Err(other) => Err(Problem::new(&format!("{prefix}dim"), other.to_string())),
    }
}

pub(super) fn check_name(name: &str) -> Check {
    let plain = !name.chars().any(|c| c.is_control() || "/\\".contains(c));
    if name.is_empty() || name.starts_with('.') || !plain || name.len() > 200 {
        return Err(Problem::new(
            "name",
            format!("found {name:?}, expected the name of a directory: no `/`, no `.` in front"),
        ));
    }
    Ok(())
}

fn check_batch(config: &TrainConfig) -> Check {
    let batch = &config.batch;
    for (key, value) in [
        ("batch.micro_batch", batch.micro_batch),
        ("batch.grad_accum_steps", batch.grad_accum_steps),
        ("batch.seq_len", batch.seq_len),
    ] {
        if value == 0 || value > LARGEST_SIZE {
            return Err(Problem::new(key, format!("found {value}, expected 1 to {LARGEST_SIZE}")));
        }
    }
    let tokens = (batch.micro_batch as u128) * (batch.seq_len as u128);
    if tokens > 1 << 30 {
        return Err(Problem::new(
            "batch.micro_batch",
            format!(
                "micro_batch · seq_len is {tokens} tokens, expected at most 2^30: use grad_accum_steps"
            ),
        ));
    }
    if batch.seq_len > config.model.max_seq_len {
        return Err(Problem::new(
            "batch.seq_len",
            format!(
                "found {}, expected at most model.max_seq_len, which is {}",
                batch.seq_len, config.model.max_seq_len
            ),
        ));
    }
    Ok(())
}

fn check_length(config: &TrainConfig) -> Check {
    match (config.steps, config.tokens) {
        (Some(_), Some(_)) => {
            return Err(Problem::new("tokens", "given together with steps: keep one of the two"));
        }
        (None, None) => {
            return Err(Problem::new(
                "steps",
                "the length of the run is missing: give steps or tokens",
            ));
        }
        (Some(0), None) => return Err(Problem::new("steps", "found 0, expected at least 1")),
        (None, Some(0)) => return Err(Problem::new("tokens", "found 0, expected at least 1")),
        _ => {}
    }
    let steps = config.total_steps();
    if steps > MOST_STEPS {
        let key = if config.steps.is_some() { "steps" } else { "tokens" };
        return Err(Problem::new(key, format!("the run has {steps} steps, expected at most 2^40")));
    }
    Ok(())
}

fn check_optimizer(config: &TrainConfig) -> Check {
    check_adamw(&config.optimizer)?;
    check_schedule(config)
}

/// The numbers of AdamW and of the schedule, each alone.
pub(super) fn check_adamw(o: &OptimizerConfig) -> Check {
    for (key, value, fits, expected) in [
        ("lr", o.lr, o.lr > 0.0, "a positive number"),
        ("min_lr_ratio", o.min_lr_ratio, (0.0..=1.0).contains(&o.min_lr_ratio), "0 to 1"),
        ("beta1", o.beta1, (0.0..1.0).contains(&o.beta1), "at least 0 and below 1"),
        ("beta2", o.beta2, (0.0..1.0).contains(&o.beta2), "at least 0 and below 1"),
        ("eps", o.eps, o.eps > 0.0, "a positive number"),
        ("weight_decay", o.weight_decay, o.weight_decay >= 0.0, "0 or a positive number"),
        ("grad_clip", o.grad_clip, o.grad_clip >= 0.0, "0 or a positive number"),
    ] {
        if !(value.is_finite() && fits) {
            let key = format!("optimizer.{key}");
            return Err(Problem::new(&key, format!("found {value}, expected {expected}")));
        }
    }
    Ok(())
}

fn check_schedule(config: &TrainConfig) -> Check {
    let o = &config.optimizer;
    for (key, given, fits, used_by) in [
        ("decay_steps", o.decay_steps, o.schedule != LrSchedule::Constant, "cosine and wsd"),
        ("cooldown_steps", o.cooldown_steps, o.schedule == LrSchedule::Wsd, "wsd"),
    ] {
        let Some(steps) = given else { continue };
        let full = format!("optimizer.{key}");
        if !fits {
            let message = format!(
                "found {steps}, but only {used_by} can have one; unset it with {full}=null"
            );
            return Err(Problem::new(&full, message));
        }
        if steps == 0 || steps > MOST_STEPS {
            return Err(Problem::new(&full, format!("found {steps}, expected 1 to 2^40")));
        }
    }
    let planned = config.decay_steps();
    if o.warmup_steps > planned {
        let plan = match o.decay_steps {
            Some(_) => "optimizer.decay_steps, which is",
            None => "the run of",
        };
        return Err(Problem::new(
            "optimizer.warmup_steps",
            format!(
                "the warm-up of {} steps is longer than {plan} {planned}: make it shorter, \
                 such as optimizer.warmup_steps={}",
                o.warmup_steps,
                planned / 10
            ),
        ));
    }
    if let Some(cooldown) = o.cooldown_steps
        && cooldown > planned - o.warmup_steps
    {
        return Err(Problem::new(
            "optimizer.cooldown_steps",
            format!(
                "found {cooldown}, expected at most {}: decay_steps less warmup_steps",
                planned - o.warmup_steps
            ),
        ));
    }
    Ok(())
}

fn check_data(config: &TrainConfig) -> Check {
    let sources = &config.data.sources;
    if config.data.random {
        return if sources.is_empty() {
            Ok(())
        } else {
            Err(Problem::new("data.sources", "given beside `random`: expected one of them"))
        };
    }
    if config.tokenizer.is_none() {
        return Err(Problem::new(
            "tokenizer",
            "missing: give the model that made the token shards",
        ));
    }
    if sources.is_empty() {
        return Err(Problem::new("data.sources", "empty: expected at least one source"));
    }
    for (index, source) in sources.iter().enumerate() {
        if !(source.weight.is_finite() && source.weight > 0.0) {
            let key = format!("data.sources.{index}.weight");
            let found = source.weight;
            return Err(Problem::new(&key, format!("found {found}, expected a positive number")));
        }
        if let Some(first) = sources[..index].iter().position(|other| other.path == source.path) {
            let key = format!("data.sources.{index}.path");
            let path = source.path.display();
            return Err(Problem::new(&key, format!("{path} is the path of source {first} too")));
        }
    }
    Ok(())
}

fn check_intervals(config: &TrainConfig) -> Check {
    for (key, value, most) in [
        ("threads", config.threads.unwrap_or(1), MOST_THREADS),
        ("readers", config.readers, MOST_THREADS),
        ("checkpoint.keep_last", config.checkpoint.keep_last, LARGEST_SIZE),
        ("sample.max_tokens", config.sample.max_tokens, LARGEST_SIZE),
    ] {
        if value == 0 || value > most {
            return Err(Problem::new(key, format!("found {value}, expected 1 to {most}")));
        }
    }
    if config.log_every == 0 {
        return Err(Problem::new("log_every", "found 0, expected at least 1"));
    }
    if config.validate.every > 0 && config.validate.max_sequences == 0 {
        return Err(Problem::new("validate.max_sequences", "found 0, expected at least 1"));
    }
    if config.checkpoint.keep_best && (config.validate.every == 0 || config.data.random) {
        return Err(Problem::new(
            "checkpoint.keep_best",
            "found true, but nothing is validated: expected validate.every above 0 and sources",
        ));
    }
    let sample = &config.sample;
    if sample.every > 0 && sample.prompts.is_empty() {
        return Err(Problem::new(
            "sample.prompts",
            format!("empty, but sample.every is {}: give a prompt or set every to 0", sample.every),
        ));
    }
    if !(sample.temperature.is_finite() && sample.temperature >= 0.0) {
        let found = sample.temperature;
        return Err(Problem::new(
            "sample.temperature",
            format!("found {found}, expected 0 or more"),
        ));
    }
    check_skip_outliers(config.skip_outliers)
}

pub(super) fn check_skip_outliers(limit: Option<f64>) -> Check {
    if let Some(z) = limit
        && !(z.is_finite() && z > 0.0)
    {
        return Err(Problem::new(
            "skip_outliers",
            format!("found {z}, expected a positive number"),
        ));
    }
    Ok(())
}
