//! Examples of tasks as texts: what a model is asked, what counts, and how answers are scored.

use serde::{Deserialize, Serialize};

/// Whose rules a task follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rules {
    /// Those of the LLaMA paper.
    #[default]
    Paper,
    /// Those of lm-evaluation-harness.
    Harness,
}

/// One example.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// What the files call it, or its number.
    pub id: String,
    /// Parts of the task that it counts in, such as a subject and its field.
    pub groups: Vec<String>,
    /// Which shots go with it: the subject of MMLU.
    pub shot_key: String,
    /// What stands before everything.
    pub description: String,
    /// The prompt behind the shots.
    pub question: String,
    /// What a shot shows behind the question.
    pub answer: String,
    /// What is asked of the model.
    pub kind: ExampleKind,
}

/// What is asked of a model.
#[derive(Debug, Clone, PartialEq)]
pub enum ExampleKind {
    /// How likely some continuations are.
    Choices {
        /// The continuations.
        choices: Vec<Choice>,
        /// Which of them count.
        gold: Gold,
    },
    /// How likely a whole text is.
    Text {
        /// The text.
        text: String,
        /// Words that the perplexity is for.
        words: usize,
        /// Bytes that it is for.
        bytes: usize,
    },
    /// A continuation of the model's own.
    Generation(Answer),
}

/// One continuation of a question.
#[derive(Debug, Clone, PartialEq)]
pub struct Choice {
    /// The question where each choice has its own.
    pub question: Option<String>,
    /// The continuation with the white space before it.
    pub continuation: String,
    /// The text whose characters are counted.
    pub label: String,
}

impl Choice {
    /// A continuation behind a space.
    pub fn behind_space(label: &str) -> Self {
        Self { question: None, continuation: format!(" {label}"), label: label.to_owned() }
    }
}

/// Which choices count.
#[derive(Debug, Clone, PartialEq)]
pub enum Gold {
    /// This one.
    Index(usize),
    /// Those that are true, by their share of the probability of all.
    True(Vec<bool>),
    /// The first of two sentences, which is the stereotype: how often it is likelier is counted.
    Stereotype,
}

/// What a generated text is held to.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// Any of these, after normalization: closed-book questions.
    Aliases(Vec<String>),
    /// The number behind `####` in the solution.
    Number(String),
    /// A mathematical expression in TeX.
    Expression(String),
    /// A program that ends without an error.
    Program(Program),
}

/// How generated code becomes a program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Program {
    /// What stands before the generated code.
    pub before: String,
    /// What stands behind it: the tests.
    pub after: String,
}

/// How the likelihoods of choices are compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Normalization {
    /// The sum of log-probabilities.
    Sum,
    /// The sum over the characters of the choice.
    PerCharacter,
    /// The sum over the tokens of the choice.
    PerToken,
    /// The sum less that of the same choice behind `Answer:` alone.
    Unconditional,
}

/// The context behind which a choice is scored for [`Normalization::Unconditional`].
pub const UNCONDITIONAL_CONTEXT: &str = "Answer:";

/// A continuation as a model scored it.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ScoredChoice {
    /// Σ of the natural logarithms of its tokens' probabilities.
    pub loglikelihood: f64,
    /// Its tokens.
    pub tokens: usize,
    /// The Σ behind [`UNCONDITIONAL_CONTEXT`], where it is asked for.
    pub unconditional: Option<f64>,
}

impl ScoredChoice {
    /// The score by which choices are compared.
    pub fn normalized(&self, normalization: Normalization, label: &str) -> f64 {
        let sum = self.loglikelihood;
        match normalization {
            Normalization::Sum => sum,
            Normalization::PerCharacter => sum / label.chars().count().max(1) as f64,
            Normalization::PerToken => sum / self.tokens.max(1) as f64,
            Normalization::Unconditional => sum - self.unconditional.unwrap_or(0.0),
        }
    }
}

/// The first of the largest values.
pub fn argmax(values: impl IntoIterator<Item = f64>) -> Option<usize> {
    let mut best: Option<(usize, f64)> = None;
    for (n, value) in values.into_iter().enumerate() {
        if best.is_none_or(|(_, largest)| value > largest) {
            best = Some((n, value));
        }
    }
    best.map(|(n, _)| n)
}
