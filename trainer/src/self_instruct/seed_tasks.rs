//! Seed tasks, and the prompt that shows some of them.

use std::path::Path;

use serde::Deserialize;

use crate::error::{Result, TrainerError};
use crate::prompts::read_objects;

/// What stands for no input.
pub(super) const NO_INPUT: &str = "<noinput>";

/// The text that a prompt begins with.
pub(super) const TASK_TEXT: &str = "\
Write a list of 20 different tasks. They will be given to a language model, to see how well it does them.

What is asked of the tasks:
1. No verb begins two instructions, and no two instructions are worded alike.
2. Some are questions, others are orders.
3. They are of many kinds: open questions, classification, rewriting, summaries and others.
4. A language model can do them with text alone: nothing to see, to hear, to click or to remember for later.
5. Instructions are in English.
6. An instruction has one or two sentences.
7. The input is an example of what the instruction is about, up to 100 words, and not a placeholder. Where an \
instruction needs no input, the input is <noinput>.
8. The output is a fitting answer to instruction and input, up to 100 words.

The 20 tasks:
";

/// An instruction with an example of its input and output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeedTask {
    /// What to do.
    pub instruction: String,
    /// What to do it with; may be empty.
    pub input: String,
    /// A right answer.
    pub output: String,
}

#[derive(Deserialize)]
struct Line {
    instruction: String,
    instances: Vec<Instance>,
}

#[derive(Deserialize)]
struct Instance {
    #[serde(default)]
    input: String,
    output: String,
}

/// Reads JSON lines of `{"instruction", "instances": [{"input", "output"}]}`; of the instances the first counts,
/// and other keys are left out.
///
/// # Errors
/// [`TrainerError::PromptFile`] names the line.
pub fn read_seed_tasks(path: &Path) -> Result<Vec<SeedTask>> {
    let mut tasks = Vec::new();
    for (place, object) in read_objects(path)? {
        let wrong = |reason: String| TrainerError::PromptFile { place: place.clone(), reason };
        let line: Line =
            serde_json::from_value(object).map_err(|error| wrong(error.to_string()))?;
        let Some(instance) = line.instances.into_iter().next() else {
            return Err(wrong("instances: empty, expected at least one".into()));
        };
        tasks.push(SeedTask {
            instruction: line.instruction,
            input: instance.input,
            output: instance.output,
        });
    }
    Ok(tasks)
}

/// A prompt: `text`, the tasks as numbered examples, and the beginning of the next.
pub(super) fn prompt(text: &str, shown: &[&SeedTask]) -> String {
    let mut prompt = text.to_owned();
    if !prompt.is_empty() && !prompt.ends_with('\n') {
        prompt.push('\n');
    }
    for (number, task) in (1..).zip(shown) {
        let instruction = task.instruction.split_whitespace().collect::<Vec<_>>().join(" ");
        let instruction = instruction.trim_end_matches(':');
        let input = if task.input.is_empty() { NO_INPUT } else { &task.input };
        prompt.push_str(&format!(
            "###\n{number}. Instruction: {instruction}\n{number}. Input:\n{input}\n{number}. Output:\n{}\n",
            task.output
        ));
    }
    prompt.push_str(&format!("###\n{}. Instruction:", shown.len() + 1));
    prompt
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prompt_shows_its_tasks() {
        let task = |instruction: &str, input: &str| SeedTask {
            instruction: instruction.into(),
            input: input.into(),
            output: "out".into(),
        };
        let tasks = [task("Do \n this:", ""), task("Then that.", "in")];
        assert_eq!(
            prompt("Tasks:", &[&tasks[0], &tasks[1]]),
            "Tasks:\n###\n1. Instruction: Do this\n1. Input:\n<noinput>\n1. Output:\nout\n\
             ###\n2. Instruction: Then that.\n2. Input:\nin\n2. Output:\nout\n###\n3. Instruction:"
        );
    }
}
