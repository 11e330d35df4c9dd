//! Tasks that models are measured by: their official files as examples, their prompts, and what counts
//! as an answer. Texts and ids only; a model scores them elsewhere.
//!
//! A module uses only the modules listed before it:
//!
//! | module | subject |
//! |---|---|
//! | `rows` | the rows of JSON, CSV, TSV and Parquet files |
//! | `example` | what a model is asked, and how choices are compared |
//! | `tex_answer` | answers in TeX |
//! | `judge` | whether a generated text is the answer |
//! | `encode` | contexts and continuations as ids |
//! | `task` | what a task is: files, prompts, measures |
//! | `tasks` | the tasks, a file a family |

mod rows;

mod example;

mod tex_answer;

mod judge;

mod encode;

mod task;

mod tasks;

pub use encode::{encode_pair, rolling_windows};
pub use example::{
    Answer, Choice, Example, ExampleKind, Gold, Normalization, Program, Rules, ScoredChoice,
    UNCONDITIONAL_CONTEXT, argmax,
};
pub use judge::Judgement;
pub use task::{Generation, Task, TaskExamples, higher_is_better};
pub use tasks::{TASKS, find_task};
